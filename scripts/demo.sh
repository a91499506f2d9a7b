#!/usr/bin/env bash
# The main job on the bundled demo checkpoint: convert it, ask it, measure it. Sets up first when that is needed.
#
#   bash scripts/demo.sh             all of it
#   bash scripts/demo.sh --sums 20   options go to the demo: .venv/bin/python -m benchmarks.demo --help
#   bash scripts/demo.sh --help      this text

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in -h | --help) help && exit ;; esac

bash "$root/scripts/setup.sh" --no-dev
exec "$venv/bin/python" -m benchmarks.demo "$@"
