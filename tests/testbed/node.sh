#!/bin/bash
# node.sh PROGRAMS STATE [IMAGE.tar...]: a whole Kubernetes cluster of one node on this machine: etcd, API server,
# controller-manager, scheduler, kubelet, kube-proxy, containerd and cluster DNS, in namespaces of their own (mount,
# network, pid, uts, ipc, cgroup). Nothing listens on the machine itself, and nothing in the node reaches out of it.
#
# PROGRAMS is the folder that build.sh prints; STATE an absent or empty folder for everything that the node keeps; the
# images (OCI layouts, as image.py writes them) are there for Pods, pulled from nowhere. When Pods can run, `ready` is
# printed; then the script waits for its standard input to end, as it does however the starter ended. Processes, mounts
# and control groups are removed on the way out, and STATE with them.
#
# `enter.sh STATE COMMAND...` runs a command inside, kubectl and helm as an administrator.
#
#   STATE/log/*.log   what the programs print
#
# Exit codes: 0 when the starter has gone, 1 failure, 2 usage, 3 this machine cannot run a node (and why; node-possible.sh).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
programs=$(cd "$1" && pwd)
(umask 077 && mkdir -p "$2")
state=$(cd "$2" && pwd)
shift 2
images=("$@")
if [ -n "$(ls -A "$state")" ]; then
  echo "node.sh: $state is not empty; give it a folder of its own" >&2
  exit 2
fi

outer="" # the process id of `unshare`, whose only child is the node's first process
groups=()

init() { pgrep -P "$outer"; }

end() {
  if [ -n "$outer" ]; then
    # The first process of a pid namespace takes all others with it, and the last process the mounts and the network.
    kill -KILL "$(init)" 2>/dev/null || kill -KILL "$outer" 2>/dev/null || true
    wait "$outer" 2>/dev/null || true
  fi
  kill "$starter" 2>/dev/null || true
  local group
  for group in "${groups[@]}"; do remove_group "$group"; done
  rm -rf "$state"
}
# The kernel needs a moment to see that a group is empty.
remove_group() {
  local try
  for try in {1..100}; do
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -d "$1" ] || return 0
    sleep 0.05
  done
  echo "node.sh: $1 cannot be removed" >&2
}
starter=""
trap end EXIT
trap 'exit 1' INT TERM HUP

fail() {
  echo "node.sh: the node ended; last lines of its programs:" >&2
  tail -n 10 "$state"/log/*.log | cut -c 1-500 >&2
  exit 1
}
refuse() {
  echo "node.sh: no node can run here: $*" >&2
  exit 3
}

# What runs inside hides these folders, except for what the machine has in the latter two.
case $programs/ in /run/*) refuse "$programs is in /run" ;; esac
case $state/ in /run/* | /var/lib/* | /var/log/*) refuse "$state is in /run, /var/lib or /var/log; set TMPDIR to another folder" ;; esac
reason=$("$here/node-possible.sh" "$state") || refuse "$reason"

cat <&0 >/dev/null & # ends with our standard input
starter=$!
exec </dev/null

# The node's part of each hierarchy; inside, it looks like the root of it. STATE/cgroups: `GROUP CONTROLLERS` a line.
printf "%s\n" "$programs" >"$state/programs"
mkdir "$state"/{log,pki,cni,containerd,images,sysctl,home,lib,lib.work,var-log,var-log.work}
new_group() { # PARENT CONTROLLERS
  local group=$1/keywright-node-$$ why
  why=$(mkdir "$group" 2>&1) || refuse "a control group: $why"
  groups+=("$group")
  echo "$group $2" >>"$state/cgroups"
}
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
  # Only the root may hold processes beside groups with controllers, so the node goes right below it.
  for controller in cpuset cpu memory pids; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
  done 2>/dev/null
  new_group /sys/fs/cgroup unified
  for controller in cpu memory pids; do
    grep -qw $controller "${groups[0]}/cgroup.controllers" || refuse "the cgroup controller $controller is not to be had"
  done
else
  while IFS=: read -r _ controllers path; do
    parent=/sys/fs/cgroup/${controllers#name=}${path%/}
    [ -n "$controllers" ] && [ -d "$parent" ] || continue
    new_group "$parent" "$controllers"
    if [ "$controllers" = cpuset ]; then # a new one has no processors and takes no process
      for kind in cpus mems; do cat "$parent/cpuset.$kind" >"${groups[-1]}/cpuset.$kind"; done
      echo 1 >"${groups[-1]}/cgroup.clone_children"
    fi
  done </proc/self/cgroup
  for controller in cpu memory pids devices; do
    grep -qE "[ ,]$controller(,|$)" "$state/cgroups" || refuse "the cgroup controller $controller is not to be had"
  done
fi

# Named as control-plane.sh would: kubelet wants the sandbox image and DNS beside what the caller brings.
image() { # NAME: the program of that name as an image, testbed/NAME
  "$here/image.py" "$state/images/$1.tar" "localhost/testbed/$1:v1" --user 65532:65532 --entrypoint "/$1" --file "$programs/$1=/$1"
}
image pause
image coredns
for image in "${images[@]}"; do cp "$image" "$state/images/"; done

# pdeathsig: not even SIGKILL to this script leaves a program behind.
STATE=$state PROGRAMS=$programs HERE=$here/node setpriv --pdeathsig KILL bash -c '
  while read -r group _; do echo $$ >"$group/cgroup.procs"; done <"$STATE/cgroups"
  exec unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child=KILL --mount-proc --propagation private \
    "$HERE/machine.sh"
' >"$state/log/node.log" 2>&1 &
outer=$!

until [ -e "$state/ready" ]; do
  kill -0 "$starter" 2>/dev/null || exit 0
  kill -0 "$outer" 2>/dev/null || fail
  sleep 0.05
done
init >"$state/init.pid"
echo ready
wait -n "$starter" "$outer" || true
kill -0 "$outer" 2>/dev/null || fail
