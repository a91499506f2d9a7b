"""A board without the board: edge on its instruction set, under qemu's user emulation, by scripts/test-arm64.sh.

/proc and /sys of a recorded board (tests/board/trees) lie over this machine's; what is not recorded is this machine's.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.emulator import write_launcher
from tests.board.trees import build

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Board:
    """A CPU, a recorded machine around it, and the build of llama.cpp that is installed there."""

    launcher: Path
    home: Path

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        """Python with these words."""
        return subprocess.Popen(
            [str(self.launcher), *words],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "EDGE_CACHE": str(self.home / "cache"),
                "EDGE_DATA": str(self.home / "data"),
                "TERM": "dumb",
                **env,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, *words: str, expect: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        """What Python with these words said. It ends as expected, or the test does."""
        process = self.start(*words, **env)
        out, err = process.communicate(timeout=300)
        assert process.returncode == expect, f"{process.returncode} instead of {expect}:\n{out}\n{err}"
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def edge(self, *words: str, expect: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        """What `edge …` said."""
        return self.python("-m", "edge.cli", *words, expect=expect, **env)

    def json(self, *words: str) -> Any:
        """The document that `edge … --json` printed."""
        return json.loads(self.edge(*words, "--json").stdout)


def make_board(machine: Path, name: str, cpu: str, target: str, folder: Path) -> Board:
    """machine: what scripts/test-arm64.sh made. name: of a recorded board. target: what its llama.cpp was built for."""
    root = folder / "root"
    recorded = build(name, folder / "recorded")
    root.mkdir()
    for part in (machine / "root").iterdir():
        (root / part.name).symlink_to(part)
    (root / "sys").symlink_to(recorded / "sys")
    (root / "proc").mkdir()
    for name_there in ("cpuinfo", "meminfo", "device-tree"):
        (root / "proc" / name_there).symlink_to(recorded / "proc" / name_there)
    (recorded / "sys/firmware/devicetree").mkdir(parents=True)
    (recorded / "sys/firmware/devicetree/base").symlink_to(recorded / "proc/device-tree")
    launcher = folder / "python"
    write_launcher(launcher, machine, cpu, target, root)
    home = folder / "home"
    home.mkdir()
    return Board(launcher, home)
