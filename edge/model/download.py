"""Files of a repository into the shared cache: all checks before the first byte, resume, hash, and only then a name.

The bytes gather in blobs/HASH.incomplete, which outlives Ctrl-C, power cuts and kill -9. When all are there, the file
is read again from the disk; it gets its name only if its hash is the one the hub told. Knows nothing of GGUF.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from filelock import Timeout
from huggingface_hub.utils._fixes import WeakFileLock

from edge.errors import FileError, HubError, NoSpaceError
from edge.model.cache import Cache
from edge.model.hub import HubFile, Repository

N_READ_BYTES = 1 << 22
N_SPARE_BYTES = 64 << 20  # left free on the disk: a full one harms more than a missing model
LOCK_WAIT_S = 2.0


@dataclass(frozen=True)
class Progress:
    """How far a download is, over all its files."""

    phase: Literal["fetch", "check"]
    file: str
    n_bytes_done: int
    n_bytes_total: int


class Source(Protocol):
    """Where bytes come from, and which cache they go to: a hub, or a folder that was brought here."""

    @property
    def cache(self) -> Path: ...

    def stream(self, file: HubFile, start: int = 0) -> Iterator[bytes]:
        """The bytes from start to the end of the file."""


def _silent(progress: Progress) -> None:
    pass


def download(
    source: Source,
    repository: Repository,
    files: Sequence[HubFile],
    progress: Callable[[Progress], None] = _silent,
) -> list[Path]:
    """Bring files into the cache and return their paths, in order. Raises EdgeError; what has arrived is kept."""
    cache = Cache(source.cache)
    check_room(cache, files)
    meter = _Meter(sum(file.n_bytes for file in files), progress)
    for file in files:
        with _disk_trouble(cache.blob(file), file.n_bytes):
            if not cache.is_here(file):
                with _lock(cache, file):
                    _fetch(source, cache, file, meter)
            meter.finish(file)
    with _disk_trouble(cache.repo_folder(repository.repo_id), 0):
        paths = [cache.link(file) for file in files]
        cache.remember(repository.repo_id, repository.ref, repository.revision)
    return paths


def check_room(cache: Cache, files: Sequence[HubFile]) -> None:
    """Raise NoSpaceError if what is missing of the files does not fit on the cache's disk."""
    n_needed = n_bytes_missing(cache, files)
    folder = next(folder for folder in (cache.folder, *cache.folder.absolute().parents) if folder.exists())
    found = os.statvfs(folder)
    n_free = found.f_bavail * found.f_frsize
    if n_needed and n_needed + N_SPARE_BYTES > n_free:
        raise NoSpaceError(cache.folder, n_needed + N_SPARE_BYTES, n_free)


def n_bytes_missing(cache: Cache, files: Sequence[HubFile]) -> int:
    """What a download of these files would add to the disk."""
    return sum(file.n_bytes - _n_bytes_there(cache, file) for file in files if not cache.is_here(file))


def _n_bytes_there(cache: Cache, file: HubFile) -> int:
    try:
        return min(cache.partial(file).stat().st_blocks * 512, file.n_bytes)
    except OSError:
        return 0


class _Meter:
    """Adds up the bytes of several files."""

    def __init__(self, n_bytes_total: int, progress: Callable[[Progress], None]) -> None:
        self.n_bytes_total = n_bytes_total
        self.progress = progress
        self._n_bytes_before = 0  # of the files that are done

    def show(self, phase: Literal["fetch", "check"], file: HubFile, n_bytes: int) -> None:
        self.progress(Progress(phase, file.name, self._n_bytes_before + n_bytes, self.n_bytes_total))

    def finish(self, file: HubFile) -> None:
        self._n_bytes_before += file.n_bytes
        self.show("fetch", file, 0)


def _fetch(source: Source, cache: Cache, file: HubFile, meter: _Meter) -> None:
    """One file, resumed where it was broken off. A resumed one that is wrong is fetched anew, once."""
    if cache.is_here(file):  # somebody else brought it while we waited
        return
    partial = cache.partial(file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        is_resumed = True
        while is_resumed:
            is_resumed = _receive(source, file, descriptor, meter)
            if _is_right(file, descriptor, meter):
                partial.replace(cache.blob(file))
                _sync_folder(partial.parent)
                return
            os.ftruncate(descriptor, 0)
        partial.unlink()
        raise HubError(str(file), "arrived with another hash than the hub tells", "fetch it again, or report it there")
    finally:
        os.close(descriptor)


def _receive(source: Source, file: HubFile, descriptor: int, meter: _Meter) -> bool:
    """Bring the missing bytes to the disk; True if some were there already."""
    n_there = os.fstat(descriptor).st_size
    if n_there > file.n_bytes:
        os.ftruncate(descriptor, 0)
        n_there = 0
    place = n_there
    meter.show("fetch", file, place)
    for chunk in source.stream(file, place):
        n_written = 0
        while n_written < len(chunk):
            n_written += os.pwrite(descriptor, chunk[n_written:], place + n_written)
        place += len(chunk)
        meter.show("fetch", file, place)
    os.fsync(descriptor)
    return n_there > 0


def _is_right(file: HubFile, descriptor: int, meter: _Meter) -> bool:
    """Whether the disk holds what the hub's hash says. Git hashes a small file with its length in front."""
    if hasattr(os, "posix_fadvise"):  # ask the disk, not the memory of it
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if file.sha256:
        digest, expected = hashlib.sha256(), file.sha256
    else:
        digest, expected = hashlib.sha1(b"blob %d\0" % file.n_bytes, usedforsecurity=False), file.git_sha1
    for place in range(0, file.n_bytes, N_READ_BYTES):
        digest.update(os.pread(descriptor, min(N_READ_BYTES, file.n_bytes - place), place))
        meter.show("check", file, place)
    return digest.hexdigest() == expected


@contextlib.contextmanager
def _lock(cache: Cache, file: HubFile) -> Iterator[None]:
    path = cache.lock(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with WeakFileLock(path, timeout=LOCK_WAIT_S):
            yield
    except Timeout:
        raise HubError(str(file), "is being fetched by another process", "wait for it") from None


@contextlib.contextmanager
def _disk_trouble(path: Path, n_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            found = os.statvfs(path.parent)
            raise NoSpaceError(path.parent, n_bytes, found.f_bavail * found.f_frsize) from error
        remedy = "check the folder's permissions, or set HF_HOME to another one"
        raise FileError(path, f"cannot be written ({error.strerror or error})", remedy) from error


def _sync_folder(folder: Path) -> None:
    """A new name is safe only when its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
