"""How fast this machine reads memory: the limit of token generation. Runs in a process of its own.

    python -m benchmarks.bandwidth [CPU]...

Each core searches a block of its own, too large for any cache, for a byte that is not there: the C library's memchr
reads with the widest loads the processor has, and does next to nothing else. The best of several passes counts.
"""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
N_BYTES_MAX, RAM_SHARE = 1 << 30, 0.25  # of all blocks together
N_PASSES = 6


def measure(cpus: Sequence[int]) -> float:
    """Bytes/s that some cores read together, measured in a fresh process; 0.0 if there is no room for it."""
    command = [sys.executable, "-m", "benchmarks.bandwidth", *map(str, cpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE_ROOT)
    return float(json.loads(done.stdout)) if done.returncode == 0 else 0.0


def read_bytes_per_s(cpus: Sequence[int]) -> float:
    """Bytes/s that some cores of this machine read together; a thread each."""
    n_total = min(N_BYTES_MAX, int(psutil.virtual_memory().available * RAM_SHARE))
    n_bytes = n_total // len(cpus)
    best = 0.0
    barrier = threading.Barrier(len(cpus) + 1)
    threads = [threading.Thread(target=_read, args=(cpu, n_bytes, barrier), daemon=True) for cpu in cpus]
    for thread in threads:
        thread.start()
    barrier.wait()  # blocks are filled
    for _ in range(N_PASSES):
        barrier.wait()
        began_s = time.perf_counter()
        barrier.wait()
        best = max(best, n_bytes * len(cpus) / (time.perf_counter() - began_s))
    for thread in threads:
        thread.join()
    return best


def _read(cpu: int, n_bytes: int, barrier: threading.Barrier) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [cpu])  # of this thread alone
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    block = ctypes.create_string_buffer(n_bytes)
    ctypes.memset(block, 1, n_bytes)  # pages that were never written are all the same page
    barrier.wait()
    for _ in range(N_PASSES):
        barrier.wait()
        found = memchr(block, 2, n_bytes)
        barrier.wait()
        assert found is None


if __name__ == "__main__":
    allowed = range(os.cpu_count() or 1)
    print(json.dumps(read_bytes_per_s([int(word) for word in sys.argv[1:]] or allowed)))  # noqa: T201 - what the parent reads
