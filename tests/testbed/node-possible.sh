#!/bin/bash
# node-possible.sh FOLDER: tries on a small scale what node.sh will do, with FOLDER for its files. If this machine cannot run
# a node, it prints why and exits with 3. What no package can mend comes first.
#
# WITHOUT_TOOLS=1 leaves out what needs the packages that tools.sh installs for a node.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

refuse() {
  echo "$*"
  exit 3
}
need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || refuse "$tool is not installed (tests/testbed/tools.sh installs it)"
  done
}
isolated() { unshare --mount --net --pid --uts --ipc --cgroup --fork --mount-proc --propagation private bash -c "$1" 2>&1; }

[ "$(id -u)" = 0 ] || refuse "it takes root"
need unshare nsenter setpriv
folder=$(mktemp -d "$1/possible.XXXXXX")
trap 'rm -rf "$folder"' EXIT
mkdir "$folder"/{lower,upper,work,merged}
# What is forbidden in a container, or missing in a kernel, shows here in a word.
trial=$(isolated true) || refuse "namespaces: $trial"
trial=$(isolated "mount -t overlay overlay -o lowerdir=$folder/lower,upperdir=$folder/upper,workdir=$folder/work $folder/merged") ||
  refuse "an overlay file system on $1: $trial"
[ "${WITHOUT_TOOLS:-}" != 1 ] || exit 0

need pgrep ip nft runc openssl
trial=$(isolated "ip link add node0 type veth peer name node0p") || refuse "a network: $trial"
trial=$(isolated "nft add table ip trial") || refuse "nftables: $trial"
