#!/usr/bin/env bash
# Set up, check and test everything: what has to pass before a change is merged.
#
#   bash scripts/test.sh                       all of it
#   bash scripts/test.sh tests/model -k gguf   the rest of the line goes to pytest
#   bash scripts/test.sh --help                this text
#
# A fresh machine builds llama.cpp first: some minutes. Afterwards only the checks and the tests take time.

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in -h | --help) help && exit ;; esac

began=$SECONDS
failures=()
cd -- "$root"
bash scripts/setup.sh
bash scripts/check.sh || failures+=(checks)
"$venv/bin/python" -m pytest "$@" </dev/null || failures+=(tests)

[ "${#failures[@]}" -eq 0 ] || die "failed: ${failures[*]}, after $(elapsed $((SECONDS - began))); the reasons stand above"
say "everything passed in $(elapsed $((SECONDS - began)))"
