#!/bin/bash
# Looks for inputs that break what has to hold: fuzz/run.sh SECONDS [TARGET...], each target for so many seconds on the
# saved corpus and on new inputs. SANITIZER=address watches the memory too; that needs a nightly toolchain. Without it,
# the project's own toolchain will do: nothing here is unsafe.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
shift
sanitizer=${SANITIZER:-none}
folder=target/fuzz/$sanitizer

if [ "$sanitizer" != none ]; then
  export RUSTUP_TOOLCHAIN=nightly
  if ! cargo --version >/dev/null 2>&1 && ! rustup toolchain install nightly --profile minimal; then
    echo "SANITIZER=$sanitizer needs the toolchain \"nightly\", and rustup cannot install it: leave SANITIZER out" >&2
    exit 1
  fi
fi
cargo fuzz build --sanitizer "$sanitizer" --features libfuzzer --target-dir "$folder"
read -ra targets <<<"${*:-$(cargo fuzz list | xargs)}"

failed=0
for target in "${targets[@]}"; do
  mkdir -p "$folder/corpus/$target" "fuzz/artifacts/$target"
  log=$folder/$target.log
  options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -use_value_profile=1
    -artifact_prefix="fuzz/artifacts/$target/")
  [ ! -e "fuzz/dictionaries/$target.dict" ] || options+=(-dict="fuzz/dictionaries/$target.dict")
  # New inputs go into the first folder; the saved ones stay as they are.
  if "$folder"/*/release/"$target" "${options[@]}" "$folder/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1; then
    awk -v target="$target" '
      $2 == "INITED" { before = $4 }
      $2 == "DONE" {
        printf "%-16s %9d inputs, %6d a second; coverage %d, was %d\n", target, substr($1, 2), $(NF - 2), $4, before
      }
    ' "$log"
  else
    tail -n 40 "$log"
    echo "$target found an input that breaks it; it is in fuzz/artifacts/$target, and CONTRIBUTING.md says what to do" >&2
    failed=1
  fi
done
exit $failed
