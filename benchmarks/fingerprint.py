"""What is measured on what: the machine, the model file and the library, without anything that names their owner."""

import hashlib
import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import psutil

from benchmarks.record import Board, Cores, Model, Program
from edge import __version__
from edge.board.topology import allowed_cpus
from edge.model.gguf import ModelInfo

SYNTHETIC_KEY = "edge.weights"  # "synthetic" in files that benchmarks.shapes made
DEVICE_TREE = "sys/firmware/devicetree/base"
N_READ_BYTES = 1 << 20


def board(root: Path = Path("/"), cpus: Iterable[int] | None = None) -> Board:
    """This machine. cpus: those that may be used, None for those of this process."""
    folder = root / "sys/devices/system/cpu"
    kinds: Counter[tuple[float | None, int | None]] = Counter()
    governors = set()
    for cpu in allowed_cpus() if cpus is None else cpus:
        frequency = _number(folder / f"cpu{cpu}/cpufreq/cpuinfo_max_freq")
        kinds[frequency / 1000 if frequency else None, _number(folder / f"cpu{cpu}/cpu_capacity")] += 1
        governors.add(_text(folder / f"cpu{cpu}/cpufreq/scaling_governor"))
    cores = [Cores(n, frequency, capacity) for (frequency, capacity), n in kinds.items()]
    processor = _processor(root)
    compatible = [name for name in _text(root / DEVICE_TREE / "compatible").split("\0") if name]
    return Board(
        name=_text(root / DEVICE_TREE / "model").strip("\0 ") or processor,
        soc=compatible[-1] if compatible else processor,
        architecture=platform.machine(),
        cores=tuple(sorted(cores, key=lambda kind: -(kind.capacity or kind.frequency_max_mhz or 0))),
        ram_bytes=psutil.virtual_memory().total,
        kernel=f"{platform.system()} {platform.release().split('-')[0]}",
        governor=", ".join(sorted(filter(None, governors))) or None,
        is_virtual=" hypervisor" in _text(root / "proc/cpuinfo"),
    )


def _processor(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or platform.machine()


def model(info: ModelInfo) -> Model:
    """A model file, by its content."""
    return Model(
        name=info.path.name,
        sha256=_sha256(tuple(path.absolute() for path in info.paths), info.path.stat().st_mtime_ns),
        n_bytes=info.n_bytes,
        architecture=info.architecture,
        file_type=info.file_type,
        n_params=info.n_params,
        bytes_read_per_token=info.bytes_read_per_token,
        kv_bytes_per_token=info.kv_bytes_per_token,
        weights="synthetic" if info.metadata.get(SYNTHETIC_KEY) == "synthetic" else "file",
    )


@lru_cache(maxsize=64)
def _sha256(paths: tuple[Path, ...], _changed_ns: int) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while data := file.read(N_READ_BYTES):
                digest.update(data)
    return digest.hexdigest()


def program(features: str | None) -> Program:
    """This program and the library it computes with. features: what the library says of itself."""
    binding = "llama-cpp-python"
    waits = os.environ.get("OMP_WAIT_POLICY")
    features = f"{features or ''}".strip(" |")
    features += f" | OMP_WAIT_POLICY = {waits}" if waits else ""
    distribution = importlib.metadata.distribution(binding)
    wheel = next(
        (line[5:] for line in (distribution.read_text("WHEEL") or "").splitlines() if line[:5] == "Tag: "), "?"
    )
    return Program("edge", __version__, f"{binding} {distribution.version} ({wheel})", features or None)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\n ")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
