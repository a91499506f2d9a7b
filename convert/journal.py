"""Which tensors of an unfinished file are already in it, so that a conversion that was stopped goes on from there.

A text file beside the unfinished one, a line per tensor, added when the tensor's bytes are written. Each line carries
their checksums: after a power cut the disk may hold less than the journal says, and what is not there is made again.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from edge.errors import OutputError

N_JOURNAL_BYTES_MAX = 64 << 20  # a piece has 40 bytes; 20,000 tensors of 80 pieces fit

Pieces = list[tuple[int, int, int]]  # offset, length, CRC-32


def fingerprint(parts: Iterable[bytes]) -> str:
    """Another one means another conversion: nothing of it can be used."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


class Journal:
    """The journal of one file to come. `done`: what an earlier run left, by tensor, if it was this conversion."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        self.path = output.with_name(f".{output.name}.journal")
        self.done: dict[str, Pieces] = {}
        self._first = json.dumps({"fingerprint": fingerprint}).encode() + b"\n"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags, 0o644)
            self._read()
        except OSError as error:
            raise self._failed(error) from error

    def add(self, tensor: str, pieces: Pieces) -> None:
        """Note that a tensor is in the file."""
        try:
            os.write(self._descriptor, json.dumps([tensor, pieces]).encode() + b"\n")
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink()

    def _read(self) -> None:
        """Take what is whole: the last line may be cut, and ends the reading."""
        text = os.pread(self._descriptor, N_JOURNAL_BYTES_MAX, 0)
        if not text.startswith(self._first):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, self._first)
            return
        n_bytes_whole = len(self._first)
        for line in text[len(self._first) :].splitlines(keepends=True):
            entry = _parsed(line)
            if entry is None:
                break
            self.done[entry[0]] = entry[1]
            n_bytes_whole += len(line)
        os.ftruncate(self._descriptor, n_bytes_whole)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(self.path, f"cannot be written ({error.strerror})", "choose another folder with --out")


def _parsed(line: bytes) -> tuple[str, Pieces] | None:
    try:
        tensor, pieces = json.loads(line) if line.endswith(b"\n") else (None, None)
    except (ValueError, TypeError):
        return None
    if not isinstance(tensor, str) or not isinstance(pieces, list):
        return None
    if not all(isinstance(piece, list) and len(piece) == 3 and all(type(n) is int for n in piece) for piece in pieces):
        return None
    return tensor, [(offset, n_bytes, checksum) for offset, n_bytes, checksum in pieces]
