"""Two short measurements: how fast this machine reads its memory, and its disk. Seconds at most, little memory."""

import mmap
import os
import threading
import time
from pathlib import Path

PROBE_BYTES = 64 << 20  # a thread: far beyond any cache of a board
DISK_BYTES = 64 << 20
DISK_TIME_S = 0.6


def memory_bandwidth(n_threads: int, available_bytes: int, time_s: float = 0.5) -> float | None:
    """Bytes/s that n_threads read together from memory; None where there is not enough of it to tell.

    A sum over whole numbers: one load and one add each, as near to the reading of weights as numpy comes.
    """
    import numpy as np

    n_bytes = min(PROBE_BYTES, available_bytes // (4 * max(1, n_threads)))
    if n_bytes < 8 << 20:
        return None
    blocks = [np.ones(n_bytes // 8, dtype=np.int64) for _ in range(n_threads)]
    totals = [0] * n_threads
    end_s = time.perf_counter() + time_s
    gate = threading.Barrier(n_threads)

    def read(i: int) -> None:
        gate.wait()
        while time.perf_counter() < end_s:
            blocks[i].sum()  # numpy lets the other threads run meanwhile
            totals[i] += n_bytes

    threads = [threading.Thread(target=read, args=(i,)) for i in range(n_threads)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (time.perf_counter() - started_s)


def disk_read_rate(path: Path) -> float | None:
    """Bytes/s of reading a file past the page cache; None where the file or its file system does not allow that."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    n_read = 0
    started_s = time.perf_counter()
    try:
        with mmap.mmap(-1, 1 << 20) as buffer:  # aligned, as direct reads must be
            while n_read < DISK_BYTES and time.perf_counter() - started_s < DISK_TIME_S:
                if (n := os.readv(descriptor, [buffer])) < 1 << 20:
                    n_read += n
                    break
                n_read += n
    except OSError:
        return None
    finally:
        os.close(descriptor)
    elapsed_s = time.perf_counter() - started_s
    return n_read / elapsed_s if n_read >= 1 << 20 else None
