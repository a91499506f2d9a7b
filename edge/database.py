"""One SQLite file that outlives full disks, damage, and other programs that write to it. Knows no conversations.

Work is given as functions of a connection, each one transaction. When the file cannot be written, the work goes on in
a copy in memory, `problem` says why, and everything done there is done again in the file as soon as that takes writes.
A damaged file is never deleted: it is renamed, what can be read of it moves to a new file, and `problem` says so.

    database = Database(path, steps=[("CREATE TABLE note (text TEXT)",)], tables=["note"])
    database.write(lambda db: db.execute("INSERT INTO note VALUES (?)", ["hello"]))
"""

import contextlib
import fcntl
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from edge.errors import EdgeError

logger = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

BUSY_TIMEOUT_S = 5.0  # for another program's transaction
RETRY_S = 30.0  # between attempts to come back to the file
N_BYTES_COPIED_MAX = 256 << 20  # a larger file is not copied into memory
N_BYTES_ALWAYS_CHECKED = 32 << 20  # a larger file is read through once a day, not at every start
CHECK_INTERVAL_S = 86400.0

# Python 3.10 does not tell SQLite's result codes, so its fixed messages have to do.
DAMAGED = ("malformed", "not a database")
UNWRITABLE = ("full", "readonly", "I/O error", "unable to open", "locked", "no such module", "locking protocol")


class NewerFileError(EdgeError):
    """The file was written by a later version of this program."""

    def __str__(self) -> str:
        return "it was written by a newer version of edge; upgrade edge to use it"


class Database:
    """One connection, usable from any thread. Several processes may have the same file open."""

    def __init__(
        self,
        path: Path | None,
        steps: Sequence[Sequence[str]],
        tables: Sequence[str],
        prepare: Work[None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open or create path; never fails for the file's sake, see `problem`. Without path: in memory only.

        steps: the statements that take a file from version n to n + 1. tables: those whose rows are moved out of a
        damaged file. prepare: runs at each opening.
        """
        self.path = path or Path(os.devnull)
        self.problem: str | None = None  # one sentence for the user; also after damage that was mended
        self.saving = True
        self._steps = steps
        self._tables = tables
        self._prepare = prepare
        self._clock = clock
        self._lock = threading.RLock()
        self._inode = 0
        self._unsaved: list[Work[object]] = []  # done in memory only
        self._tried_s = 0.0
        self._has_file = path is not None
        if path is None:
            self.saving = False
            self._db = _connection(":memory:")
            self._migrate(self._db)
            return
        try:
            self._db = self._open()
        except (sqlite3.Error, OSError, NewerFileError) as error:
            self._db = self._leave_file(error)

    def read(self, work: Work[T]) -> T:
        """work's result; it must not write."""
        return self._run(lambda: work(self._db))

    def write(self, work: Work[T], *, lasting: bool = True) -> T:
        """work's result, in one transaction; it may run again, so what it draws or reads of the clock is given to it.

        lasting: survives a power cut, and is done again in the file if that cannot be written now.
        """
        with self._lock:
            result = self._run(lambda: self._transaction(work, lasting=lasting))
            if lasting and self._has_file and not self.saving:
                self._unsaved.append(work)
        return result

    def close(self) -> None:
        """The last attempt to save what is in memory only, then the end."""
        with self._lock:
            self._tried_s = -math.inf
            self._come_back()
            self._db.close()

    # ---- running work

    def _run(self, run: Callable[[], T]) -> T:
        with self._lock:
            self._come_back()
            self._follow_file()
            try:
                return run()
            except sqlite3.DatabaseError as error:
                if _says(error, DAMAGED) and self.saving:
                    self._db.close()
                    self._reopen()
                elif _says(error, UNWRITABLE) and self.saving:
                    self._db.close()
                    self._db = self._leave_file(error)
                else:
                    raise
                return run()

    def _transaction(self, work: Work[T], *, lasting: bool) -> T:
        db = self._db
        db.execute(f"PRAGMA synchronous={'FULL' if lasting else 'NORMAL'}")
        db.execute("BEGIN IMMEDIATE")
        try:
            result = work(db)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk rolls back by itself
                db.execute("ROLLBACK")
            raise
        return result

    # ---- the file

    def _open(self) -> sqlite3.Connection:
        """The file, whole and up to date. Raises sqlite3.Error, OSError, NewerFileError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._opening() as lock:
            try:
                db = self._connect(lock)
            except sqlite3.DatabaseError as error:
                if not _says(error, DAMAGED):
                    raise
                db = self._begin_anew(lock)
            self._inode = self.path.stat().st_ino
        return db

    @contextlib.contextmanager
    def _opening(self) -> Iterator[Path]:
        """One process at a time opens, checks and migrates."""
        path = self.path.with_name(f"{self.path.name}.lock")
        with path.open("a") as lock:
            path.chmod(0o600)
            give_up_s = self._clock() + BUSY_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._clock() > give_up_s:
                        raise
                    time.sleep(0.02)
            yield path

    def _connect(self, lock: Path) -> sqlite3.Connection:
        self.path.touch(mode=0o600)
        db = _connection(str(self.path))
        try:
            db.execute("PRAGMA journal_mode=WAL")
            self._check(db, lock)
            self._migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection, lock: Path) -> None:
        """Raise DatabaseError for a damaged file. The lock's time says when a large one was last read through."""
        n_bytes = self.path.stat().st_size
        if n_bytes > N_BYTES_ALWAYS_CHECKED and time.time() - lock.stat().st_mtime < CHECK_INTERVAL_S:
            return
        (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(f"malformed: {said}")
        os.utime(lock)

    def _migrate(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(self._steps):
            raise NewerFileError
        if version < len(self._steps):
            db.execute("BEGIN IMMEDIATE")
            for statement in (statement for step in self._steps[version:] for statement in step):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={len(self._steps)}")
            db.execute("COMMIT")
        self._prepare(db)

    def _begin_anew(self, lock: Path) -> sqlite3.Connection:
        """Set the damaged file aside, and move what can be read of it to a new one."""
        aside = self.path.with_name(f"{self.path.stem}.damaged-{time.strftime('%Y%m%d-%H%M%S')}{self.path.suffix}")
        while aside.exists():
            aside = aside.with_name(f"{aside.stem}x{aside.suffix}")
        for tail in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + tail).rename(aside.with_name(aside.name + tail))
        db = self._connect(lock)
        n_rows = _salvage(aside, db, self._tables)
        self.problem = (
            f"{self.path} was damaged; it was set aside as {aside.name}, and the {n_rows} rows that could still be "
            f"read are in a new file"
        )
        logger.error(self.problem)
        return db

    def _follow_file(self) -> None:
        """Another process may have set the file aside, or the user deleted it: then ours is no longer the one."""
        if not self.saving:
            return
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                return
        self._db.close()
        self._reopen()

    def _reopen(self) -> None:
        try:
            self._db = self._open()
        except (sqlite3.Error, OSError, NewerFileError) as error:
            self._db = self._leave_file(error)

    # ---- without the file

    def _leave_file(self, error: Exception) -> sqlite3.Connection:
        """Go on in memory, with what the file holds as far as it can be read."""
        reason = f"{type(error).__name__}: {error}" if not str(error) else str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror.lower()
        self.problem = f"nothing is being saved: {self.path}: {reason}"
        self.saving = False
        self._tried_s = self._clock()
        logger.error(self.problem)
        db = _connection(":memory:")
        with contextlib.suppress(sqlite3.Error, OSError):
            if self.path.stat().st_size <= N_BYTES_COPIED_MAX and not isinstance(error, NewerFileError):
                db = _copy(self.path)
        self._migrate(db)
        return db

    def _come_back(self) -> None:
        """If the file takes writes again: do in it what was done in memory."""
        if self.saving or not self._has_file or self._clock() - self._tried_s < RETRY_S:
            return
        self._tried_s = self._clock()
        try:
            db = self._open()
        except (sqlite3.Error, OSError, NewerFileError):
            return
        memory, self._db = self._db, db
        try:
            self._transaction(self._redo, lasting=True)
        except sqlite3.Error:
            db.close()
            self._db = memory
            return
        memory.close()
        self._unsaved.clear()
        self.saving, self.problem = True, None
        logger.info("saving again")

    def _redo(self, db: sqlite3.Connection) -> None:
        for work in self._unsaved:
            with contextlib.suppress(EdgeError):  # what it changed is gone by now
                work(db)


def _connection(name: str, **options: bool) -> sqlite3.Connection:
    db = sqlite3.connect(name, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, **options)
    db.row_factory = sqlite3.Row
    return db


def _says(error: Exception, words: Sequence[str]) -> bool:
    return any(word in str(error) for word in words)


def _copy(path: Path) -> sqlite3.Connection:
    """A copy in memory of a database that may lie where nothing can be written. Raises sqlite3.Error."""
    problem = sqlite3.Error("no way to open it")
    for how in ("mode=ro", "immutable=1"):  # without a shared memory file beside it only the second one works
        target = _connection(":memory:")
        try:
            with contextlib.closing(_connection(f"file:{quote(str(path))}?{how}", uri=True)) as source:
                source.backup(target)
            (said,) = target.execute("PRAGMA quick_check(1)").fetchone()
            if said == "ok":
                return target
        except sqlite3.Error as error:
            problem = error
        target.close()
    raise problem


def _salvage(damaged: Path, target: sqlite3.Connection, tables: Sequence[str]) -> int:
    """Insert into the tables of target what can be read of the same tables in damaged. Returns the number of rows."""
    n_rows = 0
    target.execute("BEGIN")
    with contextlib.closing(_connection(str(damaged))) as source:
        for table in tables:
            for order in ("", " ORDER BY rowid DESC"):  # a bad page in the middle has two ends
                with contextlib.suppress(sqlite3.DatabaseError):
                    for row in source.execute(f"SELECT * FROM {table}{order}"):  # noqa: S608 - a name of our own
                        marks = ",".join("?" * len(row))
                        insert = f"INSERT OR IGNORE INTO {table} ({','.join(row.keys())}) VALUES ({marks})"  # noqa: S608
                        n_rows += target.execute(insert, tuple(row)).rowcount
    target.execute("COMMIT")
    return n_rows
