"""MODEL.gguf.json: where a GGUF came from and what it should be, and whether it still is.

Holds no dates and no paths of this machine: the same checkpoint and the same tools give the same manifest.
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, parse_json, read_text
from convert.importance import ImportanceMatrix
from edge import __version__
from edge.errors import CheckpointError, ModelFileError

FORMAT = 1
N_MANIFEST_BYTES_MAX = 8_000_000  # a source of 20 000 shards
N_READ_BYTES = 1 << 22
_REVISION, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, as far as its folder tells."""

    name: str
    revision: str | None
    files: tuple[tuple[str, int, str | None], ...]  # name, bytes, SHA-256 if the hub told it

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> "Origin":
        records = {path: _hub_record(path) for path in checkpoint.files}
        revisions = {revision for revision, _ in records.values()}
        files = tuple((path.name, path.stat().st_size, sha256) for path, (_, sha256) in sorted(records.items()))
        return cls(name, revisions.pop() if len(revisions) == 1 else None, files)


def manifest_path(model: Path) -> Path:
    return model.with_name(f"{model.name}.json")


def manifest(
    *,
    model: Path,
    n_bytes: int,
    sha256: str,
    kind: str,
    architecture: str,
    n_parameters: int,
    bits_per_weight: float,
    tensor_types: Counter[str],
    origin: Origin,
    importance: ImportanceMatrix | None,
) -> bytes:
    """The document, as it is written."""
    document: dict[str, Any] = {
        "manifest": FORMAT,
        "file": {"name": model.name, "n_bytes": n_bytes, "sha256": sha256},
        "type": kind,
        "architecture": architecture,
        "n_parameters": n_parameters,
        "bits_per_weight": round(bits_per_weight, 4),
        "tensor_types": dict(sorted(tensor_types.items())),
        "source": {
            "name": origin.name,
            "revision": origin.revision,
            "files": [{"name": name, "n_bytes": n, "sha256": digest} for name, n, digest in origin.files],
        },
        "imatrix": None
        if importance is None
        else {"name": importance.path.name, "datasets": list(importance.datasets), "n_chunks": importance.n_chunks},
        "tool": {"edge-gguf": __version__, "llama-cpp-python": _version("llama-cpp-python")},
    }
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode(errors="replace")


def verify(model: Path) -> dict[str, Any]:
    """The manifest beside a GGUF, once every byte of the file is what it says. Raises ModelFileError."""
    path = manifest_path(model)
    try:
        found = parse_json(path, read_text(path, n_bytes_max=N_MANIFEST_BYTES_MAX))
    except CheckpointError as error:
        remedy = "keep the manifest that was made with the model beside it, or convert again"
        raise ModelFileError(path, error.problem, remedy) from error
    file = found.get("file")
    promised = (file.get("n_bytes"), file.get("sha256")) if isinstance(file, dict) else (None, None)
    if found.get("manifest") != FORMAT or not isinstance(promised[0], int) or not isinstance(promised[1], str):
        raise ModelFileError(path, f"is no manifest of form {FORMAT}", "convert the model again")
    remedy = "fetch or convert the model again"
    try:
        n_bytes = model.stat().st_size
        if n_bytes != promised[0]:
            problem = f"has {n_bytes:,} bytes, its manifest says {promised[0]:,}"
            raise ModelFileError(model, problem, remedy)
        sha256 = _sha256(model)
    except OSError as error:
        raise ModelFileError(model, f"cannot be read ({error.strerror})", "check the disk") from error
    if sha256 != promised[1]:
        problem = f"has the SHA-256 {sha256[:12]}…, its manifest says {promised[1][:12]}…: it was changed or damaged"
        raise ModelFileError(model, problem, remedy)
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(N_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _hub_record(path: Path) -> tuple[str | None, str | None]:
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
