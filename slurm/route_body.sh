# shellcheck shell=bash
# shellcheck disable=SC2154,SC2317  # variables come from the job's script, functions are called by traps
# Body of a route job, below the lines that submit.sh writes: launch.sh; `folder` of scripts and logs; `configs` and `runs` by task of the array.
#
# SIGUSR1 and SIGTERM go on to the ranks: they commit every whole block and exit with 85. Then, or when a signal ended a rank, the job
# requeues itself, and its next start continues the run on as many nodes as it gets then. Other exit codes are the job's.

stop_asked=no
signals=0
ranks=
ask_ranks_to_stop() {
  stop_asked=yes
  signals=$((signals + 1))
  # srun passes SIGUSR1 on to every rank.
  [ -z "$ranks" ] || kill -s USR1 "$ranks" 2>/dev/null
}
trap ask_ranks_to_stop USR1 TERM

task=${SLURM_ARRAY_TASK_ID:-0}
config=${configs[$task]}
run=${runs[$task]}
restarts=${SLURM_RESTART_COUNT:-0}
lock_seconds=120
# Of a task of an array: SLURM_JOB_ID may be that of the whole array.
this_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$task}
this_job=${this_job:-$SLURM_JOB_ID}

say() { echo "route job $this_job, start $((restarts + 1)): $*" >&2; }

segments() {
  if [ -f "$run/manifest.jsonl" ]; then wc -l <"$run/manifest.jsonl"; else echo 0; fi
}

# Counts starts in a row that found no new segment, whoever requeued the job, and ends it when they are too many.
give_up_without_progress() {
  local file=$folder/starts-$this_job before=-1 idle=0 now
  now=$(segments)
  if [ "$restarts" -gt 0 ] && [ -f "$file" ]; then read -r before idle <"$file"; fi
  if [ "$now" -gt "$before" ]; then idle=0; else idle=$((idle + 1)); fi
  echo "$now $idle" >"$file"
  [ "$idle" -ge "$IDLE_RESTARTS" ] || return 0
  say "error: $idle restarts in a row committed no segment; look for the cause above, or let a segment be smaller (--block-tokens," \
    "--commit-seconds of a new run) or the warning earlier (WARN_SECONDS in site.env)"
  exit 1
}

# Ranks of an earlier start may still be ending, on a node that Slurm has given up: they hold the run's lock.
wait_for_earlier_ranks() {
  [ "$restarts" -gt 0 ] && [ -f "$run/run.lock" ] || return 0
  flock --timeout "$lock_seconds" "$run/run.lock" true || say "the run is still locked after $lock_seconds s"
}

# Slurm may have taken the job away meanwhile: cancelled it, or started it anew on other nodes. Its controller may be too busy to say
# so in time.
is_still_ours() {
  local job
  for _ in 1 2 3 4 5 6; do
    job=$(scontrol show job --oneliner "$this_job") && break
    sleep 5
  done
  [[ $job == *" JobState=RUNNING "* && $job == *" Restarts=$restarts "* ]]
}

requeue() {
  local end
  end="exit code $1, $(segments) segments committed"
  [ "$1" = 85 ] || end="error: $end"
  if ! is_still_ours; then
    say "$end; not requeued: for Slurm this start of the job is over"
    exit "$1"
  fi
  say "$end; requeued"
  for _ in 1 2 3 4 5 6; do
    scontrol requeue "$this_job" && exit "$1"
    sleep 5
    is_still_ours || exit "$1"  # it was done, but the answer came too late
  done
  say 'error: it cannot be requeued; submit the run again to continue it'
  exit "$1"
}

# The exit code of srun: a signal that the trap handles ends `wait` early.
wait_for_ranks() {
  local handled code
  while true; do
    handled=$signals
    wait "$ranks"
    code=$?
    [ "$handled" != "$signals" ] || return "$code"
  done
}

give_up_without_progress
wait_for_earlier_ranks
[ "$stop_asked" = no ] || requeue 85

say "$SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST), $(segments) segments committed so far"
launch route --config "$config" --out "$run" ${STAGE_TO:+--stage-to "$STAGE_TO"} &
ranks=$!
wait_for_ranks
code=$?
if [ "$code" = 85 ] || [ "$code" -gt 128 ] || { [ "$stop_asked" = yes ] && [ "$code" != 0 ]; }; then requeue "$code"; fi
exit "$code"
