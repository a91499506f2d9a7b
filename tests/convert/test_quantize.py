"""The door to ggml: exact sizes, exact bytes, every core, and the first error ends it."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from gguf import quants

from convert.quantize import Kind, Scratch, encode, in_parallel, row_bytes

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q5_K", "Q4_K", "IQ4_NL", "IQ4_XS")


def values(n_rows: int = 8, n_columns: int = 512) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((n_rows, n_columns), dtype=np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_decoded_values_are_near_the_originals(name: str) -> None:
    """gguf-py's own decoders are the judge."""
    kind, source = getattr(Kind, name), values()
    out = np.empty(8 * row_bytes(kind, 512), np.uint8)
    assert encode(source, kind, out)
    decoded = quants.dequantize(
        out.reshape(8, -1).view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8)), kind
    )
    error = np.sqrt(np.mean((decoded - source) ** 2))
    assert error < {"F32": 1e-9, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2}.get(name, 0.12)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_bytes_are_those_of_gguf_py(name: str) -> None:
    kind, source = getattr(Kind, name), values()
    out = np.empty(8 * row_bytes(kind, 512), np.uint8)
    encode(source, kind, out)
    assert out.tobytes() == quants.quantize(source, kind).tobytes()


def test_rows_are_independent() -> None:
    """What a block holds does not matter for its rows."""
    source = values()
    whole = np.empty(8 * row_bytes(Kind.Q4_K, 512), np.uint8)
    encode(source, Kind.Q4_K, whole)
    part = np.empty(3 * row_bytes(Kind.Q4_K, 512), np.uint8)
    encode(source[2:5], Kind.Q4_K, part)
    assert part.tobytes() == whole.reshape(8, -1)[2:5].tobytes()


def test_importance_changes_the_choice() -> None:
    source = values()
    plain, weighted = (np.empty(8 * row_bytes(Kind.Q4_K, 512), np.uint8) for _ in range(2))
    encode(source, Kind.Q4_K, plain)
    importance = np.ones(512, np.float32)
    importance[:32] = 1000
    encode(source, Kind.Q4_K, weighted, importance)
    errors = [
        np.abs(quants.dequantize(out.reshape(8, -1), Kind.Q4_K) - source)[:, :32].mean() for out in (plain, weighted)
    ]
    assert errors[1] < errors[0]


def test_too_large_numbers_are_told() -> None:
    assert not encode(np.full((1, 32), 1e6, np.float32), Kind.F16, np.empty(64, np.uint8))


def test_library_is_loaded_without_llama() -> None:
    """libllama may abort the process; converting must not even load it."""
    script = (
        "import numpy as np, sys; from convert.quantize import *; "
        "encode(np.zeros((1, 256), np.float32), Kind.Q4_K, np.empty(144, np.uint8)); "
        "maps = open('/proc/self/maps').read(); "
        "assert 'libggml-base.so' in maps and 'libllama' not in maps and 'libggml-cpu' not in maps; "
        "assert 'llama_cpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_results_come_in_order_from_several_threads() -> None:
    seen: set[str] = set()
    barrier = threading.Barrier(4, timeout=10)

    def work(task: int) -> int:
        if task < 4:
            barrier.wait()  # only four threads at once get past
        seen.add(threading.current_thread().name)
        return task * task

    assert list(in_parallel(work, range(50), 4)) == [i * i for i in range(50)]
    assert len(seen) == 4


def test_tasks_are_drawn_as_they_are_needed() -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for i in range(1000):
            drawn.append(i)
            yield i

    results = in_parallel(lambda task: task, tasks(), 2)
    next(results)
    assert len(drawn) <= 5
    results.close()


def test_first_error_ends_it() -> None:
    done: list[int] = []

    def work(task: int) -> None:
        if task == 3:
            raise ValueError("three")
        time.sleep(0.001)
        done.append(task)

    with pytest.raises(ValueError, match="three"):
        list(in_parallel(work, range(1000), 2))
    assert len(done) < 20


def test_scratch_arrays_are_one_thread_s_own() -> None:
    scratch = Scratch()
    mine = scratch.floats("values", 2, 3)
    assert scratch.floats("values", 1, 2).base is mine.base
    others: list[object] = []
    thread = threading.Thread(target=lambda: others.append(scratch.floats("values", 2, 3).base))
    thread.start()
    thread.join()
    assert others[0] is not mine.base
