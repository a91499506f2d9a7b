"""MODEL.gguf.json: where a GGUF came from and what it should be, for whoever finds the file later.

Holds no dates and no paths of this machine: the same checkpoint and the same tools give the same manifest.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, read_text
from convert.importance import ImportanceMatrix
from edge import __version__
from edge.errors import CheckpointError

FORMAT = 1
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
