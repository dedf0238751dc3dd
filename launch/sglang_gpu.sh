#!/usr/bin/env bash
# Serve a model with SGLang on NVIDIA GPUs, ready for fst_jax: weights can be updated from disk.
#
#   launch/sglang_gpu.sh [--dry-run] MODEL [SGLANG OPTION ...]
#
# Train with --rollout.engine sglang --rollout.url http://HOST:30000 and --rollout.weights_dir on a
# disk that both sides see under the same path. The environment is ./.venv-sglang, made with PYTHON
# (default python3). PORT (30000) and HOST (127.0.0.1) may be set; for another HOST, set
# FST_JAX_API_KEY on both sides.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/common.sh
source launch/common.sh
[[ "${1:-}" != -h && "${1:-}" != --help ]] || usage
[[ $# -ge 1 && "$1" != -* ]] || fail "which model? Name a folder or hub model; see $self --help"
model="$1"
shift

host="${HOST:-127.0.0.1}"
key=()
if [[ -n "${FST_JAX_API_KEY:-}" ]]; then
  key=(--api-key "$FST_JAX_API_KEY")
elif [[ "$host" != 127.0.0.1 && "$host" != localhost ]]; then
  fail "HOST=$host is open to others: set FST_JAX_API_KEY"
fi
install_sglang
# The name stays the same when the weights change; seeds need deterministic inference.
serve=(.venv-sglang/bin/python -m sglang.launch_server --model-path "$model"
  --served-model-name "$(basename "$model")" --host "$host" --port "${PORT:-30000}"
  --weight-version default --enable-deterministic-inference "${key[@]}" "$@")
"$dry_run" || exec "${serve[@]}" # the server itself gets the signals
do_or_print "${serve[@]}"
