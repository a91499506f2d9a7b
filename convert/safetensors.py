"""A safetensors file: where its tensors lie, by its header, and their numbers as float32. Reads bytes by `read_at`.

A header is a length (u64), JSON, then the numbers without holes. Every number in it is checked against the length of
the file before it is used.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.folder import DOWNLOAD_AGAIN, parse_json, remedy_for
from edge.errors import CheckpointError

ReadAt = Callable[[int, int], bytes]  # (offset, n) -> n bytes, fewer only where the file ends

N_HEADER_BYTES_MAX = 16_000_000  # 20 000 tensors; the format's own limit is 100 MB
N_TENSORS_MAX = 20_000  # a dense 126-layer model has 1138
N_DIMENSIONS_MAX = 4
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
WIDTHS = {  # bytes per number of each safetensors dtype
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("BF16", "F16", "F32")  # what `decode` turns into float32

NOT_A_MODEL = "convert a checkpoint of a language model"


@dataclass(frozen=True)
class SourceTensor:
    """Where one tensor lies: `n_bytes` from `offset` (counted from the start of the file)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int

    @property
    def n_columns(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return prod(self.shape[:-1])


def decode(dtype: str, raw: memoryview, out: NDArray[np.float32]) -> None:
    """Fill `out` with the numbers that `raw` holds as one of FLOATS."""
    if dtype == "F32":
        out[...] = np.frombuffer(raw, np.float32).reshape(out.shape)
    elif dtype == "F16":
        out[...] = np.frombuffer(raw, np.float16).reshape(out.shape)
    else:  # bf16 is the upper half of a float32
        upper = np.frombuffer(raw, np.uint16).reshape(out.shape)
        np.left_shift(upper, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)


def read_header(path: Path, read_at: ReadAt, n_file_bytes: int) -> Iterator[SourceTensor]:
    """Yield the tensors of one file in the order they lie. Raises CheckpointError for whatever is not as told."""
    prefix = read_at(0, 8)
    if len(prefix) < 8:
        problem = f"has {n_file_bytes} bytes, too few for a safetensors header"
        raise CheckpointError(path, problem, DOWNLOAD_AGAIN)
    (n_header_bytes,) = struct.unpack("<Q", prefix)
    if n_header_bytes > min(N_HEADER_BYTES_MAX, n_file_bytes - 8):
        start = read_at(0, 64).decode("latin-1")
        problem = f"says its header has {n_header_bytes:,} bytes, in {n_file_bytes:,} that start with {start[:8]!r}"
        raise CheckpointError(path, problem, remedy_for(start))
    raw = read_at(8, n_header_bytes)
    try:
        header = parse_json(path, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"has a header that is not UTF-8 (byte {error.start})", DOWNLOAD_AGAIN) from error
    header.pop("__metadata__", None)
    if len(header) > N_TENSORS_MAX:
        raise CheckpointError(path, f"lists {len(header):,} tensors, more than {N_TENSORS_MAX:,}", NOT_A_MODEL)
    data_start = 8 + n_header_bytes
    tensors = [_read_entry(path, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _check_layout(path, tensors, data_start, n_file_bytes)
    yield from tensors


def _read_entry(path: Path, name: str, entry: object, data_start: int) -> SourceTensor:
    if not NAME.fullmatch(name) or ".." in name:
        raise CheckpointError(path, f"has a tensor name that is none: {name[:80]!r}", NOT_A_MODEL)
    if not isinstance(entry, dict):
        raise CheckpointError(path, f"describes tensor {name} with a {type(entry).__name__}", DOWNLOAD_AGAIN)
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise CheckpointError(path, f"tensor {name} has the unknown dtype {str(dtype)[:20]!r}", NOT_A_MODEL)
    if not 1 <= len(shape) <= N_DIMENSIONS_MAX or 0 in shape:
        problem = f"tensor {name} has the impossible shape {str(entry.get('shape'))[:80]}"
        raise CheckpointError(path, problem, DOWNLOAD_AGAIN)
    if len(offsets) != 2:
        problem = f"tensor {name} has the impossible offsets {str(entry.get('data_offsets'))[:80]}"
        raise CheckpointError(path, problem, DOWNLOAD_AGAIN)
    n_bytes = prod(shape) * WIDTHS[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        problem = f"tensor {name} needs {n_bytes:,} bytes for {dtype} {shape}, has {offsets[1] - offsets[0]:,}"
        raise CheckpointError(path, problem, DOWNLOAD_AGAIN)
    return SourceTensor(name, dtype, shape, path, data_start + offsets[0], n_bytes)


def _counts(value: object) -> tuple[int, ...]:
    """A list of integers from 0 to 2^63, else an empty tuple; JSON's true and 1.0 are no integers."""
    if isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value):
        return tuple(value)
    return ()


def _check_layout(path: Path, tensors: list[SourceTensor], data_start: int, n_file_bytes: int) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise CheckpointError(path, f"tensor {tensor.name} {what}", DOWNLOAD_AGAIN)
        end += tensor.n_bytes
    if end > n_file_bytes:
        problem = f"is incomplete: it needs {end:,} bytes and has {n_file_bytes:,}"
        raise CheckpointError(path, problem, DOWNLOAD_AGAIN)
    if end < n_file_bytes:
        problem = f"has {n_file_bytes - end:,} bytes after its last tensor"
        raise CheckpointError(path, problem, DOWNLOAD_AGAIN)
