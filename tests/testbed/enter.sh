#!/bin/bash
# enter.sh STATE COMMAND...: runs a command inside the node that node.sh keeps in STATE, in the same working directory;
# kubectl and helm as an administrator. The command ends with this script, however that ends.
set -euo pipefail

state=$(cd "$1" && pwd)
shift
# A home of its own: kubectl's and helm's caches and settings are another cluster's.
export PATH=$(cat "$state/programs"):$PATH KUBECONFIG=$state/admin.kubeconfig HOME=$state/home
exec nsenter --target "$(cat "$state/init.pid")" --mount --net --pid --uts --ipc -- \
  setpriv --pdeathsig KILL env --chdir="$PWD" "$@"
