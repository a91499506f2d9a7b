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

from convert.checkpoint import Checkpoint
from convert.folder import parse_json, read_text, read_text_if_there
from convert.importance import ImportanceMatrix
from edge import __version__
from edge.errors import CheckpointError, ModelFileError
from edge.model.shards import hub_name

FORMAT = 1
N_MANIFEST_BYTES_MAX = 8_000_000  # a source of 20 000 shards
N_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, as far as its folder tells."""

    name: str
    revision: str | None
    files: tuple[tuple[str, int, str | None], ...]  # name, bytes, SHA-256 if the hub told it
    repo_id: str | None = None
    licence: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> "Origin":
        records = {path: checkpoint.record(path) for path in checkpoint.shards}
        revisions = {revision for revision, _, _ in records.values()}
        files = tuple((path.name, n_bytes, sha256) for path, (_, sha256, n_bytes) in sorted(records.items()))
        revision = revisions.pop() if len(revisions) == 1 else None
        return cls(name, revision, files, hub_name(checkpoint.path), _licence(checkpoint.path))


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
            "repo_id": origin.repo_id,
            "licence": origin.licence,
            "revision": origin.revision,
            "files": [{"name": name, "n_bytes": n, "sha256": digest} for name, n, digest in origin.files],
        },
        "imatrix": None
        if importance is None
        else {"name": importance.path.name, "datasets": list(importance.datasets), "n_chunks": importance.n_chunks},
        "tool": tools(),
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


def tools() -> dict[str, str | None]:
    """What the bytes of a result depend on beside its source."""
    return {"edge-gguf": __version__, "llama-cpp-python": _version("llama-cpp-python")}


def _licence(folder: Path) -> str | None:
    """What the model card's head, between two lines of ---, calls the licence."""
    try:
        text = read_text_if_there(folder, "README.md", n_bytes_max=1 << 20) or ""
    except CheckpointError:
        return None
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    for key in ("license_name", "license"):
        if found := re.search(rf"""^{key}: *["']?([A-Za-z0-9][A-Za-z0-9._ -]{{0,60}}?)["']? *$""", head, re.M):
            return found[1]
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
