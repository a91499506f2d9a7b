"""Recorded boards: each file of tests/board/trees is one machine's /proc and /sys, built into a folder for a test.

A line is `path: text`. `{0-3,8}` in a path stands for one file each, the number put in for every `{}` of the
line; what follows a # in a path is dropped, so that several lines can go into one file. \\n is a new line, \\0 a NUL.
"""

import re
from pathlib import Path

from edge.board.topology import parse_cpu_list

TREES = Path(__file__).parent / "trees"
BOARDS = sorted(file.stem for file in TREES.glob("*.txt"))


def build(board: str, root: Path) -> Path:
    """Write a recorded board below root."""
    for line in (TREES / f"{board}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            path, _, text = line.partition(": ")
            for number in numbers(path):
                name = re.sub(r"\{[^}]*\}", number, path).partition("#")[0]
                file = root / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a", encoding="utf-8") as out:
                    out.write(text.replace("{}", number).replace("\\n", "\n").replace("\\0", "\0") + "\n")
    return root


def numbers(path: str) -> list[str]:
    found = re.search(r"\{([^}]*)\}", path)
    return [str(cpu) for cpu in parse_cpu_list(found[1])] if found else [""]
