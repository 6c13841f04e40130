#!/bin/bash
# prepare.sh PART...: builds what is missing of these parts, side by side, and shows one line of progress.
# Parts: `keywright` (the demo's program and image, in target/demo-image), and those of testbed/build.sh.
# It prints nothing if everything is there.
set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
cd "$project"
target=$(uname -m)-unknown-linux-gnu
program=target/$target/demo/keywright
folder=$project/target/prepare # absolute, as build.sh changes its own
mkdir -p "$folder" target/demo-image
rm -f "$folder"/*

# `DONE ALL WHAT` as build.sh reports it. The two numbers are seconds of two quiet cores.
report() { echo "$1 $all Keywright${2:+ ($2)}" >>"$folder/keywright.progress"; }
keywright() {
  local all=90 last=30 crates compiled=0 line
  crates=$(cargo tree --locked --edges normal,build --prefix none --target "$target" | sort -u | wc -l)
  # pdeathsig: the compiler does not go on without this script.
  RUSTFLAGS="-C target-feature=+crt-static" setpriv --pdeathsig TERM \
    cargo build --locked --profile demo --target "$target" --target-dir target --bin keywright 2>&1 |
    while read -r line; do
      echo "$line"
      case $line in
        Compiling\ keywright\ v*) report $((all - last)) "its own code" ;;
        Compiling\ *) report $(((all - last) * ++compiled / (crates > compiled ? crates : compiled))) "$compiled of $crates packages" ;;
        Updating\ * | Downloading\ *) report 0 "fetching its packages" ;;
      esac
    done
  for part in Dockerfile tests/testbed/image.py "$program"; do
    [ target/demo-image/keywright.tar -nt "$part" ] || rm -f target/demo-image/keywright.tar
  done
  [ -e target/demo-image/keywright.tar ] ||
    tests/testbed/image.py target/demo-image/keywright.tar localhost/keywright:dev --like Dockerfile --file "$program=/keywright"
  [ ! -e "$folder/keywright.progress" ] || report $all
}

declare -A running=()
start() { # NAME COMMAND...
  local name=$1
  shift
  (set -e; "$@") >"$folder/$name.log" 2>&1 9>&- &
  running[$name]=$!
}
end() {
  local name
  for name in "${!running[@]}"; do
    pkill -TERM -P "${running[$name]}" 2>/dev/null || true
    kill "${running[$name]}" 2>/dev/null || true
  done
}
trap end EXIT
trap 'exit 1' INT TERM HUP

minutes() { # SECONDS
  if [ "$1" -lt 90 ]; then echo "$1 seconds"; else echo "$((($1 + 30) / 60)) minutes"; fi
}
sum() { # FIELD: of the last line of each file
  tail -qn 1 "$folder"/*.progress 2>/dev/null | awk -v field="$1" '{ sum += $field } END { print sum + 0 }'
}
line() {
  local all built rest what
  all=$(sum 2)
  built=$(sum 1)
  what=$(tail -qn 1 "$folder"/*.progress | awk '$1 < $2' | cut -d ' ' -f 3- | paste -s -d ',' | sed 's/,/, /g')
  # At first as on two quiet cores, then as fast as it went so far.
  rest=$(((all - built) * (SECONDS + 30) / (built + 30)))
  echo "$((100 * built / all)) % after $(minutes $SECONDS), about $(minutes $rest) left: ${what:-ready}"
}

parts=()
for part in "$@"; do
  if [ "$part" != keywright ]; then parts+=("$part"); fi
done
[[ " $* " != *" keywright "* ]] || start keywright keywright
[ ${#parts[@]} -eq 0 ] || start testbed env KEYWRIGHT_PROGRESS="$folder/testbed.progress" tests/testbed/build.sh "${parts[@]}"

said="" next=0 terminal="" columns=80
if [ -t 1 ]; then
  terminal=yes
  columns=$(stty size 2>/dev/null | cut -d ' ' -f 2)
  [ "${columns:-0}" -ge 40 ] || columns=80
fi
while [ ${#running[@]} -gt 0 ]; do
  sleep 0.5
  for name in "${!running[@]}"; do
    kill -0 "${running[$name]}" 2>/dev/null && continue
    code=0
    wait "${running[$name]}" || code=$?
    unset "running[$name]"
    if [ $code != 0 ]; then
      [ -z "$said$terminal" ] || echo
      tail -n 20 "$folder/$name.log" >&2
      echo "$name was not built. The whole output is in $folder/$name.log" >&2
      exit 1
    fi
  done
  [ -n "$(ls "$folder"/*.progress 2>/dev/null)" ] || continue
  if [ -z "$said" ] && [ "$SECONDS" -ge 3 ]; then
    said=yes
    echo "building what is missing, once: about $(minutes "$(sum 2)") on two quiet cores, longer on busy ones"
  fi
  [ -n "$said" ] || continue
  if [ -n "$terminal" ]; then
    text="  $(line)"
    printf '\r\e[K%s' "${text:0:$((columns - 1))}"
  elif [ "$SECONDS" -ge "$next" ]; then
    next=$((SECONDS + 30))
    echo "  $(line)"
  fi
done
if [ -n "$said" ]; then
  [ -z "$terminal" ] || printf '\r\e[K'
  echo "built in $(minutes $SECONDS)"
fi
