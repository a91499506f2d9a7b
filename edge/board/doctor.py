"""What is wrong with this board, as far as running a model goes: what, why it matters, and what mends it.

`examine` looks (and measures memory and disk for a second); `diagnose` turns what it saw into findings and looks at
nothing itself. A thing that cannot be seen is no finding.
"""

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from edge import __version__
from edge.board import library, probes
from edge.board.build import build_command
from edge.board.library import Answer
from edge.board.memory import Memory, read_memory
from edge.board.sensors import Sensors, read_sensors
from edge.board.topology import Topology, cgroup_folders, read_topology
from edge.config import cache_dir

Severity = Literal["broken", "slow", "note"]
HOT_C = 80.0
ROOM_BYTES = 3 << 30  # a converted model of a few billion parameters
SLOW_DISK = 80e6  # bytes/s: a good SD card reaches this
SMALL_MEMORY_BYTES = 3 << 30
BUSY_SHARE = 0.5
EARLIEST_S = 1_760_000_000  # a clock before the autumn of 2025 is wrong
# Bytes/s that all fast cores together read, as published runs of llama.cpp stand for; theory is about twice that.
BANDWIDTH = {
    "Raspberry Pi 3": 2.2e9, "Raspberry Pi 4": 4.2e9, "Raspberry Pi 5": 9.8e9, "Raspberry Pi 500": 9.8e9,
    "RK3588": 14e9, "ROCK 5": 14e9, "Orange Pi 5": 14e9, "Jetson Orin Nano": 40e9,
}  # fmt: skip
GAINS = {
    "DOTPROD": "prompts are read about 2 to 4 times slower, and Q4_0 and Q4_K are not laid out for the CPU",
    "FP16_VA": "half-precision sums (KV cache, F16 models) are computed in twice the steps",
    "MATMUL_INT8": "prompts are read about 1.6 to 3 times slower",
    "AVX2": "everything is computed several times slower",
    "FMA": "everything is computed slower",
    "F16C": "F16 models and the KV cache are converted in software",
    "AVX512": "prompts are read slower",
    "AVX512_VNNI": "prompts are read slower",
    "AVX_VNNI": "prompts are read slower",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    severity: Severity
    what: str
    why: str  # in tokens/s or memory
    mend: str  # one command, or one thing to do


@dataclass(frozen=True)
class Examination:
    """What was seen. None: could not be seen."""

    topology: Topology
    memory: Memory | None
    sensors: Sensors
    library: Answer
    gpu_backends: tuple[str, ...]
    memory_bytes_per_s: float | None
    disk_bytes_per_s: float | None
    disk_free_bytes: int | None
    cache_folder: str
    load: float | None  # runnable tasks, mean of a minute
    memory_pressure: float | None  # share of the last 10 s that some task waited for memory, 0 … 1
    cgroup_controllers: frozenset[str] | None
    clock_s: float
    is_64_bit: bool
    versions: dict[str, str]
    closed_devices: tuple[str, ...] = ()  # of GPUs: files that this user may not open

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["topology"]["features"] = sorted(self.topology.features)
        plain["library"]["features"] = sorted(self.library.features)
        plain["cgroup_controllers"] = None if self.cgroup_controllers is None else sorted(self.cgroup_controllers)
        return plain


def examine(root: Path = Path("/")) -> Examination:
    """Look at this machine: three seconds at most."""
    answer = library.ask()
    topology, memory = read_topology(root), read_memory(root)
    available = memory.available_bytes if memory is not None else 1 << 30
    folder = cache_dir()
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return Examination(
        topology=topology,
        memory=memory,
        sensors=read_sensors(root, power_interval_s=0.1),
        library=answer,
        gpu_backends=library.gpu_backends(),
        memory_bytes_per_s=probes.memory_bandwidth(topology.n_threads_max, available),
        disk_bytes_per_s=_disk_rate(folder),
        disk_free_bytes=shutil.disk_usage(place).free,
        cache_folder=str(folder),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        memory_pressure=_pressure(root),
        cgroup_controllers=_controllers(root),
        clock_s=time.time(),
        is_64_bit=sys.maxsize > 1 << 32,
        versions=_versions(),
        closed_devices=_closed_devices(root),
    )


def diagnose(seen: Examination) -> list[Finding]:
    """All findings, the worst first."""
    checks = (_library, _gpu, _python, _cores, _speed, _heat, _memory, _bandwidth, _disk, _clock)
    order = ("broken", "slow", "note")
    return sorted(
        (finding for check in checks for finding in check(seen)), key=lambda found: order.index(found.severity)
    )


def _library(seen: Examination) -> Iterator[Finding]:
    build = build_command(seen.topology)
    if seen.library.problem is not None:
        yield Finding("broken", f"llama.cpp cannot be used: {seen.library.problem}", "no model can be run", build)
        return
    has = seen.topology.features
    if has and (foreign := [name for name in GAINS if name in seen.library.features - has]):
        what = f"llama.cpp was built for another CPU: with {', '.join(foreign)}, which this one does not have"
        yield Finding("broken", what, "a process that loads it is ended by the first such instruction", build)
        return
    named = [name for name in GAINS if name in has - seen.library.features]  # the worst first
    if named:
        why = f"{', '.join(named)}: {GAINS[named[0]]}"
        yield Finding("slow", f"llama.cpp was built without {', '.join(named)}, which this CPU has", why, build)


def _gpu(seen: Examination) -> Iterator[Finding]:
    if not seen.gpu_backends or seen.library.problem is not None:
        return
    if any(device.kind in ("gpu", "igpu") for device in seen.library.devices):
        return
    backend = seen.gpu_backends[0]
    driver = {"cuda": "make nvidia-smi list the GPU: install NVIDIA's driver again and restart"}.get(
        backend, "sudo apt-get install mesa-vulkan-drivers, or the driver of the GPU's maker; then vulkaninfo --summary"
    )
    closed = (
        f"sudo usermod -aG render,video $USER, then log in again: {', '.join(seen.closed_devices)} is closed to you"
    )
    yield Finding(
        "slow",
        f"llama.cpp was built for a GPU ({backend}), and none answers",
        "the CPU computes all of it",
        closed if seen.closed_devices else driver,
    )


def _python(seen: Examination) -> Iterator[Finding]:
    if not seen.is_64_bit:
        yield Finding(
            "broken",
            "Python is a 32-bit program",
            "a model of more than 2 GB cannot be loaded, and nothing is computed with 64-bit instructions",
            "install the 64-bit system",
        )


def _cores(seen: Examination) -> Iterator[Finding]:
    topology = seen.topology
    if topology.offline:
        cpus = ", ".join(map(str, topology.offline))
        yield Finding(
            "slow",
            f"CPU {cpus} of {topology.n_cpus_present} is offline",
            f"up to {len(topology.offline)} of {topology.n_cpus_present} threads of prompt speed are missing",
            f"echo 1 | sudo tee /sys/devices/system/cpu/cpu{topology.offline[0]}/online",
        )
    n_cores = len(topology.compute_cpus)
    if topology.quota_cpus is not None and topology.quota_cpus < n_cores:
        yield Finding(
            "slow",
            f"a cgroup allows {topology.quota_cpus:g} CPUs of {n_cores} cores",
            f"prompt speed is at most {topology.quota_cpus / n_cores:.0%} of the machine's",
            "raise CPUQuota= of the service, or --cpus of the container",
        )
    if seen.load is not None and seen.load > BUSY_SHARE * max(1, topology.n_threads_max):
        yield Finding(
            "note",
            f"other programs are busy: {seen.load:.1f} tasks ran in the last minute",
            "threads wait for each other at every layer: one busy core can halve tokens/s",
            "top -o %CPU",
        )


def _speed(seen: Examination) -> Iterator[Finding]:
    sensors = seen.sensors
    lazy = {"powersave", "conservative", "ondemand", "userspace"}
    if "NEON" in seen.topology.features and (found := lazy & set(sensors.governors)):
        share = "a half and more" if "powersave" in found or "userspace" in found else "5 to 30 %"
        named = ", ".join(sorted(found))
        yield Finding(
            "slow" if "powersave" in found else "note",
            f"the frequency governor is {named}",
            f"cores are clocked low between tokens: costs {share} of tokens/s",
            "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor",
        )
    if sensors.capped_cpus:
        cpus = ", ".join(map(str, sensors.capped_cpus))
        yield Finding(
            "slow",
            f"the frequency of CPU {cpus} is capped below its top",
            "prompts are read slower",
            f"cat /sys/devices/system/cpu/cpu{sensors.capped_cpus[0]}/cpufreq/cpuinfo_max_freq | sudo tee "
            "/sys/devices/system/cpu/cpufreq/policy*/scaling_max_freq",
        )


def _heat(seen: Examination) -> Iterator[Finding]:
    throttling, hottest = seen.sensors.throttling, seen.sensors.hottest
    if throttling is not None:
        if "undervoltage" in throttling.now + throttling.since_boot:
            when = "now" if "undervoltage" in throttling.now else "since the start"
            yield Finding(
                "slow",
                f"undervoltage {when}",
                "the firmware halves the frequency, and SD cards lose data",
                "use the board's own power supply (5 V 3 A, Raspberry Pi 5: 5 V 5 A) and a short cable",
            )
        limits = sorted({*throttling.now, *throttling.since_boot} - {"undervoltage"})
        if limits:
            when = "now" if set(limits) & set(throttling.now) else "since the start"
            yield Finding(
                "slow",
                f"{', '.join(limits)} {when}",
                "tokens/s fall by up to a half while it lasts",
                "add a heat sink and a fan, then look again with edge doctor",
            )
    if hottest is not None and hottest.value >= HOT_C:
        yield Finding(
            "slow",
            f"{hottest.name} is at {hottest.value:.0f} °C",
            "boards throttle from 80 to 85 °C on",
            "add a heat sink and a fan",
        )


def _memory(seen: Examination) -> Iterator[Finding]:
    memory = seen.memory
    if memory is None:
        return
    if memory.cgroup_limit_bytes is not None:
        limit = memory.cgroup_limit_bytes / 1e6
        yield Finding(
            "note",
            f"a cgroup limits memory to {limit:,.0f} MB of {memory.total_bytes / 1e6:,.0f} MB",
            "plans are made for the limit",
            "raise MemoryMax= of the service, or --memory of the container",
        )
    used = memory.swap_total_bytes - memory.swap_free_bytes
    if used > max(memory.swap_total_bytes // 4, 64 << 20) and memory.zram_bytes < memory.swap_total_bytes // 2:
        yield Finding(
            "slow",
            f"{used / 1e6:,.0f} MB lie in swap on a disk",
            "a token waits for seconds when its weights or KV were swapped out",
            "close programs, or start with a smaller --ctx (edge plan)",
        )
    if memory.swap_total_bytes == 0 and memory.total_bytes < SMALL_MEMORY_BYTES:
        yield Finding(
            "note",
            "there is no swap",
            "the kernel ends the engine when memory runs short for a moment",
            "sudo apt-get install zram-tools",
        )
    if (memory.page_bytes or 0) > 4096:
        yield Finding(
            "note",
            f"the kernel's pages have {memory.page_bytes} bytes",
            "programs that bring jemalloc built for 4 kB do not start; edge brings none",
            "nothing to do; for such a program: kernel=kernel8.img in /boot/firmware/config.txt",
        )
    if seen.memory_pressure is not None and seen.memory_pressure > 0.2:
        yield Finding(
            "slow",
            f"programs waited for memory {seen.memory_pressure:.0%} of the last 10 s",
            "weights are thrown out and read again",
            "close programs, or choose a smaller model",
        )
    if (
        seen.cgroup_controllers is not None
        and "memory" not in seen.cgroup_controllers
        and (seen.topology.name.startswith("Raspberry Pi"))
    ):
        yield Finding(
            "note",
            "the kernel's memory controller is off",
            "limits of services and containers do nothing",
            "sudo sed -i 's/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt && sudo reboot",
        )


def _bandwidth(seen: Examination) -> Iterator[Finding]:
    expected = next((rate for name, rate in BANDWIDTH.items() if name in seen.topology.name), None)
    measured = seen.memory_bytes_per_s
    if expected is not None and measured is not None and measured < 0.6 * expected:
        yield Finding(
            "slow",
            f"memory was read at {measured / 1e9:.1f} GB/s, such a board reaches {expected / 1e9:.1f}",
            f"tokens/s are bound by it: {measured / expected:.0%} of what is usual",
            "stop other programs and look again; then update the firmware (sudo rpi-eeprom-update -a)"
            if "Raspberry" in seen.topology.name
            else "stop other programs and look again",
        )


def _disk(seen: Examination) -> Iterator[Finding]:
    if seen.disk_free_bytes is not None and seen.disk_free_bytes < ROOM_BYTES:
        yield Finding(
            "note",
            f"{seen.disk_free_bytes / 1e6:,.0f} MB are free in {seen.cache_folder}",
            "models, measurements and saved prompts are kept there",
            "EDGE_CACHE=/another/disk, or free some",
        )
    if seen.disk_bytes_per_s is not None and seen.disk_bytes_per_s < SLOW_DISK:
        rate = seen.disk_bytes_per_s / 1e6
        yield Finding(
            "note",
            f"the disk reads {rate:,.0f} MB/s",
            f"a model of 1 GB loads in {1e3 / rate:,.0f} s",
            "put models on an SSD: EDGE_CACHE=/path/on/it",
        )


def _clock(seen: Examination) -> Iterator[Finding]:
    if seen.clock_s < EARLIEST_S:
        yield Finding(
            "broken",
            "the clock is years behind",
            "every download fails at its certificate",
            "sudo timedatectl set-ntp true",
        )


# ---- looking


def _disk_rate(folder: Path) -> float | None:
    """Of the largest model kept, else of the native library."""
    candidates = [*folder.glob("models/**/*.gguf"), *((library.folder() or folder).glob("lib*"))]
    files = sorted((file for file in candidates if file.is_file()), key=lambda file: file.stat().st_size)
    return probes.disk_read_rate(files[-1]) if files else None


def _pressure(root: Path) -> float | None:
    try:
        words = (root / "proc/pressure/memory").read_text().split()
        return float(next(word for word in words if word.startswith("avg10=")).removeprefix("avg10=")) / 100
    except (OSError, ValueError, StopIteration):
        return None


def _controllers(root: Path) -> frozenset[str] | None:
    top = cgroup_folders(root, "memory")[-1:] or [root / "sys/fs/cgroup"]
    try:
        return frozenset((top[0] / "cgroup.controllers").read_text().split())
    except OSError:
        return None


def _closed_devices(root: Path) -> tuple[str, ...]:
    nodes = [*root.glob("dev/dri/renderD*"), *root.glob("dev/nvidia[0-9]*"), *root.glob("dev/nvidiactl")]
    return tuple(f"/{node.relative_to(root)}" for node in sorted(nodes) if not os.access(node, os.R_OK | os.W_OK))


def _versions() -> dict[str, str]:
    found = {"edge": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in ("llama-cpp-python", "gguf", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
