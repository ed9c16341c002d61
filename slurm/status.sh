#!/usr/bin/env bash
# Says how far a run is: see --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: slurm/status.sh RUN

Says of a run, and of each run of an array, from what it has written: segments, blocks and tokens that are committed, the share of the
work that is done, when it will be complete at this session's pace; of its jobs their state, from Slurm; of their logs the latest error.
RUN is the `out` of run.ini. Reads files and asks squeue; needs neither switchyard nor, for the first part, Slurm.
END
}

case ${1:---help} in
  --help | -h) usage; exit 0 ;;
esac
run=$1
if [ ! -d "$run" ]; then
  echo "status.sh: $run: there is no such folder; name the 'out' of the run's configuration" >&2
  exit 2
fi

duration() {
  local seconds=$1
  if [ "$seconds" -lt 120 ]; then
    echo "$seconds s"
  elif [ "$seconds" -lt 7200 ]; then
    echo "$((seconds / 60)) min"
  else
    echo "$((seconds / 3600)) h $((seconds % 3600 / 60)) min"
  fi
}

with_commas() { sed -E ':a; s/([0-9])([0-9]{3})(,|$)/\1,\2\3/; ta' <<<"$1"; }

# manifest_numbers RUN: segments, blocks, tokens, per cent done, the corpus that comes next, seconds of the epoch of the last segment; and of
# this session, the last start of the run, which wrote run.json: tokens a second and seconds to go at its pace. What is unknown is '?'.
manifest_numbers() {
  awk -v session="$(stat -c %Y "$1/run.json")" '
    function number(key, text) {
      if (!match(text, key "[0-9.e+-]+")) return "?"
      text = substr(text, RSTART, RLENGTH)
      sub(key, "", text)
      return text
    }
    NR == FNR { written[$2] = $1; next }
    {
      match($0, /"segments\/[^"]*"/)
      last = written[substr($0, RSTART + 1, RLENGTH - 2)]
      segments++
      blocks += number("\"blocks\":", $0)
      tokens += number("\",\"tokens\":", $0)
      share = number("\"share\":", $0)
      next_corpus = number("\"next\":.*\"corpus\":", $0)
      if (last > session) session_tokens += number("\",\"tokens\":", $0)
      else before = share
    }
    END {
      seconds = last - session
      known = share != "?"
      percent = known ? sprintf("%.1f", 100 * share) : "?"
      rate = session_tokens > 0 ? int(session_tokens / seconds) : "?"
      to_go = known && seconds > 0 && share > before ? int(seconds * (1 - share) / (share - before) + 0.5) : "?"
      print segments, blocks, tokens, percent, next_corpus, last + 0, rate, to_go
    }
  ' <(cd "$1" && find segments -name '*.h5' -printf '%Ts %p\n') "$1/manifest.jsonl"
}

print_progress() {
  local run=$1 name=$2 segments blocks tokens percent next_corpus last rate to_go
  if [ ! -f "$run/run.json" ]; then
    echo "$name: not started"
    return
  fi
  if [ ! -s "$run/manifest.jsonl" ]; then
    echo "$name: started, no segment is committed yet"
    return
  fi
  read -r segments blocks tokens percent next_corpus last rate to_go < <(manifest_numbers "$run")
  printf '%s: %s segments, %s blocks, %s tokens' "$name" "$(with_commas "$segments")" "$(with_commas "$blocks")" "$(with_commas "$tokens")"
  if [ "$next_corpus" -ge "$(grep -c '^ *"option": ' "$run/run.json")" ]; then
    echo ', complete'
    return
  fi
  printf ', %s %% done' "$percent"
  [ "$rate" = '?' ] || printf ', %s tokens/s' "$(with_commas "$rate")"
  [ "$to_go" = '?' ] || printf ', ETA %s' "$(duration "$to_go")"
  printf ' (last segment %s ago)\n' "$(duration "$(($(date +%s) - last))")"
}

print_jobs() {
  local job id states ids
  if [ ! -s "$run/slurm/jobs" ]; then
    echo 'jobs: none were submitted by submit.sh'
    return
  fi
  if ! command -v squeue >/dev/null; then
    echo 'jobs: unknown, Slurm is not here'
    return
  fi
  ids=$(cut -d ' ' -f 2 "$run/slurm/jobs" | paste -sd ,)
  if ! states=$(squeue --noheader --states=all --jobs="$ids" --format='%F %i %T, ran %M, nodes: %D %R' 2>&1); then
    echo "jobs: unknown, Slurm does not answer: $(tail -n 1 <<<"$states")"
    return
  fi
  echo 'jobs:'
  while read -r job id; do
    { grep "^$id " <<<"$states" || echo "$id $id: Slurm has forgotten it"; } | while read -r _ state; do printf '  %-8s %s\n' "$job" "$state"; done
  done <"$run/slurm/jobs"
}

# The latest line of the newest log that has one. What srun and slurmstepd say of each task that ended only follows from it.
print_last_error() {
  local log line
  while read -r log; do
    line=$(grep -aE '^switchyard: |\[error\]|(^| )error: ' "$log" |
      grep -avE 'stopped by a signal|srun: error: .*: tasks? [0-9]|slurmstepd.* error: \*\*\*' | tail -n 1) || continue
    echo "last error: $line ($log)"
    return
  done < <(find "$run" -path '*/segments' -prune -o \( -path '*/slurm/*.log' -o -path '*/log/*.log' \) -printf '%T@ %p\n' | sort -rn | cut -d ' ' -f 2-)
  echo 'last error: none'
}

if [ -s "$run/slurm/parts" ]; then
  while read -r name; do print_progress "$run/$name" "$name"; done <"$run/slurm/parts"
else
  print_progress "$run" "$(basename "$run")"
fi
print_jobs
print_last_error
