#!/usr/bin/env bash
#SBATCH --job-name={{ job }}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={{ cpus }}
{% if gpus %}
#SBATCH --gpus-per-node={{ gpus }}
{% endif %}
{% if time %}
#SBATCH --time={{ time }}
{% endif %}
{% if partition %}
#SBATCH --partition={{ partition }}
{% endif %}
#SBATCH --chdir="{{ folder }}"
#SBATCH --output="{{ log }}"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{{ grace }}
# Written by `mup-tune launch slurm`. Edit it freely: `sbatch` takes it as it is.
set -uo pipefail
export PATH={{ bin | quote }}:"$PATH"
{% if nodes > 1 %}

# A Ray of this job alone. Its token travels in the environment, where other users cannot see it.
umask 077
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
ADDRESS=$(hostname -I | cut -d' ' -f1):$PORT
RAY_TMP=/tmp/ray-$SLURM_JOB_ID
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN PORT ADDRESS RAY_TMP RAY_USAGE_STATS_ENABLED=0
# shellcheck disable=SC2016  # the nodes expand these
srun --no-kill --wait=0 --kill-on-bad-exit=0 --output={{ ray_log | quote }} bash -c '
  if [ "$SLURM_PROCID" = 0 ]; then
    exec ray start --block --head --port="$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$RAY_TMP" \
      --include-dashboard=false --disable-usage-stats
  fi
  until ray health-check --address "$ADDRESS" 2>/dev/null; do sleep 1; done
  exec ray start --block --address="$ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK"
' &
CLUSTER=$!
trap 'kill "$CLUSTER" 2>/dev/null; wait "$CLUSTER" 2>/dev/null; rm -rf "$RAY_TMP"' EXIT
until ray health-check --address "$ADDRESS" 2>/dev/null; do
  kill -0 "$CLUSTER" 2>/dev/null || { echo "Ray did not start on $(hostname)" >&2; exit 1; }
  sleep 1
done
{% endif %}

packs() { find {{ run | quote }}/curves -name '*.parquet' 2>/dev/null | wc -l; }
BEFORE=$(packs)
LIMIT=no SWEEP=
trap 'kill -TERM "$SWEEP" 2>/dev/null' TERM             # cancelled or preempted: SLURM requeues what it preempts
trap 'LIMIT=yes; kill -TERM "$SWEEP" 2>/dev/null' USR1  # the time limit is near
{{ sweep }}{% if nodes > 1 %} --address "$ADDRESS"{% endif %} &
SWEEP=$!
while true; do
  wait "$SWEEP"
  CODE=$?
  kill -0 "$SWEEP" 2>/dev/null || break # else a signal ended the waiting, and not the sweep
done
if [ "$LIMIT" = yes ] && [ "$CODE" = 143 ]; then
  if [ "$(packs)" -gt "$BEFORE" ]; then
    scontrol requeue "$SLURM_JOB_ID" # the same job resumes the run
  else
    echo "not requeued: no pack ended within the time limit, so take a longer one" >&2
  fi
fi
exit "$CODE"
