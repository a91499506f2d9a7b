"""A file that is there as a whole or not at all: a temporary name beside it, fsync, read again, rename.

Knows nothing of what it holds. The lock on the temporary file tells the leftovers of a killed process, which are
removed, from the work of a living one, which is not.
"""

import errno
import fcntl
import hashlib
import logging
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from edge.errors import NoSpaceError, OutputError

logger = logging.getLogger(__name__)

N_READ_BYTES = 1 << 22


class OutputFile:
    """Bytes are put at their places in any order, by any thread, and appear under `path` only by `publish`.

    is_resumable: `discard` leaves the temporary file, and the next one to open it may `recall` what is in it.
    """

    def __init__(self, path: Path, n_bytes: int, *, is_resumable: bool = False) -> None:
        """Open the temporary file. Raises OutputError if that cannot be, NoSpaceError if it will not fit."""
        self.path = path
        self.n_bytes = n_bytes
        self.is_resumable = is_resumable
        self._partial = path.with_name(f".{path.name}.partial")
        self._checksums: dict[int, tuple[int, int]] = {}  # offset: length, CRC-32 of what was meant to be there
        self._digest, self._n_verified = hashlib.sha256(), 0
        self._lock = Lock()
        self._name: Path | None = self._partial  # what `discard` takes away
        self._descriptor = -1
        self._descriptor = self._open()
        try:
            if not is_resumable:
                os.ftruncate(self._descriptor, 0)  # the leftovers of a process that was killed
        except OSError as error:
            self.discard()
            raise self._failed(error) from error

    def write(self, data: memoryview, offset: int) -> None:
        """Put bytes at their place. Raises NoSpaceError, or OutputError with the system's reason."""
        assert offset + len(data) <= self.n_bytes
        checksum = zlib.crc32(data)
        n_done = 0
        try:
            while n_done < len(data):
                n_done += os.pwrite(self._descriptor, data[n_done:], offset + n_done)
        except OSError as error:
            raise self._failed(error) from error
        with self._lock:
            self._checksums[offset] = (len(data), checksum)

    def written(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """What was written between two places: offset, length and checksum of each piece."""
        with self._lock:
            return sorted((at, n, crc) for at, (n, crc) in self._checksums.items() if start <= at < stop)

    def recall(self, pieces: Sequence[tuple[int, int, int]], start: int, stop: int) -> bool:
        """Whether an earlier run's pieces fill the place from start to stop and are still on the disk as they were."""
        place = start
        for offset, n_bytes, checksum in pieces:
            if offset != place or n_bytes < 1 or offset + n_bytes > stop or self._checksum(offset, n_bytes) != checksum:
                return False
            place += n_bytes
        if place != stop:
            return False
        self._checksums |= {offset: (n_bytes, checksum) for offset, n_bytes, checksum in pieces}
        return True

    def clear(self) -> None:
        """Forget what an earlier run left: even its padding may be another."""
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Bring to the disk what has been written so far."""
        try:
            _sync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    def finish(self) -> None:
        """Bring every byte to the disk."""
        try:
            os.ftruncate(self._descriptor, self.n_bytes)  # the padding after the last tensor
        except OSError as error:
            raise self._failed(error) from error
        self.sync()

    def verify(self, stop: int | None = None, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Read from the disk what lies between the end of the last call and `stop`, which must be synced.

        Raises OutputError if that is not what was written. on_progress is given the bytes of each piece.
        """
        stop = self.n_bytes if stop is None else stop
        if hasattr(os, "posix_fadvise"):  # ask the disk, not the memory of it
            os.posix_fadvise(self._descriptor, self._n_verified, stop - self._n_verified, os.POSIX_FADV_DONTNEED)
        for offset, n_bytes, checksum in self.written(self._n_verified, stop):
            assert self._n_verified <= offset
            assert offset + n_bytes <= stop
            self._digest.update(self._read(self._n_verified, offset - self._n_verified))  # padding
            if self._checksum(offset, n_bytes, self._digest.update) != checksum:
                problem = f"reads back differently at byte {offset:,}"
                raise OutputError(self.path, problem, "check the disk, it loses data; then convert again")
            self._n_verified = offset + n_bytes
            on_progress(n_bytes)
        self._digest.update(self._read(self._n_verified, stop - self._n_verified))
        self._n_verified = stop

    @property
    def n_bytes_verified(self) -> int:
        return self._n_verified

    @property
    def sha256(self) -> str:
        """Of what was verified."""
        return self._digest.hexdigest()

    def publish(self, *, overwrite: bool) -> None:
        """Give the file its name. Raises OutputError, without `overwrite`, if something has come there meanwhile.

        Until `keep` is called, `discard` takes a name back that was free before.
        """
        try:
            if overwrite:
                self._partial.replace(self.path)
                self._name = None
            else:
                self._claim()
                self._name = self.path
            _sync_folder(self.path.parent)
        except FileExistsError as error:
            raise exists(self.path) from error
        except OSError as error:
            raise self._failed(error) from error

    def keep(self) -> None:
        """The file stays."""
        self._name = None
        self._close()

    def discard(self) -> None:
        """Leave nothing, or what can be resumed. After `keep` this does nothing."""
        if self._descriptor >= 0:
            if self._name is not None and not (self.is_resumable and self._name == self._partial):
                with suppress(OSError):
                    self._name.unlink()
            self._close()

    def _open(self) -> int:
        while True:
            try:
                descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                raise self._failed(error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                problem = "is being written by another process"
                raise OutputError(self.path, problem, "wait for it, or choose another folder with --out") from error
            except OSError:
                logger.info("%s: this file system knows no locks", self._partial)
            if self._is_ours(descriptor):
                return descriptor
            os.close(descriptor)

    def _is_ours(self, descriptor: int) -> bool:
        """Whether the name still means the file just locked; its last owner may have published it in between."""
        try:
            return os.path.samestat(self._partial.stat(), os.fstat(descriptor))
        except OSError:
            return False

    def _claim(self) -> None:
        """Take the name if it is free, in one step where the file system can."""
        try:
            self.path.hardlink_to(self._partial)
        except FileExistsError:
            raise
        except OSError:  # FAT knows no hard links
            if os.path.lexists(self.path):
                raise FileExistsError(self.path) from None
            self._partial.rename(self.path)
        else:
            self._partial.unlink()

    def _checksum(self, offset: int, n_bytes: int, also: Callable[[bytes], None] = lambda _: None) -> int:
        """CRC-32 of what the disk holds there; -1 if it ends before. `also` is given each part."""
        found = 0
        for start in range(offset, offset + n_bytes, N_READ_BYTES):
            data = self._pread(start, min(N_READ_BYTES, offset + n_bytes - start))
            if not data:
                return -1
            also(data)
            found = zlib.crc32(data, found)
        return found

    def _read(self, offset: int, n_bytes: int) -> bytes:
        data = self._pread(offset, n_bytes)
        if len(data) < n_bytes:
            raise OutputError(self.path, f"ends at byte {offset + len(data):,}", "check the disk, then convert again")
        return data

    def _pread(self, offset: int, n_bytes: int) -> bytes:
        try:
            return os.pread(self._descriptor, n_bytes, offset)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError | NoSpaceError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            n_ours = os.fstat(self._descriptor).st_blocks * 512 if self._descriptor >= 0 else 0
            return NoSpaceError(self.path, self.n_bytes, n_bytes_free(self.path.parent) + n_ours)
        return OutputError(self.path, f"cannot be written ({error.strerror})", "choose another folder with --out")

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


def n_bytes_resumable(path: Path) -> int:
    """Bytes of the disk that an earlier run's temporary file has already."""
    try:
        return path.with_name(f".{path.name}.partial").stat().st_blocks * 512
    except OSError:
        return 0


def exists(path: Path) -> OutputError:
    return OutputError(path, "exists", "add --force to replace it, or choose another folder with --out")


def n_bytes_free(folder: Path) -> int:
    """Bytes that this user may still write there; of a folder to come, where it will lie."""
    found = os.statvfs(existing(folder))
    return found.f_bavail * found.f_frsize


def existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _sync(descriptor: int) -> None:
    """Bring a file to the disk. On macOS fsync stops at the disk's own memory."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    """A new name is safe only when its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)
