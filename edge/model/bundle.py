"""A model on a stick, for boards without a network: the files, what they should be, and on request edge itself.

DIR/bundle.json     names, lengths and hashes of the model's files, where they come from
DIR/model/          the GGUF, its manifest, licence and card
DIR/wheels/         edge and all it needs, for one kind of board; install.sh beside installs them
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from edge.errors import FileError, NoSpaceError
from edge.model.cache import COMPANIONS
from edge.model.hub import HubFile, Repository
from edge.model.names import REPO_ID, is_plain
from edge.model.shards import stem

FORMAT = 1
N_JSON_BYTES_MAX = 1 << 20
N_READ_BYTES = 1 << 22
N_COMPANION_BYTES_MAX = 1 << 20
TARGETS = ("aarch64", "x86_64")
GLIBC = ("2_35", "2_34", "2_31", "2_28", "2_17")  # Ubuntu 22.04 has 2.35, the oldest of the systems that are supported
BUILT_THERE = "llama-cpp-python"  # compiled on the board, for its very CPU
BUILD_TOOLS = ("scikit-build-core", "cmake", "ninja", "setuptools", "pip")
INSTALL = """#!/bin/sh
# Install edge and the model of this folder. Needs python3 with venv and a C++ compiler, and no network.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=${EDGE_VENV:-$HOME/edge}
python3 -m venv "$venv"
export CMAKE_ARGS="${CMAKE_ARGS:--DLLAVA_BUILD=OFF}"
"$venv/bin/python" -m pip install --no-index --find-links "$here/wheels" edge-gguf
"$venv/bin/edge" install-bundle "$here"
echo "ready: $venv/bin/edge ls"
"""

_GET_ANOTHER = "make the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was brought here. A source of files, as a hub is."""

    folder: Path
    cache: Path
    repository: Repository

    @classmethod
    def open(cls, folder: Path, cache: Path) -> "Bundle":
        """Raises FileError for whatever is no bundle; the hashes are checked when the files are read."""
        path = folder / "bundle.json"
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(N_JSON_BYTES_MAX))
        except FileNotFoundError:
            raise FileError(folder, "holds no bundle.json", "name a folder made by edge bundle") from None
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror})", "check the stick") from error
        except (ValueError, RecursionError):
            raise FileError(path, "is damaged", _GET_ANOTHER) from None
        return cls(folder, cache, _repository(path, found))

    def stream(self, file: HubFile, start: int = 0) -> Iterator[bytes]:
        path = self.folder / "model" / file.name
        try:
            with path.open("rb") as opened:
                opened.seek(start)
                while data := opened.read(min(N_READ_BYTES, file.n_bytes - start)):
                    yield data
                    start += len(data)
        except OSError as error:
            raise FileError(
                path, f"cannot be read ({error.strerror})", f"check the stick, or {_GET_ANOTHER}"
            ) from error
        if start < file.n_bytes:
            raise FileError(path, f"has {start:,} of {file.n_bytes:,} bytes", _GET_ANOTHER)


def make(parts: Sequence[Path], folder: Path, repo_id: str | None, revision: str | None) -> list[Path]:
    """Copy a model and what belongs to it; returns the copies, each read back and compared. Raises FileError.

    repo_id, revision: where it comes from; a model of one's own is filed under local/NAME.
    """
    sources = [*parts, *_companions(parts)]
    n_needed = sum(path.stat().st_size for path in sources)
    try:
        (folder / "model").mkdir(parents=True, exist_ok=True)
        found = os.statvfs(folder)
        if n_needed > found.f_bavail * found.f_frsize:
            raise NoSpaceError(folder, n_needed, found.f_bavail * found.f_frsize)
        entries = [_copy(path, folder / "model" / path.name) for path in sources]
    except OSError as error:
        raise FileError(folder, f"cannot be written ({error.strerror})", "choose another folder with --out") from error
    repo_id = repo_id or f"local/{_repo_name(stem(parts[0].name))}"
    revision = revision or hashlib.sha1(repr(entries).encode(), usedforsecurity=False).hexdigest()
    document = {"bundle": FORMAT, "repo_id": repo_id, "revision": revision, "files": entries}
    (folder / "bundle.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return [folder / "model" / path.name for path in sources]


def add_wheels(folder: Path, target: str, python_version: str) -> int:
    """Bring edge and all it needs for a kind of board into the bundle; returns the number of files.

    Asks the package index that pip is set up with. Raises FileError with pip's own reason.
    """
    root = Path(__file__).parents[2]
    constraints = root / "constraints.txt"
    if not constraints.is_file():
        raise FileError(root, "is not edge's source folder", "run this from a checkout of edge, or leave --target out")
    wheels = folder / "wheels"
    pinned = ["--constraint", str(constraints), "--dest", str(wheels)]
    platforms = [word for glibc in GLIBC for word in ("--platform", f"manylinux_{glibc}_{target}")]
    platforms += ["--platform", f"manylinux2014_{target}"]
    only = ["--only-binary", ":all:", "--python-version", python_version, "--implementation", "cp", *platforms]
    needs = [line for line in _requirements(root) if not line.startswith(BUILT_THERE)]
    _pip(wheels, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(root))
    _pip(wheels, "download", *pinned, *only, *needs, *BUILD_TOOLS, *_needs_of_built())
    _pip(wheels, "download", *pinned, "--no-deps", "--no-binary", BUILT_THERE, BUILT_THERE)
    (folder / "install.sh").write_text(INSTALL, encoding="utf-8")
    return len(list(wheels.iterdir()))


def _requirements(root: Path) -> list[str]:
    """What setup.cfg asks for."""
    parser = ConfigParser()
    parser.read(root / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].splitlines()
    return [line.strip().replace(" ", "") for line in lines if line.strip() and not line.strip().startswith("#")]


def _needs_of_built() -> list[str]:
    """What the package that is compiled on the board needs to run."""
    return [line for line in requires(BUILT_THERE) or () if "extra ==" not in line]


def _pip(wheels: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise FileError(wheels, said[-1][:300], "check the network and PIP_INDEX_URL, or leave --target out")


def _companions(parts: Sequence[Path]) -> list[Path]:
    """Licence, card and manifest in the model's folder."""
    names = {f"{part.name}.json" for part in parts}
    found = []
    for path in sorted(parts[0].parent.iterdir()):
        is_ours = path.name in names if path.suffix == ".json" else True
        is_ours = is_ours and COMPANIONS.fullmatch(path.name) is not None and path.is_file()
        if is_ours and path.stat().st_size <= N_COMPANION_BYTES_MAX:
            found.append(path)
    return found


def _copy(source: Path, target: Path) -> dict[str, Any]:
    """One file, whole under its name or not at all; its entry in bundle.json."""
    n_bytes = source.stat().st_size
    new = target.with_name(f".{target.name}.partial")
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
    with source.open("rb") as read, new.open("wb") as write:
        while data := read.read(N_READ_BYTES):
            sha256.update(data)
            sha1.update(data)
            write.write(data)
        write.flush()
        os.fsync(write.fileno())
    again = hashlib.sha256()
    with new.open("rb") as read:
        if hasattr(os, "posix_fadvise"):  # ask the stick, not the memory of it
            os.posix_fadvise(read.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while data := read.read(N_READ_BYTES):
            again.update(data)
    if again.digest() != sha256.digest():
        new.unlink()
        raise FileError(target, "reads back differently", "use another stick: this one loses data")
    new.replace(target)
    digest = sha256.hexdigest() if target.suffix == ".gguf" else None
    return {"name": target.name, "n_bytes": n_bytes, "sha256": digest, "git_sha1": sha1.hexdigest()}


def _repo_name(text: str) -> str:
    """A name for a repository out of any file name."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text).strip("-.")
    return plain.replace("..", ".").replace("--", "-") or "model"


def _repository(path: Path, found: Any) -> Repository:
    """bundle.json, every value of it checked: a stick may come from a stranger."""
    match found:
        case {"bundle": 1, "repo_id": str(repo_id), "revision": str(revision), "files": [*entries]} if entries:
            pass
        case _:
            raise FileError(path, "describes no bundle that this edge knows", "update edge, or make the bundle again")
    is_sound = REPO_ID.fullmatch(repo_id) and "--" not in repo_id and ".." not in repo_id
    if not is_sound or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise FileError(path, "names no repository and revision", _GET_ANOTHER)
    files = []
    for entry in entries:
        match entry:
            case {"name": str(name), "n_bytes": int(n), "git_sha1": str(sha1), "sha256": (str() | None) as sha256}:
                hashes = re.fullmatch(r"[0-9a-f]{40}", sha1) and (not sha256 or re.fullmatch(r"[0-9a-f]{64}", sha256))
                if hashes and is_plain(name) and "/" not in name and n >= 0:
                    files.append(HubFile(repo_id, revision, name, n, sha256, sha1))
                    continue
        raise FileError(path, f"describes a file in a way that cannot be right ({str(entry)[:80]!r})", _GET_ANOTHER)
    return Repository(repo_id, revision, "main", tuple(files), None, None)
