#!/usr/bin/env bash
# Test on the boards' own instruction set, without a board: Debian for arm64 under qemu's user emulation.
#
#   bash scripts/test-arm64.sh               all of tests/arm64
#   bash scripts/test-arm64.sh -k doctor     the rest of the line goes to pytest
#   bash scripts/test-arm64.sh --prepare     only make the machine; prints the line that sets EDGE_ARM64 to its folder
#   bash scripts/test-arm64.sh --help        this text
#
# Builds llama.cpp for Cortex-A76 (Raspberry Pi 5, RK3588) and for every 64-bit Arm (Raspberry Pi 4), unpacks Debian's
# Python for arm64 and the aarch64 wheels of everything in constraints.txt into the cache folder, and runs edge there as
# on the board, with the /proc and /sys of recorded boards. As root on Debian it installs the emulator and the
# cross-compiler where they are missing, else it names the line that does. Needs scripts/setup.sh to have run.
#
# Emulation says whether something works, not how fast. EDGE_DEBIAN_MIRROR: another place for Debian's packages.

set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/wheel.sh
. "$root/scripts/wheel.sh"

PACKAGES=(python3 libgomp1 libstdc++6) # of Debian, with what they need
TARGETS=(armv8.2-dotprod armv8.0)
MIRROR=${EDGE_DEBIAN_MIRROR:-http://deb.debian.org/debian}

prepare_only=no
case ${1:-} in
  -h | --help) help && exit ;;
  --prepare) prepare_only=yes && shift ;;
esac
python=$venv/bin/python
log=$cache/test-arm64.log

# ---- what the machine must bring

need_tools() {
  local name lacking=() install
  [ "$(uname -s)" = Linux ] || die "the emulator runs on Linux; on this system leave these tests to another machine"
  [ -x "$python" ] || die "$venv is not there; run: bash scripts/setup.sh"
  command -v qemu-aarch64-static >/dev/null || lacking+=(qemu-user-static)
  [ "$(uname -m)" = aarch64 ] || command -v aarch64-linux-gnu-g++ >/dev/null || lacking+=(g++-aarch64-linux-gnu)
  for name in apt-get dpkg-deb; do command -v "$name" >/dev/null || die "this needs $name, of Debian or Ubuntu"; done
  [ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || lacking+=(debian-archive-keyring)
  [ "${#lacking[@]}" -gt 0 ] || return 0
  install="apt-get install --yes --no-install-recommends ${lacking[*]}"
  if [ "$(id -u)" = 0 ]; then
    say "installing ${lacking[*]}"
    { apt-get update && $install; } >>"$log" 2>&1 && return
  fi
  die "the tests for arm64 need ${lacking[*]}; run: sudo $install"
}

# ---- the machine: root, Debian's files; site, everything edge needs; and a folder for each build of llama.cpp

suite() { # the oldest Debian whose glibc is at least that of the compiler: what it builds runs there
  local compiler=aarch64-linux-gnu-gcc minor
  [ "$(uname -m)" != aarch64 ] || compiler=cc
  minor=$(printf '#include <features.h>\n__GLIBC_MINOR__' | $compiler -E -P -x c - | tail -n 1)
  if [ "$minor" -le 36 ]; then echo bookworm; elif [ "$minor" -le 41 ]; then echo trixie; else echo testing; fi
}

apt_arm64() ( # apt_arm64 FOLDER APT-GET-ARGUMENTS…: of another architecture, with nothing of this machine's touched
  mkdir -p "$1/lists/partial" "$1/archives/partial" && touch "$1/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR $debian main" >"$1/sources.list"
  cat >"$1/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures "arm64";
Dir::State "$1";
Dir::State::status "$1/status";
Dir::Cache "$1";
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "3";
END
  APT_CONFIG=$1/apt.conf apt-get --quiet "${@:2}"
)

make_root() { # make_root FOLDER
  local file
  apt_arm64 "$1/apt" update &&
    apt_arm64 "$1/apt" install --yes --download-only --no-install-recommends "${PACKAGES[@]}" &&
    mkdir -p "$1/root" || return 1
  for file in "$1"/apt/archives/*.deb; do dpkg-deb --extract "$file" "$1/root" || return 1; done
  rm -rf -- "$1/apt"
}

make_site() { # make_site FOLDER: the aarch64 wheels of all that setup.cfg names, in the versions of constraints.txt
  local version glibc platforms=()
  version=$(basename -- "$1"/root/usr/bin/python3.[0-9]*)
  for glibc in 2014 _2_17 _2_28 _2_31 _2_34 _2_35 _2_36; do platforms+=(--platform "manylinux${glibc}_aarch64"); done
  "$python" -c '
import configparser, sys
setup = configparser.ConfigParser()
setup.read(sys.argv[1])
lines = [line for line in setup["options"]["install_requires"].splitlines() if line.strip() and line[0] != "#"]
print("\n".join(line for line in lines if not line.startswith("llama-cpp-python")))
print("diskcache")  # llama-cpp-python imports it
' "$root/setup.cfg" >"$1/requirements.txt" &&
    "$python" -m pip install --target "$1/site" --no-compile --only-binary :all: --implementation cp \
      --python-version "${version#python}" "${platforms[@]}" \
      --constraint "$root/constraints.txt" --requirement "$1/requirements.txt"
}

make_machine() { # make_machine FOLDER WHEEL…: whole or not at all
  local new=$1.new target i=0
  rm -rf -- "$new" && mkdir -p -- "$new"
  need_room "$new" 600 EDGE_CACHE
  step "unpacking Debian for arm64" make_root "$new"
  step "unpacking the wheels for aarch64" make_site "$new"
  for target in "${TARGETS[@]}"; do
    i=$((i + 1))
    "$python" -m zipfile --extract "${@:i+1:1}" "$new/$target"
  done
  rm -rf -- "$1" && mv -- "$new" "$1"
}

# ---- now

mkdir -p -- "$cache" 2>/dev/null || die "$cache cannot be made; set EDGE_CACHE to a folder that can be written"
: >"$log"
need_tools
debian=$(suite)
builds=()
for target in "${TARGETS[@]}"; do builds+=(--target "$target"); done
made=$(bash "$root/scripts/build-llama.sh" "${builds[@]}")
built=()
while IFS= read -r line; do built+=("$line"); done <<<"$made"
key=$({
  printf '%s\n' "$debian" "$MIRROR" "${PACKAGES[@]}"
  cat "$root/setup.cfg" "$root/constraints.txt" "$root/scripts/test-arm64.sh" "${built[@]}"
} | digest)
machine=$cache/arm64/$key
if [ ! -d "$machine" ]; then
  make_machine "$machine" "${built[@]}"
fi
touch -- "$machine"
find "$cache/arm64" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf -- {} + # nobody's for a week
[ ! -d "$machine/pyc" ] || find "$machine/pyc" -name '*.pyc' -mtime +7 -delete # of clones that are gone, too
if [ "$prepare_only" = yes ]; then
  printf 'export EDGE_ARM64=%q\n' "$machine"
  exit
fi
cd -- "$root"
EDGE_ARM64=$machine exec "$python" -m pytest tests/arm64 "$@"
