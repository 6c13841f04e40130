#!/bin/bash
# chart.sh HELM: renders the chart with each of the values in values/ and has kube-score look at it, with every check that it
# has. What it finds must stand in exceptions.tsv with a reason, and what stands there must be found.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
helm=$1
kube_score=$("$here/kube-score.sh")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for values in "$here"/values/*.yaml; do
  set=$(basename "$values" .yaml)
  "$helm" template keywright "$here/../../charts/keywright" --namespace keywright-system --values "$values" \
    >"$work/$set.manifest" 2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
  # Its exit code says that something was found; that it ran shows in what it printed.
  "$kube_score" score --all-default-optional --disable-ignore-checks-annotations --kubernetes-version v1.33 \
    --output-format json - <"$work/$set.manifest" >"$work/$set.json" || true
  jq --raw-output --arg set "$set" '
    if length == 0 then error("kube-score looked at nothing") else . end
    | .[] | .type_meta.kind as $kind | .object_meta.name as $name
    | .checks[] | select((.skipped | not) and .grade < 10) | .check.id as $check
    | (.comments // [{}])[] | [$check, .summary // "", "\($kind)/\($name)", $set] | @tsv' "$work/$set.json"
done | sort -u >"$work/found"

# Both as CHECK<TAB>FINDING.
awk -F '\t' '!/^#/ { print $1 "\t" $2 }' "$here/exceptions.tsv" | sort -u >"$work/excepted"
cut -f 1,2 "$work/found" | sort -u >"$work/findings"
status=0
if comm -13 "$work/excepted" "$work/findings" | grep --fixed-strings --file - "$work/found"; then
  echo "mend the chart, or say why not in tests/lint/exceptions.tsv" >&2
  status=1
fi
if comm -23 "$work/excepted" "$work/findings" | grep .; then
  echo "nothing is found of these: remove them from tests/lint/exceptions.tsv" >&2
  status=1
fi
exit $status
