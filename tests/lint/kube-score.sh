#!/bin/bash
# Builds kube-score from its Go module, at the version and checksums that go.mod and go.sum pin, and prints where it is: in the
# cache, under a digest of what went in. Half a minute, once.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
digest=$(cd "$here" && cat kube-score.sh go.mod go.sum | sha256sum | cut -c1-16)
program=$cache/lint/$digest/kube-score

if [ ! -e "$program" ]; then
  echo "building kube-score, once" >&2
  # The test bed's Go, where the machine has none.
  go=$(command -v go || echo "$cache/go/bin/go")
  mkdir -p "${program%/*}"
  (cd "$here" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly \
    "$go" build -trimpath -ldflags "-s -w" -o "$program.$$" github.com/zegl/kube-score/cmd/kube-score) >&2
  mv "$program.$$" "$program"
fi
echo "$program"
