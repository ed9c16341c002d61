#!/bin/sh
# failing_rank_test.sh PROGRAM MPIEXEC NUMPROC_FLAG
# A rank that throws ends all ranks within seconds, with the exit code of its error and with one message, wherever the others wait.
set -u
program=$1 mpiexec=$2 numproc_flag=$3
limit=45 # seconds, the start of mpiexec on a host with a slow resolver included; a rank that hangs would sit there for ever
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
checked=0 failed=0

# check RANKS EXIT_CODE MESSAGE ARGUMENTS... (RANKS 0: without mpiexec)
check() {
  ranks=$1 expected_code=$2 message=$3
  shift 3
  if [ "$ranks" -eq 0 ]; then
    timeout -k 5 $limit "$program" "$@" >"$folder/out" 2>"$folder/err"
  else
    timeout -k 5 $limit "$mpiexec" "$numproc_flag" "$ranks" "$program" "$@" >"$folder/out" 2>"$folder/err"
  fi
  code=$?
  messages=$(grep -c '^switchyard: ' "$folder/err")
  wrong=
  [ "$code" -eq "$expected_code" ] || wrong="$wrong; exit code $code, not $expected_code"
  if [ "$expected_code" -ne 0 ]; then
    [ "$messages" -eq 1 ] || wrong="$wrong; $messages messages, not 1"
    grep -qxF "switchyard: $message" "$folder/err" || wrong="$wrong; no message '$message'"
    [ "$ranks" -ne 0 ] || [ "$(wc -l <"$folder/err")" -eq 1 ] || wrong="$wrong; more than one line"
  fi
  checked=$((checked + 1))
  [ -n "$wrong" ] || return 0
  failed=$((failed + 1))
  echo "FAILED: $* on $ranks ranks$wrong"
  cat "$folder/err"
}

check 3 0 "" nowhere all
for place in barrier sum sum_to_root broadcast gather_v all_gather_v all_to_all all_to_all_v duplicate plan \
  start_dispatch finish_dispatch start_combine finish_combine end; do
  check 3 1 "$place: a fault was injected" $place 1
done
check 4 1 "finish_combine: a fault was injected" finish_combine 0
check 2 2 "sum: a fault was injected; inject none" sum 1 usage
check 4 2 "sum: a fault was injected; inject none" sum all usage
check 3 1 "a fault was injected" barrier 2 foreign
check 3 1 "an exception of unknown type" barrier 2 int
check 1 2 "sum: a fault was injected; inject none" sum 0 usage
check 0 1 "finish_dispatch: a fault was injected" finish_dispatch 0
check 0 2 "sum: a fault was injected; inject none" sum 0 usage

echo "$checked runs checked, $failed failed"
[ "$failed" -eq 0 ] && [ "$checked" -eq 24 ]
