#!/usr/bin/env bash
# Submits a run to Slurm: see --help.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<END
usage: slurm/submit.sh --config run.ini [--nodes N] [--array] [--site slurm/site.env] [--dry-run]

Submits a run as one chain of jobs: route -> reduce -> compare -> report. Each begins when the one before it has succeeded, and is cancelled
when that failed. The route job ends early before its time limit and when it is preempted, commits what is whole, requeues itself and
continues, on any number of nodes; submitting the same run again continues it too.

  --config FILE   options of \`switchyard route\`, a line "option = value" each: model, corpus (a line each), out, ...
  --nodes N       nodes of the route job, or a range, e.g. 2-4: as many as are free, at least 2 (default 1)
  --array         route each corpus in a job of its own, side by side, into OUT/NAME; the rest of the chain takes them all
  --site FILE     the cluster: partition, account, modules, ranks of a node (default slurm/site.env, where it is there;
                  slurm/site.env.example explains it)
  --dry-run       show the jobs' scripts and submit nothing; needs no Slurm

Example run.ini:
  model = /models/mixtral
  corpus = wiki=/data/wiki.jsonl
  corpus = code=/data/src,split=file
  context = 2048
  out = /scratch/run
How far a run is: slurm/status.sh OUT
END
}

# fail WHAT WHERE REMEDY
fail() {
  echo "submit.sh: $2: $1; $3" >&2
  exit 2
}

need_value() { [ "$2" -ge 2 ] || fail 'its value is missing' "$1" 'see slurm/submit.sh --help'; }

config='' nodes=1 array=no site='' dry_run=no
while [ $# -gt 0 ]; do
  case $1 in
    --config) need_value "$1" $#; config=$2; shift ;;
    --nodes) need_value "$1" $#; nodes=$2; shift ;;
    --site) need_value "$1" $#; site=$2; shift ;;
    --array) array=yes ;;
    --dry-run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    *) fail 'unknown option' "$1" 'see slurm/submit.sh --help' ;;
  esac
  shift
done
[ -n "$config" ] || fail 'is missing' --config "name the file with route's options; see slurm/submit.sh --help"
[ -r "$config" ] || fail 'cannot be read' "$config" 'check --config'
[[ $nodes =~ ^[1-9][0-9]*(-[1-9][0-9]*)?$ ]] || fail "is '$nodes'" --nodes 'give a number of nodes, or a range such as 2-4'
if [ -z "$site" ] && [ -f "$here/site.env" ]; then site=$here/site.env; fi
[ -z "$site" ] || [ -r "$site" ] || fail 'cannot be read' "$site" 'check --site; slurm/site.env.example is a start'

# config_lines: the options of the file, without comments, as switchyard reads them. config_values NAME: values of one of them, a line each.
config_lines() { sed -e 's/#.*//' -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e '/^$/d' "$config"; }
config_values() { config_lines | sed -n "s/^$1[[:space:]]*=[[:space:]]*//p"; }

for option in model corpus out; do
  [ -n "$(config_values "$option")" ] || fail "there is no line '$option = ...'" "$config" 'see slurm/submit.sh --help'
done
out=$(realpath -m "$(config_values out | tail -n 1)")
[[ $out != *[[:space:]%\"\\]* ]] || fail 'has a blank or one of % " \, which Slurm reads in its own way' "$out" 'choose another out'
mapfile -t corpora < <(config_values corpus)
folder=$out/slurm

# shellcheck source=SCRIPTDIR/launch.sh
. "$here/launch.sh"

# A run for each task of the route job, and its options.
runs=() configs=()
if [ "$array" = yes ]; then
  for corpus in "${corpora[@]}"; do
    name=${corpus%%=*}
    [ "$name" != slurm ] || fail "a corpus is named 'slurm', as the folder of the jobs' scripts and logs" "$config" 'name it otherwise'
    runs+=("$out/$name")
    configs+=("$folder/$name.ini")
  done
else
  runs=("$out")
  configs=("$folder/run.ini")
fi

# The options of a task: a copy, so that a change of the file does not reach a run that is requeued.
task_config() {
  if [ "$array" = no ]; then
    config_lines
  else
    config_lines | grep -vE '^(corpus|out)[[:space:]]*='
    echo "corpus = ${corpora[$1]}"
    echo "out = ${runs[$1]}"
  fi
}

quoted() { printf ' %q' "$@"; }

# job_head NAME NODES: what every script begins with.
job_head() {
  local log=$folder/$1-%j.log
  [ "$1$array" != routeyes ] || log=$folder/$1-%A_%a.log
  cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=$(basename "$out")-$1
#SBATCH --output=$log
#SBATCH --open-mode=append
#SBATCH --chdir=$PWD
#SBATCH --requeue
#SBATCH --nodes=$2
END
  # With one rank a node it would make Slurm take the least nodes of a range; srun starts one by itself.
  [ "$TASKS_PER_NODE" = 1 ] || echo "#SBATCH --ntasks-per-node=$TASKS_PER_NODE"
  local option
  for option in ${CPUS_PER_TASK:+--cpus-per-task="$CPUS_PER_TASK"} ${PARTITION:+--partition="$PARTITION"} ${ACCOUNT:+--account="$ACCOUNT"} \
    ${TIME:+--time="$TIME"} "${SBATCH_OPTIONS[@]}"; do
    echo "#SBATCH $option"
  done
}

job_site() {
  echo
  echo "site=${site:+$folder/site.env}"
  echo ". $(printf %q "$here/launch.sh")"
}

route_script() {
  job_head route "$nodes"
  echo "#SBATCH --signal=B:USR1@$WARN_SECONDS"
  [ "$GPUS_PER_NODE" = 0 ] || echo "#SBATCH --gpus-per-node=$GPUS_PER_NODE"
  [ "$array" = no ] || echo "#SBATCH --array=0-$((${#runs[@]} - 1))"
  job_site
  echo "folder=$folder"
  echo "configs=($(quoted "${configs[@]}") )"
  echo "runs=($(quoted "${runs[@]}") )"
  echo ". $(printf %q "$here/route_body.sh")"
}

# step_script NAME WORDS...: a job that runs one subcommand on one node.
step_script() {
  job_head "$1" 1
  job_site
  echo "launch$(quoted "$@")"
}

script_of() {
  case $1 in
    route) route_script ;;
    reduce) step_script reduce "${runs[@]}" --output "$out/stats.h5" ;;
    compare) step_script compare "$out/stats.h5" --output "$out/compare.h5" ;;
    report) step_script report "$out/stats.h5" --output "$out/report.html" ;;
  esac
}

# One corpus has nothing to be compared with.
chain=(route reduce compare report)
[ ${#corpora[@]} -gt 1 ] || chain=(route reduce report)

dry_run() {
  local job before=''
  for task in "${!runs[@]}"; do
    printf '== %s\n' "${configs[$task]}"
    task_config "$task"
    echo
  done
  for job in "${chain[@]}"; do
    printf '== %s: sbatch%s %s\n' "$job" "${before:+ --dependency=afterok:ID_OF_$before --kill-on-invalid-dep=yes}" "$folder/$job.sh"
    script_of "$job"
    echo
    before=$job
  done
  echo 'nothing was submitted'
}

refuse_while_queued() {
  local ids queued
  [ -f "$folder/jobs" ] || return 0
  ids=$(cut -d ' ' -f 2 "$folder/jobs" | paste -sd ,)
  queued=$(squeue --noheader --jobs="$ids" --format='%A %j' 2>/dev/null) || return 0
  [ -z "$queued" ] || fail "jobs of this run are still in the queue: $(echo "$queued" | paste -sd ,)" "$out" "wait, or cancel them: scancel ${ids//,/ }"
}

write_scripts() {
  mkdir -p "$folder"
  [ -z "$site" ] || cp "$site" "$folder/site.env"
  rm -f "$folder/parts"
  for task in "${!runs[@]}"; do
    task_config "$task" >"${configs[$task]}"
    [ "$array" = no ] || basename "${runs[$task]}" >>"$folder/parts"
  done
  for job in "${chain[@]}"; do script_of "$job" >"$folder/$job.sh"; done
}

submit() {
  local job id before=()
  : >"$folder/jobs"
  for job in "${chain[@]}"; do
    if ! id=$(sbatch --parsable "${before[@]}" "$folder/$job.sh"); then
      # shellcheck disable=SC2046  # ids
      [ ! -s "$folder/jobs" ] || scancel $(cut -d ' ' -f 2 "$folder/jobs")
      fail 'sbatch refused it' "$folder/$job.sh" "correct ${site:-slurm/site.env} (slurm/site.env.example); what was submitted before it is cancelled"
    fi
    id=${id%%;*}
    echo "$job $id" >>"$folder/jobs"
    printf '%-8s job %-8s log %s\n' "$job" "$id" "$folder/$job-$id$([ "$job$array" != routeyes ] || echo _TASK).log"
    before=(--dependency="afterok:$id" --kill-on-invalid-dep=yes)
  done
}

if [ "$dry_run" = yes ]; then
  dry_run
  exit 0
fi
command -v sbatch >/dev/null || fail 'is not here' sbatch 'submit on a login node of the cluster, or look at the scripts with --dry-run'
refuse_while_queued
write_scripts
submit
echo
for run in "${runs[@]}"; do echo "record      $run/routing.h5"; done
echo "statistics  $out/stats.h5"
[ ${#corpora[@]} = 1 ] || echo "comparison  $out/compare.h5"
echo "report      $out/report.html"
echo "how far it is: $here/status.sh $out"
