"""What is read again early is what is read again late: same hash, same complaint."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert import readback
from convert.output import OutputFile
from convert.readback import ReadBack
from edge.errors import OutputError

DATA = bytes(range(256)) * 40


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutputFile]:
    monkeypatch.setattr(readback, "N_STEP_BYTES", 1000)
    file = OutputFile(tmp_path / "model.gguf", len(DATA))
    yield file
    file.discard()


def write(file: OutputFile, start: int, stop: int) -> None:
    file.write(memoryview(DATA)[start:stop], start)


def test_a_file_followed_has_the_hash_of_the_whole(file: OutputFile) -> None:
    follower = ReadBack(file)
    for start in range(0, len(DATA), 512):
        write(file, start, start + 512 - 16 * (start % 1024 == 0))  # every other piece ends in padding
        if start % 1024 == 0:
            write(file, start + 496, start + 512)
        follower.reach(start + 512)
    follower.close()
    follower.check()
    assert file.n_bytes_verified > len(DATA) / 2
    file.finish()
    file.verify()
    assert file.sha256 == hashlib.sha256(DATA).hexdigest()


def test_bytes_that_change_behind_its_back_end_the_work_early(file: OutputFile, tmp_path: Path) -> None:
    follower = ReadBack(file)
    write(file, 0, 4096)
    with next(tmp_path.glob(".*.partial")).open("r+b") as disk:
        disk.seek(100)
        disk.write(b"x")
    follower.reach(4096)
    follower.close()
    with pytest.raises(OutputError, match="reads back differently at byte 0"):
        follower.reach(8192)
