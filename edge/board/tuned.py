"""Settings that were measured to be best for a model on this board with this library, kept in the cache folder.

A record is found again only where all three are the same. One that cannot be read is as good as none.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edge.board import library
from edge.board.topology import Topology
from edge.config import LoadMode, cache_dir
from edge.model.gguf import ModelInfo


@dataclass(frozen=True)
class Tuned:
    """What `edge tune` found; None leaves a setting at its default."""

    n_threads: int | None = None
    cpus: tuple[int, ...] | None = None
    flash_attention: bool | None = None
    n_ubatch_tokens: int | None = None
    load_mode: LoadMode | None = None
    environment: tuple[tuple[str, str], ...] = ()
    prefill_gain: float = 1.0  # tokens/s over the default's, as measured again at the end
    decode_gain: float = 1.0

    def changes(self) -> dict[str, object]:
        """The fields of EngineSettings that differ from the default."""
        names = ("n_threads", "cpus", "flash_attention", "n_ubatch_tokens", "load_mode")
        found: dict[str, object] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**found, "environment": self.environment} if self.environment else found


def path_of(info: ModelInfo, topology: Topology) -> Path:
    """Where the record of this model on this board with this library is kept."""
    board = (topology.name, [cluster.cores for cluster in topology.clusters], sorted(topology.features))
    model = (info.n_bytes, [(tensor.name, tensor.type_name, tensor.n_bytes) for tensor in info.tensors])
    digest = hashlib.sha256(repr((board, model, topology.quota_cpus, library.identity())).encode()).hexdigest()[:16]
    return cache_dir() / "tuned" / f"{digest}.json"


def load(info: ModelInfo, topology: Topology) -> Tuned | None:
    """The record, if there is one and it makes sense."""
    try:
        values = json.loads(path_of(info, topology).read_text())
        assert set(values) == {field.name for field in fields(Tuned)}
        values["cpus"] = None if values["cpus"] is None else tuple(int(cpu) for cpu in values["cpus"])
        values["environment"] = tuple((str(name), str(value)) for name, value in values["environment"])
        return Tuned(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError):
        return None


def save(tuned: Tuned, info: ModelInfo, topology: Topology) -> Path:
    """Keep a record: whole, or not at all."""
    path = path_of(info, topology)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(asdict(tuned), indent=1))
    draft.replace(path)
    return path


def forget(info: ModelInfo, topology: Topology) -> None:
    with contextlib.suppress(FileNotFoundError):
        path_of(info, topology).unlink()
