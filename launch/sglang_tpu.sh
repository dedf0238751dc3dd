#!/usr/bin/env bash
# Serve a model with sglang-jax on a TPU VM, for rollouts and evaluation of fixed weights.
#
#   launch/sglang_tpu.sh [--dry-run] MODEL [SGLANG-JAX OPTION ...]
#
# sglang-jax has no route for new weights (its issue 873): train with slow.enabled false, or serve
# with python -m fst_jax.serve, which has one. The environment is ./.venv-sglang-jax, made with
# PYTHON (default python3.12). PORT (30000) and HOST (127.0.0.1) may be set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/common.sh
source launch/common.sh
[[ "${1:-}" != -h && "${1:-}" != --help ]] || usage
[[ $# -ge 1 && "$1" != -* ]] || fail "which model? Name a folder or hub model; see $self --help"
model="$1"
shift

if [[ ! -x .venv-sglang-jax/bin/python ]]; then
  do_or_print "${PYTHON:-python3.12}" -m venv .venv-sglang-jax
  do_or_print .venv-sglang-jax/bin/python -m pip install --quiet 'sglang-jax[tpu]==0.1.0rc0'
fi
do_or_print .venv-sglang-jax/bin/python -m sgl_jax.launch_server --model-path "$model" \
  --host "${HOST:-127.0.0.1}" --port "${PORT:-30000}" --device tpu --dtype bfloat16 "$@"
