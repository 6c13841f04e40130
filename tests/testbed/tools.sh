#!/bin/bash
# Installs what the test bed and the demo call and Debian may lack: a C compiler (for ring), curl, jq, openssl, setpriv.
set -euo pipefail

declare -A package=([cc]=gcc [curl]=curl [jq]=jq [openssl]=openssl [setpriv]=util-linux [flock]=util-linux [python3]=python3-venv)
missing=()
for tool in "${!package[@]}"; do
  command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "please install: ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]} from Debian" >&2
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
