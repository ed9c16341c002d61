#!/usr/bin/env bash
# Runs a command beside a Slurm cluster of virtual nodes on this host:
#   tests/slurm/cluster.sh NODES COMMAND [ARGUMENTS...]        e.g. tests/slurm/cluster.sh 3 bash
# Cluster and command live in namespaces of their own (processes, network, mounts, host names) and end with the command, however it ends:
# ports and names are free, nothing of the host is changed, no daemon is left. The command finds SLURM_CONF and CLUSTER, the cluster's folder
# (logs: CLUSTER/log; the pid of slurmd of node nI: CLUSTER/nI.pid). Partitions: all; steady, all but the last node; frail, all but the first.
# Exit code: that of the command, 77 when this is not root (ctest: skipped), 1 when the cluster does not come up.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

usage() { sed -n '2,3p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
nodes=$1
[[ $nodes =~ ^[1-9]$ ]] || usage
shift

if [ -z "${CLUSTER:-}" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo 'skipped: a Slurm cluster in namespaces of its own needs root; run this test as root' >&2
    exit 77
  fi
  CLUSTER=$(mktemp -d /tmp/switchyard-slurm-XXXX)  # short: paths of sockets have at most 107 characters
  export CLUSTER
  trap 'rm -rf "$CLUSTER"' EXIT
  code=0
  unshare --pid --fork --kill-child --mount-proc --net --uts --ipc "$0" "$nodes" "$@" || code=$?
  exit "$code"
fi

# From here on this is process 1 of the new namespaces: it adopts and reaps the daemons, and all end with it.
cpus_per_node=32  # more than there are, so that jobs of several tests fit
export SLURM_CONF=$CLUSTER/slurm.conf
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo  # the only network here; Open MPI leaves it out by itself

fail() {
  echo "the Slurm cluster does not come up: $*" >&2
  tail -n 20 "$CLUSTER"/log/* >&2
  exit 1
}

# wait_for SECONDS COMMAND...: polls until the command succeeds.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

write_configuration() {
  local memory i
  memory=$(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p')
  cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=control(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is requeued waits cred_expire and a second (by default two minutes) before it may start again.
AuthInfo=socket=$CLUSTER/munge/socket,cred_expire=15
CredType=cred/munge
SlurmctldPidFile=$CLUSTER/slurmctld.pid
SlurmctldLogFile=$CLUSTER/log/slurmctld.log
StateSaveLocation=$CLUSTER/state
SlurmdPidFile=$CLUSTER/%n.pid
SlurmdSpoolDir=$CLUSTER/%n/spool
SlurmdLogFile=$CLUSTER/log/%n.log
# Of each node its own: mpi/pmix makes a folder here that is named by job and step alone.
TmpFS=$CLUSTER/%n/tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptMode=OFF
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=20
KillWait=10
MinJobAge=900
JobRequeue=1
SlurmdParameters=config_overrides
END
  for ((i = 1; i <= nodes; i++)); do
    echo "NodeName=n$i NodeHostname=n$i NodeAddr=127.0.0.1 Port=$((7000 + i)) CPUs=$cpus_per_node RealMemory=$memory State=UNKNOWN" >>"$SLURM_CONF"
  done
  echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
  if [ "$nodes" -gt 1 ]; then
    echo "PartitionName=steady Nodes=n[1-$((nodes - 1))] MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
    echo "PartitionName=frail Nodes=n[2-$nodes] MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
  fi
  echo 'CgroupAutomount=no' >"$CLUSTER/cgroup.conf"
}

start_munge() {
  mkdir -m 0711 "$CLUSTER/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$CLUSTER/munge/key")
  munged --socket="$CLUSTER/munge/socket" --key-file="$CLUSTER/munge/key" --pid-file="$CLUSTER/munge/pid" \
    --log-file="$CLUSTER/log/munged.log" --seed-file="$CLUSTER/munge/seed"
  wait_for 30 munge --no-input --socket="$CLUSTER/munge/socket" || fail 'munged does not answer'
}

# A node has a host name and shared memory of its own, so that Open MPI takes ranks on two nodes for ranks on two hosts.
start_node() {
  local name=$1
  mkdir -p "$CLUSTER/$name/spool" "$CLUSTER/$name/tmp"
  # shellcheck disable=SC2016  # expanded by the node's shell
  unshare --uts --mount sh -c 'hostname "$1" && mount -t tmpfs tmpfs /dev/shm && exec slurmd -N "$1" -f "$SLURM_CONF"' sh "$name"
}

# shellcheck disable=SC2317  # wait_for calls it
all_idle() { [ "$(sinfo --noheader --partition=all --states=idle --format=%D)" = "$nodes" ]; }

chmod 0711 "$CLUSTER"
mkdir "$CLUSTER/log" "$CLUSTER/state"
ip link set lo up
ip address add 10.0.0.1/32 dev lo  # with loopback addresses alone, getaddrinfo finds slurmctld nothing to listen at
hostname control
{ echo '127.0.0.1 localhost control'; for ((i = 1; i <= nodes; i++)); do echo "127.0.0.1 n$i"; done; } >"$CLUSTER/hosts"
mount --bind "$CLUSTER/hosts" /etc/hosts
write_configuration
start_munge
slurmctld -c -f "$SLURM_CONF"
wait_for 60 scontrol ping || fail 'slurmctld does not answer'
for ((i = 1; i <= nodes; i++)); do start_node "n$i"; done
wait_for 120 all_idle || fail "not all $nodes nodes are idle"
code=0
"$@" || code=$?
exit "$code"
