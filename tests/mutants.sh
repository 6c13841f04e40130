#!/bin/bash
# mutants.sh [NAME...]: breaks the program on purpose, in one way after the other, and sees that a test notices. Each file in
# tests/mutants says what is broken, names the test, and holds the change. Fails if a mutant passes its test.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
tree=$root/target/mutants
names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(cd "$root/tests/mutants" && basename --suffix .patch ./*.patch)

rm -rf "$tree"
mkdir -p "$tree"
(cd "$root" && git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory "$tree")
# One of its own: cargo tells the artifacts of two copies apart by their times alone.
export CARGO_TARGET_DIR=$tree-target
cd "$tree"

passed=()
for name in "${names[@]}"; do
  patch=$root/tests/mutants/$name.patch
  command=$(sed -n 's/^Test: //p' "$patch")
  patch --quiet --strip 1 <"$patch"
  # What does not compile proves nothing.
  ${command%% -- *} --no-run >"$tree/log" 2>&1 || { cat "$tree/log"; echo "$name: does not compile"; exit 1; }
  if $command >"$tree/log" 2>&1; then
    passed+=("$name")
    echo "NOT CAUGHT  $name: $(head -1 "$patch")"
  else
    grep -q '^test result: FAILED' "$tree/log" || { cat "$tree/log"; echo "$name: the test did not run"; exit 1; }
    echo "caught      $name: $(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$tree/log" | paste -sd ' ')"
  fi
  patch --quiet --strip 1 --reverse <"$patch"
done
echo "${#names[@]} mutants, ${#passed[@]} not caught"
[ ${#passed[@]} -eq 0 ]
