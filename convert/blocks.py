"""Weights on their way into the files, some rows at a time: cut into blocks, read, checked, encoded, written.

No tensor is ever whole in memory. Knows where each row goes, and nothing of how that was planned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convert import quantize
from convert.checkpoint import Checkpoint
from convert.families import Weight
from convert.output import OutputFile
from convert.quantize import Kind, Scratch
from convert.safetensors import decode
from edge.errors import CheckpointError

N_BLOCK_VALUES = 1 << 20  # 4 MB of float32 per core, enough to drown Python's part of the work
N_ALL_BLOCKS_VALUES = 1 << 23  # on many cores the blocks get smaller, so that memory stays the same


@dataclass(frozen=True)
class Block:
    """Some rows of one tensor."""

    weight: Weight
    first_row: int
    n_rows: int
    raw: memoryview | None = None  # their bytes, where they do not lie on this machine

    @property
    def n_source_bytes(self) -> int:
        return self.n_rows * self.weight.source.n_bytes // self.weight.n_rows if self.weight.source else 0

    @property
    def is_last(self) -> bool:
        return self.first_row + self.n_rows == self.weight.n_rows

    @property
    def place(self) -> tuple[str, int, int]:
        """Where they lie in the source: the file's name, from and to which byte. What is made up comes first."""
        source = self.weight.source
        if source is None:
            return "", 0, 0
        start = source.offset + self.first_row * (source.n_bytes // self.weight.n_rows)
        return source.path.name, start, start + self.n_source_bytes


def cut(weights: Iterable[Weight], n_threads: int) -> Iterator[Block]:
    """The weights in pieces for so many threads, in order, each of whole groups of rows."""
    n_values = min(N_BLOCK_VALUES, N_ALL_BLOCKS_VALUES // n_threads)
    for weight in weights:
        group = len(weight.row_order) if weight.row_order is not None and len(weight.shape) > 1 else 1
        n_rows = max(1, n_values // (weight.n_columns * group)) * group
        for first in range(0, weight.n_rows, n_rows):
            yield Block(weight, first, min(n_rows, weight.n_rows - first))


def filled(
    checkpoint: Checkpoint, blocks: Sequence[Block], check: Callable[[], None], *, is_whole: bool
) -> Iterator[Block]:
    """The blocks with their bytes, read in the order of the source as one stream.

    check: called often, may raise. is_whole: nothing is left out.
    """
    raws = checkpoint.stream([block.place for block in blocks if block.weight.source], check, is_whole=is_whole)
    for block in blocks:
        yield replace(block, raw=memoryview(next(raws))) if block.weight.source else block
    for _ in raws:  # reads the last file to its end, for its hash
        pass


@dataclass(frozen=True)
class Target:
    """A file that is made: of each tensor the type and where its first row lies."""

    file: OutputFile
    kinds: Mapping[str, Kind]
    offsets: Mapping[str, int]


class Encoder:
    """What a thread does to a block: read, check, encode once per type, write to each file."""

    def __init__(
        self, checkpoint: Checkpoint, columns: Mapping[str, NDArray[np.float32]], targets: Sequence[Target]
    ) -> None:
        self.checkpoint = checkpoint
        self.columns = columns  # importance, by tensor
        self.targets = targets
        self.scratch = Scratch()

    def __call__(self, block: Block) -> Block:
        """The block that is done."""
        weight = block.weight
        values = self._read(block)
        if not np.isfinite(values).all():
            raise self._wrong(weight, f"tensor {weight.name} holds NaN or infinite numbers")
        encoded: dict[Kind, memoryview] = {}
        for target in self.targets:
            kind = target.kinds[weight.name]
            row_bytes = quantize.row_bytes(kind, weight.n_columns)
            if kind not in encoded:
                out = self.scratch.bytes(kind.name, block.n_rows * row_bytes)
                if not quantize.encode(values, kind, out, self.columns.get(weight.name)):
                    raise self._wrong(weight, f"tensor {weight.name} has numbers too large for {kind.name}")
                encoded[kind] = out.data
            target.file.write(encoded[kind], target.offsets[weight.name] + block.first_row * row_bytes)
        return block

    def _read(self, block: Block) -> NDArray[np.float32]:
        """(n_rows, n_columns), in the order of the result."""
        weight = block.weight
        if weight.source is None:
            assert weight.values is not None
            return weight.values.reshape(weight.n_rows, weight.n_columns)[block.first_row :][: block.n_rows]
        values = self.scratch.floats("values", block.n_rows, weight.n_columns)
        if block.raw is None:
            self.checkpoint.read(weight.source, block.first_row, block.n_rows, values)
        else:
            decode(weight.source.dtype, block.raw, values)
        if weight.row_order is None:
            return values
        ordered = self.scratch.floats("ordered", block.n_rows, weight.n_columns)
        groups = values.reshape(-1, len(weight.row_order), weight.n_columns if len(weight.shape) > 1 else 1)
        np.take(groups, weight.row_order, axis=1, out=ordered.reshape(groups.shape))
        return ordered

    def _wrong(self, weight: Weight, problem: str) -> CheckpointError:
        path = weight.source.path if weight.source else self.checkpoint.path
        return CheckpointError(path, problem, "download the checkpoint again, or get it from another place")
