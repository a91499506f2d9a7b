#!/usr/bin/env bash
# Check format, lint and types of everything; the shell scripts where shellcheck is installed, the Dockerfile where
# hadolint is.
#
#   bash scripts/check.sh          exit 0 when all is well, 1 when not; every check runs
#   bash scripts/check.sh --fix    formats and mends what can be mended first
#   bash scripts/check.sh --help   this text
#
# Uses the tools in .venv: run scripts/setup.sh first.

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

fix=no
for arg in "$@"; do
  case $arg in
    --fix) fix=yes ;;
    -h | --help) help && exit ;;
    *) misused "unknown option $arg" ;;
  esac
done

cd -- "$root"
python=$venv/bin/python
"$python" -c 'import mypy, ruff' 2>/dev/null || die "the tools are not in $venv; run: bash scripts/setup.sh"

failures=()
check() { # check NAME COMMAND...
  local name=$1
  shift
  say "== $name"
  "$@" || failures+=("$name")
}

if [ "$fix" = yes ]; then
  "$python" -m ruff check --fix --quiet . || true # what is left is reported below
  "$python" -m ruff format .
fi
check "ruff format" "$python" -m ruff format --check .
check "ruff check" "$python" -m ruff check .

# train-demo.py needs torch, which is nobody's dependency here, so its types cannot be known
typed=()
for path in edge convert benchmarks tests scripts/*.py; do
  case $path in scripts/train-demo.py | 'scripts/*.py') ;; *) [ ! -e "$path" ] || typed+=("$path") ;; esac
done
check "mypy" "$python" -m mypy "${typed[@]}"

if command -v shellcheck >/dev/null; then
  check "shellcheck" shellcheck -x scripts/*.sh .ci/run
else
  say "== shellcheck: not installed, left out"
fi

if command -v hadolint >/dev/null; then
  check "hadolint" hadolint Dockerfile
else
  say "== hadolint: not installed, left out"
fi

[ "${#failures[@]}" -eq 0 ] || die "failed: ${failures[*]}; format and lint are often mended by: bash scripts/check.sh --fix"
say "all checks passed"
