#!/bin/bash
# The first process of the node's namespaces: makes them look like a machine of their own (control groups, kernel
# settings, folders, network), then becomes cluster.sh. Called by node.sh with STATE, PROGRAMS and HERE.
set -euo pipefail
export PATH=$PROGRAMS:$PROGRAMS/cni:/usr/sbin:/usr/bin:/sbin:/bin
unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy

hostname node1
mount --make-rshared / # as kubelet wants it, for mounts that reach into Pods

umount --lazy /sys/fs/cgroup
mount -t sysfs sysfs /sys
if [ "$(cut -d ' ' -f 2 "$STATE/cgroups")" = unified ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # A group with controllers for its children holds no processes itself, except at the machine's very root.
  mkdir /sys/fs/cgroup/init
  while read -r process; do echo "$process" >/sys/fs/cgroup/init/cgroup.procs || true; done </sys/fs/cgroup/cgroup.procs
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while read -r _ controllers; do
    folder=/sys/fs/cgroup/${controllers#name=}
    mkdir "$folder"
    if [ "$controllers" = "${controllers#name=}" ]; then options=$controllers; else options=none,$controllers; fi
    mount -t cgroup -o "$options" cgroup "$folder"
  done <"$STATE/cgroups"
fi

# kubelet sets these for the whole machine: it gets copies of its own, which hold what it wants.
while read -r name value; do
  copy=$STATE/sysctl/${name//\//.}
  echo "$value" >"$copy"
  mount --bind "$copy" "/proc/sys/$name"
done <<'SYSCTLS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS

# The folders that the programs write to: what the machine has in them is seen, and not changed.
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$STATE/lib,workdir=$STATE/lib.work" /var/lib
mount -t overlay overlay -o "lowerdir=/var/log,upperdir=$STATE/var-log,workdir=$STATE/var-log.work" /var/log
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/lib/containerd /var/lib/kubelet
mount --bind "$STATE/containerd" /var/lib/containerd # no overlay on an overlay
mount -t tmpfs -o mode=755 tmpfs /var/lib/kubelet

# A network that leads nowhere. Without the default route, a ClusterIP could not be reached from the node itself.
ip link set lo up
ip link add node0 type veth peer name node0p
ip addr add 172.30.0.2/24 dev node0
ip link set node0 up
ip link set node0p up
ip route add default via 172.30.0.1 dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward

exec "$HERE/cluster.sh"
