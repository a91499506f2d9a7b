"""What tests of conversions share: a tiny checkpoint, a folder for results, and the end of every thread."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.convert import checkpoints
from tests.convert.checkpoints import Shape


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "Tiny-R1", Shape(embd=64, ff=96, head=2, head_kv=1, layer=1))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("convert")]
