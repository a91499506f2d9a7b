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

targets=()
for arg in "$@"; do
  case $arg in
    -h | --help) help && exit ;;
    llama-*) targets+=("$arg") ;;
    *) misused "unknown tool $arg" ;;
  esac
done
[ "${#targets[@]}" -gt 0 ] || targets=(llama-bench llama-server llama-quantize llama-perplexity llama-imatrix)

version=$(sed -n 's/^llama-cpp-python==//p' "$root/constraints.txt")
home=${HOME:-$(cd ~ && pwd)}
peers=${EDGE_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/edge}/peers/$version
tools=$peers/tools
[ -x "$venv/bin/python" ] || die "$venv is not there; run: bash scripts/setup.sh"
mkdir -p -- "$peers"

if [ ! -x "$tools/bin/cmake" ]; then
  say "fetching the build tools"
  "$venv/bin/python" -m venv "$tools"
  "$tools/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" scikit-build-core cmake ninja
fi
PATH=$tools/bin:$PATH
if [ ! -d "$peers/source" ]; then
  say "fetching llama.cpp $version"
  rm -rf -- "$peers/download" && mkdir -p -- "$peers/download"
  "$tools/bin/python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --no-build-isolation \
    --dest "$peers/download" "llama-cpp-python==$version"
  tar -xzf "$peers"/download/*.tar.gz -C "$peers/download"
  mv -- "$peers"/download/*/vendor/llama.cpp "$peers/source"
  rm -rf -- "$peers/download"
fi
if grep -qsw amx_tile /proc/cpuinfo; then # as in scripts/setup.sh: these kernels crash
  flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  export CFLAGS="${CFLAGS:-} $flags" CXXFLAGS="${CXXFLAGS:-} $flags"
fi
say "building ${targets[*]}: ten minutes on two cores; log: $peers/build.log"
{
  cmake -S "$peers/source" -B "$peers/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_WEBUI=OFF -DLLAMA_OPENSSL=OFF
  cmake --build "$peers/build" --parallel "${JOBS:-$(nproc)}" --target "${targets[@]}"
} >"$peers/build.log" 2>&1 || die "the build failed; see the end of $peers/build.log"
printf '%s\n' "$peers/build/bin"
