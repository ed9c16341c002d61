# shellcheck shell=bash disable=SC2034  # those that read this use the variables
# The cluster, for submit.sh and every job: what site.env says, read from the file `site` ('': none), over defaults; and launch.

PARTITION='' ACCOUNT='' TIME='' SBATCH_OPTIONS=()
TASKS_PER_NODE=1 CPUS_PER_TASK='' GPUS_PER_NODE=0
MODULES='' CONTAINER='' MPI_PLUGIN=pmix
SWITCHYARD=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/switchyard
WARN_SECONDS=120 IDLE_RESTARTS=3 STAGE_TO=''
# shellcheck disable=SC1090  # the site's
[ -z "$site" ] || . "$site"

load_modules() {
  [ -n "$MODULES" ] || return 0
  if ! command -v module >/dev/null; then
    # shellcheck disable=SC1091  # the system's
    . /etc/profile
  fi
  # shellcheck disable=SC2086  # a list of names
  module load $MODULES
}

# launch SUBCOMMAND [OPTIONS...]: the shell becomes the srun that runs switchyard on all ranks; one rank's failure ends all.
launch() {
  load_modules || exit
  # By itself srun does not take over the job's CPUs of a task. CONTAINER is words.
  # shellcheck disable=SC2086
  exec srun --mpi="$MPI_PLUGIN" --kill-on-bad-exit=1 ${CPUS_PER_TASK:+--cpus-per-task="$CPUS_PER_TASK"} $CONTAINER "$SWITCHYARD" "$@"
}
