"""The state of the board beside a chat: heat, memory, throttling, as edge.board tells it. None where nothing tells."""

import os
from pathlib import Path

from edge.board.memory import process_memory
from edge.board.sensors import read_heat


def temperature_celsius(root: Path = Path("/")) -> float | None:
    """The hottest sensor of the board; None where there is none."""
    hottest = read_heat(root).hottest
    return None if hottest is None else hottest.value


def is_throttled(root: Path = Path("/")) -> bool | None:
    """Is the board held back now, by heat or want of voltage; None where nothing tells."""
    throttling = read_heat(root).throttling
    return None if throttling is None else bool(throttling.now)


def resident_bytes(pid: int | None) -> int | None:
    """Resident memory of a process; None if there is none."""
    memory = None if pid is None else process_memory(pid)
    return None if memory is None else memory.resident_bytes


def memory_bytes(pid: int | None) -> int:
    """Resident memory of this process and the engine's, pid."""
    return sum(resident_bytes(process) or 0 for process in {os.getpid(), pid or os.getpid()})
