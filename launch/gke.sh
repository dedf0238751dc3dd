#!/usr/bin/env bash
# Train on a TPU slice of a GKE cluster, through XPK (pip install xpk; written for 1.16).
#
#   launch/gke.sh [--dry-run] --cluster CLUSTER --name NAME --type TYPE --image IMAGE
#     --storage STORAGE --mount PATH [OPTION ...] CONFIG [--section.field VALUE ...]
#
#   --cluster CLUSTER    of `xpk cluster create`
#   --name NAME          of the workload
#   --type TYPE          TPU type: v6e-16, v5p-128, tpu7x-16
#   --image IMAGE        of launch/Dockerfile, target tpu, in a registry that the cluster reads
#   --storage STORAGE    of `xpk storage attach --type gcpfilestore`; runs/ is kept there
#   --mount PATH         where that storage is mounted: its --mount-point
#   --spot               from spot capacity, on a cluster with autoprovisioning
#   --zone ZONE, --project PROJECT     default: gcloud's
#   --restarts N         how often the workload is started again (default 100)
#
# CONFIG is a path in the image, whose folder is this one, or on the storage. Started again is what
# was asked to stop (75), has stalled (3) or was killed; it goes on from its newest checkpoint.
#
# Costs: the cluster's nodes are billed whether or not a workload runs on them, and so is the storage.
#   xpk workload delete --cluster CLUSTER --workload NAME     stops the run; the nodes stay
#   xpk cluster delete --cluster CLUSTER                      gives back the nodes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/common.sh
source launch/common.sh

cluster='' name='' type='' image='' storage='' mount='' restarts=100 more=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help) usage ;;
    --spot) more+=(--spot) ;;
    --zone | --project)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      more+=("$1" "$2")
      shift
      ;;
    --cluster | --name | --type | --image | --storage | --mount | --restarts)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    *) fail "no option $1; settings come after CONFIG; see $self --help" ;;
  esac
  shift
done
need cluster name type image storage mount
need_config "$@"

# exec: XPK passes SIGTERM on to the process that it started, and to no child of that.
run=(exec fst train --config "$1" --output "$mount/runs" --parallel.coordinator auto
  --watch.stopped_exit 75 "${@:2}")
do_or_print xpk workload create --cluster "$cluster" --workload "$name" --tpu-type "$type" \
  --docker-image "$image" --storage "$storage" --max-restarts "$restarts" \
  --restart-on-exit-codes 3,75 --termination-grace-period-seconds 60 "${more[@]}" \
  --command "$(printf '%q ' "${run[@]}")"
say "The cluster's nodes are billed until you delete it: xpk cluster delete --cluster $cluster"
