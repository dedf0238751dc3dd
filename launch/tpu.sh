#!/usr/bin/env bash
# Train on a Cloud TPU VM, or on all hosts of a pod slice, and give the TPU back at the end.
#
#   launch/tpu.sh [--dry-run] --name NAME --zone ZONE --type TYPE --share HOST:/PATH [OPTION ...]
#     CONFIG [--section.field VALUE ...]
#
#   --name NAME          of the TPU, and of the request for it
#   --zone ZONE          such as us-east5-b
#   --type TYPE          accelerator type: v6e-8 is one host, v6e-64 and v5p-128 are several
#   --share HOST:/PATH   NFS share (Filestore) in the TPU's network, on which runs/ is kept
#   --spot               at spot price: when it is taken back, another is asked for, and the run
#                        goes on from its newest checkpoint
#   --reserved           from a reservation
#   --now                get it at once or fail; otherwise the request waits in the queue
#   --valid-until TIME   leave the queue after this time, such as 6h
#   --project PROJECT    default: gcloud's
#   --version VERSION    runtime version; default: by TYPE
#   --restarts N         how often the command is started again (default 100)
#   --keep               leave the TPU there at the end
#
# With --dry-run nothing is done: the commands are printed in the order in which they would run.
#
# Costs: a request in the queue costs nothing. From READY on the TPU is billed by the second, used or
# not, until it is deleted; so it is deleted when the run has come to its end, without --keep. It is
# not deleted when the run fails, or when you leave this script: the run goes on without it, and the
# same command finds it again. To stop everything:
#   gcloud compute tpus queued-resources delete NAME --zone ZONE --force
#   gcloud compute tpus tpu-vm delete NAME --zone ZONE          (with --now)
# The share is billed until you delete it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/common.sh
source launch/common.sh

name='' zone='' type='' share='' project='' valid_until='' version='' restarts=100
keep=false queue=true capacity=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    -h | --help) usage ;;
    --spot | --reserved) capacity+=("$1") ;;
    --now) queue=false ;;
    --keep) keep=true ;;
    --name | --zone | --type | --share | --project | --valid-until | --version | --restarts)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      option="${1#--}"
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    *) fail "no option $1; settings come after CONFIG; see $self --help" ;;
  esac
  shift
done
need name zone type share
need_config "$@"
[[ ${#capacity[@]} -le 1 ]] || fail "--spot and --reserved exclude each other"
"$queue" || [[ -z "$valid_until" ]] || fail "--valid-until is for the queue, and --now does not wait"
[[ "$share" =~ ^[^:/]+:/[^/] ]] ||
  fail "--share $share: write HOST:/PATH of an NFS share; see docs/tpu_pods.md"
if [[ -z "$version" ]]; then
  case "$type" in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "no runtime version is known for --type $type: give --version, or use launch/gke.sh" ;;
  esac
fi
config="$1"
shift
[[ -f "$config" ]] || fail "no config file $config (paths are relative to $PWD)"
git rev-parse --git-dir >/dev/null 2>&1 || fail "git says what to send, and $PWD is no clone"

place=(--zone "$zone")
[[ -z "$project" ]] || place+=(--project "$project")
tpus=(gcloud compute tpus)

create() {
  if "$queue"; then
    local request=("${tpus[@]}" queued-resources create "$name" --node-id "$name" "${place[@]}"
      --accelerator-type "$type" --runtime-version "$version" "${capacity[@]}")
    [[ -z "$valid_until" ]] || request+=(--valid-until-duration "$valid_until")
    do_or_print "${request[@]}"
  else
    do_or_print "${tpus[@]}" tpu-vm create "$name" "${place[@]}" --accelerator-type "$type" \
      --version "$version" "${capacity[@]}"
  fi
}

remove() {
  if "$queue"; then
    do_or_print "${tpus[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    do_or_print "${tpus[@]}" tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

# describe KIND FIELD: a state; MISSING where there is none, UNKNOWN where nobody could be asked.
describe() {
  local answer
  if answer="$("${tpus[@]}" "$1" describe "$name" "${place[@]}" --format "value($2)" 2>&1)"; then
    echo "${answer##*$'\n'}"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo MISSING
  else
    printf '%s\n' "$answer" >&2
    echo UNKNOWN
  fi
}

state() {
  local found=ACTIVE
  ! "$queue" || found="$(describe queued-resources state.state)"
  [[ "$found" != ACTIVE ]] || found="$(describe tpu-vm state)"
  echo "$found"
}

# Ask for the TPU, anew where it was taken back, until it is there.
await() {
  if "$dry_run"; then
    create
    say "wait until it is READY"
    return
  fi
  local now before=''
  while now="$(state)" && [[ "$now" != READY ]]; do
    [[ "$now" == "$before" ]] || say "$(date +%T) TPU $name: $now"
    before="$now"
    case "$now" in
      MISSING) create ;;
      FAILED) fail "the request for $name failed: '${tpus[*]} queued-resources describe $name' says why" ;;
      SUSPENDED | PREEMPTED | TERMINATED) remove || true ;; # else the next time
      STOPPED) fail "TPU $name is stopped: start or delete it" ;;
    esac
    sleep 30
  done
}

on_all_hosts() {
  do_or_print "${tpus[@]}" tpu-vm ssh "$name" "${place[@]}" --worker all --command "$1"
}

# Send what git sees of this folder, your own tasks and configs included.
send() {
  local archive="${TMPDIR:-/tmp}/fst_jax.$$.tgz" code=0
  if "$dry_run"; then
    say "pack this folder, but for what git ignores, as $archive"
  else
    git ls-files --cached --others --exclude-standard -z |
      while IFS= read -r -d '' file; do
        [[ ! -e "$file" && ! -L "$file" ]] || printf '%s\0' "$file" # not what was deleted
      done | tar -c -z -f "$archive" --null -T -
  fi
  do_or_print "${tpus[@]}" tpu-vm scp "$archive" "$name:fst_jax.tgz" "${place[@]}" --worker all ||
    code=$?
  "$dry_run" || rm -f "$archive"
  return "$code"
}

worker='if ! pgrep --full "[f]st_jax.train" >/dev/null; then mkdir -p fst_jax && '
worker+='tar --extract --gzip --file fst_jax.tgz --directory fst_jax; fi; '
worker+="exec bash fst_jax/launch/tpu_worker.sh $(printf '%q ' "$share" "$config" "$@")"

left='Left. The request stays in the queue; a TPU that is there, and the run on it, go on, and it is '
left+='billed. The same command finds them again; launch/tpu.sh --help says how to stop them.'
trap 'say "" "$left"; exit 130' INT
for ((attempt = 0; attempt <= restarts; attempt++)); do
  await
  # The machine may be lost at any moment from here on.
  code=0
  { send && on_all_hosts "$worker"; } || code=$?
  case "$code" in
    0)
      if "$keep"; then
        say "TPU $name is kept, and billed until you delete it."
      else
        say "when the run has come to its end, the TPU is given back"
        remove || fail "TPU $name could not be deleted, and is billed: see $self --help"
      fi
      say "The run's folder is on $share, which is billed until you delete it."
      exit 0
      ;;
    2)
      say "TPU $name is kept, so that you can mend this and start the same command; it is billed."
      exit 2
      ;;
    *) say "$(date +%T) exit code $code; starting again" ;;
  esac
  sleep 60
done
fail "started again $restarts times without coming to an end; TPU $name is kept, and billed"
