#!/usr/bin/env bash
# Install fst_jax with JAX for NVIDIA GPUs on this machine, and train with one config.
#
#   launch/gpu_box.sh [--dry-run] CONFIG [--section.field VALUE ...]
#
# --dry-run prints the commands and runs none of them. The environment is ./.venv, made with
# PYTHON (default python3); running again resumes the run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  echo "usage: launch/gpu_box.sh [--dry-run] CONFIG [--section.field VALUE ...]" >&2
  exit 2
}

# shellcheck source=launch/common.sh
source launch/common.sh
[[ $# -ge 1 && "$1" != -* ]] || usage
config="$1"
shift
if [[ ! -f "$config" ]]; then
  echo "error: no config file $config (paths are relative to $PWD)" >&2
  exit 2
fi

if ! "$dry_run" && ! nvidia-smi >/dev/null 2>&1; then
  echo "error: nvidia-smi finds no GPU; on a CPU use 'make demo'" >&2
  exit 2
fi
if [[ ! -x .venv/bin/python ]]; then
  do_or_print "${PYTHON:-python3}" -m venv .venv
fi
do_or_print .venv/bin/python -m pip install --quiet --editable '.[gpu,tasks,track]'
do_or_print .venv/bin/python -m fst_jax.train --config "$config" "$@"
