"""KV states of shared prompt beginnings on disk, so that a restart need not read a long system prompt again.

A file is one JSON line (what it is, and the hash of the rest), the token ids, and the state as libllama gave it. Files
are keyed by a fingerprint of model, library and settings: a foreign, damaged or truncated one is ignored, with one log
line. Written whole or not at all, in the background, within a daily budget: SD cards wear. Knows no libllama.
"""

import array
import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

VERSION = 1
SUFFIX = ".kv"
LEDGER = "written.json"
HEADER_BYTES_MAX = 1024
DAY_S = 86400.0


@dataclass(frozen=True)
class Entry:
    """A stored beginning: which tokens (by hash), and where."""

    path: Path
    n_tokens: int
    tokens_hash: str


class PrefixStore:
    """The stored beginnings of one model in one folder. One thread asks; writing happens behind it."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        n_bytes_max: int,
        n_bytes_per_day: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._n_bytes_max = n_bytes_max
        self._n_bytes_per_day = n_bytes_per_day
        self._now = now
        self._writer: threading.Thread | None = None
        self._entries: dict[Path, Entry] = {}
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"*{SUFFIX}"):
            if entry := self._entry(path):
                self._entries[path] = entry

    def longest(self, tokens: Sequence[int]) -> Entry | None:
        """The longest stored beginning of tokens, its last token left out: that one is always decoded."""
        wanted = {n: _tokens_hash(tokens[:n]) for n in {e.n_tokens for e in self._entries.values()} if n < len(tokens)}
        found = (e for e in self._entries.values() if wanted.get(e.n_tokens) == e.tokens_hash)
        return max(found, key=lambda entry: entry.n_tokens, default=None)

    def load(self, entry: Entry) -> bytes | None:
        """The state of an entry, checked; None if the file is gone or damaged."""
        try:
            with entry.path.open("rb") as file:
                header = json.loads(file.readline(HEADER_BYTES_MAX))
                body = file.read()
            os.utime(entry.path)  # recently used goes last
        except (OSError, ValueError) as error:
            self._forget(entry.path, str(error))
            return None
        if hashlib.sha256(body).hexdigest() != header.get("sha256"):
            self._forget(entry.path, "it is damaged")
            return None
        return body[entry.n_tokens * 4 :]

    def wants(self, tokens: Sequence[int]) -> bool:
        """Whether this beginning is worth a save now: not known, no other being written, budget left for today."""
        if self._writer is not None and self._writer.is_alive():
            return False
        known = self.longest([*tokens, 0])
        if known is not None and known.n_tokens >= 0.9 * len(tokens):
            return False
        return self._written_today() < self._n_bytes_per_day

    def save(self, tokens: Sequence[int], state: bytes) -> None:
        """Write a beginning in the background; drop the longest unused ones where room is needed."""
        self._writer = threading.Thread(target=self._save, args=(array.array("i", tokens), state))
        self._writer.start()

    def finish(self) -> None:
        """Wait for the writer."""
        if self._writer is not None:
            self._writer.join()

    def _save(self, tokens: "array.array[int]", state: bytes) -> None:
        body = tokens.tobytes() + state
        tokens_hash = _tokens_hash(tokens)
        path = self._folder / f"{tokens_hash[:24]}-{self._fingerprint[:8]}{SUFFIX}"
        entry = Entry(path, len(tokens), tokens_hash)
        header = {
            "version": VERSION,
            "fingerprint": self._fingerprint,
            "n_tokens": len(tokens),
            "tokens": entry.tokens_hash,
            "n_bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        temporary = entry.path.with_suffix(f".{os.getpid()}.tmp")
        if len(body) > min(self._n_bytes_max, self._n_bytes_per_day - self._written_today()):
            return
        try:
            self._count(len(body))
            self._make_room(len(body))
            with temporary.open("wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(entry.path)
        except OSError as error:
            logger.warning("a shared beginning of %d tokens was not kept: %s", len(tokens), error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self._entries[entry.path] = entry
        logger.info("kept a shared beginning of %d tokens (%.1f MB)", len(tokens), len(body) / 1e6)

    def _entry(self, path: Path) -> Entry | None:
        """What a file says it is; its content is checked when it is used."""
        try:
            with path.open("rb") as file:
                line = file.readline(HEADER_BYTES_MAX)
            header = json.loads(line)
            if header["version"] != VERSION or header["fingerprint"] != self._fingerprint:
                return None
            n_tokens, tokens_hash, n_bytes = header["n_tokens"], header["tokens"], header["n_bytes"]
            assert isinstance(n_tokens, int)
            assert 0 < n_tokens * 4 < n_bytes
            if path.stat().st_size != len(line) + n_bytes:
                raise ValueError("it is cut short")
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            logger.warning("ignored %s: %s", path, error)
            return None
        return Entry(path, n_tokens, str(tokens_hash))

    def _forget(self, path: Path, reason: str) -> None:
        logger.warning("ignored %s: %s", path, reason)
        self._entries.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last used, bytes, path) of every stored file, other models' too, longest unused first."""
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _make_room(self, n_bytes: int) -> None:
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total + n_bytes <= self._n_bytes_max:
                return
            self._entries.pop(path, None)
            path.unlink(missing_ok=True)
            total -= size

    def _written_today(self) -> int:
        """Bytes written since midnight (UTC), by every process that uses this folder."""
        try:
            ledger = json.loads((self._folder / LEDGER).read_text())
            return int(ledger["n_bytes"]) if ledger["day"] == self._day() else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _count(self, n_bytes: int) -> None:
        ledger = {"day": self._day(), "n_bytes": self._written_today() + n_bytes}
        (self._folder / LEDGER).write_text(json.dumps(ledger))

    def _day(self) -> int:
        return int(self._now() // DAY_S)


def _tokens_hash(tokens: Sequence[int]) -> str:
    return hashlib.sha256(array.array("i", tokens).tobytes()).hexdigest()
