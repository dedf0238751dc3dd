#!/usr/bin/env bash
# On each host of a TPU: mount the share, install the package, start the training unless it runs
# already, and follow it to its end. launch/tpu.sh sends it there and starts it:
#
#   tpu_worker.sh HOST:/PATH CONFIG [--section.field VALUE ...]
#
# Ends with the training's exit code: 0 at its end, 75 when it was asked to stop and has saved.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
share="$1" config="$2"
shift 2

if ! mountpoint --quiet /mnt/fst; then
  if ! command -v mount.nfs >/dev/null; then
    sudo apt-get update --quiet=2
    sudo apt-get install --quiet=2 --yes nfs-common
  fi
  sudo mkdir -p /mnt/fst
  sudo mount -t nfs -o rw,hard "$share" /mnt/fst
fi

# The images' own Python is 3.10, and fst_jax needs 3.11.
if [[ ! -x .venv/bin/fst ]]; then
  curl --proto '=https' --tlsv1.2 -LsSf https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv venv --quiet --clear --python 3.12 .venv
  ~/.local/bin/uv pip install --quiet --python .venv --editable '.[tpu,tasks,track]'
fi

# As root, whom Filestore lets write. Detached, so that it outlives the connection. On Google Cloud
# the metadata server announces maintenance.
if ! pgrep --full '[f]st_jax.train' >/dev/null; then
  rm -f train.pid train.code
  # shellcheck disable=SC2016 # for the inner shell
  sudo --preserve-env=HF_TOKEN,WANDB_API_KEY,FST_JAX_API_KEY setsid --fork bash -c '
    trap : TERM  # which is for the run; its code is yet to be written
    echo $$ >train.pid
    .venv/bin/python -m fst_jax.train "$@" >train.log 2>&1 && code=0 || code=$?
    echo $code >train.code
  ' train --config "$config" --output /mnt/fst/runs --parallel.coordinator auto \
    --watch.stopped_exit 75 \
    --watch.notice_url http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event \
    "$@"
  until [[ -s train.pid && -e train.log ]]; do sleep 0.2; done
fi
tail --lines +1 --follow --pid "$(cat train.pid)" train.log
exit "$(cat train.code 2>/dev/null || echo 1)"
