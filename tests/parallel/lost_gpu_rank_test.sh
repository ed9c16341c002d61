#!/bin/sh
# lost_gpu_rank_test.sh PROGRAM MPIEXEC NUMPROC_FLAG
# Whatever becomes of a rank while others wait for its rows in NCCL, all ranks end within seconds, and somebody says which rank it is about.
set -u
program=$1 mpiexec=$2 numproc_flag=$3
limit=40 # seconds, of which the start of mpiexec on a busy host takes most; a rank that hangs would sit there for ever
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
checked=0 failed=0

# check SUCCEEDS MESSAGE WHO HOW: exit code 0 or another; a line of the output that matches
check() {
  succeeds=$1 message=$2
  shift 2
  timeout -k 5 $limit "$mpiexec" "$numproc_flag" 3 "$program" "$@" >"$folder/out" 2>&1
  code=$?
  wrong=
  [ "$code" -ne 124 ] && [ "$code" -ne 137 ] || [ "$2" = kill ] || wrong="$wrong; did not end"
  if [ "$succeeds" = yes ]; then
    [ "$code" -eq 0 ] || wrong="$wrong; exit code $code"
  else
    [ "$code" -ne 0 ] && [ "$code" -ne 124 ] || wrong="$wrong; exit code $code"
    grep -q "$message" "$folder/out" || wrong="$wrong; no message '$message'"
  fi
  checked=$((checked + 1))
  [ -n "$wrong" ] || return 0
  failed=$((failed + 1))
  echo "FAILED: $*$wrong"
  cat "$folder/out"
}

check yes '' nobody error
check no '^switchyard: a fault was injected$' 1 error
check no 'rank 1 .*exited on signal 9' 1 kill
check no '^switchyard: rank 0, exchanging rows with ranks 1, 2: .*remote process exited' 1 absent
check no '^switchyard: rank [12], exchanging rows with ranks 0, [12]: .*remote process exited' 0 absent

echo "$checked runs checked, $failed failed"
[ "$failed" -eq 0 ] && [ "$checked" -eq 5 ]
