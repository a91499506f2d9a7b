#!/usr/bin/env bash
# Make .venv: exact versions of everything, llama.cpp built for this very CPU, the project itself editable.
#
#   bash scripts/setup.sh             everything, with the tools for tests and checks
#   bash scripts/setup.sh --no-dev    what is needed to run, no more
#   bash scripts/setup.sh --wheel W   with a llama.cpp that scripts/build-llama.sh made: nothing is compiled
#   bash scripts/setup.sh --help      this text
#
# Needs Debian 12, Ubuntu 22.04, Raspberry Pi OS 12 (64-bit) or later, or macOS: Python 3.10 or newer and a C++
# compiler. Nothing is installed outside of .venv and the cache folder, and nothing needs root. Run it again at any
# time: when nothing changed it is done at once; after Ctrl-C it goes on where it stopped.
#
# Environment:
#   CMAKE_ARGS    how llama.cpp is built. Default: -DLLAVA_BUILD=OFF -DGGML_RPC=ON
#                 for an NVIDIA GPU: CMAKE_ARGS="-DGGML_CUDA=ON -DLLAVA_BUILD=OFF"
#   CMAKE_BUILD_PARALLEL_LEVEL   compilers at a time. Default: one per core, as far as memory allows
#   EDGE_PYTHON   the Python to use. Default: python3, else the newest python3.N found
#   EDGE_VENV     where the environment goes. Default: .venv beside this project
#   EDGE_CACHE    where built wheels are kept. Default: $XDG_CACHE_HOME/edge or ~/.cache/edge
#   PIP_*, CC, CXX, CFLAGS, CXXFLAGS, LDFLAGS   as pip and CMake read them
#
# The full log is setup.log in the environment's folder.

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/wheel.sh
. "$root/scripts/wheel.sh"

VENV_MB=650 # on disk, measured: 490 with the dev extra, 28 more while llama.cpp is replaced; the rest is air

extras=dev given=""
while [ $# -gt 0 ]; do
  case $1 in
    --no-dev) extras=none ;;
    --wheel) [ $# -gt 1 ] || misused "--wheel needs a file" && given=$2 && shift ;;
    --wheel=*) given=${1#*=} ;;
    -h | --help) help && exit ;;
    *) misused "unknown option $1" ;;
  esac
  shift
done
case $given in "" | /*) ;; *) given=$PWD/$given ;; esac
[ -z "$given" ] || [ -f "$given" ] || die "$given is not there; make it with scripts/build-llama.sh, or leave --wheel out"

export CMAKE_ARGS=${CMAKE_ARGS:--DLLAVA_BUILD=OFF -DGGML_RPC=ON}
builder=$venv/bin/python
built_for="this CPU"
stamp=$venv/.edge-setup # line 1: fingerprint of what was installed; line 2: with which extras
log=$venv/setup.log

# ---- what the outcome depends on

fingerprint() { # of everything an environment is made from
  {
    cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt" "$root/scripts/setup.sh" "$root/scripts/wheel.sh"
    printf '%s\n' "$root" "$venv" "$CMAKE_ARGS" "${EDGE_PYTHON:-}" "$given" "$(cpu_features)" "$("$venv/bin/python" -VV)"
  } | digest
}

wheel_inputs() { # everything a native wheel depends on: no Python, it is opened through ctypes and tagged py3-none
  printf '%s\n' "llama-cpp-python $llama" "CMAKE_ARGS $CMAKE_ARGS" "$(cpu_features)" \
    "$($cc --version 2>&1 | head -n 1)" "$($cxx --version 2>&1 | head -n 1)" \
    "CFLAGS ${CFLAGS:-}" "CXXFLAGS ${CXXFLAGS:-}" "LDFLAGS ${LDFLAGS:-}" \
    "$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1 | head -n 1)"
}

loads() { # cheap proof: each package is found, the native library loads, and edge is the one in this tree
  local names=(gguf huggingface_hub click psutil numpy jinja2 rich llguidance fastapi uvicorn prometheus_client)
  [ "$extras" = none ] || names+=(pytest ruff mypy)
  "$venv/bin/python" -I -c '
import ctypes, pathlib, sys
from importlib.util import find_spec
root, *names = sys.argv[1:]
missing = [name for name in names if find_spec(name) is None]
assert not missing, missing
library = pathlib.Path(find_spec("llama_cpp").origin).parent / "lib"
ctypes.CDLL(str(next(library.glob("libllama.[sd]*"))))
assert pathlib.Path(find_spec("edge").origin).is_relative_to(root), "edge belongs to another folder"
' "$root" "${names[@]}"
}

up_to_date() {
  local has="" has_extras=""
  [ -f "$stamp" ] && usable || return 1
  { read -r has && read -r has_extras; } <"$stamp" || return 1
  [ "$has_extras" = dev ] || [ "$extras" = none ] || return 1
  python=$venv/bin/python
  [ "$has" = "$(fingerprint)" ] && loads 2>/dev/null
}

# ---- what the machine must bring

usable() { # is there an environment that we can go on with?
  local version
  version=$(version_of "$venv/bin/python") && is_new_enough "$venv/bin/python" || return 1
  [ -d "$venv/lib/python$version" ] || return 1 # the system's Python was replaced by another one
  [ -z "${EDGE_PYTHON:-}" ] || [ "$version" = "$(version_of "$EDGE_PYTHON")" ]
}

check_machine() { # dies naming all that is missing at once, before anything is made
  if usable && "$venv/bin/python" -c 'import pip' 2>/dev/null; then python=$venv/bin/python; else need_python; fi
  cc=${CC:-$(first_of cc gcc clang)} cxx=${CXX:-$(first_of c++ g++ clang++)}
  [ -n "$given" ] || need_compiler "a C and C++ compiler" build-essential
  refuse_what_is_missing
  "$python" -c 'import struct, sys; sys.exit(struct.calcsize("P") < 8)' ||
    die "this Python is 32-bit, the runtime needs 64; install the 64-bit edition of the system"
  if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ ! -f "$log" ] && [ -n "$(ls -A "$venv")" ]; then
    die "$venv exists and is not a Python environment; move it away or set EDGE_VENV to another folder"
  fi
}

# ---- the steps

make_venv() {
  mkdir -p -- "$venv" 2>/dev/null || die "$venv cannot be made; set EDGE_VENV to a folder that can be written"
  need_room "$venv" "$VENV_MB" EDGE_VENV
  if ! usable && [ -f "$venv/pyvenv.cfg" ]; then
    say "the environment in $venv does not fit this machine any more; making it anew"
    find "$venv" -mindepth 1 -maxdepth 1 -exec rm -rf -- {} +
  fi
  [ ! -f "$log" ] || mv -f -- "$log" "$log.1"
  rm -f -- "$stamp"
  if ! usable || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    step "making the environment" "$python" -m venv "$venv"
  fi
  step "updating pip" in_venv install pip setuptools
}

in_venv() { "$venv/bin/python" -m pip "$1" --constraint "$root/constraints.txt" --only-binary :all: "${@:2}"; }

own_wheel() { # sets wheel
  local inputs
  if [ -n "$given" ]; then
    wheel=$given
    is_whole "$wheel" || die "$wheel is damaged; copy it again"
    return
  fi
  inputs=$(wheel_inputs)
  find_wheel "$llama-$(uname -m)-$(digest <<<"$inputs")" "$inputs"
}

install_all() {
  local project=.
  [ "$extras" = none ] || project=".[$extras]"
  step "installing llama.cpp" in_venv install --no-deps --force-reinstall "$wheel"
  cd -- "$root" # pip takes extras after a path only where the path has no spaces
  step "installing the rest" in_venv install --no-build-isolation --editable "$project"
  loads || die "the environment does not work, see above; delete $venv and run this again"
}

if up_to_date; then
  say "nothing to do: $venv is up to date"
  exit
fi
began=$SECONDS
check_machine
make_venv
spare_amx
own_wheel
install_all
printf '%s\n' "$(fingerprint)" "$extras" >"$stamp.new"
mv -f -- "$stamp.new" "$stamp"
say "ready in $(elapsed $((SECONDS - began))): $venv/bin/edge"
