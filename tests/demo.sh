#!/bin/bash
# demo.sh PROGRAMS KEYWRIGHT IMAGE...: shows Keywright at work on a real cluster of its own, step by step, each with the
# command that a user would type. KEEP=1 leaves everything running.
#
# The cluster has a node, and the chart is installed on it from the images. Where this machine cannot run one, there is a
# control plane on loopback, and KEYWRIGHT runs beside it with the chart's rights.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
project=$(dirname "$here")
programs=$1
keywright=$(realpath "$2")
shift 2
images=("$@")
export PATH=$programs:$PATH
work=$(mktemp -d)
children=()
number=0

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi

finish() {
  local child
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
  printf '%s$ %s%s\n' "$dim" "$*" "$plain"
  inside bash -o pipefail -c "$*"
}
fail() {
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  tail -n 5 "$work"/*.log >&2 || true
  exit 1
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
expect() { # STATUS KEY ADDRESS: says what came back
  local expected=$1 key=$2 address=$3 answer
  printf '%s$ curl -H "Authorization: Bearer $KEY" -H "X-Forwarded-For: %s" http://%s/verify%s\n' \
    "$dim" "$address" "$verifier" "$plain"
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
  "$here/testbed/node.sh" "$programs" "$work/node" "${images[@]}" <"$work/hold" >"$work/ready" 2>"$work/cluster.log" &
  children=($!)
  exec 8>"$work/hold" # it ends when this is closed
  if ! read -r _ <"$work/ready"; then
    local code=0
    wait "${children[0]}" || code=$?
    [ $code = 3 ] || fail "the node did not start: $(cat "$work/cluster.log")"
    exec 8>&-
    children=()
    return 1
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

install_by_helm() {
  step "Install it"
  show "helm install keywright ${project}/charts/keywright -n keywright-system --create-namespace --wait --timeout=120s \
--set image.registry=localhost,image.tag=dev" || fail "the chart was not installed: $(kubectl get pods -A)"
  show "kubectl get pods -n keywright-system"
  verifier=$(kubectl get service -n keywright-system keywright-verifier -o jsonpath='{.spec.clusterIP}'):8080
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
  printf '%s$ keywright %s --kubeconfig=... %s%s\n' "$dim" "$component" "$*" "$plain"
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
  printf '%s$ helm template keywright %s/charts/keywright -n keywright-system | kubectl apply -f -%s\n' "$dim" "$project" "$plain"
  # What needs a node, or a webhook, would only stand in the way.
  inside helm template keywright "$project/charts/keywright" -n keywright-system --no-hooks |
    awk -v kinds="^kind: ($rights)\$" 'BEGIN { RS = "\n?---\n" } { keep = 0; n = split($0, lines, "\n");
      for (i = 1; i <= n; i++) if (lines[i] ~ kinds) keep = 1; if (keep) print "---\n" $0 }' | kubectl apply -f -
  kubectl wait --for=condition=Established crd/apikeys.keywright.dev crd/apikeyrecords.keywright.dev >/dev/null
  step "Run the controller and the verifier, each with its own ServiceAccount's token"
  run controller
  run verifier --http-address 127.0.0.1:0
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

mkfifo "$work/hold" "$work/ready"
echo "starting a cluster: etcd, the API server, a node with containerd and kubelet ..."
if start_node; then
  with_a_node=yes
  install_by_helm
else
  with_a_node=no
  echo "$(tail -n 1 "$work/cluster.log"), so the programs run without one"
  echo "starting etcd, kube-apiserver and kube-controller-manager on loopback ..."
  start_control_plane
  install_without_a_node
fi

step "Declare two keys"
show "kubectl apply -f $project/examples/"
kubectl wait --for=condition=Ready apikeys.keywright.dev/ci apikeys.keywright.dev/partner --timeout=30s >/dev/null || fail "the keys were not issued"
show "kubectl get apikeys.keywright.dev"

if [ $with_a_node = yes ]; then
  step "What cannot be meant is refused, with what would be good"
  sed 's|192.0.2.0/24|192.0.2.44/24|; s|name: ci|name: mistyped|' "$project/examples/ci.yaml" >"$work/mistyped.yaml"
  if show "kubectl apply -f $work/mistyped.yaml 2>&1"; then fail "it should have been refused"; fi
fi

step "The key is in its Secret, and nowhere else"
show "kubectl get secret ci -o jsonpath='{.data.api-key}' | base64 -d | cut -c 1-14 | sed 's/\$/... (55 characters)/'"
show "kubectl get apikeyrecords.keywright.dev -n keywright-system"
key=$(kubectl get secret ci -o jsonpath='{.data.api-key}' | base64 -d)

step "A proxy asks: a request from an allowed address may enter"
expect 200 "$key" 192.0.2.44

step "One from another address may not"
expect 403 "$key" 198.51.100.7

step "Nor may one with a wrong key"
expect 401 "${key%??????}000000" 192.0.2.44

step "A key that expires within seconds"
cat >"$work/brief.yaml" <<YAML
apiVersion: keywright.dev/v1alpha1
kind: ApiKey
metadata:
  name: brief
spec:
  owner: platform@example.org
  expiresAt: "$(date -u -d '+6 seconds' +%Y-%m-%dT%H:%M:%SZ)"
YAML
show "kubectl apply -f $work/brief.yaml"
kubectl wait --for=condition=Active apikeys.keywright.dev/brief --timeout=5s >/dev/null || fail "the brief key was not issued in time"
brief=$(kubectl get secret brief -o jsonpath='{.data.api-key}' | base64 -d)
expect 200 "$brief" 198.51.100.7
show "kubectl wait --for=jsonpath='{.status.conditions[?(@.type==\"Active\")].reason}'=Expired apikeys.keywright.dev/brief --timeout=30s"
expect 401 "$brief" 198.51.100.7

if [ $with_a_node = yes ]; then show_a_workload; fi

step "Deleting an ApiKey revokes its key"
show "kubectl delete apikeys.keywright.dev ci"
await 5 "the key to be refused" is_refused "$key" 192.0.2.44
expect 401 "$key" 192.0.2.44
show "kubectl get apikeys.keywright.dev"

printf '\n%sThat was all of it, on a real Kubernetes %s.%s\n' "$green" \
  "$(kubectl version -o json | jq -r .serverVersion.gitVersion)" "$plain"
if [ "${KEEP:-}" = 1 ]; then
  echo
  echo "It goes on running. In another terminal:"
  if [ $with_a_node = yes ]; then
    echo "  $here/testbed/enter.sh $work/node bash"
  else
    echo "  export KUBECONFIG=$KUBECONFIG PATH=$programs:\$PATH"
  fi
  echo "  the verifier answers at http://$verifier/verify"
  echo "Stop it with Ctrl-C here, or with: kill $$"
  # Not for a sleep, which would outlive this script and hold its output open. A signal ends the wait.
  wait "${children[0]}" || true
  fail "the cluster ended"
fi
