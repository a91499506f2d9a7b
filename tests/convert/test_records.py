"""What was appended is there after any end of the process, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest

from convert.records import Records
from edge.errors import EngineError, OutputError


def contents(path: Path) -> list[bytes]:
    with Records(path) as records:
        return list(records)


def test_records_stay_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    for i in range(3):
        with Records(path) as records:
            assert len(records) == i
            records.append(bytes([i]) * 1000 * i)
    assert contents(path) == [b"", b"\1" * 1000, b"\2" * 2000]


def test_every_cut_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "records"
    with Records(path) as records:
        for text in (b"one", b"two", b"three"):
            records.append(text)
    whole = path.read_bytes()
    seen = set()
    for n in range(len(whole) + 1):
        path.write_bytes(whole[:n])
        found = contents(path)
        assert found == [b"one", b"two", b"three"][: len(found)]
        seen.add(len(found))
        with Records(path) as records:
            records.append(b"next")
        assert contents(path) == [*found, b"next"]
    assert seen == {0, 1, 2, 3}


def test_damage_ends_the_file_there(tmp_path: Path) -> None:
    path = tmp_path / "records"
    with Records(path) as records:
        for text in (b"one", b"two", b"three"):
            records.append(text)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"two", b"twi"))
    assert contents(path) == [b"one"]


def test_a_kill_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from convert.records import Records\n"
        "r = Records(Path(sys.argv[1])); r.append(b'x' * 100_000); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "records")])
    assert contents(tmp_path / "records") == [b"x" * 100_000]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    with Records(tmp_path / "records"), pytest.raises(EngineError, match="another process"):
        Records(tmp_path / "records")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="set EDGE_CACHE"):
        Records(tmp_path / "file" / "records")
