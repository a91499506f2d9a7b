# shellcheck shell=bash
# What every script here shares: where things are, how they speak, how they stop. Sourced, never run.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${EDGE_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
export EDGE_VENV=$venv # absolute from here on: a script called by a script may stand elsewhere

say() { printf '%s\n' "$*" >&2; }

die() { # one sentence that ends in the next step
  say "$(basename -- "$0"): $*"
  exit 1
}

misused() {
  say "$(basename -- "$0"): $*; see $(basename -- "$0") --help"
  exit 2
}

# The comment at the top of a script is its help.
help() { sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"; }

elapsed() { # elapsed SECONDS -> "3 min 31 s"
  if [ "$1" -ge 60 ]; then printf '%d min %d s' $(($1 / 60)) $(($1 % 60)); else printf '%d s' "$1"; fi
}
