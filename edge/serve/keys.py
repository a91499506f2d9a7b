"""The keys a server accepts: given, read from a file, or made for a server that others can reach; kept with 0600."""

import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from edge.errors import FileError

MIN_KEY_CHARS = 8
MAX_KEYS = 64


def config_dir() -> Path:
    """Where settings are kept: EDGE_CONFIG, else the user's configuration folder."""
    if path := os.environ.get("EDGE_CONFIG"):
        return Path(path)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edge"


def key_file() -> Path:
    return config_dir() / "api-key"


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one a line; lines that begin with # are comments. Raises FileError."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise FileError(
            path, f"cannot be read ({reason.lower()})", "give --api-key-file a file with one key a line"
        ) from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise FileError(path, "is a key file that others can read", f"close it with: chmod 600 {path}")
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not keys:
        raise FileError(path, "holds no key", "write one key a line into it")
    return keys


def check_keys(keys: Sequence[str], source: str) -> None:
    """Refuse keys that a header cannot carry or that can be guessed."""
    if len(keys) > MAX_KEYS:
        raise FileError(Path(source), f"holds {len(keys)} keys", f"give at most {MAX_KEYS}")
    for key in keys:
        if len(key) < MIN_KEY_CHARS or not all("!" <= c <= "~" for c in key):
            remedy = f"use at least {MIN_KEY_CHARS} visible ASCII characters, such as those of: openssl rand -hex 32"
            raise FileError(Path(source), "has a key that is too short or has a space in it", remedy)


def own_key() -> tuple[str, bool]:
    """(the key of this machine's server, True if it was made now). Raises FileError."""
    path = key_file()
    if path.exists():
        return read_keys(path)[0], False
    key = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{key}\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(path, f"cannot be written ({reason})", "give a key with --api-key-file") from None
    return key, True
