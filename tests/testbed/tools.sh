#!/bin/bash
# Installs what the test bed and the demo call and Debian may lack: compilers (C for ring, C++ for fuzzing), curl, jq, openssl, setpriv;
# what a node runs on, and what runs in its Pods.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

declare -A package=([cc]=gcc [c++]=g++ [curl]=curl [jq]=jq [openssl]=openssl [setpriv]=util-linux [flock]=util-linux [python3]=python3-venv
  [runc]=runc [nft]=nftables [ip]=iproute2 [pgrep]=procps [busybox]=busybox-static)
missing=()
for tool in "${!package[@]}"; do
  command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
# Its package would start a server on this machine, so only its files are taken, and the libraries that they need.
cache=${KEYWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/keywright}
nginx=$cache/nginx
if command -v nginx >/dev/null || [ -e "$nginx" ]; then nginx=""; else missing+=(libpcre2-8-0 libssl3); fi
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "please install: ${missing[*]} ${nginx:+nginx}" >&2
  exit 1
fi
echo "installing ${missing[*]} ${nginx:+and the files of nginx }from Debian" >&2
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if [ -n "$nginx" ]; then
  mkdir -p "$cache"
  files=$(mktemp -d "$nginx.XXXXXX")
  trap 'rm -rf "$files"' EXIT
  (cd "$files" && apt-get download -qq nginx)
  dpkg-deb --extract "$files"/nginx_*.deb "$files/unpacked"
  mv "$files/unpacked" "$nginx"
fi
