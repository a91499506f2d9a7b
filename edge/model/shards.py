"""The files of a model that is kept in several: NAME-00001-of-00003.gguf and its siblings. Knows names, reads nothing.

llama.cpp finds the others by the first one's name, so the names are part of the format.
"""

import re
from pathlib import Path

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def place(name: str) -> tuple[str, int, int] | None:
    """Stem, number (from 1) and count of a shard, as its name says; None for a file of another form."""
    found = _SHARD.fullmatch(name)
    return (found[1], int(found[2]), int(found[3])) if found else None


def stem(name: str) -> str:
    """A file's name without .gguf and without its number among the files of one model."""
    found = place(name)
    return found[0] if found else name.removesuffix(".gguf")


def siblings(path: Path) -> tuple[Path, ...]:
    """Every file of the model that `path` is one of, in order, there or not; `path` alone if its name has no number."""
    found = place(path.name)
    if found is None:
        return (path,)
    stem, _, count = found
    return tuple(path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))


def n_bytes(path: Path) -> int:
    """Length of a model, of all its files together; of those that are there."""
    return sum(file.stat().st_size for file in siblings(path) if file.is_file())


def hub_name(path: Path) -> str | None:
    """OWNER/REPO/FILE of a path in the Hugging Face cache, OWNER/REPO of a folder in it; None elsewhere.

    models--OWNER--REPO/snapshots/REVISION/FILE is how they lie there.
    """
    path = path.absolute()
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
            owner, _, repo = folder.parents[1].name.removeprefix("models--").partition("--")
            return "/".join([owner, repo, *path.relative_to(folder).parts]) if repo else None
    return None
