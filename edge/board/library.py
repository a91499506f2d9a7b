"""The installed llama.cpp, seen from outside: where it lies, which back ends it has, what it says of itself.

Never loads it into this process: a library built for another CPU ends the process that calls it. `ask` starts a child.
"""

import hashlib
import json
import signal
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
GPU_BACKENDS = ("cuda", "vulkan", "metal", "hip", "sycl", "opencl", "musa", "cann")


@dataclass(frozen=True)
class Device:
    """Something that computes besides the CPU."""

    name: str
    description: str
    kind: str  # gpu, igpu (shares the machine's memory), accelerator
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Answer:
    """What a child that loaded the library said; problem is why it could not."""

    features: frozenset[str]
    devices: tuple[Device, ...]
    problem: str | None = None
    driver_bytes: int = 0  # that the drivers of GPUs take in every process that loads the library


def folder() -> Path | None:
    """Where the native libraries lie; None if llama-cpp-python is not installed."""
    spec = find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec is not None and spec.origin else None


@cache
def identity() -> str:
    """Names this build of the library: changes with every other one."""
    if (place := folder()) is None or not place.is_dir():
        return "none"
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(place.iterdir())]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def gpu_backends() -> tuple[str, ...]:
    """The GPU back ends that this build has, by its files."""
    if (place := folder()) is None or not place.is_dir():
        return ()
    names = " ".join(file.name for file in place.iterdir())
    return tuple(name for name in GPU_BACKENDS if f"libggml-{name}" in names)


@cache
def devices() -> tuple[Device, ...]:
    """The GPUs at hand. Costs a child process where the library has a back end for one, nothing elsewhere."""
    return ask().devices if gpu_backends() else ()


def driver_bytes() -> int:
    """What drivers take in memory before any layer lies on a GPU."""
    return ask().driver_bytes if gpu_backends() else 0


@cache
def ask() -> Answer:
    """What the library says when it is loaded, in a child process."""
    import subprocess  # a plan mostly needs no child, and so pays nothing for it

    command = [sys.executable, "-m", "edge.engine.devices"]
    try:
        child = subprocess.run(command, cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return Answer(frozenset(), (), f"it could not be started ({error})")
    if child.returncode == -signal.SIGILL:
        return Answer(frozenset(), (), "it uses instructions that this CPU does not have")
    if child.returncode != 0:
        last = next((line for line in reversed(child.stderr.splitlines()) if line.strip()), f"exit {child.returncode}")
        return Answer(frozenset(), (), f"it cannot be loaded ({last.strip()[:200]})")
    said = json.loads(child.stdout)
    devices = tuple(Device(**device) for device in said["devices"])
    return Answer(parse_features(said["system_info"]), devices, driver_bytes=said["driver_bytes"])


def parse_features(system_info: str) -> frozenset[str]:
    """ "CPU : AVX2 = 1 | SVE = 0 | …" -> {"AVX2"}."""
    found = set()
    for part in system_info.replace("CPU :", "").split("|"):
        name, _, value = part.partition("=")
        if value.strip().isdigit() and int(value) > 0:
            found.add(name.strip())
    return frozenset(found)
