#!/usr/bin/env bash
# Make .venv: exact versions of everything, llama.cpp built for this very CPU, the project itself editable.
#
#   bash scripts/setup.sh             everything, with the tools for tests and checks
#   bash scripts/setup.sh --no-dev    what is needed to run, no more
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

BUILD_MB=600      # on disk, measured: source 217, build tools 92, objects and wheel 90, download 77; the rest is air
VENV_MB=650       # on disk, measured: 490 with the dev extra, 28 more while llama.cpp is replaced; the rest is air
COMPILER_MB=700   # memory for one compiler; the largest seen took 445
REPORT_EVERY_S=15 # between progress lines where there is no terminal

extras=dev
for arg in "$@"; do
  case $arg in
    --no-dev) extras=none ;;
    -h | --help) help && exit ;;
    *) misused "unknown option $arg" ;;
  esac
done

export CMAKE_ARGS=${CMAKE_ARGS:--DLLAVA_BUILD=OFF -DGGML_RPC=ON}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME # another project's packages would pass for installed ones
unset SOURCE_DATE_EPOCH     # with it, ggml builds for any CPU instead of this one
home=${HOME:-$(cd ~ && pwd)}
cache=${EDGE_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/edge}
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
wheels=$cache/wheels
stamp=$venv/.edge-setup # line 1: fingerprint of what was installed; line 2: with which extras
log=$venv/setup.log
llama=$(sed -n 's/^llama-cpp-python==//p' "$root/constraints.txt")

# ---- what the outcome depends on

cpu_features() { # only what changes the code: a kernel update may well add other flags
  uname -sm
  if [ -r /proc/cpuinfo ]; then
    grep -m 1 -E '^(flags|Features|isa)[[:space:]]*:' /proc/cpuinfo | tr ' ' '\n' |
      grep -E '^(s?sse|avx|amx|fma|f16c|bmi|popcnt|fp|asimd|neon|vfp|sve|sme|i8mm|bf16|rv)' | LC_ALL=C sort -u
    grep -E '^CPU (implementer|part)' /proc/cpuinfo | LC_ALL=C sort -u # Arm: -mcpu=native reads these
  else
    sysctl -n machdep.cpu.brand_string
  fi 2>/dev/null || true
}

digest() { "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])'; }

fingerprint() { # of everything an environment is made from
  {
    cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt" "$root/scripts/setup.sh"
    printf '%s\n' "$root" "$venv" "$CMAKE_ARGS" "${EDGE_PYTHON:-}" "$(cpu_features)" "$("$venv/bin/python" -VV)"
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

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

usable() { # is there an environment that we can go on with?
  local version
  version=$(version_of "$venv/bin/python") && is_new_enough "$venv/bin/python" || return 1
  [ -d "$venv/lib/python$version" ] || return 1 # the system's Python was replaced by another one
  [ -z "${EDGE_PYTHON:-}" ] || [ "$version" = "$(version_of "$EDGE_PYTHON")" ]
}

first_of() { # the first of these programs that exists, or nothing
  local name
  for name in "$@"; do command -v "$name" && return; done
  true
}

find_python() { # sets python, the first that is new enough, and python_seen, the version of the first that runs
  local candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10) candidate version
  [ -z "${EDGE_PYTHON:-}" ] || candidates=("$EDGE_PYTHON")
  python="" python_seen=""
  for candidate in "${candidates[@]}"; do
    version=$(version_of "$candidate") || continue
    python_seen=${python_seen:-$version}
    if is_new_enough "$candidate"; then
      python=$candidate
      return
    fi
  done
}

check_machine() { # dies naming all that is missing at once, before anything is made
  local missing=() packages=() hint="" name
  if usable && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    python=$venv/bin/python
  else
    find_python
    if [ -z "$python" ]; then
      missing+=("Python 3.10 or newer (python3 is ${python_seen:-not there})")
      packages+=(python3.11 python3.11-venv)
      hint=", or upgrade to Debian 12, Ubuntu 22.04 or later where that is not to be had"
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      name=$(basename -- "$python")
      case $name in python3*) ;; *) name=python3 ;; esac
      missing+=("Python's venv module")
      packages+=("$name-venv")
    fi
  fi
  cc=${CC:-$(first_of cc gcc clang)} cxx=${CXX:-$(first_of c++ g++ clang++)}
  if ! command -v "${cc%% *}" >/dev/null || ! command -v "${cxx%% *}" >/dev/null; then
    missing+=("a C and C++ compiler")
    packages+=(build-essential)
  fi
  if [ "${#missing[@]}" -gt 0 ]; then
    name=$(printf ' and %s' "${missing[@]}")
    [ "$(uname -s)" != Darwin ] || die "this machine lacks ${name# and }; install it with: xcode-select --install"
    die "this machine lacks ${name# and }; install it with: sudo apt-get install ${packages[*]}$hint"
  fi
  "$python" -c 'import struct, sys; sys.exit(struct.calcsize("P") < 8)' ||
    die "this Python is 32-bit, the runtime needs 64; install the 64-bit edition of the system"
  if [ -d "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ ! -f "$log" ] && [ -n "$(ls -A "$venv")" ]; then
    die "$venv exists and is not a Python environment; move it away or set EDGE_VENV to another folder"
  fi
}

need_room() { # need_room FOLDER MB
  local free
  free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1024) }')
  [ "$free" -ge "$2" ] || die "$1 has $free MB free, $2 are needed; make room or choose another disk ($3)"
}

# ---- running a long step where it can be seen, stopped and read afterwards

child="" # the process group of the running step
work=""  # the folder of an unfinished build
stop_child() {
  [ -n "$child" ] || return 0
  local tries
  kill -TERM -- "-$child" 2>/dev/null || true # its whole group: pip, ninja and, through ninja, every compiler
  for tries in {1..50}; do
    kill -0 -- "-$child" 2>/dev/null || break
    [ "$tries" -lt 50 ] || kill -KILL -- "-$child" 2>/dev/null || true
    sleep 0.2
  done
  wait "$child" 2>/dev/null || true
  child=""
}
trap stop_child EXIT
trap 'say ""; say "setup.sh: stopped; run it again to go on from here"; exit 130' INT TERM HUP

percent() { # of the compile steps, from what ninja ([12/130]) or make ([ 42%]) wrote last
  tail -c +"$((log_start + 1))" "$log" | tail -c 200000 | grep -aoE '^ *\[ *[0-9]+(/[0-9]+|%)\]' | tail -n 1 |
    awk -F '[^0-9]+' '{ print ($3 == "" ? $2 : int(100 * $2 / $3)) " %" }' || true
}

progress() { # one line: on a terminal it is rewritten, elsewhere it is added
  local line width
  line="$label: $(elapsed $((SECONDS - start))), $(percent)"
  line="${line%, }; log: $log"
  if [ "$tty" = yes ]; then
    width=$(stty size <&2 2>/dev/null | cut -d ' ' -f 2) || true
    printf '\r\033[K%s' "${line:0:$((${width:-80} - 1))}" >&2
  else
    say "$line"
  fi
}

step() { # step LABEL COMMAND...: runs it with its output in the log; dies with what matters of it when it fails
  local label=$1 start=$SECONDS status=0 log_start last=$SECONDS every=$REPORT_EVERY_S tty=no
  shift
  [ -t 2 ] && [ "${TERM:-dumb}" != dumb ] && tty=yes every=1
  printf '\n== %s\n== %s\n' "$(date)" "$*" >>"$log"
  log_start=$(wc -c <"$log")
  set -m # a process group of its own, so that all of it can be stopped
  "$@" >>"$log" 2>&1 </dev/null &
  child=$!
  set +m
  [ "$tty" = no ] || progress
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    if [ $((SECONDS - last)) -ge "$every" ]; then
      last=$SECONDS
      progress
    fi
  done
  wait "$child" || status=$?
  child=""
  [ "$tty" = no ] || printf '\r\033[K' >&2
  if [ "$status" -eq 0 ]; then say "$label: done in $(elapsed $((SECONDS - start)))"; else failed; fi
}

failed() { # the lines that matter, then one sentence with the next step
  local lines next spoilt=no
  lines=$(tail -c +"$((log_start + 1))" "$log" | cut -c 1-240 | grep -avE '^ *\[ *[0-9]+(/[0-9]+|%)\]' |
    grep -aiE 'error|fatal|killed|no space|cannot|could not|not found|undefined reference' | tail -n 20 || true)
  [ -n "$lines" ] || lines=$(tail -n 20 "$log" | cut -c 1-240)
  case $lines in
    *[Nn]"o space left"*) next="make room on the disks of $cache and $venv" ;;
    *Killed* | *"annot allocate memory"* | *"out of memory"*)
      next="memory ran out, so set CMAKE_BUILD_PARALLEL_LEVEL=1 or add swap" ;;
    *onnection* | *"name resolution"* | *"timed out"* | *unreachable*) next="check the network" ;;
    *"No matching distribution"* | *"Could not find a version"*)
      next="check the network, or set EDGE_PYTHON to a Python from 3.10 to 3.14" ;;
    *"CMake Error"*) spoilt=yes next="check CMAKE_ARGS ($CMAKE_ARGS) and the compilers" ;;
    *) spoilt=yes next="read the log" ;;
  esac
  # an object file torn by a power cut would fail the next try in the same way
  [ "$spoilt" = no ] || [ -z "$work" ] || rm -rf -- "$work"
  say "$label: failed after $(elapsed $((SECONDS - start)))"
  say "$lines"
  die "$label failed; $next, then run this again (log: $log)"
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

spare_amx() { # this llama.cpp's AMX kernels crash on the first prompt (ggml-org/llama.cpp#20824, pull request 26954)
  local flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  ! grep -qsw amx_tile /proc/cpuinfo || export CFLAGS="${CFLAGS:-} $flags" CXXFLAGS="${CXXFLAGS:-} $flags"
}

find_wheel() { # sets wheel: a whole one from the cache, else one built now
  local key
  wheel_inputs >"$venv/wheel-inputs.txt"
  key=$llama-$(uname -m)-$(digest <"$venv/wheel-inputs.txt")
  mkdir -p -- "$wheels" 2>/dev/null || die "$wheels cannot be made; set EDGE_CACHE to a folder that can be written"
  wheel=$(first_file "$wheels/$key"/*.whl)
  if [ -n "$wheel" ] && ! is_whole "$wheel"; then
    say "$wheel is damaged; building it anew"
    rm -rf -- "${wheels:?}/$key"
    wheel=""
  fi
  [ -n "$wheel" ] || build_wheel "$key"
  wheel=$(first_file "$wheels/$key"/*.whl)
}

is_whole() { "$python" -c 'import sys, zipfile as z; sys.exit(z.ZipFile(sys.argv[1]).testzip() is not None)' "$1" 2>/dev/null; }

first_file() { if [ -f "$1" ]; then printf '%s' "$1"; fi; }

build_wheel() { # build_wheel KEY: everything under one folder that a stopped run leaves for the next
  local tools
  work=$wheels/.building-$1 tools=$wheels/.building-$1/tools
  if command -v flock >/dev/null; then
    exec 9>"$wheels/.lock"
    flock -n 9 || { say "another setup is building; waiting for it" && flock 9; }
    [ -z "$(first_file "$wheels/$1"/*.whl)" ] || return 0 # it built ours
  fi
  find "$wheels" -maxdepth 1 -name '.building-*' ! -name ".building-$1" -exec rm -rf -- {} +
  rm -rf -- "$work/tmp" && mkdir -p -- "$work/tmp"
  [ -d "$work/objects" ] || need_room "$work" "$BUILD_MB" EDGE_CACHE
  export TMPDIR=$work/tmp # /tmp may be memory on a small board
  export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(compilers_at_a_time)}
  # 1. cmake, ninja and the build backend in their constrained versions, at a path that stays: CMake remembers it
  step "fetching the build tools" build_tools "$tools"
  # 2. the source
  [ -d "$work/source" ] || step "fetching llama.cpp $llama" fetch_source "$tools"
  # 3. the wheel; pip's own wheel cache ignores CMAKE_ARGS, so it stays out of this
  say "building llama.cpp for this CPU, $CMAKE_BUILD_PARALLEL_LEVEL compiler(s) at a time: some minutes on a laptop," \
    "up to an hour on a small board; log: $log"
  rm -rf -- "$work/out"
  step "building llama.cpp" with_tools "$tools" wheel -v --no-cache-dir --no-deps --no-build-isolation \
    --config-settings "build-dir=$work/objects" --wheel-dir "$work/out" "$work/source"
  # 4. keep it: whole or not at all
  cp -- "$venv/wheel-inputs.txt" "$work/out/inputs.txt"
  sync
  rm -rf -- "${wheels:?}/$1"
  mv -- "$work/out" "$wheels/$1"
  rm -rf -- "$work"
  work=""
  exec 9>&-
}

with_tools() { # with_tools TOOLS PIP-ARGUMENTS...
  local tools=$1
  shift
  PATH=$tools/bin:$PATH CC=$cc CXX=$cxx "$venv/bin/python" -m pip --python "$tools/bin/python" "$@"
}

build_tools() { # build_tools TOOLS
  "$venv/bin/python" -m venv --without-pip "$1" &&
    with_tools "$1" install --constraint "$root/constraints.txt" --only-binary :all: scikit-build-core cmake ninja
}

fetch_source() { # fetch_source TOOLS
  rm -rf -- "$work/download" "$work/unpacked" && mkdir -p -- "$work/unpacked" &&
    with_tools "$1" download --no-deps --no-binary llama-cpp-python --no-build-isolation --dest "$work/download" \
      "llama-cpp-python==$llama" &&
    tar -xzf "$work/download"/*.tar.gz -C "$work/unpacked" && rm -rf -- "$work/download" &&
    mv -- "$work/unpacked"/* "$work/source"
}

compilers_at_a_time() {
  local cores memory_mb jobs
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  memory_mb=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo 2>/dev/null || true)
  jobs=$((${memory_mb:-99999} / COMPILER_MB))
  [ "$jobs" -lt "$cores" ] || jobs=$cores
  [ "$jobs" -ge 1 ] || jobs=1
  printf '%d' "$jobs"
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
find_wheel
install_all
printf '%s\n' "$(fingerprint)" "$extras" >"$stamp.new"
mv -f -- "$stamp.new" "$stamp"
say "ready in $(elapsed $((SECONDS - began))): $venv/bin/edge"
