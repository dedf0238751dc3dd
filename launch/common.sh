# Sourced by the launchers: takes --dry-run from the front of the arguments, and runs or prints.
dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi

do_or_print() {
  if "$dry_run"; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
