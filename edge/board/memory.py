"""Memory of this machine and of a process: what there is, what may be used, what is used. In bytes, never guessed.

Read below a root folder, so a recorded board can stand in for this one. What the system does not tell is None.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from edge.board.topology import cgroup_folders

UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 where nothing is limited


@dataclass(frozen=True)
class Memory:
    """What this process may use. A cgroup's limit counts as the machine's where it is the smaller one."""

    total_bytes: int  # of the machine
    available_bytes: int  # without pushing anybody into swap: free, and what the kernel can drop; cgroups honoured
    limit_bytes: int  # the machine's, or the tightest cgroup's
    cgroup_limit_bytes: int | None
    swap_total_bytes: int
    swap_free_bytes: int
    zram_bytes: int  # of the swap, what lies compressed in memory itself
    page_bytes: int | None


@dataclass(frozen=True)
class ProcessMemory:
    """Resident bytes of a process. Where nothing tells them apart, all are anonymous."""

    anonymous_bytes: int
    file_bytes: int  # mapped files: the kernel can drop them
    peak_bytes: int

    @property
    def resident_bytes(self) -> int:
        return self.anonymous_bytes + self.file_bytes


def read_memory(root: Path = Path("/")) -> Memory | None:
    """The machine below root; None where nothing is known of it."""
    if (values := _meminfo(root)) is None:
        return _from_psutil() if root == Path("/") else None
    total, available = values["MemTotal"], values.get("MemAvailable", values.get("MemFree", 0))
    limits = [(limit, used) for folder in cgroup_folders(root, "memory") if (limit := _limit(folder)) is not None
              for used in [_used(folder)]]  # fmt: skip
    cgroup_limit = min((limit for limit, _ in limits), default=None)
    if cgroup_limit is not None and cgroup_limit >= total:
        cgroup_limit = None
    available = min([available, *(max(0, limit - used) for limit, used in limits)])
    return Memory(
        total_bytes=total,
        available_bytes=available,
        limit_bytes=total if cgroup_limit is None else cgroup_limit,
        cgroup_limit_bytes=cgroup_limit,
        swap_total_bytes=values.get("SwapTotal", 0),
        swap_free_bytes=values.get("SwapFree", 0),
        zram_bytes=sum(_number(size) or 0 for size in sorted((root / "sys/block").glob("zram*/disksize"))),
        page_bytes=_page_bytes() if root == Path("/") else None,
    )


def process_memory(pid: int, root: Path = Path("/")) -> ProcessMemory | None:
    """Resident bytes of a process; None if it is gone."""
    try:
        lines = (root / f"proc/{pid}/status").read_text().splitlines()
    except OSError:
        return _process_from_psutil(pid) if root == Path("/") and sys.platform != "linux" else None
    values = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)
              if key.startswith(("Rss", "VmHWM", "VmRSS"))}  # fmt: skip
    if "VmHWM" not in values:  # a zombie
        return None
    file = values.get("RssFile", 0) + values.get("RssShmem", 0)
    return ProcessMemory(values.get("RssAnon", values["VmRSS"]), file, values["VmHWM"])


def n_swapped_pages(root: Path = Path("/")) -> int | None:
    """Pages that went to or came from swap since boot; None where nothing tells."""
    try:
        lines = (root / "proc/vmstat").read_text().splitlines()
    except OSError:
        return _swapped_from_psutil() if root == Path("/") else None
    counts = dict(line.split(" ", 1) for line in lines if line.startswith(("pswpin ", "pswpout ")))
    return sum(int(count) for count in counts.values() if count.strip().isdigit())


def _meminfo(root: Path) -> dict[str, int] | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = {}
    for line in lines:
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            values[key] = int(words[0]) * 1024  # "kB" are KiB there
    return values if "MemTotal" in values else None


def _limit(folder: Path) -> int | None:
    """A cgroup's limit, version 2 or 1; memory.high throttles as soon as it is passed, so it is one too."""
    found = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    return min((value for value in found if value is not None and value < UNLIMITED), default=None)


def _used(folder: Path) -> int:
    """What a cgroup uses and cannot drop."""
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    try:
        stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines() if " " in line)
    except OSError:
        return used
    for name in ("total_inactive_file", "inactive_file"):  # pages of files, the kernel takes them back at once
        if stat.get(name, "").isdigit():
            return max(0, used - int(stat[name]))
    return used


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _page_bytes() -> int:
    import mmap

    return mmap.PAGESIZE


def _from_psutil() -> Memory | None:
    """macOS: loaded there only, its import takes as long as everything else here."""
    try:
        import psutil

        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    except (ImportError, OSError):
        return None
    return Memory(
        memory.total,
        memory.available,
        memory.total,
        None,
        swap.total,
        swap.free,
        zram_bytes=0,
        page_bytes=_page_bytes(),
    )


def _process_from_psutil(pid: int) -> ProcessMemory | None:
    import psutil

    try:
        rss = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    return ProcessMemory(rss, 0, rss)


def _swapped_from_psutil() -> int:
    import psutil

    swap = psutil.swap_memory()
    return int(swap.sin + swap.sout) // _page_bytes()
