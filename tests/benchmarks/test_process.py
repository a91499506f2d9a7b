"""What a command took is what the kernel says of it and of the processes it started."""

import sys
from pathlib import Path

import pytest

from benchmarks.process import Run, measure
from edge.errors import EngineError

HOLD = "import time; held = b'x' * {n}; time.sleep(0.4)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "{HOLD.format(n=60_000_000)}", *sys.argv[1:]])
{HOLD.format(n=30_000_000)}
child.wait()
"""


def test_memory_is_that_of_all_processes_together(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(bytes(50_000_000))
    run = measure(sys.executable, "-c", PARENT, model, models=(model,))
    assert 90e6 < run.n_anonymous_bytes < 160e6
    assert 30e6 < run.n_beside_bytes < run.n_anonymous_bytes - 49e6, "without the model that the child was given"
    assert run.wall_s > 0.4


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(EngineError) as caught:
        measure("sh", "-c", "echo first; echo the reason; exit 3")
    assert caught.value.problem == "sh failed (the reason)"


def test_runs_one_after_another_add_up() -> None:
    assert Run(1, 2, 3, 40, 5) + Run(1, 2, 3, 4, 50) == Run(2, 4, 6, 40, 50)


def test_variables_and_folders_reach_it(tmp_path: Path) -> None:
    measure("sh", "-c", 'test "$WORD" = hello && touch here', folder=tmp_path, environment={"WORD": "hello"})
    assert (tmp_path / "here").exists()
