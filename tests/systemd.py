"""A systemd of the tests' own: the real one, as process 1 of namespaces in which nothing of this machine is changed.

It sees the machine's files under a layer that is thrown away, has a control group of its own, and no unit but those
that a test installs. Needs root; `why_not` says what is missing where it cannot be.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

SYSTEMD = Path("/lib/systemd/systemd")
CGROUPS = Path("/sys/fs/cgroup")
SPACE = "unshare --mount --pid --uts --ipc --cgroup --fork --kill-child --mount-proc --propagation private"
TARGETS = "default shutdown basic sysinit sockets timers paths network multi-user umount reboot exit"
ROOT = Path(__file__).parents[1]
PROGRAM = (ROOT, Path(sys.prefix), Path(sys.base_prefix))  # what a service reads
OPENED = sorted({str(above) for path in PROGRAM for above in (path, *path.parents) if len(above.parts) > 1})
LAYERED = shlex.join(sorted({"/etc", "/var", *(f"/{Path(path).parts[1]}" for path in OPENED)} - {"/usr"}))
# Files: the machine's, with a layer of memory on top, in which all may read the program, as where it usually lies.
# Control groups: mounted again, so that those of this namespace are the top.
BOOT = f"""
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
for folder in {LAYERED}; do
  layer=/run/layers$folder
  mkdir -p "$layer/new" "$layer/work"
  mount -t overlay overlay -o "lowerdir=$folder,upperdir=$layer/new,workdir=$layer/work" "$folder"
done
chmod o+rx {shlex.join(OPENED)} 2>/dev/null || true
rm -rf /etc/systemd/system /etc/edge && mkdir -p /etc/systemd/system
for name in {TARGETS}; do
  printf '[Unit]\\nDescription=%s\\nDefaultDependencies=no\\n' "$name" > "/etc/systemd/system/$name.target"
done
grep -E ' {CGROUPS}(/[^ ]*)? cgroup2? ' /proc/mounts | while read -r _ place kind options _; do
  name=$(printf '%s' "$options" | tr , '\\n' | grep -vE '^(rw|ro|relatime|nosuid|nodev|noexec)$' | paste -sd ,)
  [ "$kind" = cgroup ] || name=
  umount "$place" && mount -t "$kind" ${{name:+-o "$name"}} cgroup "$place"
done
export container=tests SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/nonexistent
exec {SYSTEMD} --system --log-target=console --show-status=no
"""


@dataclass(frozen=True)
class Systemd:
    """A running one. pid: of its process 1, as this machine counts."""

    pid: int
    log_file: Path

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs `words` in there."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--",
                *map(str, words)]  # fmt: skip

    def run(self, *words: str | Path, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run something in there, with nothing of the tests' environment but env."""
        usual = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8"}
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**usual, **env},
            timeout=60,
        )  # fmt: skip

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()


def why_not() -> str:
    """What is missing here to start one; "" where it can be tried."""
    if not SYSTEMD.exists():
        return "no systemd is installed"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    missing = [name for name in ("unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)}"
    layer = "mount -t overlay x -o lowerdir=/etc,upperdir=a,workdir=b /etc"
    tried = subprocess.run(
        [*SPACE.split(), "bash", "-ec", f"mount -t tmpfs x /mnt; cd /mnt; mkdir a b; {layer}"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return "" if tried.returncode == 0 else f"no namespaces or layers here ({tried.stderr.strip()[-120:]})"


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Systemd]:
    """Start one; it and all it started are gone afterwards."""
    groups = _own_groups()
    log_file = folder / "systemd.log"
    joins = "; ".join(f"echo $$ > '{group}/cgroup.procs'" for group in groups)
    with log_file.open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"{joins or ':'}; exec {SPACE} bash -c \"$0\"", BOOT],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield Systemd(_child_that_answers(process, log_file), log_file)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        for group in groups:
            _remove(group)


def _own_groups() -> list[Path]:
    """A new control group in each hierarchy that systemd uses, below the one this process is in."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names == "cpuset":  # a new one of version 1 has no cores and takes nobody
            continue
        mounts = [CGROUPS / names.removeprefix("name=")] if names else [CGROUPS / "unified", CGROUPS]
        top = next((mount for mount in mounts if (mount / "cgroup.procs").exists()), None)
        if top is not None:
            group = top / path.strip("/") / f"edge-tests-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                found.append(group)
    return found


def _child_that_answers(process: "subprocess.Popen[bytes]", log_file: Path) -> int:
    for _ in range(200):
        assert process.poll() is None, log_file.read_text()
        for child in psutil.Process(process.pid).children():
            found = Systemd(child.pid, log_file)
            # the folder tells that its /run is no longer this machine's, whose systemd would answer too
            if found.run("sh", "-c", "test -d /run/layers && systemctl show --property=Version").returncode == 0:
                return found.pid
        time.sleep(0.05)
    raise AssertionError(f"systemd does not answer: {log_file.read_text()}")


def _remove(group: Path) -> None:
    """A control group and all below it, once the kernel has seen its processes go."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            group.rmdir()
            return
        time.sleep(0.05)
