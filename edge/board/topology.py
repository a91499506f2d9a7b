"""Which cores a process should compute on, and binding it to them. Reads /sys and the affinity mask."""

import os
from pathlib import Path

WEIGHT_BYTES_PER_THREAD = 8 << 20


def allowed_cpus() -> list[int]:
    """Logical CPUs this process may use (affinity and cpuset limits included)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def compute_cpus(allowed: list[int] | None = None, root: Path = Path("/")) -> list[int]:
    """One logical CPU per core of the fastest cluster: a slow core in the team makes every matrix wait for it.

    Speed is cpu_capacity where the kernel tells it (Arm), else the highest frequency. Never empty.
    """
    allowed = allowed or allowed_cpus()
    folder = root / "sys/devices/system/cpu"
    speed = {cpu: _speed(folder / f"cpu{cpu}") for cpu in allowed}
    fastest = max(speed.values())
    # cores whose top frequencies differ by a few percent (favoured cores) belong together
    fast = [cpu for cpu in allowed if speed[cpu] >= 0.8 * fastest]
    first_of_core: dict[str, int] = {}
    for cpu in fast:
        siblings = _read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        first_of_core.setdefault(siblings, cpu)
    return sorted(first_of_core.values())


def n_compute_threads(n_cpus: int, n_weight_bytes: int) -> int:
    """Threads for a model: all cores, but fewer for a tiny one. Threads meet some 15 times a layer and token; below
    WEIGHT_BYTES_PER_THREAD the meeting costs more than the work, and on a busy machine a hundred times more."""
    return max(1, min(n_cpus, n_weight_bytes // WEIGHT_BYTES_PER_THREAD))


def pin(n_threads: int | None, n_weight_bytes: int) -> int:
    """Bind this process to the cores it computes on; returns the number of threads. Call before libllama computes."""
    cpus = compute_cpus()
    if n_threads is None:
        n_threads = n_compute_threads(len(cpus), n_weight_bytes)
    if n_threads <= len(cpus) < len(allowed_cpus()) and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    return n_threads


def _speed(cpu: Path) -> int:
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = _read(cpu / name)
        if text.isdigit():
            return int(text)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
