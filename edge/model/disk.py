"""A model file on this machine: how its bytes are read, and whom an error names. Knows nothing of what they mean."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from edge.errors import ModelFileError
from edge.model.cursor import HeaderError, ReadAt


@contextlib.contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Turn what is wrong with the bytes or the disk into ModelFileError."""
    try:
        yield
    except HeaderError as error:
        raise ModelFileError(path, error.problem, error.remedy) from None
    except FileNotFoundError:
        raise ModelFileError(path, "does not exist", "check the path") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise ModelFileError(path, problem, "check the path, its permissions and the disk") from None
    except ValueError as error:  # a path with a NUL in it
        raise ModelFileError(path, f"cannot be opened ({error})", "check the path") from None


def open_on_disk(path: Path) -> tuple[ReadAt, int]:
    """A reader of a regular file, and its length. Raises HeaderError, OSError."""
    file = _File(path)
    return file.read_at, file.n_bytes


class _File:
    """A regular file, opened for each read and closed again; noticed when it is another one the next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise HeaderError("is a folder, not a GGUF file", "name the .gguf file in it, or convert it first")
        if not stat.S_ISREG(status.st_mode):
            raise HeaderError("is a pipe, a socket or a device, not a file", "name a .gguf file")
        self.n_bytes = status.st_size
        self._identity = _identity(status)

    def read_at(self, offset: int, n: int) -> bytes:
        # O_NONBLOCK: should a FIFO have taken the file's place since, opening it must not wait for a writer
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if _identity(os.fstat(descriptor)) != self._identity:
                raise HeaderError("changed while it was in use", "load it again")
            return os.pread(descriptor, n, offset)
        finally:
            os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
