"""llama.cpp's own tools, where scripts/build-peers.sh has built them: the truth outside us, run as a user would."""

import subprocess
from pathlib import Path

import pytest

from edge.config import cache_dir

PEERS = cache_dir() / "peers"  # the user's: read before the tests get a cache of their own


def tool(name: str) -> Path:
    """The newest build of a tool; the test that asks is skipped where there is none."""
    found = sorted(PEERS.glob(f"*/build/bin/{name}"))
    if not found:
        pytest.skip(f"{name} is not built; run: scripts/build-peers.sh {name}")
    return found[-1]


def run(name: str, *arguments: object, folder: Path, until: str = "") -> str:
    """What the tool prints, stdout and stderr together, in the order it came.

    llama.cpp's tools print from a thread that their exit does not wait for: the last lines are lost now and then.
    A run whose output lacks `until` is repeated.
    """
    words = [str(tool(name)), *map(str, arguments)]
    for _ in range(10):
        done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
        if until in done.stdout:
            return done.stdout
    raise AssertionError(f"{name} never printed {until!r}: {done.stdout[-2000:]}")
