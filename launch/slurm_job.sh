#!/usr/bin/env bash
# What a job of launch/slurm.sh does on its first node, in the folder in which it was submitted:
#
#   slurm_job.sh CONFIG [--section.field VALUE ...]
set -euo pipefail

# JAX would give each of SLURM's tasks one GPU; here a task has all those of its node.
if [[ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]]; then
  JAX_LOCAL_DEVICE_IDS="$(seq --separator , 0 $((SLURM_GPUS_ON_NODE - 1)))"
  export JAX_LOCAL_DEVICE_IDS
fi

# A process that has saved ends with 75, and must not take those with it that are about to; when one
# crashes, JAX ends the others.
code=0
srun --ntasks-per-node 1 --kill-on-bad-exit=0 .venv/bin/python -m fst_jax.train --config "$1" \
  --parallel.coordinator auto --watch.stopped_exit 75 "${@:2}" || code=$?

# 75: asked to stop before the end, and saved. 3: stalled.
if [[ "$code" == 75 || "$code" == 3 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
