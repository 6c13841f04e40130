#!/bin/bash
# control-plane.sh PROGRAMS STATE: a real etcd, kube-apiserver and kube-controller-manager on loopback; no node.
#
# PROGRAMS is the folder that build.sh prints; STATE an absent or empty folder for everything that the control plane keeps.
# When it can be used, `ready KUBECONFIG` is printed; then the script waits for its standard input to end, as it does
# however the starter ended. All programs are ended and STATE is removed on the way out.
#
#   STATE/admin.kubeconfig   a member of system:masters, for whoever drives the tests
#   STATE/audit.log          one JSON line per request to what Keywright touches, with user, verb, object and code
#   STATE/*.log              what the programs print
#
# SIGUSR1 kills the API server and starts it again.
set -euo pipefail
umask 077

programs=$(cd "$1" && pwd)
mkdir -p "$2"
state=$(cd "$2" && pwd)
if [ -n "$(ls -A "$state")" ]; then
  echo "control-plane.sh: $state is not empty; give it a folder of its own" >&2
  exit 2
fi
unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy
export KUBECONFIG=$state/admin.kubeconfig

declare -A running=() # name -> process id

# pdeathsig: not even SIGKILL to this script leaves a program behind.
start() { # NAME COMMAND...
  local name=$1
  shift
  setpriv --pdeathsig KILL "$@" >"$state/$name.log" 2>&1 </dev/null &
  running[$name]=$!
}

# Nothing that was stored is needed again, so nobody gets the time to say goodbye.
end() { # NAME
  kill -KILL "${running[$1]}" 2>/dev/null || true
  wait "${running[$1]}" 2>/dev/null || true
  unset "running[$1]"
}

end_all() {
  local name
  for name in "${!running[@]}"; do end "$name"; done
}

trap 'end_all; rm -rf "$state"' EXIT
trap 'exit 1' INT TERM HUP

alive() { kill -0 "${running[$1]}" 2>/dev/null; }

fail() { # NAME: that program ended
  echo "control-plane.sh: $1 ended; its last lines:" >&2
  tail -n 20 "$state/$1.log" | cut -c 1-500 >&2
  exit 1
}

# Ends the script when a program did, or when nobody is left to serve.
check() {
  local name
  alive starter || exit 0
  for name in "${!running[@]}"; do alive "$name" || fail "$name"; done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

kubectl() { "$programs/kubectl" --request-timeout=5s "$@" >/dev/null 2>&1; }

kubeconfig() { # FILE USER TOKEN PORT
  cat >"$state/$1" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: testbed
  cluster: {server: "https://127.0.0.1:$4", certificate-authority: "$state/pki/apiserver.crt"}
users:
- name: $2
  user: {token: "$3"}
contexts:
- name: testbed
  context: {cluster: testbed, user: $2}
current-context: testbed
YAML
}

port=
start_api_server() {
  if [ -z "$port" ]; then
    port=$(free_port)
    kubeconfig admin.kubeconfig admin "$admin_token" "$port"
    kubeconfig controller-manager.kubeconfig controller-manager "$controller_manager_token" "$port"
  fi
  # Without the endpoint reconciler nobody minds that the address is loopback. OwnerReferencesPermissionEnforcement is
  # what some distributions turn on, and what a missing right to `finalizers` shows under.
  start apiserver "$programs/kube-apiserver" --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$port" \
    --cert-dir="$state/pki" --etcd-servers="unix://$state/etcd.sock" --endpoint-reconciler-type=none --profiling=false \
    --service-cluster-ip-range=10.0.0.0/24 --authorization-mode=RBAC --token-auth-file="$state/tokens.csv" \
    --enable-admission-plugins=OwnerReferencesPermissionEnforcement \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$state/pki/service-account.key" \
    --service-account-signing-key-file="$state/pki/service-account.key" \
    --audit-policy-file="$state/audit-policy.yaml" --audit-log-path="$state/audit.log"
}

# /readyz includes the bootstrap of the RBAC roles.
await_api_server() {
  until kubectl get --raw /readyz; do
    alive starter || exit 0
    alive etcd || fail etcd
    alive apiserver || return 1
    sleep 0.05
  done
}

cat <&0 >/dev/null & # ends with our standard input
running[starter]=$!
exec </dev/null

mkdir "$state/pki"
openssl ecparam -name prime256v1 -genkey -noout -out "$state/pki/service-account.key" 2>/dev/null
admin_token=$(openssl rand -hex 32)
controller_manager_token=$(openssl rand -hex 32)
cat >"$state/tokens.csv" <<CSV
$admin_token,admin,admin,system:masters
$controller_manager_token,system:kube-controller-manager,controller-manager
CSV
cat >"$state/audit-policy.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Metadata
  resources:
  - {group: keywright.dev}
  - {group: "", resources: [secrets, events]}
  - {group: events.k8s.io, resources: [events]}
  - {group: coordination.k8s.io, resources: [leases]}
- level: None
YAML

start etcd "$programs/etcd" --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls "unix://$state/etcd.sock" --advertise-client-urls "unix://$state/etcd.sock" \
  --listen-peer-urls http://127.0.0.1:0
start_api_server
if ! await_api_server; then
  # Between the choice of a free port and its use, another program may have taken it: the only failure worth a second try.
  grep -q 'address already in use' "$state/apiserver.log" || fail apiserver
  end apiserver
  port=
  start_api_server
  await_api_server || fail apiserver
fi

# Separate credentials per controller, as in a real cluster: admission policies name them.
start controller-manager "$programs/kube-controller-manager" --kubeconfig="$state/controller-manager.kubeconfig" \
  --use-service-account-credentials=true --service-account-private-key-file="$state/pki/service-account.key" \
  --root-ca-file="$state/pki/apiserver.crt" --leader-elect=false --secure-port=0 --profiling=false \
  --kube-api-qps=500 --kube-api-burst=1000 \
  --controllers=garbage-collector-controller,namespace-controller,job-controller,serviceaccount-controller,serviceaccount-token-controller,clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller,root-ca-certificate-publisher-controller
until kubectl --namespace default get serviceaccount default; do
  check
  sleep 0.05
done

is_restart_wanted=
trap 'is_restart_wanted=yes' USR1
echo "ready $KUBECONFIG"
while :; do
  wait -n || true
  if [ -n "$is_restart_wanted" ]; then
    is_restart_wanted=
    end apiserver
    start_api_server
    await_api_server || fail apiserver
  fi
  check
done
