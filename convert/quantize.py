"""The door to ggml's quantiser: float32 rows in, the bytes of a type out, on all cores. Knows no files and no models.

The only file that touches the native library for conversion: ggml-base of the installed llama_cpp package through
ctypes, without importing that package (which would load libllama). ctypes gives up the GIL while C works, so plain
threads keep every core busy.
"""

import ctypes
import importlib.util
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import local
from typing import TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from edge.errors import EngineError

Kind = GGMLQuantizationType
Task = TypeVar("Task")
Result = TypeVar("Result")

_FLOATS = ctypes.POINTER(ctypes.c_float)
# the file name with the version first: where there are both, the one without is a second copy with tables of its own
_NAMES = ("libggml-base.0.dylib", "libggml-base.dylib") if sys.platform == "darwin" else ("libggml-base.so.0",)


@cache
def _library() -> ctypes.CDLL:
    package = importlib.util.find_spec("llama_cpp")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise EngineError("the llama_cpp package is not installed", "install it with `pip install llama-cpp-python`")
    paths = [Path(folders[0]) / "lib" / name for name in _NAMES]
    path = next((path for path in paths if path.exists()), paths[0])
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"{path} cannot be loaded ({error})", "install llama-cpp-python again") from error
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # type
        _FLOATS,  # source
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # start
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # columns
        _FLOATS,  # importance of each column, or NULL
    ]
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_quantize_init.restype = None
    return library


def prepare(kinds: Iterable[Kind]) -> None:
    """Build the tables of some types once, before threads ask for them."""
    for kind in kinds:
        _library().ggml_quantize_init(int(kind))


def row_bytes(kind: Kind, n_columns: int) -> int:
    n_per_block, n_block_bytes = GGML_QUANT_SIZES[kind]
    assert n_columns % n_per_block == 0
    return n_columns // n_per_block * n_block_bytes


def encode(
    values: NDArray[np.float32], kind: Kind, out: NDArray[np.uint8], importance: NDArray[np.float32] | None = None
) -> bool:
    """Fill `out` with finite `values` (rows, columns) as `kind`; False if they are too large for it.

    importance: one weight per column. ggml itself adds a line on stderr to a False.
    """
    n_rows, n_columns = values.shape
    assert values.flags.c_contiguous
    assert out.flags.c_contiguous
    assert out.size == n_rows * row_bytes(kind, n_columns)
    assert importance is None or importance.shape == (n_columns,)
    n_bytes = _library().ggml_quantize_chunk(
        int(kind),
        values.ctypes.data_as(_FLOATS),
        out.ctypes.data,
        0,
        n_rows,
        n_columns,
        None if importance is None else importance.ctypes.data_as(_FLOATS),
    )
    assert n_bytes == out.size
    return bool(_library().ggml_validate_row_data(int(kind), out.ctypes.data, out.size))


@cache
def values_per_s(kind: Kind, *, weighted: bool = False) -> float:
    """How many numbers one core of this machine encodes in a second of its time, from a trial of 0.02 s."""
    n_columns = 4096
    values = np.random.default_rng(0).standard_normal((16, n_columns), dtype=np.float32)
    out = np.empty(16 * row_bytes(kind, n_columns), np.uint8)
    importance = np.ones(n_columns, np.float32) if weighted else None
    encode(values, kind, out, importance)  # warm up
    n_done, start = 0, time.thread_time()
    while (elapsed := time.thread_time() - start) < 0.02:
        encode(values, kind, out, importance)
        n_done += values.size
    return n_done / elapsed


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(work: Callable[[Task], Result], tasks: Iterable[Task], n_threads: int) -> Generator[Result, None, None]:
    """`work` of each task, in order, at most 2 x n_threads tasks under way. The first error ends it all."""
    with ThreadPoolExecutor(n_threads, "convert") as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                if len(under_way) == 2 * n_threads:
                    yield under_way.popleft().result()
                under_way.append(_submit(pool, work, task))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _submit(pool: ThreadPoolExecutor, work: Callable[[Task], Result], task: Task) -> Future[Result]:
    try:
        return pool.submit(work, task)
    except RuntimeError as error:  # the system allows no more threads
        problem = f"no thread can be started ({error})"
        raise EngineError(problem, "close other programs, or raise the limit of processes") from error


class Scratch(local):
    """Arrays that each thread keeps, so that a block costs no fresh pages."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def bytes(self, name: str, n_bytes: int) -> NDArray[np.uint8]:
        if name not in self._arrays or self._arrays[name].size < n_bytes:
            self._arrays[name] = np.empty(n_bytes, np.uint8)
        return self._arrays[name][:n_bytes]

    def floats(self, name: str, n_rows: int, n_columns: int) -> NDArray[np.float32]:
        return self.bytes(name, 4 * n_rows * n_columns).view(np.float32).reshape(n_rows, n_columns)
