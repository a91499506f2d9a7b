"""The files of a checkpoint's folder, read as data: JSON and text, and what the hub's client noted beside them.

The folder comes from a stranger: links that lead out of it, pipes, and files longer than they can need to be are
refused. Code and pickles are never opened.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError

Json = dict[str, Any]

N_JSON_BYTES_MAX = 8_000_000  # parsed JSON takes up to 20 times its text: near what the largest files in the field have
_REVISION, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")

DOWNLOAD_AGAIN = "download the checkpoint again"


def read_json(folder: Path, name: str, *, n_bytes_max: int = N_JSON_BYTES_MAX) -> Json:
    """The JSON object in `folder`/`name`. Raises CheckpointError for whatever is not one."""
    path = plain_file(folder, name)
    if path is None:
        raise CheckpointError(folder, f"has no {name}", DOWNLOAD_AGAIN)
    return parse_json(path, read_text(path, n_bytes_max=n_bytes_max))


def read_json_if_there(folder: Path, name: str) -> Json:
    """As `read_json`; a missing file is an empty object."""
    return read_json(folder, name) if plain_file(folder, name) else {}


def read_text_if_there(folder: Path, name: str, *, n_bytes_max: int) -> str | None:
    path = plain_file(folder, name)
    return read_text(path, n_bytes_max=n_bytes_max) if path else None


def read_text(path: Path, *, n_bytes_max: int) -> str:
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        n_bytes = os.fstat(descriptor).st_size
        if n_bytes > n_bytes_max:
            problem = f"has {n_bytes:,} bytes, more than the {n_bytes_max:,} such a file may have"
            raise CheckpointError(path, problem, DOWNLOAD_AGAIN)
        try:
            return file.read(n_bytes_max).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CheckpointError(path, f"is not UTF-8 text (byte {error.start})", DOWNLOAD_AGAIN) from error


def parse_json(path: Path, text: str) -> Json:
    """The JSON object in `text`; duplicate keys, NaN and bottomless nesting are refused."""
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise CheckpointError(path, "is nested too deeply", DOWNLOAD_AGAIN) from None
    except MemoryError:
        raise CheckpointError(path, "needs more memory than there is", "close other programs") from None
    except ValueError as error:
        raise CheckpointError(path, f"is not valid JSON ({error})", remedy_for(text)) from error
    if not isinstance(value, dict):
        raise CheckpointError(path, f"holds a {type(value).__name__}, not an object", DOWNLOAD_AGAIN)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} appears twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def remedy_for(text: str) -> str:
    return "run `git lfs pull` in the folder" if text.startswith("version https://git-lfs") else DOWNLOAD_AGAIN


def plain_file(folder: Path, name: str) -> Path | None:
    """`folder`/`name` if it exists, and None if not. Raises CheckpointError for a link that leads out of the folder."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if home in target.parents or _is_hub_blob(target, home):
        return path
    raise CheckpointError(path, "is a link that leads out of the folder", "copy the file itself into the folder")


def _is_hub_blob(target: Path, home: Path) -> bool:
    """The Hugging Face cache keeps snapshots/REVISION/NAME as links to ../../blobs/HASH."""
    return home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"


def open_regular(path: Path) -> int:
    """A descriptor for reading. Not a FIFO, a device or a folder: opening those may block for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(path, f"cannot be opened ({error.strerror})", "check its permissions") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(path, "is not a regular file", DOWNLOAD_AGAIN)
    return descriptor


def hub_record(path: Path) -> tuple[str | None, str | None]:
    """Revision and SHA-256 of a file, from what the Hugging Face client leaves beside it: names, or a small text."""
    folder = path.parent.resolve()
    if folder.parent.name == "snapshots":  # the cache: snapshots/REVISION/NAME is a link to ../../blobs/SHA256
        return _matching(_REVISION, folder.name), _matching(_SHA256, path.resolve().name)
    record = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"  # download into a folder
    try:
        lines = read_text(record, n_bytes_max=1000).split("\n")
    except CheckpointError:
        return None, None
    revision, digest, *_ = [*lines, "", ""]
    return _matching(_REVISION, revision), _matching(_SHA256, digest)


def _matching(pattern: re.Pattern[str], text: str) -> str | None:
    return text if pattern.fullmatch(text) else None
