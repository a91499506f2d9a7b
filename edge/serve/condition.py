"""The state of the board beside a chat: heat, memory, throttling. None where the machine does not tell."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")  # Raspberry Pi


def temperature_celsius() -> float | None:
    """The hottest sensor of the processor; None where there is none."""
    read: Callable[[], dict[str, list[Any]]] = getattr(psutil, "sensors_temperatures", dict)  # not on macOS
    sensors = read()
    found = [sensor.current for name, group in sensors.items() if "nvme" not in name for sensor in group]
    return max(found, default=None)


def memory_bytes(pid: int | None) -> int:
    """Resident memory of this process and the engine's, pid."""
    total = 0
    for process in {os.getpid(), pid or os.getpid()}:
        with suppress(psutil.Error):
            total += psutil.Process(process).memory_info().rss
    return total


def is_throttled() -> bool | None:
    """A Raspberry Pi that is too hot or has too little voltage now; None elsewhere."""
    try:
        return bool(int(THROTTLED.read_text(), 16) & 0xF)
    except (OSError, ValueError):
        return None
