#!/bin/bash
# demo.sh: shows Keywright at work on a real Kubernetes, step by step, each with the command that a user would type. It
# builds what is missing first. KEEP=1 leaves everything running.
#
# By default there is a control plane on loopback, and the programs run beside it with the chart's rights. NODE=1 adds a
# node, and the chart is installed on it. CLUSTER=KUBECONFIG uses a cluster that exists, with IMAGE, and removes from it
# all that the demo made.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
project=$(dirname "$here")
cd "$project"
keywright=$PWD/target/$(uname -m)-unknown-linux-gnu/demo/keywright
programs=""
work=$(mktemp -d)
children=()
number=0
on_the_way_out=()
where=beside # Keywright runs beside a control plane, or on a `node` of its own, or in a `cluster` that exists

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi

finish() {
  local child command
  for command in "${on_the_way_out[@]}"; do $command; done
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

step() {
  number=$((number + 1))
  printf '\n%s%d. %s%s\n' "$bold" $number "$*" "$plain"
}
show() { # COMMAND...: as a user types it, then what it prints
  printf '%s$ %s%s\n' "$dim" "${*//$work\//}" "$plain"
  inside bash -o pipefail -c "$*"
}
fail() {
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  tail -n 5 "$work"/*.log >&2 2>/dev/null || true
  exit 1
}
refuse() { # before anything was changed
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  exit 2
}
await() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fail "waited in vain for $what"
    sleep 0.1
  done
}
kubectl() { inside kubectl "$@"; }
ask() { # KEY ADDRESS CURL'S ARGUMENTS...: asks the verifier as a proxy would
  local key=$1 address=$2
  shift 2
  printf 'header = "Authorization: Bearer %s"\n' "$key" |
    inside curl -sS --max-time 5 --config - -H "X-Forwarded-For: $address" "$@" "http://$verifier/verify"
}
expect() { # STATUS KEY ADDRESS [AS]: says what came back; AS is what stands in the command for the key
  local expected=$1 key=$2 address=$3 as=${4:-\$KEY} answer
  printf '%s$ curl -i -H "Authorization: Bearer %s" -H "X-Forwarded-For: %s" http://%s/verify%s\n' \
    "$dim" "$as" "$address" "$verifier" "$plain"
  answer=$(ask "$key" "$address" -i | tr -d '\r')
  grep -iE '^(HTTP|x-keywright|[{])' <<<"$answer"
  echo
  [ "$(awk 'NR == 1 { print $2 }' <<<"$answer")" = "$expected" ] || fail "expected $expected"
}
is_refused() { # KEY ADDRESS
  [ 401 = "$(ask "$1" "$2" -o /dev/null -w '%{http_code}')" ]
}

# Both give `inside`, which runs a command where the cluster can be reached, and hold on to it until this script ends.
start_node() {
  "$here/testbed/node.sh" "$programs" "$work/node" "$project"/target/demo-image/*.tar <"$work/hold" >"$work/ready" 2>"$work/cluster.log" &
  children=($!)
  exec 8>"$work/hold" # it ends when this is closed
  if ! read -r _ <"$work/ready"; then
    local code=0
    wait "${children[0]}" || code=$?
    children=()
    [ $code != 3 ] || refuse "$(tail -n 1 "$work/cluster.log"). Leave NODE=1 out: the demo then runs without a node"
    fail "the node did not start: $(cat "$work/cluster.log")"
  fi
  inside() { "$here/testbed/enter.sh" "$work/node" "$@"; }
}
start_control_plane() {
  "$here/testbed/control-plane.sh" "$programs" "$work/control-plane" <"$work/hold" >"$work/ready" 2>"$work/cluster.log" &
  children=($!)
  exec 8>"$work/hold"
  read -r _ KUBECONFIG <"$work/ready" || fail "the control plane did not start: $(cat "$work/cluster.log")"
  export KUBECONFIG
  inside() { command "$@"; } # a program, not the function of that name
}

install_by_helm() { # ARGUMENTS
  step "Install it"
  # Without helm's remark on the symbolic link in the chart, and without the chart's notes.
  show "helm install keywright charts/keywright -n keywright-system --create-namespace --wait --timeout=180s $1" \
    2> >(grep -v 'found symbolic link' >&2) | sed '/^NOTES:/,$d' ||
    fail "the chart was not installed. Its Pods, and why they do not run:
$(kubectl get pods -n keywright-system)
$(kubectl get events -n keywright-system --field-selector type=Warning -o custom-columns=:.message | sort -u | tail -n 5)"
  show "kubectl get pods -n keywright-system"
}

credentials() { # COMPONENT: a kubeconfig file with a token of its ServiceAccount
  local token file=$work/$1.kubeconfig
  token=$(kubectl create token "keywright-$1" -n keywright-system)
  (
    umask 077
    kubectl config view --raw --minify -o json |
      jq --arg token "$token" '.users[0].user = {token: $token}' >"$file"
  )
  echo "$file"
}
address() { # COMPONENT FIELD: where it listens
  jq -r "select(.message == \"listening\") | .$2" "$work/$1.log" 2>/dev/null | head -n 1
}
listens() { [ -n "$(address "$1" admin_address)" ]; }
is_ready() { curl -fsS "http://$(address "$1" admin_address)/readyz"; }
run() { # COMPONENT ARGUMENTS...
  local component=$1 file
  shift
  file=$(credentials "$component")
  printf '%s$ keywright %s%s%s\n' "$dim" "$component --kubeconfig=$component.kubeconfig" "${*:+ $*}" "$plain"
  # Neither this script's output nor the cluster is held open by it, and it ends with this script, whatever ends that.
  setpriv --pdeathsig TERM "$keywright" "$component" --kubeconfig "$file" --admin-address 127.0.0.1:0 "$@" \
    >/dev/null 2>"$work/$component.log" 8>&- &
  children+=($!)
  await 30 "the $component to listen" listens "$component"
  await 30 "the $component to be ready" is_ready "$component"
}
install_without_a_node() {
  step "Install the CustomResourceDefinitions, ServiceAccounts and rights"
  kubectl create namespace keywright-system >/dev/null
  local rights="CustomResourceDefinition|ServiceAccount|ClusterRole|ClusterRoleBinding|Role|RoleBinding"
  printf '%s$ helm template keywright charts/keywright -n keywright-system | kubectl apply -f -%s\n' "$dim" "$plain"
  # What needs a node, or a webhook, would only stand in the way.
  inside helm template keywright charts/keywright -n keywright-system --no-hooks 2> >(grep -v 'found symbolic link' >&2) |
    awk -v kinds="^kind: ($rights)\$" 'BEGIN { RS = "\n?---\n" } { keep = 0; n = split($0, lines, "\n");
      for (i = 1; i <= n; i++) if (lines[i] ~ kinds) keep = 1; if (keep) print "---\n" $0 }' | kubectl apply -f -
  kubectl wait --for=condition=Established crd/apikeys.keywright.dev crd/apikeyrecords.keywright.dev >/dev/null
  step "Run the controller and the verifier, each with its own ServiceAccount's token"
  run controller
  run verifier --identity demo-verifier --http-address 127.0.0.1:0 --grpc-address 127.0.0.1:0
  verifier=$(address verifier http_address)
}

# A Pod with its key mounted, behind nginx: only where there is a node.
show_a_workload() {
  step "A Pod mounts its key, and calls a service behind nginx, which asks the verifier"
  sed 's/TENANT/demo/g' "$here/e2e/workload.yaml" >"$work/workload.yaml"
  show "kubectl apply -f $work/workload.yaml"
  kubectl wait -n demo --for=condition=Ready pod --all --timeout=60s >/dev/null || fail "the Pods did not start"
  show "kubectl get pods -n demo -o wide | cut -c 1-80"
  call insider
  [ "$(request insider)" = "owner=platform@example.org credential=" ] || fail "it should have been let in"

  step "From now on, only that Pod's address may use the key"
  local address
  address=$(kubectl get pod insider -n demo -o jsonpath='{.status.podIP}')
  show "kubectl patch apikeys.keywright.dev client -n demo --type=merge -p '{\"spec\": {\"allowedIPs\": [\"$address\"]}}'"
  await 10 "the other Pod to be refused" said outsider 403
  call outsider
  call insider
  [ "$(request insider)" = "owner=platform@example.org credential=" ] || fail "it should have been let in"

  step "Deleting the ApiKey revokes its key, mounted or not"
  show "kubectl delete apikeys.keywright.dev client -n demo --timeout=30s"
  await 10 "the Pod to be refused" said insider 401
  call insider
}
request() { # POD
  kubectl exec -n demo "$1" -- sh -c \
    'curl -fsS --max-time 5 -H "Authorization: Bearer $(cat /var/run/keywright/api-key)" http://front' 2>&1 |
    grep -v '^command terminated' || true
}
said() { request "$1" | grep -q "returned error: $2"; } # POD STATUS
call() { # POD
  printf '%s$ kubectl exec -n demo %s -- sh -c '\''curl -fsS -H "Authorization: Bearer $(cat /var/run/keywright/api-key)" http://front'\''%s\n' \
    "$dim" "$1" "$plain"
  request "$1"
}

prepare() { # PARTS...: tells where the test bed's programs are
  command -v cargo >/dev/null || refuse "cargo is not installed. Install Rust with rustup: https://rustup.rs"
  "$here/prepare.sh" "$@"
  shift # keywright
  programs=$("$here/testbed/build.sh" "$@")
  export PATH=$programs:$PATH
}

# An image of its own for the Pods that use keys: nginx, curl and a shell, as they are on this machine.
workload_image() {
  local nginx cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
  [ ! -e target/demo-image/workload.tar ] || return 0
  nginx=$(PATH=$PATH:/usr/sbin:/sbin:$cache/nginx/usr/sbin command -v nginx)
  "$here/testbed/image.py" target/demo-image/workload.tar localhost/testbed/workload:v1 --user 65532:65532 --libraries \
    --file "$nginx=/bin/nginx" --file "$(command -v curl)=/bin/curl" --file "$(command -v busybox)=/bin/busybox" \
    --link /bin/sh=busybox --link /bin/cat=busybox --link /bin/sleep=busybox --folder /tmp
}

use_cluster() { # it gives `values` for the chart, too
  local version name found
  [ -r "$CLUSTER" ] || refuse "$CLUSTER cannot be read. Name a kubeconfig file: make demo KUBECONFIG=FILE IMAGE=REPOSITORY:TAG"
  [ -n "${IMAGE:-}" ] || refuse "name an image that the cluster can pull: make demo KUBECONFIG=$CLUSTER IMAGE=REPOSITORY:TAG
Build and push one: docker buildx build --tag REPOSITORY:TAG --push ."
  if [[ $IMAGE == *@sha256:* ]]; then
    values="image.repository=${IMAGE%@*},image.digest=${IMAGE#*@}"
  elif [[ ${IMAGE##*/} == *:* ]]; then # what is before the last slash may hold a port
    values="image.repository=${IMAGE%:*},image.tag=${IMAGE##*:}"
  else
    refuse "IMAGE=$IMAGE has no tag. Write REPOSITORY:TAG"
  fi
  for name in kubectl helm curl jq; do
    command -v $name >/dev/null || PATH=$PATH:$("$here/testbed/build.sh" --where)
    command -v $name >/dev/null || refuse "$name is not on PATH. Install it. \`make testbed\` builds kubectl and helm"
  done
  inside() { command "$@"; }
  # A copy, in which the demo's namespace is the current one. Its own is not touched.
  (umask 077 && KUBECONFIG=$CLUSTER command kubectl config view --raw --minify --flatten >"$work/kubeconfig") ||
    refuse "$CLUSTER is not a kubeconfig file with a current context. Choose one: kubectl config use-context NAME"
  export KUBECONFIG=$work/kubeconfig
  kubectl config set-context --current --namespace=keywright-demo >/dev/null
  version=$(kubectl version -o json --request-timeout=10s 2>"$work/cluster.log" | jq -r .serverVersion.gitVersion) ||
    refuse "the cluster of $CLUSTER does not answer. Check the address and your credentials"
  echo "using the cluster $(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}'), Kubernetes $version"
  for name in crd/apikeys.keywright.dev crd/apikeyrecords.keywright.dev; do
    found=$(look_for $name)
    [ -z "$found" ] || refuse "this cluster has Keywright's definitions already ($name), so the demo changes nothing.
Use another cluster. Or remove Keywright with its keys first: docs/uninstall.md"
  done
  for name in namespace/keywright-system namespace/keywright-demo; do
    found=$(look_for $name)
    [ -z "$found" ] || refuse "this cluster has the $name already, so the demo changes nothing. Use another cluster, or delete it"
  done
  echo "The demo installs the chart into the namespace keywright-system, and its keys into keywright-demo. It removes all of that at the end."
  on_the_way_out=(clean_up)
  kubectl create namespace keywright-demo >/dev/null
}
look_for() { # KIND/NAME: its name if it is there
  kubectl get "$1" --ignore-not-found -o name || refuse "the cluster does not say whether it has $1. Check your rights in the cluster"
}
# What use_cluster said that it will remove. Nothing of it was there before.
clean_up() {
  if [ "${KEEP:-}" = 1 ]; then
    cat <<TEXT
Keywright stays in the cluster. Remove it with:
  export KUBECONFIG=$CLUSTER
  kubectl delete apikeys.keywright.dev --all -n keywright-demo
  helm uninstall keywright -n keywright-system
  kubectl delete namespace keywright-demo keywright-system
TEXT
    return
  fi
  printf '\nremoving what the demo made ...\n'
  (
    kubectl delete apikeys.keywright.dev --all -n keywright-demo --timeout=60s
    inside helm uninstall keywright -n keywright-system --wait --timeout=120s
    kubectl delete crd apikeys.keywright.dev apikeyrecords.keywright.dev --ignore-not-found --timeout=60s
    kubectl delete namespace keywright-demo keywright-system --ignore-not-found --timeout=120s
  ) >"$work/clean-up.log" 2>&1 || true
  if kubectl get namespace keywright-demo keywright-system >/dev/null 2>&1 || kubectl get crd apikeys.keywright.dev >/dev/null 2>&1; then
    cat "$work/clean-up.log" >&2
    echo "something of it remains: remove it as docs/uninstall.md says" >&2
  else
    echo "the cluster is as it was"
  fi
}
forward() {
  printf '%s$ kubectl port-forward -n keywright-system service/keywright-verifier :8080 &%s\n' "$dim" "$plain"
  setpriv --pdeathsig TERM kubectl port-forward -n keywright-system service/keywright-verifier :8080 >"$work/forward.log" 2>&1 &
  children+=($!)
  await 20 "kubectl port-forward" grep -q '^Forwarding from 127' "$work/forward.log"
  verifier=$(sed -n 's/^Forwarding from \(127[0-9.:]*\) .*/\1/p' "$work/forward.log" | head -n 1)
}

mkfifo "$work/hold" "$work/ready"
if [ -n "${CLUSTER:-}" ]; then
  where=cluster
  use_cluster
  install_by_helm "--set-string $values --set crds.keep=false"
  forward
elif [ "${NODE:-}" = 1 ]; then
  where=node
  reason=$(WITHOUT_TOOLS=1 "$here/testbed/node-possible.sh" "$work") ||
    refuse "no node can run here: $reason. Leave NODE=1 out: the demo then runs without a node"
  "$here/testbed/tools.sh" base node
  prepare keywright control-plane helm node
  workload_image
  echo "starting a cluster: etcd, the API server, a node with containerd and kubelet ..."
  start_node
  install_by_helm "--set image.registry=localhost,image.tag=dev"
  verifier=$(kubectl get service -n keywright-system keywright-verifier -o jsonpath='{.spec.clusterIP}'):8080
else
  "$here/testbed/tools.sh" base
  prepare keywright control-plane helm
  echo "starting etcd, kube-apiserver and kube-controller-manager on loopback ..."
  start_control_plane
  install_without_a_node
fi

step "Declare two keys"
show "kubectl apply -f examples/"
kubectl wait --for=condition=Ready apikeys.keywright.dev/ci apikeys.keywright.dev/partner --timeout=30s >/dev/null || fail "the keys were not issued"
show "kubectl get apikeys.keywright.dev"

if [ $where != beside ]; then
  step "What cannot be meant is refused, with what would be good"
  sed 's|192.0.2.0/24|192.0.2.44/24|; s|name: ci|name: mistyped|' examples/ci.yaml >"$work/mistyped.yaml"
  if show "kubectl apply -f $work/mistyped.yaml 2>&1"; then fail "it should have been refused"; fi
fi

step "The key is in its Secret, and nowhere else"
show "kubectl get secret ci -o jsonpath='{.data.api-key}' | base64 -d | cut -c 1-14 | sed 's/\$/... (55 characters)/'"
show "kubectl get apikeyrecords.keywright.dev -n keywright-system"
printf '%s$ KEY=$(kubectl get secret ci -o jsonpath='\''{.data.api-key}'\'' | base64 -d)%s\n' "$dim" "$plain"
key=$(kubectl get secret ci -o jsonpath='{.data.api-key}' | base64 -d)

step "A proxy asks: a request from an allowed address may enter"
expect 200 "$key" 192.0.2.44

step "One from another address may not"
expect 403 "$key" 198.51.100.7

step "Nor may one with a wrong key"
expect 401 "${key%??????}000000" 192.0.2.44 '${KEY%??????}000000'

step "A key that expires within seconds"
cat >"$work/brief.yaml" <<YAML
apiVersion: keywright.dev/v1alpha1
kind: ApiKey
metadata:
  name: brief
spec:
  owner: platform@example.org
  expiresAt: "$(date -u -d '+8 seconds' +%Y-%m-%dT%H:%M:%SZ)"
YAML
show "cat $work/brief.yaml"
show "kubectl apply -f $work/brief.yaml"
kubectl wait --for=condition=Active apikeys.keywright.dev/brief --timeout=7s >/dev/null || fail "the brief key was not issued in time"
printf '%s$ BRIEF=$(kubectl get secret brief -o jsonpath='\''{.data.api-key}'\'' | base64 -d)%s\n' "$dim" "$plain"
brief=$(kubectl get secret brief -o jsonpath='{.data.api-key}' | base64 -d)
expect 200 "$brief" 198.51.100.7 '$BRIEF'
show "kubectl wait --for=jsonpath='{.status.conditions[?(@.type==\"Active\")].reason}'=Expired apikeys.keywright.dev/brief --timeout=30s"
expect 401 "$brief" 198.51.100.7 '$BRIEF'

if [ $where = node ]; then show_a_workload; fi

step "Deleting an ApiKey revokes its key"
show "kubectl delete apikeys.keywright.dev ci"
await 5 "the key to be refused" is_refused "$key" 192.0.2.44
expect 401 "$key" 192.0.2.44
show "kubectl get apikeys.keywright.dev"

printf '\n%sThat was all of it, on a real Kubernetes %s.%s\n' "$green" \
  "$(kubectl version -o json | jq -r .serverVersion.gitVersion)" "$plain"
if [ $where = beside ]; then echo "To see Pods that use a key, behind nginx: make demo NODE=1"; fi
if [ $where = beside ] && [ "${KEEP:-}" != 1 ]; then echo "To look after keys on a page: make demo KEEP=1, which tells how to open it"; fi
if [ "${KEEP:-}" = 1 ] && [ $where != cluster ]; then
  echo
  echo "It goes on running. In another terminal:"
  if [ $where = node ]; then
    echo "  $here/testbed/enter.sh $work/node bash"
  else
    echo "  export KUBECONFIG=$KUBECONFIG PATH=$programs:\$PATH"
  fi
  echo "  the verifier answers at http://$verifier/verify"
  if [ $where = beside ]; then
    echo "  the page of the keys: cargo run --locked --package kubectl-keywright -- ui    # in $(dirname "$here")"
  fi
  echo "Stop it with Ctrl-C here, or with: kill $$"
  # Not for a sleep, which would outlive this script and hold its output open. A signal ends the wait.
  wait "${children[0]}" || true
  fail "the cluster ended"
fi
