#!/bin/bash
# announce.sh PROGRAM=WHY...: says what `make test` installs and builds on this machine before it does, and why. It prints
# nothing if all of it is there. The programs are those that cargo installs into the cache.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
lines=$(
  SAY=1 "$here/testbed/tools.sh" 2>&1
  for program in "$@"; do
    [ -e "$cache/${program%%=*}" ] || echo "installing ${program%%=*} with cargo to ${program#*=}"
  done
  digest=$(cd "$here/lint" && cat kube-score.sh go.mod go.sum | sha256sum | cut -c1-16)
  [ -e "$cache/lint/$digest/kube-score" ] || echo "building kube-score to check the chart"
  SAY=1 "$here/testbed/build.sh"
)
[ -n "$lines" ] || exit 0
echo "make test does this first. Debian's packages go into the system. Everything else goes into $cache:"
sed 's/^/  /' <<<"$lines"
