# shellcheck shell=bash
# Sourced by the launchers: takes --dry-run from the front of the arguments, and runs or prints.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: the launchers need bash 4.4 or newer, and this is $BASH_VERSION" >&2
  exit 2
fi
dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi

self="launch/${0##*/}"

# A launcher's head is its help: the comment below its first line.
usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$self"
  exit 0
}

fail() {
  echo "error: $*" >&2
  exit 2
}

do_or_print() {
  if "$dry_run"; then
    local word line=''
    for word in "$@"; do
      [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
      line+=" $word"
    done
    echo "${line# }"
  else
    "$@"
  fi
}

# What happens between the commands; comments where they are only printed.
say() {
  if "$dry_run"; then printf '# %s\n' "$@"; else printf '%s\n' "$@" >&2; fi
}

# need NAME ...: the options of these names must have been given.
need() {
  local needed missing=() # "needed" is no option's name
  for needed in "$@"; do
    [[ -n "${!needed:-}" ]] || missing+=("--${needed//_/-}")
  done
  [[ ${#missing[@]} -eq 0 ]] || fail "missing ${missing[*]}; see $self --help"
}

# The config is the first argument that is no option of the launcher's.
need_config() {
  [[ $# -ge 1 && "$1" != -* ]] || fail "which config? Name a YAML file after the options; see $self --help"
}

# SGLang's own environment; its torch and our JAX want different CUDA libraries.
install_sglang() {
  if [[ ! -x .venv-sglang/bin/python ]]; then
    do_or_print "${PYTHON:-python3}" -m venv .venv-sglang
    do_or_print .venv-sglang/bin/python -m pip install --quiet 'sglang==0.5.23'
  fi
}
