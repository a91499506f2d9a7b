"""A command run to its end, and what it and the processes it started took."""

import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge.errors import EngineError

SAMPLE_S = 0.02


@dataclass(frozen=True)
class Run:
    """What one or more commands took, one after another. Memory: at most, at once, of all processes together."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    n_written_bytes: int = 0  # 0 where the kernel does not count them
    n_anonymous_bytes: int = 0
    n_beside_bytes: int = 0  # the same, without the model that a process has been given to read

    def __add__(self, other: "Run") -> "Run":
        return Run(
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
            self.n_written_bytes + other.n_written_bytes,
            max(self.n_anonymous_bytes, other.n_anonymous_bytes),
            max(self.n_beside_bytes, other.n_beside_bytes),
        )


def measure(
    *words: object,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    models: Sequence[Path] = (),
) -> Run:
    """Run a command to its end. Raises EngineError with its last words if it fails.

    environment: variables beside those of this process. models: files that its children hold whole in memory.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    watcher = _Watcher(process.pid, {str(path): path.stat().st_size for path in models})
    watcher.start()
    said, _ = process.communicate()
    wall_s = time.perf_counter() - start
    watcher.finish()
    if process.returncode != 0:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
        raise EngineError(f"{words[0]} failed ({last})", "run it by hand with the same arguments")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    written = 512 * (after.ru_oublock - before.ru_oublock)
    return Run(wall_s, cpu_s, written, watcher.n_anonymous_bytes, watcher.n_beside_bytes)


class _Watcher(threading.Thread):
    """Looks at a process and its children fifty times a second, and keeps the most that it saw.

    A look must cost nothing, or it would be measured: /proc tells a process's children where Linux has been built so,
    where psutil has to look at every process there is.
    """

    def __init__(self, pid: int, models: Mapping[str, int]) -> None:
        super().__init__()
        self.n_anonymous_bytes = self.n_beside_bytes = 0
        self._pid = pid
        self._models = models
        self._is_done = threading.Event()

    def run(self) -> None:
        while not self._is_done.wait(SAMPLE_S):
            taken = {pid: _anonymous_bytes(pid) for pid in _descendants(self._pid)}
            own = _anonymous_bytes(self._pid)
            beside = sum(max(0, n - self._model_bytes(pid)) for pid, n in taken.items())
            self.n_anonymous_bytes = max(self.n_anonymous_bytes, own + sum(taken.values()))
            self.n_beside_bytes = max(self.n_beside_bytes, own + beside)

    def finish(self) -> None:
        self._is_done.set()
        self.join()

    def _model_bytes(self, pid: int) -> int:
        try:
            line = " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            return 0
        return max((n for path, n in self._models.items() if path in line), default=0)


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        try:
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return []
    return [*children, *(further for child in children for further in _descendants(child))]


def _anonymous_bytes(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))  # Linux: shared is what files back
