"""One SQLite file: what is written is there, whatever happens to the disk, the file and the other programs."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edge import database
from edge.database import RETRY_S, Database

STEPS = (("CREATE TABLE note (number INTEGER PRIMARY KEY, text TEXT)",),)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def add(target: Database, text: str) -> None:
    target.write(lambda db: db.execute("INSERT INTO note(text) VALUES (?)", [text]))


def notes(target: Database) -> list[str]:
    return target.read(lambda db: [text for (text,) in db.execute("SELECT text FROM note ORDER BY number")])


def opened(path: Path, clock: Clock | None = None) -> Database:
    return Database(path, STEPS, ["note"], clock=clock or Clock())


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    first = opened(tmp_path / "a" / "b.db")
    add(first, "方程")
    first.close()
    assert notes(opened(tmp_path / "a" / "b.db")) == ["方程"]
    assert (tmp_path / "a" / "b.db").stat().st_mode & 0o077 == 0, "nobody else reads it"


def test_an_old_file_is_brought_up_to_date_once(tmp_path: Path) -> None:
    add(opened(tmp_path / "b.db"), "old")
    steps = (*STEPS, ("ALTER TABLE note ADD COLUMN colour TEXT DEFAULT 'blue'", "UPDATE note SET text = text || '!'"))
    for _ in range(2):
        newer = Database(tmp_path / "b.db", steps, ["note"])
        assert newer.read(lambda db: [tuple(row) for row in db.execute("SELECT text, colour FROM note")]) == [
            ("old!", "blue")
        ]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    add(opened(tmp_path / "b.db"), "old")
    broken = (*STEPS, ("UPDATE note SET text = 'lost'", "ALTER TABLE nothing ADD COLUMN x"))
    with pytest.raises(sqlite3.OperationalError):
        Database(tmp_path / "b.db", broken, ["note"])
    assert notes(opened(tmp_path / "b.db")) == ["old"]


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    newer = Database(tmp_path / "b.db", (*STEPS, ("CREATE TABLE more (x)",)), ["note"])
    add(newer, "from the future")
    newer.close()
    old = opened(tmp_path / "b.db")
    add(old, "today")
    assert not old.saving
    assert old.problem is not None
    assert "newer version of edge; upgrade" in old.problem
    old.close()
    assert notes(Database(tmp_path / "b.db", (*STEPS, ("CREATE TABLE more (x)",)), ["note"])) == ["from the future"]


def test_a_place_that_cannot_be_written_leaves_everything_working_in_memory() -> None:
    target = opened(Path("/proc/nowhere/b.db"))
    add(target, "hello")
    assert notes(target) == ["hello"]
    assert not target.saving
    assert target.problem is not None
    assert target.problem.startswith("nothing is being saved: /proc/nowhere/b.db: ")
    target.close()


def test_a_full_disk_loses_nothing_and_saving_comes_back(tmp_path: Path) -> None:
    clock = Clock()
    target = opened(tmp_path / "b.db", clock)
    add(target, "before")
    (n_pages,) = target.read(lambda db: db.execute("PRAGMA page_count").fetchone())
    target.read(lambda db: db.execute(f"PRAGMA max_page_count={n_pages}").fetchone())  # SQLite's own SQLITE_FULL
    add(target, "x" * 100_000)
    add(target, "meanwhile")
    assert notes(target) == ["before", "x" * 100_000, "meanwhile"]
    assert not target.saving
    assert target.problem is not None
    assert "full" in target.problem
    assert notes(opened(tmp_path / "b.db")) == ["before"], "the file itself is whole"
    clock.now_s += RETRY_S
    add(target, "after")
    assert target.saving
    assert target.problem is None
    assert notes(opened(tmp_path / "b.db")) == ["before", "x" * 100_000, "meanwhile", "after"]


def test_a_write_that_the_kernel_refuses_at_any_point_leaves_a_whole_file(tmp_path: Path) -> None:
    """A real short disk: the limit on file sizes, tried at many points."""
    script = (
        "import sys, signal, resource; from pathlib import Path; from tests.test_database import opened, add, notes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "target = opened(Path(sys.argv[1])); n = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))\n"
        "for i in range(12): add(target, str(i) * 3000)\n"
        "assert len(notes(target)) == 12\n"
        "print(target.saving, target.problem)\n"
    )
    outcomes = set()
    for n_bytes in (5_000, 20_000, 33_000, 50_000, 80_000, 300_000):
        path = tmp_path / f"{n_bytes}.db"
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), str(n_bytes)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        outcomes.add(done.stdout.split()[0])
        kept = notes(opened(path))
        assert kept == [str(i) * 3000 for i in range(len(kept))], "whole notes, in order"
        assert done.stdout.startswith("False nothing is being saved") or len(kept) == 12
    assert outcomes == {"True", "False"}


def test_another_program_that_holds_the_file_does_not_stop_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    clock = Clock()
    target = opened(tmp_path / "b.db", clock)
    add(target, "before")
    other = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    add(target, "meanwhile")
    assert not target.saving
    assert notes(target) == ["before", "meanwhile"]
    other.execute("INSERT INTO note(text) VALUES ('theirs')")
    other.execute("COMMIT")
    clock.now_s += RETRY_S
    assert notes(target) == ["before", "theirs", "meanwhile"]
    assert target.saving


@pytest.mark.parametrize("junk", [b"", b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 5000, b"<html>" * 1000])
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "b.db"
    path.write_bytes(junk)
    target = opened(path)
    add(target, "new")
    assert target.saving
    if junk:  # an empty file is an empty database
        (aside,) = tmp_path.glob("b.damaged-*.db")
        assert aside.read_bytes() == junk, "nothing is lost"
        assert target.problem is not None
        assert aside.name in target.problem
    target.close()
    again = opened(path)
    assert notes(again) == ["new"]
    assert again.problem is None


def test_what_can_be_read_of_a_damaged_file_is_moved_to_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    target = opened(path)
    texts = [f"note {i} " + "x" * 500 for i in range(400)]
    for text in texts:
        add(target, text)
    target.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = os.urandom(4096)
    path.write_bytes(data)
    mended = opened(path)
    kept = notes(mended)
    assert len(kept) > 300
    assert set(kept) <= set(texts)
    assert mended.problem is not None
    assert str(len(kept)) in mended.problem


def test_damage_that_comes_while_it_is_open_is_set_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    target = opened(path)
    for i in range(50):
        add(target, f"{i} " + "x" * 2000)
    target.read(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    with path.open("r+b") as file:
        file.write(data)
    target.read(lambda db: db.execute("PRAGMA shrink_memory").fetchall())
    add(target, "goes on")
    assert "goes on" in notes(target)
    assert target.saving


def test_a_file_that_another_process_set_aside_is_followed(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "b.db"), opened(tmp_path / "b.db")
    add(first, "one")
    for tail in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / f"b.db{tail}").rename(tmp_path / f"aside.db{tail}")
    add(first, "two")
    add(second, "three")
    assert notes(first) == notes(second) == notes(opened(tmp_path / "b.db")) == ["two", "three"]


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.test_database import opened, add\n"
        "target = opened(Path(sys.argv[1]))\n"
        "for i in range(40): add(target, sys.argv[2] + str(i))\n"
        "assert target.saving, target.problem\n"
    )
    path = tmp_path / "b.db"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "abc"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert sorted(notes(opened(path))) == sorted(f"{name}{i}" for name in "abc" for i in range(40))


def test_a_killed_writer_leaves_whole_transactions(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.test_database import opened, add\n"
        "target = opened(Path(sys.argv[1]))\n"
        "for i in range(100000): add(target, str(i)); print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "b.db")], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line == b"50\n":
                writer.kill()
                break
    kept = notes(opened(tmp_path / "b.db"))
    assert kept[:51] == [str(i) for i in range(51)], "what was told as done is there"
