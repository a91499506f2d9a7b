# shellcheck shell=bash
# llama.cpp as a wheel, built where it can be seen, stopped and gone on with. Sourced by setup.sh and build-llama.sh.
#
# They set: python; builder, one that has pip; cc and cxx, the compilers; CMAKE_ARGS; built_for, in words; log, a file for
# what a step says; platform, of the wheel, where it is not this machine's.
# shellcheck disable=SC2154

BUILD_MB=600      # on disk, measured: source 217, build tools 92, objects and wheel 90, download 77; the rest is air
COMPILER_MB=700   # memory for one compiler; the largest seen took 445
REPORT_EVERY_S=15 # between progress lines where there is no terminal

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME # another project's packages would pass for installed ones
unset SOURCE_DATE_EPOCH     # with it, ggml builds for any CPU instead of this one
home=${HOME:-$(cd ~ && pwd)}
cache=${EDGE_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/edge}
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
wheels=$cache/wheels
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

# ---- what the machine must bring

missing=() packages=() hint="" # in words, as Debian names them, and what else helps

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

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

need_python() { # sets python, one that can make environments
  local name
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
}

need_compiler() { # need_compiler WHAT PACKAGE: of what cc and cxx name
  ! command -v "${cc%% *}" >/dev/null || ! command -v "${cxx%% *}" >/dev/null || return 0
  missing+=("$1") packages+=("$2")
}

refuse_what_is_missing() { # dies naming all of it at once
  local names
  [ "${#missing[@]}" -gt 0 ] || return 0
  names=$(printf ' and %s' "${missing[@]}")
  [ "$(uname -s)" != Darwin ] || die "this machine lacks ${names# and }; install it with: xcode-select --install"
  die "this machine lacks ${names# and }; install it with: sudo apt-get install ${packages[*]}$hint"
}

need_room() { # need_room FOLDER MB SETTING
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
trap 'say ""; say "$(basename -- "$0"): stopped; run it again to go on from here"; exit 130' INT TERM HUP

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
    *[Nn]"o space left"*) next="make room on the disks of $cache and $(dirname -- "$log")" ;;
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

# ---- the wheel

spare_amx() { # this llama.cpp's AMX kernels crash on the first prompt (ggml-org/llama.cpp#20824, pull request 26954)
  local flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  ! grep -qsw amx_tile /proc/cpuinfo || export CFLAGS="${CFLAGS:-} $flags" CXXFLAGS="${CXXFLAGS:-} $flags"
}

find_wheel() { # find_wheel KEY INPUTS [WORK]: sets wheel, a whole one from the cache, else one built now
  wheel=$(first_file "$wheels/$1"/*.whl)
  mkdir -p -- "$wheels" 2>/dev/null || die "$wheels cannot be made; set EDGE_CACHE to a folder that can be written"
  if [ -n "$wheel" ] && ! is_whole "$wheel"; then
    say "$wheel is damaged; building it anew"
    rm -rf -- "${wheels:?}/$1"
    wheel=""
  fi
  [ -n "$wheel" ] || build_wheel "$@"
  wheel=$(first_file "$wheels/$1"/*.whl)
}

is_whole() { "$python" -c 'import sys, zipfile as z; sys.exit(z.ZipFile(sys.argv[1]).testzip() is not None)' "$1" 2>/dev/null; }

first_file() { if [ -f "$1" ]; then printf '%s' "$1"; fi; }

build_wheel() { # build_wheel KEY INPUTS [WORK]: all under one folder, WORK or KEY, that a stopped run leaves for the next
  local name=.building-${3:-$1} tools
  work=$wheels/$name tools=$wheels/$name/tools
  if command -v flock >/dev/null; then
    exec 9>"$wheels/.lock"
    flock -n 9 || { say "another build is running; waiting for it" && flock 9; }
    [ -z "$(first_file "$wheels/$1"/*.whl)" ] || return 0 # it built ours
  fi
  find "$wheels" -maxdepth 1 -name '.building-*' ! -name "$name" -exec rm -rf -- {} +
  rm -rf -- "$work/tmp" && mkdir -p -- "$work/tmp"
  [ -d "$work/objects" ] || need_room "$work" "$BUILD_MB" EDGE_CACHE
  export TMPDIR=$work/tmp # /tmp may be memory on a small board
  export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(compilers_at_a_time)}
  # 1. cmake, ninja and the build backend in their constrained versions, at a path that stays: CMake remembers it
  step "fetching the build tools" build_tools "$tools"
  # 2. the source
  [ -d "$work/source" ] || step "fetching llama.cpp $llama" fetch_source "$tools"
  # 3. the wheel; pip's own wheel cache ignores CMAKE_ARGS, so it stays out of this
  say "building llama.cpp for $built_for, $CMAKE_BUILD_PARALLEL_LEVEL compiler(s) at a time: some minutes on a laptop," \
    "up to an hour on a small board; log: $log"
  rm -rf -- "$work/out" "$work/source/llama_cpp/lib" # what the last target left there would be packed as well
  step "building llama.cpp" make_wheel "$tools"
  # 4. keep it: whole or not at all
  printf '%s\n' "$2" >"$work/out/inputs.txt"
  sync
  rm -rf -- "${wheels:?}/$1"
  mv -- "$work/out" "$wheels/$1"
  [ -n "${3:-}" ] || rm -rf -- "$work" # a work folder that was named serves the next target too
  work=""
  exec 9>&-
}

with_tools() { # with_tools TOOLS PIP-ARGUMENTS...
  local tools=$1
  shift
  PATH=$tools/bin:$PATH CC=$cc CXX=$cxx "$builder" -m pip --python "$tools/bin/python" "$@"
}

build_tools() { # build_tools TOOLS
  "$builder" -m venv --without-pip "$1" &&
    with_tools "$1" install --constraint "$root/constraints.txt" --only-binary :all: scikit-build-core cmake ninja
}

fetch_source() { # fetch_source TOOLS
  rm -rf -- "$work/download" "$work/unpacked" && mkdir -p -- "$work/unpacked" &&
    with_tools "$1" download --no-deps --no-binary llama-cpp-python --no-build-isolation --dest "$work/download" \
      "llama-cpp-python==$llama" &&
    tar -xzf "$work/download"/*.tar.gz -C "$work/unpacked" && rm -rf -- "$work/download" &&
    leave_out_common "$work/unpacked"/*/CMakeLists.txt &&
    mv -- "$work/unpacked"/* "$work/source"
}

leave_out_common() { # leave_out_common CMAKELISTS: what llama.cpp's own programs share is a third of the work, and unused
  case $CMAKE_ARGS in *-DLLAVA_BUILD=OFF*) ;; *) return 0 ;; esac # llava needs it
  [ ! -f "$1" ] || { sed 's/set(LLAMA_BUILD_COMMON ON /set(LLAMA_BUILD_COMMON OFF /' "$1" >"$1.new" && mv -- "$1.new" "$1"; }
}

make_wheel() { # make_wheel TOOLS
  [ -z "${platform:-}" ] || export _PYTHON_HOST_PLATFORM=$platform # the wheel's, where that is not this machine's
  with_tools "$1" wheel -v --no-cache-dir --no-deps --no-build-isolation \
    --config-settings "build-dir=$work/objects" --wheel-dir "$work/out" "$work/source"
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

