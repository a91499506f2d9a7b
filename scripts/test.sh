#!/usr/bin/env bash
# Set up, check and test everything: what has to pass before a change is merged.
#
#   bash scripts/test.sh                       all of it
#   bash scripts/test.sh tests/model -k gguf   the rest of the line goes to pytest
#   bash scripts/test.sh --help                this text
#
# A fresh machine builds llama.cpp first, for itself and for the boards: ten minutes or so. Afterwards only the checks and
# the tests take time. The chat page is tested in Chromium, the boards' instruction sets under an emulator, without
# arguments only: as root on Debian both are installed when they are missing, else the line that installs them is named.

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in -h | --help) help && exit ;; esac

need_chromium() {
  [ -x "${CHROMIUM:-}" ] || command -v chromium >/dev/null && return
  local line="apt-get install --yes --no-install-recommends chromium"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Chromium for the tests of the chat page"
    { apt-get update && $line; } >/dev/null 2>&1 && return
  fi
  die "the tests of the chat page need Chromium; run: $line, or set CHROMIUM to where it is"
}

for_arm64() { # the boards' own instruction sets, where they can be emulated
  if [ "$(uname -s)" = Linux ] && command -v apt-get >/dev/null; then
    bash scripts/test-arm64.sh </dev/null || failures+=("tests for arm64")
  else
    say "the tests for arm64 are left out: they need Debian or Ubuntu"
  fi
}

began=$SECONDS
failures=()
cd -- "$root"
need_chromium
bash scripts/setup.sh
bash scripts/check.sh || failures+=(checks)
"$venv/bin/python" -m pytest "$@" </dev/null || failures+=(tests)
[ $# -gt 0 ] || for_arm64

[ "${#failures[@]}" -eq 0 ] || die "failed: ${failures[*]}, after $(elapsed $((SECONDS - began))); the reasons stand above"
say "everything passed in $(elapsed $((SECONDS - began)))"
