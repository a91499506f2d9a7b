"""The cores of this machine: clusters by speed, what they can compute, which of them this process may use.

Everything is read below a root folder (Linux: /sys and /proc) or out of sysctl's text (macOS), so a recorded board can
stand in for this one. Knows nothing of models except how few threads a tiny one deserves.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

WEIGHT_BYTES_PER_THREAD = 8 << 20
SAME_CLUSTER = 0.8  # favoured cores and speed bins differ by some percent, clusters by a third and more
CPU_FOLDER = "sys/devices/system/cpu"

# Arm's part numbers, for boards whose device tree does not rate its cores. Work per MHz, Cortex-A76 = 1.
ARM_PARTS: Mapping[int, tuple[str, float]] = {
    0xD03: ("Cortex-A53", 0.47), 0xD04: ("Cortex-A35", 0.37), 0xD05: ("Cortex-A55", 0.52), 0xD07: ("Cortex-A57", 0.72),
    0xD08: ("Cortex-A72", 0.77), 0xD09: ("Cortex-A73", 0.8), 0xD0A: ("Cortex-A75", 0.9), 0xD0B: ("Cortex-A76", 1.0),
    0xD0C: ("Neoverse-N1", 1.0), 0xD0D: ("Cortex-A77", 1.1), 0xD40: ("Neoverse-V1", 1.4), 0xD41: ("Cortex-A78", 1.15),
    0xD42: ("Cortex-A78AE", 1.15), 0xD44: ("Cortex-X1", 1.35), 0xD46: ("Cortex-A510", 0.56), 0xD48: ("Cortex-X2", 1.45),
    0xD47: ("Cortex-A710", 1.2), 0xD49: ("Neoverse-N2", 1.2), 0xD4B: ("Cortex-A78C", 1.15), 0xD4E: ("Cortex-X3", 1.5),
    0xD4D: ("Cortex-A715", 1.25), 0xD4F: ("Neoverse-V2", 1.5), 0xD80: ("Cortex-A520", 0.6), 0xD82: ("Cortex-X4", 1.6),
    0xD81: ("Cortex-A720", 1.3),
}  # fmt: skip
# The kernel's word for what a core can do -> llama.cpp's word for having been built with it.
CPU_FEATURES: Mapping[str, str] = {
    "asimd": "NEON", "asimddp": "DOTPROD", "asimdhp": "FP16_VA", "i8mm": "MATMUL_INT8", "sve": "SVE", "sme": "SME",
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
    "FEAT_DotProd": "DOTPROD", "FEAT_FP16": "FP16_VA", "FEAT_I8MM": "MATMUL_INT8", "FEAT_SME": "SME",
    "AdvSIMD": "NEON", "avx1_0": "AVX", "avx2_0": "AVX2",
}  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """Cores of one speed."""

    cores: tuple[tuple[int, ...], ...]  # logical CPUs of each core, those this process may use
    speed: float  # share of the fastest cluster's, per core
    max_khz: int | None
    name: str  # Cortex-A76; "" where nothing tells

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for core in self.cores for cpu in core))


@dataclass(frozen=True)
class Topology:
    """The CPUs this process may use, fastest cluster first."""

    clusters: tuple[Cluster, ...]
    n_cpus_present: int  # of the machine, whether we may use them or not
    offline: tuple[int, ...]
    features: frozenset[str]  # in llama.cpp's words; what every core of the fastest cluster has
    quota_cpus: float | None  # CPU time the cgroup allows, in CPUs; None: no limit
    told_by: str  # what told the clusters apart; "" if nothing did
    name: str  # of the board or processor
    is_pinnable: bool = True  # macOS has no affinity

    @cached_property
    def compute_cpus(self) -> tuple[int, ...]:
        """One logical CPU per core of the fastest cluster. A slow core in the team makes every matrix wait for it."""
        return tuple(sorted(core[0] for core in self.clusters[0].cores))

    @property
    def front_cpus(self) -> tuple[int, ...]:
        """What the engine leaves to others: slower clusters; () if there are none."""
        return tuple(sorted(cpu for cluster in self.clusters[1:] for cpu in cluster.cpus))

    @property
    def n_threads_max(self) -> int:
        """Threads that can compute at the same time: one beyond the CPU quota holds up all others at every meeting."""
        n = len(self.compute_cpus)
        return n if self.quota_cpus is None else max(1, min(n, int(self.quota_cpus)))


def read_topology(root: Path = Path("/"), allowed: Iterable[int] | None = None) -> Topology:
    """The machine below root. allowed: CPUs to choose from, by default those the process may run on."""
    if (root / "sysctl.txt").is_file():
        return from_sysctl((root / "sysctl.txt").read_text())
    if sys.platform == "darwin" and root == Path("/"):
        return from_sysctl(_sysctl())
    folder = root / CPU_FOLDER
    cpuinfo = _cpuinfo(root)
    allowed = sorted(allowed) if allowed is not None else allowed_cpus(root)
    present = _cpu_list(folder / "present")
    online = _cpu_list(folder / "online")
    usable = [cpu for cpu in allowed if not online or cpu in online] or allowed
    speeds, told_by = _speeds(usable, root, cpuinfo)
    clusters = _clusters(usable, speeds, folder, cpuinfo)
    return Topology(
        clusters=clusters,
        n_cpus_present=len(present) or len(cpuinfo) or len(usable),
        offline=tuple(cpu for cpu in present if online and cpu not in online),
        features=_features(clusters[0].cpus, cpuinfo),
        quota_cpus=_quota(root),
        told_by=told_by if len(clusters) > 1 else "",
        name=board_name(root),
        is_pinnable=hasattr(os, "sched_setaffinity"),
    )


def allowed_cpus(root: Path = Path("/")) -> list[int]:
    """Logical CPUs this process may use: its affinity mask, which is never wider than its cpuset. Never empty."""
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    for line in _read(root / "proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return parse_cpu_list(line.partition(":")[2])
    return _cpu_list(root / CPU_FOLDER / "online") or list(range(os.cpu_count() or 1))


def compute_cpus(allowed: list[int] | None = None, root: Path = Path("/")) -> list[int]:
    """One logical CPU per core of the fastest cluster. Never empty."""
    return list(read_topology(root, allowed).compute_cpus)


def n_compute_threads(n_cpus: int, n_weight_bytes: int) -> int:
    """Threads for a model: all cores, but fewer for a tiny one. Threads meet some 15 times a layer and token; below
    WEIGHT_BYTES_PER_THREAD the meeting costs more than the work, and on a busy machine a hundred times more."""
    return max(1, min(n_cpus, n_weight_bytes // WEIGHT_BYTES_PER_THREAD))


def pin(n_threads: int | None, n_weight_bytes: int, cpus: Iterable[int] | None = None) -> int:
    """Bind this process to the cores it computes on; returns the number of threads. Call before libllama computes.

    cpus: where somebody has planned that already; () leaves the process where it is.
    """
    if cpus is not None and n_threads is not None:
        if cpus := set(cpus):
            bind(cpus)
        return n_threads
    topology = read_topology()
    fast = topology.compute_cpus
    if n_threads is None:
        n_threads = n_compute_threads(topology.n_threads_max, n_weight_bytes)
    if topology.is_pinnable and n_threads <= len(fast) < len(allowed_cpus()):
        bind(fast)
    return n_threads


def bind_front(topology: Topology) -> None:
    """Move this process to the slow cores, if there are some: the engine's threads then never wait for it."""
    if topology.is_pinnable and topology.front_cpus:
        bind(topology.front_cpus)


def bind(cpus: Iterable[int]) -> None:
    """Run this process on these CPUs, as far as the system has such a thing and lets us."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a core went offline, or the cpuset changed: run where the kernel puts us
            os.sched_setaffinity(0, cpus)


def board_name(root: Path = Path("/")) -> str:
    """The board's or processor's own name for itself; "" if it has none."""
    if model := _read(root / "proc/device-tree/model").strip("\0 \n"):
        return model
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model", "Hardware")) and (name := line.partition(":")[2].strip()):
            return name
    return ""


# ---------------------------------------------------------------- macOS


def from_sysctl(text: str) -> Topology:
    """A Mac from the lines of `sysctl hw machdep.cpu`. perflevel0 is the fastest; CPU numbers are ours, not Apple's."""
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)

    def number(name: str, default: int = 0) -> int:
        return int(values[name]) if values.get(name, "").strip().isdigit() else default

    clusters: list[Cluster] = []
    n_levels = number("hw.nperflevels", 1)
    start = 0
    for level in range(n_levels):
        prefix = f"hw.perflevel{level}." if n_levels > 1 else "hw."
        n_logical, n_cores = number(f"{prefix}logicalcpu", 1), number(f"{prefix}physicalcpu", 1)
        per_core = max(1, n_logical // max(1, n_cores))
        cpus = range(start, start + n_logical)
        cores = tuple(tuple(cpus[i : i + per_core]) for i in range(0, n_logical, per_core))
        speed = 1.0 if level == 0 else 0.4  # nothing tells; an efficiency core is a good third of a performance core
        clusters.append(Cluster(cores, speed, None, values.get(f"{prefix}name", "").strip()))
        start += n_logical
    on = {key.rpartition(".")[2] for key, value in values.items() if "hw.optional" in key and value.strip() == "1"}
    return Topology(
        clusters=tuple(clusters),
        n_cpus_present=start,
        offline=(),
        features=frozenset(CPU_FEATURES[name] for name in on if name in CPU_FEATURES),
        quota_cpus=None,
        told_by="perflevel" if n_levels > 1 else "",
        name=values.get("machdep.cpu.brand_string", "").strip(),
        is_pinnable=False,
    )


def _sysctl() -> str:
    import subprocess  # Linux never pays for it

    try:
        return subprocess.run(["sysctl", "hw", "machdep.cpu"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


# ---------------------------------------------------------------- Linux


def _speeds(cpus: list[int], root: Path, cpuinfo: Mapping[int, Mapping[str, str]]) -> tuple[dict[int, float], str]:
    """How fast each CPU is, in any unit, by the first source that tells some of them apart; and that source's name."""
    folder = root / CPU_FOLDER
    if performance := _cpu_list(root / "sys/devices/cpu_core/cpus"):  # Intel's hybrids name their fast cores
        efficient = 0.5
        speeds = {cpu: 1.0 if cpu in performance else efficient for cpu in cpus}
        if len(set(speeds.values())) > 1:
            return speeds, "cpu_core"
    capacity = {cpu: _number(folder / f"cpu{cpu}/cpu_capacity") for cpu in cpus}
    if all(capacity.values()) and _differ(capacity.values()):
        return {cpu: float(value or 0) for cpu, value in capacity.items()}, "cpu_capacity"
    # a device tree that rates no cores gives all the same capacity: rate them as the kernel would have
    khz = {cpu: _number(folder / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") or 1 for cpu in cpus}
    rates = {cpu: _part(cpuinfo.get(cpu, {}))[1] for cpu in cpus}
    return {cpu: khz[cpu] * rates[cpu] for cpu in cpus}, "part" if _differ(rates.values()) else "cpufreq"


def _clusters(
    cpus: list[int], speeds: Mapping[int, float], folder: Path, cpuinfo: Mapping[int, Mapping[str, str]]
) -> tuple[Cluster, ...]:
    """CPUs in groups of about one speed, fastest first, hardware threads of a core together."""
    fastest = max(speeds.values())
    left = sorted(cpus, key=lambda cpu: (-speeds[cpu], cpu))
    clusters = []
    while left:
        top = speeds[left[0]]
        members = [cpu for cpu in left if speeds[cpu] >= SAME_CLUSTER * top]
        left = [cpu for cpu in left if cpu not in members]
        cores: dict[str, list[int]] = {}
        for cpu in sorted(members):
            siblings = _read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
            cores.setdefault(siblings, []).append(cpu)
        frequencies = [_number(folder / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in members]
        clusters.append(
            Cluster(
                cores=tuple(tuple(core) for core in cores.values()),
                speed=top / fastest,
                max_khz=max((khz for khz in frequencies if khz), default=None),
                name=_part(cpuinfo.get(members[0], {}))[0],
            )
        )
    return tuple(clusters)


def _differ(values: Iterable[float | None]) -> bool:
    known = [value for value in values if value]
    return bool(known) and min(known) < SAME_CLUSTER * max(known)


def _part(facts: Mapping[str, str]) -> tuple[str, float]:
    """Name and work per MHz of a core, from its lines in /proc/cpuinfo."""
    if facts.get("CPU implementer", "").strip() != "0x41":  # Arm
        return "", 1.0
    try:
        return ARM_PARTS.get(int(facts.get("CPU part", "0"), 16), ("", 1.0))
    except ValueError:
        return "", 1.0


def _features(cpus: Iterable[int], cpuinfo: Mapping[int, Mapping[str, str]]) -> frozenset[str]:
    found: frozenset[str] | None = None
    for cpu in cpus:
        facts = cpuinfo.get(cpu, {})
        words = (facts.get("Features") or facts.get("flags") or "").split()
        here = frozenset(CPU_FEATURES[word] for word in words if word in CPU_FEATURES)
        found = here if found is None else found & here
    return found or frozenset()


def _cpuinfo(root: Path) -> dict[int, dict[str, str]]:
    """/proc/cpuinfo as {cpu: {key: value}}."""
    found: dict[int, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if key == "processor" and value.isdigit():
            current = found.setdefault(int(value), {})
        elif colon:
            current[key] = value
    return found


def _quota(root: Path) -> float | None:
    """CPU time this process's cgroups allow, in CPUs: the tightest on the way up. None: no limit."""
    limits = []
    for folder in cgroup_folders(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1: no limit
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The folders that limit this process, its own first and the top last. Versions 1 and 2; inside of a container the
    path in /proc/self/cgroup may lie outside of what is mounted, then the top is all there is."""
    found: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = top / path.strip("/")
        while folder != top and top in folder.parents:
            if folder.is_dir():
                found.append(folder)
            folder = folder.parent
        found.append(top)
    return found


def _cpu_list(path: Path) -> list[int]:
    return parse_cpu_list(_read(path))


def parse_cpu_list(text: str) -> list[int]:
    """ "0-3,8" -> [0, 1, 2, 3, 8]; what is not a list of CPUs gives []."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not dash):
            cpus += range(int(first), int(last or first) + 1)
    return cpus


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
