"""A checkpoint on the hub: its small files in the cache, its tensors as a stream that never lies on this disk.

A shard is read once from its first to its last byte, so its SHA-256 is checked on the way; if some tensors were
finished by an earlier run, only the others are read, and the shard as a whole can no longer be hashed: `unhashed` then
names it. Knows nothing of GGUF.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from convert.checkpoint import Checkpoint, read_tensors, shard_names
from convert.folder import Json, read_json
from convert.safetensors import SourceTensor
from edge.errors import CheckpointError, HubError
from edge.model.cache import COMPANIONS, Cache
from edge.model.download import Progress, download, n_bytes_missing
from edge.model.hub import Hub, HubFile, Repository
from edge.model.names import is_model

SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)
N_SMALL_BYTES_MAX = 48_000_000  # tokenizer.json of 262,144 tokens has 33 MB
N_GAP_BYTES = 1 << 20  # rather read over less than this than ask anew
CHECK_EVERY_S = 0.2  # while waiting for a hub


class RemoteCheckpoint(Checkpoint):
    """A checkpoint whose shards are on the hub."""

    is_remote = True

    def __init__(
        self, hub: Hub, path: Path, config: Json, tensors: dict[str, SourceTensor], repository: Repository,
        files: Sequence[HubFile],
    ) -> None:  # fmt: skip
        super().__init__(path, config, tensors, {})
        self.hub = hub
        self.repository = repository
        self.unhashed: list[str] = []
        self._files_there = {path / file.name: file for file in files}

    @classmethod
    def look_up(cls, hub: Hub, repo_id: str, revision: str | None = None) -> Checkpoint:
        """Fetch the small files and read the shards' headers. A local Checkpoint if the shards are in the cache."""
        repository = hub.repository(repo_id, revision)
        folder = _fetch_small(hub, repository)
        config = read_json(folder, "config.json")
        top = {file.name: file for file in repository.files if "/" not in file.name}
        names, index = shard_names(folder, sorted(top))
        files = [top[name] for name in names]
        cache = Cache(hub.cache)
        if all(cache.is_here(file) for file in files):
            for file in files:
                cache.link(file)
            return Checkpoint.open(folder)
        sources = {folder / file.name: (hub.read_at(file), file.n_bytes) for file in files}
        return cls(hub, folder, config, read_tensors(folder, sources, index), repository, files)

    @property
    def shards(self) -> tuple[Path, ...]:
        return tuple(self._files_there)

    def record(self, path: Path) -> tuple[str | None, str | None, int]:
        file = self._files_there[path]
        return file.revision, file.sha256, file.n_bytes

    def check_unchanged(self) -> None:
        """A revision never changes."""

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self._files_there.values())

    @property
    def n_bytes_to_fetch(self) -> int:
        return n_bytes_missing(Cache(self.hub.cache), list(self._files_there.values()))

    def fetch(self, report: Callable[[str, int, int], None]) -> Path:
        def show(at: Progress) -> None:
            report(at.phase, at.n_bytes_done, at.n_bytes_total)

        paths = download(self.hub, self.repository, list(self._files_there.values()), show)
        return paths[0].parent

    def stream(
        self, places: Sequence[tuple[str, int, int]], check: Callable[[], None], *, is_whole: bool
    ) -> Iterator[bytearray]:
        hub = replace(self.hub, pause=lambda seconds: _wait(seconds, self.hub.pause, check))
        for name, wanted in groupby(places, key=lambda place: place[0]):
            file = self._files_there[self.path / name]
            spans = [(start, stop) for _, start, stop in wanted]
            if is_whole and file.sha256:
                yield from self._hashed(hub, file, spans, check)
            else:
                self.unhashed.append(name)
                for run in _runs(spans):
                    reader = _Reader(hub, file, run[0][0], run[-1][1], check)
                    for start, stop in run:
                        reader.skip_to(start)
                        yield reader.take(stop - start)

    def _hashed(
        self, hub: Hub, file: HubFile, spans: Sequence[tuple[int, int]], check: Callable[[], None]
    ) -> Iterator[bytearray]:
        """The spans out of the whole shard; raises CheckpointError at its end if it is not the hub's."""
        reader = _Reader(hub, file, 0, file.n_bytes, check)
        for start, stop in spans:
            reader.skip_to(start)
            yield reader.take(stop - start)
        reader.skip_to(file.n_bytes)
        if reader.digest.hexdigest() != file.sha256:
            problem = "arrived with another hash than the hub tells"
            raise CheckpointError(self.path / file.name, problem, "convert it again, or report it there")


class _Reader:
    """A file from one byte to another, forwards."""

    def __init__(self, hub: Hub, file: HubFile, start: int, stop: int, check: Callable[[], None]) -> None:
        self.digest = hashlib.sha256()
        self._chunks = hub.stream(file, start, stop)
        self._place = start
        self._rest = memoryview(b"")  # of the last chunk
        self._check = check

    def take(self, n_bytes: int) -> bytearray:
        out = bytearray(n_bytes)
        place = 0
        while place < n_bytes:
            part = self._some(n_bytes - place)
            out[place : place + len(part)] = part
            place += len(part)
        return out

    def skip_to(self, place: int) -> None:
        while self._place < place:
            self._some(place - self._place)

    def _some(self, n_bytes_max: int) -> memoryview:
        if not self._rest:
            self._check()
            self._rest = memoryview(next(self._chunks))
        part, self._rest = self._rest[:n_bytes_max], self._rest[n_bytes_max:]
        self.digest.update(part)
        self._place += len(part)
        return part


def _runs(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Spans that are worth one request, together."""
    run: list[tuple[int, int]] = []
    for span in spans:
        if run and span[0] - run[-1][1] > N_GAP_BYTES:
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _fetch_small(hub: Hub, repository: Repository) -> Path:
    """Bring everything but the weights into the cache; returns the folder of the revision."""
    files = []
    for file in repository.files:
        is_text = COMPANIONS.fullmatch(file.name) and re.fullmatch(r"[^/]+", file.name) and file.n_bytes < 1 << 20
        if file.name in SMALL or is_text:
            if file.n_bytes > N_SMALL_BYTES_MAX:
                raise HubError(str(file), f"has {file.n_bytes:,} bytes, far too many", "convert another checkpoint")
            files.append(file)
    if not any(file.name == "config.json" for file in files):
        is_made = any(is_model(file.name) for file in repository.files)
        remedy = f"pull it: edge pull {repository.repo_id}" if is_made else "name one with config.json and safetensors"
        raise HubError(repository.repo_id, "holds no checkpoint", remedy)
    return download(hub, repository, files)[0].parent


def _wait(seconds: float, pause: Callable[[float], None], check: Callable[[], None]) -> None:
    """Wait in steps, and notice Ctrl-C between them."""
    while seconds > 0:
        check()
        pause(min(seconds, CHECK_EVERY_S))
        seconds -= CHECK_EVERY_S
