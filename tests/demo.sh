#!/bin/bash
# demo.sh PROGRAMS KEYWRIGHT: shows Keywright at work on a real control plane of its own, step by step, each with the
# command that a user would type. KEEP=1 leaves everything running.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
project=$(dirname "$here")
programs=$1
keywright=$(realpath "$2")
export PATH=$programs:$PATH
work=$(mktemp -d)
children=()

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' green='' red='' plain=''; fi

finish() {
  local child
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { # COMMAND...: as a user types it, then what it prints
  printf '%s$ %s%s\n' "$dim" "$*" "$plain"
  bash -c "$*"
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
expect() { # STATUS KEY ADDRESS: asks the verifier as a proxy would, and says what came back
  local expected=$1 key=$2 address=$3 answer
  printf '%s$ curl -H "Authorization: Bearer $KEY" -H "X-Forwarded-For: %s" http://%s/verify%s\n' \
    "$dim" "$address" "$verifier" "$plain"
  answer=$(printf 'header = "Authorization: Bearer %s"\n' "$key" | curl -sS --config - -i -H "X-Forwarded-For: $address" \
    "http://$verifier/verify" | tr -d '\r')
  grep -iE '^(HTTP|x-keywright|[{])' <<<"$answer"
  echo
  [ "$(awk 'NR == 1 { print $2 }' <<<"$answer")" = "$expected" ] || fail "expected $expected"
}

is_refused() { # KEY ADDRESS
  [ 401 = "$(printf 'header = "Authorization: Bearer %s"\n' "$1" |
    curl -sS --config - -o /dev/null -w '%{http_code}' -H "X-Forwarded-For: $2" "http://$verifier/verify")" ]
}

echo "starting etcd, kube-apiserver and kube-controller-manager on loopback ..."
mkfifo "$work/hold" "$work/ready"
"$here/testbed/control-plane.sh" "$programs" "$work/control-plane" <"$work/hold" >"$work/ready" 2>"$work/control-plane.log" &
children+=($!)
exec 8>"$work/hold" # the control plane ends when this is closed
read -r _ KUBECONFIG <"$work/ready" || fail "the control plane did not start: $(cat "$work/control-plane.log")"
export KUBECONFIG

step "1. Install the CustomResourceDefinitions, ServiceAccounts and rights"
kubectl create namespace keywright-system >/dev/null
show "helm template keywright ${project}/charts/keywright -n keywright-system | kubectl apply -f -"
kubectl wait --for=condition=Established crd/apikeys.keywright.dev crd/apikeyrecords.keywright.dev >/dev/null

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
  "$keywright" "$component" --kubeconfig "$file" --admin-address 127.0.0.1:0 "$@" 2>"$work/$component.log" &
  children+=($!)
  await 30 "the $component to listen" listens "$component"
  await 30 "the $component to be ready" is_ready "$component"
}

step "2. Run the controller and the verifier, each with its own ServiceAccount's token"
run controller
run verifier --http-address 127.0.0.1:0
verifier=$(address verifier http_address)

step "3. Declare two keys"
show "kubectl apply -f $project/examples/"
kubectl wait --for=condition=Ready apikey/ci apikey/partner --timeout=30s >/dev/null || fail "the keys were not issued"
show "kubectl get apikeys"

step "4. The key is in its Secret, and nowhere else"
show "kubectl get secret ci -o jsonpath='{.data.api-key}' | base64 -d | cut -c 1-14 | sed 's/\$/... (55 characters)/'"
show "kubectl get apikeyrecords -n keywright-system"
key=$(kubectl get secret ci -o jsonpath='{.data.api-key}' | base64 -d)

step "5. A proxy asks: a request from an allowed address may enter"
expect 200 "$key" 192.0.2.44

step "6. One from another address may not"
expect 403 "$key" 198.51.100.7

step "7. Nor may one with a wrong key"
expect 401 "${key%??????}000000" 192.0.2.44

step "8. A key that expires within seconds"
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
kubectl wait --for=condition=Active apikey/brief --timeout=5s >/dev/null || fail "the brief key was not issued in time"
brief=$(kubectl get secret brief -o jsonpath='{.data.api-key}' | base64 -d)
expect 200 "$brief" 198.51.100.7
show "kubectl wait --for=jsonpath='{.status.conditions[?(@.type==\"Active\")].reason}'=Expired apikey/brief --timeout=30s"
expect 401 "$brief" 198.51.100.7

step "9. Deleting the ApiKey revokes its key"
show "kubectl delete apikey ci"
await 5 "the key to be refused" is_refused "$key" 192.0.2.44
expect 401 "$key" 192.0.2.44
show "kubectl get apikeys"

printf '\n%sThat was all of it, on a real Kubernetes %s.%s\n' "$green" \
  "$(kubectl version -o json | jq -r .serverVersion.gitVersion)" "$plain"
if [ "${KEEP:-}" = 1 ]; then
  echo
  echo "It goes on running. In another terminal:"
  echo "  export KUBECONFIG=$KUBECONFIG PATH=$programs:\$PATH"
  echo "  the verifier answers at http://$verifier/verify"
  echo "Stop it with Ctrl-C here, or with: kill $$"
  while :; do sleep 3600 & wait $!; done
fi
