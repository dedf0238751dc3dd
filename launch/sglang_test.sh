#!/usr/bin/env bash
# Run the client's tests against a real sglang-jax server on this machine's CPU.
#
#   launch/sglang_test.sh
#
# The server has an environment of its own, ./.venv-sglang-jax, made with PYTHON312 (default
# python3.12), and a small random model, since its CPU backend wants heads of 128 dimensions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

port="${PORT:-31000}"
folder="$PWD/models/sglang-test"
if [[ ! -x .venv-sglang-jax/bin/python ]]; then
  "${PYTHON312:-python3.12}" -m venv .venv-sglang-jax
  .venv-sglang-jax/bin/python -m pip install --quiet 'sglang-jax[cpu]==0.1.0rc0'
fi
.venv/bin/python -c "
from tests.helpers import tiny_model_folder
tiny_model_folder('$folder', head_dim=128, heads=2, kv_heads=2, hidden=64)"

log="$PWD/models/sglang-test.log"
JAX_PLATFORMS=cpu USE_DEVICE_TYPE=cpu .venv-sglang-jax/bin/python -m sgl_jax.launch_server \
  --model-path "$folder" --device cpu --attention-backend native --dtype float32 \
  --context-length 512 --max-total-tokens 2048 --max-running-requests 4 \
  --chunked-prefill-size 128 --page-size 1 --tp-size 1 --port "$port" \
  --disable-precompile --skip-server-warmup >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 180); do
  if curl --silent --fail "http://127.0.0.1:$port/model_info" >/dev/null ||
    curl --silent --fail "http://127.0.0.1:$port/get_model_info" >/dev/null; then
    break
  fi
  kill -0 "$server" 2>/dev/null || { tail -n 40 "$log" >&2; exit 1; }
  sleep 1
done
FST_JAX_TEST_SGLANG_URL="http://127.0.0.1:$port" FST_JAX_TEST_SGLANG_MODEL="$folder" \
  .venv/bin/python -m pytest -rs tests/rollout/test_sglang.py -k real
