"""A file of records that only grows, so that long work goes on where it was stopped. Knows nothing of what is in them.

A record that was cut off or damaged ends the file: it and what follows are dropped, and made again.
"""

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from edge.errors import EngineError, NoSpaceError, OutputError

logger = logging.getLogger(__name__)

_FRAME = struct.Struct("<QI")  # bytes of a record, CRC-32 of them
MAGIC = b"edge records 1\n"


class Records:
    """An opened file, locked against other writers. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises OutputError; EngineError if another process is writing it."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise self._failed(error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise EngineError("another process measures the same model on the same text", "wait for it") from error
        except OSError:
            logger.info("%s: this file system knows no locks", path)
        self._places = self._scan()  # offset and length of each record

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> bytes:
        offset, n_bytes = self._places[i]
        return os.pread(self._file.fileno(), n_bytes, offset)

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def append(self, *parts: bytes) -> None:
        """Add a record, given in parts; it is there once this returns, whatever happens then to the process."""
        n_bytes, checksum = sum(map(len, parts)), 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        try:
            offset = self._file.seek(0, os.SEEK_END)
            for part in (_FRAME.pack(n_bytes, checksum), *parts):
                self._file.write(part)
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self._places.append((offset + _FRAME.size, n_bytes))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Records":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self) -> list[tuple[int, int]]:
        file, places = self._file.fileno(), []
        n_file_bytes = os.fstat(file).st_size
        place = len(MAGIC)
        if os.pread(file, place, 0) != MAGIC:
            os.ftruncate(file, 0)
            os.write(file, MAGIC)
            return []
        while len(frame := os.pread(file, _FRAME.size, place)) == _FRAME.size:
            n_bytes, checksum = _FRAME.unpack(frame)
            place += _FRAME.size
            if place + n_bytes > n_file_bytes or zlib.crc32(os.pread(file, n_bytes, place)) != checksum:
                place -= _FRAME.size
                break
            places.append((place, n_bytes))
            place += n_bytes
        os.ftruncate(file, place)
        return places

    def _failed(self, error: OSError) -> OutputError | NoSpaceError:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            found = os.statvfs(self.path.parent)
            return NoSpaceError(self.path, 1, found.f_bavail * found.f_frsize)
        problem = f"cannot be written ({error.strerror})"
        return OutputError(self.path, problem, "set EDGE_CACHE to a folder that can be written")
