#!/usr/bin/env bash
# Test models on a GPU, without one: llama.cpp with its Vulkan back end, on Mesa's software device (lavapipe).
#
#   bash scripts/test-vulkan.sh               build, then run tests/gpu
#   bash scripts/test-vulkan.sh -k memory     the rest of the line goes to pytest
#   bash scripts/test-vulkan.sh --help        this text
#
# No part of scripts/test.sh: the first run builds the target vulkan of build-llama.sh for ten minutes on two cores, and
# an environment of its own in the cache folder, 1 GB; later ones take three minutes. Needs Debian 12 or later with glslc,
# spirv-headers, libvulkan1 and mesa-vulkan-drivers: as root they are installed, else the line that installs them is named.
#
# Environment: EDGE_CACHE, EDGE_PYTHON and CMAKE_BUILD_PARALLEL_LEVEL as in scripts/setup.sh; VULKAN_INCLUDE as in
# scripts/build-llama.sh
#   GGML_VK_VISIBLE_DEVICES   which device. Default: 0, the software device where there is no GPU

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/vulkan.sh
. "$root/scripts/vulkan.sh"

case ${1:-} in -h | --help) help && exit ;; esac

home=${HOME:-$(cd ~ && pwd)}
cache=${EDGE_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/edge}
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac

need_packages() {
  local lacking line
  lacking=$(vulkan_lacks)
  [ -n "$(first_found /usr/share/vulkan/icd.d/*.json)" ] || lacking+=" mesa-vulkan-drivers"
  [ -n "$lacking" ] || return 0
  line="apt-get install --yes --no-install-recommends ${lacking# }"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${lacking# }"
    # shellcheck disable=SC2086 # words
    { apt-get update && $line; } >/dev/null 2>&1 && return
  fi
  die "the Vulkan build and its tests need ${lacking# }; run: sudo $line"
}

need_packages
wheel=$(bash "$root/scripts/build-llama.sh" --target vulkan --out "$cache/vulkan/wheel")
export EDGE_VENV=$cache/vulkan/venv GGML_VK_VISIBLE_DEVICES=${GGML_VK_VISIBLE_DEVICES:-0}
bash "$root/scripts/setup.sh" --wheel "$wheel"
cd -- "$root"
"$EDGE_VENV/bin/python" -c 'import sys; from edge.board import library; sys.exit(not library.devices())' ||
  die "no Vulkan device answers; see: $EDGE_VENV/bin/edge doctor"
"$EDGE_VENV/bin/python" -m pytest tests/gpu "$@" </dev/null
