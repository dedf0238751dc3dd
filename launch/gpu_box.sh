#!/usr/bin/env bash
# Train on the GPUs of this machine; with --server-gpus, SGLang samples on some of them.
#
#   launch/gpu_box.sh [--dry-run] CONFIG [--section.field VALUE ...]
#   launch/gpu_box.sh [--dry-run] --model MODEL --server-gpus N [--tp N] [--gpus N]
#     CONFIG [--section.field VALUE ...]
#
#   --model MODEL        folder or hub name, for the learner and for SGLang
#   --server-gpus N      the last N GPUs are SGLang's, the others the learner's
#   --tp N               GPUs of one SGLang server (default 1); there are N / tp servers
#   --gpus N             GPUs of this machine (default: those that nvidia-smi lists)
#
# The environments are ./.venv, and for SGLang ./.venv-sglang, made with PYTHON (default python3);
# running again resumes the run. New weights go to SGLang through runs/NAME/weights on this disk. The
# servers end with the run; their logs are runs/sglang-PORT.log.
#
# Costs: a rented machine is billed while it is on, whether or not the run has ended: append
# '&& sudo shutdown -h now'. Its disks are billed until you delete them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/common.sh
source launch/common.sh

model='' server_gpus='' tp=1 gpus=''
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help) usage ;;
    --model | --server-gpus | --tp | --gpus)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      option="${1#--}"
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    *) fail "no option $1; settings come after CONFIG; see $self --help" ;;
  esac
  shift
done
[[ -z "$model$server_gpus" ]] || need model server_gpus
need_config "$@"
config="$1"
shift
[[ -f "$config" ]] || fail "no config file $config (paths are relative to $PWD)"
if ! "$dry_run" && ! nvidia-smi >/dev/null 2>&1; then
  fail "nvidia-smi finds no GPU; on a CPU use 'make demo'"
fi

if [[ ! -x .venv/bin/python ]]; then
  do_or_print "${PYTHON:-python3}" -m venv .venv
fi
do_or_print .venv/bin/python -m pip install --quiet --editable '.[gpu,tasks,track]'
train=(.venv/bin/python -m fst_jax.train --config "$config")
if [[ -z "$server_gpus" ]]; then
  do_or_print "${train[@]}" "$@"
  exit 0
fi

[[ -n "$gpus" ]] || gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l)" || fail "give --gpus: nvidia-smi finds none"
learners=$((gpus - server_gpus))
[[ "$learners" -ge 1 ]] || fail "--server-gpus $server_gpus leaves the learner none of $gpus GPUs"
[[ "$server_gpus" -ge 1 && $((server_gpus % tp)) -eq 0 ]] ||
  fail "--server-gpus $server_gpus must be at least 1, and divisible by --tp $tp"

install_sglang
"$dry_run" || mkdir -p runs
servers=() urls=()
trap '[[ ${#servers[@]} -eq 0 ]] || kill "${servers[@]}" 2>/dev/null || true' EXIT
for ((first = learners; first < gpus; first += tp)); do
  port=$((30000 + first - learners))
  urls+=("http://127.0.0.1:$port")
  start=(env CUDA_VISIBLE_DEVICES="$(seq --separator , "$first" $((first + tp - 1)))" PORT="$port"
    launch/sglang_gpu.sh "$model" --tp-size "$tp")
  if "$dry_run"; then
    do_or_print "${start[@]}"
  else
    "${start[@]}" >"runs/sglang-$port.log" 2>&1 &
    servers+=($!)
  fi
done

# The learner waits until they are there. No exec: they are to be ended after it.
do_or_print env CUDA_VISIBLE_DEVICES="$(seq --separator , 0 $((learners - 1)))" "${train[@]}" \
  --model.path "$model" --rollout.engine sglang --rollout.url "$(IFS=,; echo "${urls[*]}")" "$@"
