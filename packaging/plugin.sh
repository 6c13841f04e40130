#!/bin/bash
# plugin.sh FOLDER [SYSTEM...]: builds kubectl's plugin for these systems, all of them by default, and writes into FOLDER an
# archive for each, and checksums.txt. What another run left there goes.
#
# RELEASE=https://... HOMEPAGE=https://...: writes krew's manifest, too. RELEASE is the address that the archives will stand
# under. Without both there is no manifest: its addresses cannot be known.
#
# The same programs give the same archives, on any day. No path of this machine is in a program.
set -euo pipefail

mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
name=kubectl-keywright
release=${RELEASE:-} homepage=${HOMEPAGE:-}

# musl: linked as a whole, so it runs whatever libc a distribution has.
declare -A targets=(
  [linux-amd64]=x86_64-unknown-linux-musl [linux-arm64]=aarch64-unknown-linux-musl
  [darwin-amd64]=x86_64-apple-darwin [darwin-arm64]=aarch64-apple-darwin
  [windows-amd64]=x86_64-pc-windows-gnu [windows-arm64]=aarch64-pc-windows-gnullvm)
all="linux-amd64 linux-arm64 darwin-amd64 darwin-arm64 windows-amd64 windows-arm64"

refuse() { # before anything is built
  echo "plugin.sh: $*" >&2
  exit 2
}
systems=${*:-$all}
for system in $systems; do
  [ -n "${targets[$system]:-}" ] || refuse "there is no system $system: use some of $all"
done
if [ -n "$release$homepage" ]; then
  for address in "$release" "$homepage"; do
    [[ $address =~ ^https://[^[:space:]\"\\\|\&]+$ ]] || refuse "krew's manifest needs RELEASE=https://... and HOMEPAGE=https://..., both"
  done
  [ -z "$*" ] || refuse "krew's manifest names every system: leave SYSTEMS out, or RELEASE and HOMEPAGE"
fi
command -v rustup >/dev/null || refuse "this needs rustup, which has Rust's library for other systems"

version=$(cargo pkgid --package $name)
version=${version##*[#@]}
# How old everything is, also a program for Windows, which says so: 1980, before which there are no zip files.
export SOURCE_DATE_EPOCH=315532800
cross=$(tests/testbed/tools.sh --where cross)
export PATH=$cross/bin:$PATH CARGO_ZIGBUILD_ZIG_PATH=$cross/ziglang/zig
# The oldest macOS that it starts on. Zig would take the oldest that Apple still mends.
export MACOSX_DEPLOYMENT_TARGET=11.0
export CARGO_ZIGBUILD_CACHE_DIR=$cross/cache ZIG_GLOBAL_CACHE_DIR=$cross/cache/zig

build() { # TARGET
  local flags="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
  rustup target list --installed | grep -qx "$1" || rustup target add "$1"
  # There is no SDK of Apple's: macos/README.md.
  if [[ $1 == *-apple-darwin ]]; then flags+=" -L framework=packaging/macos"; fi
  RUSTFLAGS=$flags cargo zigbuild --locked --profile dist --target "$1" --target-dir target --package $name --bin $name
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f "$folder"/${name}_* "$folder/checksums.txt" "$folder/keywright.yaml"
cp packaging/krew/keywright.yaml.in "$work/keywright.yaml"
fill() { sed -i "s|@$1@|$2|" "$work/keywright.yaml"; }
fill VERSION "v$version"
fill HOMEPAGE "$homepage"

for system in $systems; do
  target=${targets[$system]}
  echo "building $name for $system ($target)" >&2
  build "$target"
  files=$work/$system archive=${name}_${version}_${system/-/_}
  mkdir "$files"
  install -m 644 LICENSE "$files"
  if [[ $system == windows-* ]]; then
    install -m 755 "target/$target/dist/$name.exe" "$files"
    archive+=.zip
    # A zip file has local times.
    (cd "$files" && export TZ=UTC0 && touch -d "@$SOURCE_DATE_EPOCH" LICENSE $name.exe &&
      python3 -m zipfile -c "$folder/$archive" LICENSE $name.exe)
  else
    install -m 755 "target/$target/dist/$name" "$files"
    archive+=.tar.gz
    tar --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
      --directory "$files" --create LICENSE $name | gzip --no-name --best >"$folder/$archive"
  fi
  sum=$(cd "$folder" && sha256sum "$archive" | tee -a checksums.txt)
  key=${system^^} key=${key/-/_}
  fill "URI_$key" "${release%/}/$archive"
  fill "SHA256_$key" "${sum%% *}"
done
echo "$folder has:" >&2
if [ -n "$release" ]; then
  grep -v '^#' "$work/keywright.yaml" >"$folder/keywright.yaml"
elif [ -z "$*" ]; then
  echo "no krew manifest, as it names addresses: RELEASE=https://... (where the archives will be) and HOMEPAGE=https://... write it" >&2
fi
ls "$folder"
