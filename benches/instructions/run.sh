#!/bin/bash
# run.sh PROGRAM: counts the instructions of one decision under callgrind, and fails above the limit beside this file.
# The difference between two runs leaves out what comes before the first decision. Valgrind has no SHA instructions, so
# that the hash is counted in software, which is most of it.
set -euo pipefail
program=$1
folder=$(cd "$(dirname "$0")" && pwd)
limit=$(<"$folder/limit")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

counted() { # ROUNDS of 1,000 decisions
  valgrind --tool=callgrind --callgrind-out-file="$work/$1" "$program" "$1" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
  sed -n 's/^\(summary\|totals\): //p' "$work/$1" | tail -1
}

few=$(counted 5)
many=$(counted 15)
each=$(((many - few) / 10000))
echo "$each instructions a decision; the limit is $limit"
if ((each > limit)); then
  echo "a decision costs more than before: if that has to be, raise benches/instructions/limit and say why" >&2
  exit 1
elif ((each * 100 < limit * 95)); then
  echo "that is more than 5 % below: lower benches/instructions/limit, so that the gain is kept" >&2
fi
