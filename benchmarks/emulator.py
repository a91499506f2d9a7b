"""Python of another instruction set, as one program: qemu's user emulation around Debian's arm64 Python.

scripts/test-arm64.sh makes the machine's folder: `root`, Debian's files; `site`, the packages; and one folder for each
build of llama.cpp, under its target's name. The program's own path is what sys.executable says there, so that whatever
is started through it is emulated too, with nothing but its arguments.
"""

import os
import sys
from pathlib import Path
from shlex import quote

LAUNCHER = """#!/bin/sh
ulimit -c 0 # a crash would leave the emulator's core file as well
export PYTHONHOME={root}/usr PYTHONPATH={machine}/{target}:{machine}/site PYTHONPYCACHEPREFIX={machine}/pyc
unset PYTHONDONTWRITEBYTECODE
exec qemu-aarch64-static -cpu {cpu} -L {root} -0 "$0" {root}/usr/bin/python3 "$@"
"""


def write_launcher(path: Path, machine: Path, cpu: str, target: str, root: Path | None = None) -> None:
    """A program at path that is Python on cpu with the llama.cpp of target. root: of the system, by default Debian's
    files alone; what a path below it holds stands for that path."""
    names = {"machine": quote(str(machine)), "root": quote(str(root or machine / "root"))}
    path.write_text(LAUNCHER.format(cpu=quote(cpu), target=quote(target), **names), encoding="utf-8")
    path.chmod(0o755)


if __name__ == "__main__":  # python -m benchmarks.emulator CPU TARGET FILE, with EDGE_ARM64 set
    write_launcher(Path(sys.argv[3]), Path(os.environ["EDGE_ARM64"]), sys.argv[1], sys.argv[2])
