#!/usr/bin/env bash
# Submit a run to SLURM: one process a node, on all GPUs of each.
#
#   launch/slurm.sh [--dry-run] --nodes N --gpus-per-node N --time TIME [SBATCH OPTION ...]
#     CONFIG [--section.field VALUE ...]
#
#   --nodes N            nodes
#   --gpus-per-node N    GPUs of each
#   --time TIME          of one job, such as 24:00:00; the run may take many
#
# Any other option before CONFIG goes to sbatch, written as --option=value: --partition=gpu,
# --account=lab, --constraint=h100, --mem=0.
#
# This folder, .venv in it (python3 -m venv .venv && .venv/bin/pip install -e '.[gpu,tasks,track]')
# and `output` must be seen by all nodes under the same path. Two minutes before TIME is over the run
# is told to save; then the job puts itself back into the queue, under the same number, and goes on.
#
# Costs: the nodes are charged to your account while the job runs, waiting on others included.
#   scancel JOB          saves, as any SIGTERM does, and ends the job for good
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/common.sh
source launch/common.sh

nodes='' gpus_per_node='' time='' more=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help) usage ;;
    --nodes | --gpus-per-node | --time)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      option="${1#--}"
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    --*=*) more+=("$1") ;;
    *) fail "write $1 as $1=VALUE: it goes to sbatch; see $self --help" ;;
  esac
  shift
done
need nodes gpus_per_node time
need_config "$@"
[[ -f "$1" ]] || fail "no config file $1 (paths are relative to $PWD)"
"$dry_run" || [[ -x .venv/bin/python ]] || fail "no .venv here; see $self --help"

"$dry_run" || mkdir -p runs # where the log goes
job="$(basename "$1" .yaml)"
do_or_print sbatch --job-name "$job" --nodes "$nodes" --ntasks-per-node 1 \
  --gpus-per-node "$gpus_per_node" --time "$time" --requeue --signal TERM@120 \
  --open-mode append --output "runs/$job-%j.log" "${more[@]}" launch/slurm_job.sh "$@"
