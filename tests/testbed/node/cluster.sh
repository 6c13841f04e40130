#!/bin/bash
# Starts the cluster inside the node, writes STATE/ready when Pods can run, and ends when one of its programs does.
# It is the namespaces' first process, so it also takes in the processes that containers orphan.
set -euo pipefail

address=172.30.0.2 # the node's
dns=10.0.0.10
pki=$STATE/pki
export KUBECONFIG=$STATE/admin.kubeconfig

declare -A running=() # name -> process id
start() { # NAME COMMAND...
  local name=$1
  shift
  "$@" >"$STATE/log/$name.log" 2>&1 </dev/null &
  running[$name]=$!
}
check() {
  local name
  for name in "${!running[@]}"; do
    kill -0 "${running[$name]}" 2>/dev/null || { echo "$name ended" && exit 1; }
  done
}
await() { # COMMAND...
  until "$@" >/dev/null 2>&1; do
    check
    sleep 0.05
  done
}

(
  umask 077
  cd "$pki"
  key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
  leaf() { # NAME SUBJECT EXTENSIONS
    key "$1.key"
    openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out "$1.crt" -extfile <(printf '%b' "$3")
  }
  client() { # NAME SUBJECT: a client certificate and its kubeconfig
    leaf "$1" "$2" "extendedKeyUsage=clientAuth\n"
    cat >"$STATE/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: testbed
  cluster: {server: "https://127.0.0.1:6443", certificate-authority: "$pki/ca.crt"}
users:
- name: $1
  user: {client-certificate: "$pki/$1.crt", client-key: "$pki/$1.key"}
contexts:
- name: testbed
  context: {cluster: testbed, user: $1}
current-context: testbed
YAML
  }
  key service-account.key
  key ca.key
  openssl req -x509 -new -key ca.key -subj /CN=testbed -days 2 -out ca.crt
  leaf apiserver /CN=kube-apiserver \
    "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:10.0.0.1,IP:$address,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"
  leaf kubelet-serving /CN=node1 "subjectAltName=DNS:node1,IP:$address\nextendedKeyUsage=serverAuth\n"
  client admin /O=system:masters/CN=admin
  client kubelet /O=system:nodes/CN=system:node:node1
  client controller-manager /CN=system:kube-controller-manager
  client scheduler /CN=system:kube-scheduler
  client proxy /CN=system:kube-proxy
) 2>"$STATE/log/openssl.log"

cat >"$STATE/containerd.toml" <<TOML
version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
imports = []
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']
[grpc]
  address = '/run/containerd/containerd.sock'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'localhost/testbed/pause:v1'
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true # the machine may lack CAP_SYS_RESOURCE
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['$PROGRAMS/cni']
    conf_dir = '$STATE/cni'
    use_internal_loopback = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '$(command -v runc)'
      SystemdCgroup = false
TOML
cat >"$STATE/cni/10-testbed.conflist" <<'JSON'
{"cniVersion": "1.0.0", "name": "testbed", "plugins": [{"type": "ptp", "ipMasq": false,
  "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
# syncFrequency: a changed Secret is in its Pod after a second instead of a minute.
cat >"$STATE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
address: $address
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$pki/ca.crt"}}
authorization: {mode: Webhook}
tlsCertFile: "$pki/kubelet-serving.crt"
tlsPrivateKeyFile: "$pki/kubelet-serving.key"
syncFrequency: 1s
nodeStatusUpdateFrequency: 2s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
oomScoreAdj: 0
maxOpenFiles: 20000
makeIPTablesUtilChains: false
clusterDomain: cluster.local
clusterDNS: [$dns]
resolvConf: ""
seccompDefault: true
volumePluginDir: /var/lib/kubelet/volumeplugins
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
YAML
cat >"$STATE/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: "$STATE/proxy.kubeconfig"}
mode: nftables
hostnameOverride: node1
clusterCIDR: 10.244.0.0/16
linux: {oomScoreAdj: 0, conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
nftables: {syncPeriod: 30s, minSyncPeriod: 100ms}
YAML

# Nothing that is stored is needed after a crash.
start etcd etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn
start apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address="$address" \
  --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
  --service-cluster-ip-range=10.0.0.0/24 --service-account-issuer=https://kubernetes.default.svc \
  --service-account-key-file="$pki/service-account.key" --service-account-signing-key-file="$pki/service-account.key" \
  --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
  --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --profiling=false
start containerd containerd --config "$STATE/containerd.toml"

containers() { ctr --address /run/containerd/containerd.sock --namespace k8s.io "$@"; }
await containers version
for image in "$STATE"/images/*.tar; do
  containers images import --local --snapshotter overlayfs "$image" >>"$STATE/log/images.log" 2>&1
done
await kubectl get --raw /readyz
start controller-manager kube-controller-manager --kubeconfig="$STATE/controller-manager.kubeconfig" \
  --use-service-account-credentials=true --service-account-private-key-file="$pki/service-account.key" \
  --root-ca-file="$pki/ca.crt" --leader-elect=false --kube-api-qps=500 --kube-api-burst=1000 \
  --flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins
start scheduler kube-scheduler --kubeconfig="$STATE/scheduler.kubeconfig" --leader-elect=false
start kubelet kubelet --config="$STATE/kubelet.yaml" --kubeconfig="$STATE/kubelet.kubeconfig" --hostname-override=node1 \
  --node-ip="$address" --root-dir=/var/lib/kubelet
start proxy kube-proxy --config="$STATE/proxy.yaml"
await kubectl apply --filename "$HERE/coredns.yaml"
await kubectl --namespace default get serviceaccount default
await kubectl --namespace kube-system rollout status deployment/coredns --timeout=1s
touch "$STATE/ready"
wait -n || true
check
