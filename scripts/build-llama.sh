#!/usr/bin/env bash
# Build llama.cpp for a board, on the board or on a PC, as a wheel that pip installs there.
#
#   bash scripts/build-llama.sh --target pi5                   the wheel goes to build/pi5
#   bash scripts/build-llama.sh --target pi5 --out /media/usb  … or to another folder
#   bash scripts/build-llama.sh --target pi5 --install         on the board: into .venv as well
#   bash scripts/build-llama.sh --target pi4 --target pi5      both; what they share is compiled once
#   bash scripts/build-llama.sh --list                         the targets, and for which machines they are
#   bash scripts/build-llama.sh --help                         this text
#
# On another kind of machine than the target's it compiles with Debian's cross-compilers. The paths of the wheels are
# printed, one a line. Built wheels are kept: the same target with the same compiler and flags is not built again.
#
# Environment:
#   CMAKE_ARGS    more flags, after those of the target; the last one counts
#   CC, CXX       the compilers; those of the target where that is another kind of machine
#   VULKAN_INCLUDE   a folder with vulkan/vulkan.h of 1.4. Default: the system's; where it is too old, Debian 13's
#   CFLAGS, CXXFLAGS, LDFLAGS, CMAKE_BUILD_PARALLEL_LEVEL, EDGE_PYTHON, EDGE_VENV, EDGE_CACHE   as in scripts/setup.sh
#
# The full log is build-llama.log in the cache folder.

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/wheel.sh
. "$root/scripts/wheel.sh"
# shellcheck source=scripts/vulkan.sh
. "$root/scripts/vulkan.sh"

# Name, machine it runs on, what it needs beyond a compiler (a function need_NAME below), flags, and what it is for.
# Boards stand for an instruction set: their wheels are the same, byte for byte.
targets() {
  local portable=-DGGML_NATIVE=OFF own=-DGGML_NATIVE=ON
  local v80=-DGGML_CPU_ARM_ARCH=armv8-a
  local v82=-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16
  local v86=-DGGML_CPU_ARM_ARCH=armv8.6-a+dotprod+fp16+i8mm
  local v3="-DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
  cat <<END
native          | this    | nothing | $own                       | the CPU of this very machine
pi4             | aarch64 | nothing | $portable $v80             | Raspberry Pi 4, 400, 3
pi5             | aarch64 | nothing | $portable $v82             | Raspberry Pi 5, 500
rk3588          | aarch64 | nothing | $portable $v82             | Orange Pi 5, Rock 5, other boards with an RK3588
armv8.0         | aarch64 | nothing | $portable $v80             | every 64-bit Arm: Cortex-A53, A72
armv8.2-dotprod | aarch64 | nothing | $portable $v82             | Cortex-A55, A75, A76, A78, Neoverse N1; Jetson Orin
armv8.6-i8mm    | aarch64 | nothing | $portable $v86             | Cortex-A510, A710, A715, X2 and later; Neoverse N2, V2
x86-64-v3       | x86_64  | nothing | $portable $v3              | Intel from 2013, AMD from 2015 on: AVX2 and FMA
cuda            | this    | cuda    | $own -DGGML_CUDA=ON        | this machine with an NVIDIA GPU
vulkan          | this    | vulkan  | $own -DGGML_VULKAN=ON      | this machine with any GPU that has a Vulkan driver
metal           | this    | metal   | $own -DGGML_METAL=ON       | a Mac with Apple silicon
END
}

# ---- what a target needs; each prints what its wheel depends on besides the compiler, flags_NAME what CMake must know

need_nothing() { :; }

need_cuda() {
  local nvcc
  nvcc=$(first_of "${CUDACXX:-nvcc}" /usr/local/cuda/bin/nvcc)
  [ -n "$nvcc" ] ||
    die "target cuda needs NVIDIA's compiler, nvcc; install it with: sudo apt-get install nvidia-cuda-toolkit"
  echo '#include <cublas_v2.h>' | $cxx -E -x c++ -I "$(dirname -- "$(readlink -f -- "$nvcc")")/../include" - >/dev/null 2>&1 ||
    die "target cuda needs cuBLAS beside $nvcc; install NVIDIA's libcublas-dev for that version of CUDA"
  "$nvcc" --version | tail -n 1
}

need_vulkan() {
  local lacking
  lacking=$(vulkan_lacks)
  [ -z "$lacking" ] ||
    die "target vulkan needs a shader compiler, its headers and a loader; install them with: sudo apt-get install $lacking"
  glslc --version | head -n 1
}

flags_vulkan() { vulkan_flags; }

need_metal() { [ "$(uname -sm)" = "Darwin arm64" ] || die "target metal is for a Mac with Apple silicon; see --list"; }

# ---- one target

field() { # field N ROW
  local row value
  IFS='|' read -r -a row <<<"$2"
  read -r value <<<"${row[$1]}" # without the blanks around it
  printf '%s' "$value"
}

row_of() { # row_of TARGET: its line, or nothing
  targets | awk -F '|' -v name="$1" '{ key = $1; gsub(/ /, "", key) } key == name'
}

choose_compilers() { # choose_compilers MACHINE: sets cc, cxx, platform and cross_flags
  local here name
  here=$(uname -m) platform="" cross_flags=""
  case $here in arm64) here=aarch64 ;; amd64) here=x86_64 ;; esac
  if [ "$1" = this ] || [ "$1" = "$here" ]; then
    cc=${CC:-$(first_of cc gcc clang)} cxx=${CXX:-$(first_of c++ g++ clang++)}
    need_compiler "a C and C++ compiler" build-essential
    return
  fi
  [ "$(uname -s)" = Linux ] || die "for $1 it compiles on Linux only; run it on the board, or on a PC with Debian or Ubuntu"
  name=$(printf '%s' "$1" | tr _ -)
  cc=${CC:-$1-linux-gnu-gcc} cxx=${CXX:-$1-linux-gnu-g++} platform=linux-$1
  cross_flags="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$1"
  need_compiler "a C and C++ compiler for $1" "g++-$name-linux-gnu"
  [ "${#missing[@]}" -gt 0 ] || case $($cc -dumpmachine) in
    "$1"-*) ;;
    *) die "CC is $cc, which does not compile for $1; set CC and CXX to compilers that do, or unset them" ;;
  esac
}

glibc_of() { printf '#include <features.h>\n__GLIBC__ __GLIBC_MINOR__' | $cc -E -P -x c - 2>/dev/null | tail -n 1; }

base_inputs() { # all that every target's wheel depends on, and the objects they share
  printf '%s\n' "llama-cpp-python $llama" "$($cc --version 2>&1 | head -n 1)" "$($cxx --version 2>&1 | head -n 1)" \
    "machine $($cc -dumpmachine)" "glibc $(glibc_of)" "more ${CMAKE_ARGS_MORE}" \
    "CFLAGS ${CFLAGS:-}" "CXXFLAGS ${CXXFLAGS:-}" "LDFLAGS ${LDFLAGS:-}"
}

build() { # build TARGET ROW: prints the path of its wheel
  local machine need flags own inputs key folder
  machine=$(field 1 "$2") need=$(field 2 "$2") flags=$(field 3 "$2")
  choose_compilers "$machine"
  refuse_what_is_missing
  own=$("need_$need")
  ! declare -F "flags_$need" >/dev/null || flags+=" $("flags_$need")"
  if [ "$machine" = this ]; then # as in scripts/setup.sh
    spare_amx
    own+=$(cpu_features)
  fi
  built_for=$1
  export CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_RPC=ON $cross_flags $flags $CMAKE_ARGS_MORE"
  inputs=$(base_inputs && printf '%s\n' "CMAKE_ARGS $CMAKE_ARGS" "$own")
  key=$llama-$(sed -n 's/^machine \([^-]*\).*/\1/p' <<<"$inputs")-$(digest <<<"$inputs")
  find_wheel "$key" "$inputs" "shared-$(base_inputs | digest)"
  check "$machine" "$1"
  folder=$root/build/$1
  [ -z "$out" ] || folder=$out
  [ -z "$out" ] || [ "${#chosen[@]}" -eq 1 ] || folder=$out/$1 # the names of the wheels are the same
  { mkdir -p -- "$folder" && cp -- "$wheel" "$folder/"; } 2>/dev/null ||
    die "$folder cannot be written; choose another folder with --out"
  wheel=$folder/$(basename -- "$wheel")
  printf '%s\n' "$wheel"
}

check() { # check MACHINE TARGET: the wheel holds libraries for that machine; says what the board must bring
  [ "$(uname -s)" = Linux ] || return 0
  "$python" -I -c '
import pathlib, re, sys, zipfile
path, machine, target = sys.argv[1:]
codes = {62: "x86_64", 183: "aarch64"}
with zipfile.ZipFile(path) as wheel:
    libraries = [wheel.read(name) for name in wheel.namelist() if ".so" in name]
found = {codes.get(int.from_bytes(data[18:20], "little"), "another machine") for data in libraries}
named = re.search("linux_([a-z0-9_]+).whl", path)
if len(found) != 1 or named is None or found != {named[1]} or machine not in ("this", *found):
    sys.exit(f"{path} is named for {named and named[1]} and holds code for {found}")
glibc = max((tuple(map(int, v)) for data in libraries for v in re.findall(rb"GLIBC_(\d+)\.(\d+)\0", data)), default=(0, 0))
needs = " and libgomp1" * any(b"libgomp.so.1" in data for data in libraries)
print(f"{target}: for Linux on {found.pop()} with glibc {glibc[0]}.{glibc[1]} or newer{needs}", file=sys.stderr)
' "$wheel" "$1" "$2" || die "the build for $2 is not what it should be; run this again, and report it if it stays so"
}

install() { # into .venv; only what was built for this kind of machine
  [ -z "$platform" ] ||
    die "this machine cannot run it; copy $wheel to the board and run there:" \
      ".venv/bin/python -m pip install --force-reinstall --no-deps $(basename -- "$wheel")"
  [ -x "$venv/bin/python" ] || die "$venv is not there; run: bash scripts/setup.sh"
  step "installing it" "$venv/bin/python" -m pip install --force-reinstall --no-deps "$wheel"
}

tidy() { # what the targets shared, unless another build is using it
  if command -v flock >/dev/null; then
    exec 9>"$wheels/.lock"
    flock -n 9 || return 0
  fi
  rm -rf -- "$wheels"/.building-shared-*
}

# ---- what was asked for

chosen=() out="" installs=no
while [ $# -gt 0 ]; do
  case $1 in
    --target | --out) [ $# -gt 1 ] || misused "$1 needs a value" ;;
  esac
  case $1 in
    --target) chosen+=("$2") && shift ;;
    --target=*) chosen+=("${1#*=}") ;;
    --out) out=$2 && shift ;;
    --out=*) out=${1#*=} ;;
    --install) installs=yes ;;
    --list) targets | awk -F ' *[|] *' '{ printf "%-17s%s\n", $1, $5 }' && exit ;;
    -h | --help) help && exit ;;
    *) misused "unknown option $1" ;;
  esac
  shift
done
names=$(targets | awk -F ' *[|]' '{ printf "%s%s", sep, $1; sep = ", " }')
[ "${#chosen[@]}" -gt 0 ] || misused "name a --target: $names"
for target in "${chosen[@]}"; do
  [ -n "$(row_of "$target")" ] || misused "there is no target $target; choose one of: $names"
done
[ "$installs" = no ] || [ "${#chosen[@]}" -eq 1 ] || misused "--install takes one --target"

CMAKE_ARGS_MORE=${CMAKE_ARGS:-}
mkdir -p -- "$cache" 2>/dev/null || die "$cache cannot be made; set EDGE_CACHE to a folder that can be written"
log=$cache/build-llama.log
[ ! -f "$log" ] || mv -f -- "$log" "$log.1"
if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$venv/bin/python builder=$venv/bin/python
else # a PC that only builds needs no environment of the runtime
  need_python
  builder=$cache/builder/bin/python
fi
choose_compilers "$(field 1 "$(row_of "${chosen[0]}")")"
refuse_what_is_missing
if [ ! -x "$builder" ]; then
  step "making an environment to build in" "$python" -m venv "$cache/builder"
  step "updating pip" "$builder" -m pip install --constraint "$root/constraints.txt" --only-binary :all: pip
fi
for target in "${chosen[@]}"; do
  build "$target" "$(row_of "$target")"
done
tidy
[ "$installs" = no ] || install
