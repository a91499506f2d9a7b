"""An importance matrix: how much each column of each weight matters, as llama-imatrix stores it in a GGUF file.

Made by `edge imatrix` or `llama-imatrix` from texts the model should be good at: the mean square of what each column is
multiplied with.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from gguf import GGUFWriter
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from edge.errors import ModelFileError
from edge.model.cursor import HeaderError
from edge.model.header import Header, TensorInfo, read_header

SUMS, COUNTS = ".in_sum2", ".counts"

_MAKE_IT_AGAIN = "make it again from this model with `edge imatrix`"


@dataclass(frozen=True)
class ImportanceMatrix:
    """One weight per column, by GGUF tensor name."""

    path: Path
    columns: Mapping[str, NDArray[np.float32]]
    datasets: tuple[str, ...]
    n_chunks: int

    @classmethod
    def read(cls, path: Path) -> "ImportanceMatrix":
        """Raises ModelFileError if the file is no importance matrix."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ModelFileError(path, f"cannot be opened ({error.strerror})", "name an importance matrix") from error
        try:
            return cls._read(path, descriptor)
        except HeaderError as error:
            raise ModelFileError(path, error.problem, error.remedy) from error
        except OSError as error:
            raise ModelFileError(path, f"cannot be read ({error.strerror})", "check the disk") from error
        finally:
            os.close(descriptor)

    @classmethod
    def _read(cls, path: Path, descriptor: int) -> "ImportanceMatrix":
        n_bytes = os.fstat(descriptor).st_size
        header = read_header(lambda offset, n: os.pread(descriptor, n, offset), n_bytes)
        tensors = {tensor.name: tensor for tensor in header.tensors}
        names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
        if not names:
            raise ModelFileError(path, "is a GGUF file, but no importance matrix", "name one made by `edge imatrix`")
        columns = {name: _columns(path, descriptor, tensors, name) for name in names}
        return cls(path, columns, _datasets(header), _n_chunks(header))

    def of(self, name: str, n_columns: int) -> NDArray[np.float32] | None:
        """The weights of a tensor's columns, None if the matrix does not know it."""
        columns = self.columns.get(name)
        if columns is None or len(columns) == n_columns:
            return columns
        if name == "token_embd.weight":  # looked up, not multiplied; llama-imatrix may have counted something else
            return None
        problem = f"has {len(columns)} columns for {name}, the model has {n_columns}"
        raise ModelFileError(self.path, problem, _MAKE_IT_AGAIN)


def document(sums: Mapping[str, NDArray[np.float64]], counts: Mapping[str, int], dataset: str, n_ctx: int) -> bytes:
    """The file's content, from the sum of squares of each column and how many rows were summed, by tensor name."""
    writer = GGUFWriter(None, "imatrix")
    del writer.kv_data[0]["general.architecture"]  # llama-imatrix writes none
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", max(counts.values()) // n_ctx)
    writer.add_uint32("imatrix.chunk_size", n_ctx)
    values: list[NDArray[np.float32]] = []
    for name in sorted(sums):
        for end, tensor in ((SUMS, sums[name]), (COUNTS, np.array([counts[name]]))):
            values.append(tensor.astype(np.float32))
            writer.add_tensor_info(name + end, values[-1].shape, values[-1].dtype, values[-1].nbytes)
    buffer = io.BytesIO()
    writer.fout, writer.state = [cast(io.BufferedWriter, buffer)], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for block in (b"", *(value.tobytes() for value in values)):
        buffer.write(block)
        buffer.write(bytes(-buffer.tell() % writer.data_alignment))
    return buffer.getvalue()


def _columns(path: Path, descriptor: int, tensors: dict[str, TensorInfo], name: str) -> NDArray[np.float32]:
    """Sum / count; 1 where nothing was counted."""
    sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
    if counts is None or counts.n_elements != 1 or {sums.type_name, counts.type_name} != {"F32"}:
        raise ModelFileError(path, f"has no plain sums and counts for {name}", _MAKE_IT_AGAIN)
    values, count = _floats(descriptor, sums), _floats(descriptor, counts)[0]
    if not np.isfinite(values).all() or not np.isfinite(count) or (values < 0).any() or count < 0:
        raise ModelFileError(path, f"has numbers for {name} that are no sums of squares", _MAKE_IT_AGAIN)
    return values / count if count > 0 else np.ones_like(values)


def _floats(descriptor: int, tensor: TensorInfo) -> NDArray[np.float32]:
    return np.frombuffer(os.pread(descriptor, tensor.n_bytes, tensor.offset), np.float32)


def _datasets(header: Header) -> tuple[str, ...]:
    found = header.metadata.get("imatrix.datasets", ())
    return tuple(str(name) for name in found) if isinstance(found, tuple) else ()


def _n_chunks(header: Header) -> int:
    found = header.metadata.get("imatrix.chunk_count", 0)
    return found if type(found) is int else 0
