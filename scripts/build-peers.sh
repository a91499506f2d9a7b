#!/usr/bin/env bash
# Build llama.cpp's own tools for comparison, from the very source that this runtime's library is built from.
#
#   bash scripts/build-peers.sh             llama-bench llama-server llama-quantize llama-perplexity llama-imatrix
#   bash scripts/build-peers.sh llama-bench    only this one
#   bash scripts/build-peers.sh --help      this text
#
# Prints the folder they are in. Nothing of the runtime uses them; benchmarks and some tests compare with them.
# Environment: EDGE_CACHE, EDGE_VENV and CXXFLAGS as in scripts/setup.sh; JOBS compilers at a time (one per core).

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/wheel.sh
. "$root/scripts/wheel.sh"

targets=()
for arg in "$@"; do
  case $arg in
    -h | --help) help && exit ;;
    llama-*) targets+=("$arg") ;;
    *) misused "unknown tool $arg" ;;
  esac
done
[ "${#targets[@]}" -gt 0 ] || targets=(llama-bench llama-server llama-quantize llama-perplexity llama-imatrix)

[ -x "$venv/bin/python" ] || die "$venv is not there; run: bash scripts/setup.sh"
peers=$cache/peers/$llama
tools=$peers/tools
mkdir -p -- "$peers"
log=$peers/build.log
: >"$log"
python=$venv/bin/python builder=$venv/bin/python
cc=${CC:-cc} cxx=${CXX:-c++}
CMAKE_ARGS=${CMAKE_ARGS:-}

[ -x "$tools/bin/cmake" ] || step "fetching the build tools" build_tools "$tools"
PATH=$tools/bin:$PATH
if [ ! -d "$peers/source" ]; then
  work=$peers/fetching
  rm -rf -- "$work"
  step "fetching llama.cpp $llama" fetch_source "$tools"
  mv -- "$work/source/vendor/llama.cpp" "$peers/source"
  rm -rf -- "$work"
fi
spare_amx
say "building ${targets[*]}: ten minutes on two cores; log: $log"
{
  cmake -S "$peers/source" -B "$peers/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_WEBUI=OFF -DLLAMA_OPENSSL=OFF
  cmake --build "$peers/build" --parallel "${JOBS:-$(nproc)}" --target "${targets[@]}"
} >>"$log" 2>&1 || die "the build failed; see the end of $log"
printf '%s\n' "$peers/build/bin"
