"""A Hugging Face checkpoint: config.json and lazily read safetensors. Knows nothing of GGUF or architectures.

A checkpoint comes from a stranger: what its files say of each other is compared before it is used. Only JSON and raw
numbers are read; code and pickles in the folder are never opened.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from convert.folder import DOWNLOAD_AGAIN, Json, hub_record, open_regular, plain_file, read_json
from convert.safetensors import (
    FLOATS,
    N_TENSORS_MAX,
    NAME,
    NOT_A_MODEL,
    WIDTHS,
    ReadAt,
    SourceTensor,
    decode,
    read_header,
)
from edge.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_CONVERT_AGAIN = "leave the checkpoint alone while it is read, and convert again"


class Checkpoint:
    """An opened checkpoint: `config`, `tensors` by name, and their values a few rows at a time.

    is_remote: the shards lie elsewhere; their bytes come by `stream`, and `read` is not for them.

    Values are read with `preadv`, not through a memory map: a shard that shrinks or an SD card that fails under us
    is then an error that names the file, where a map would end the process with SIGBUS.
    """

    is_remote = False

    def __init__(self, path: Path, config: Json, tensors: Mapping[str, SourceTensor], files: dict[Path, int]) -> None:
        self.path = path
        self.config = config
        self.tensors = tensors
        self._files = files
        self._stamps = {path: _stamp(os.fstat(descriptor)) for path, descriptor in files.items()}

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read config.json and every shard's header. Raises CheckpointError for whatever is not as the format says."""
        # 1. the folder
        remedy = "name the folder that holds config.json and *.safetensors"
        try:
            empty = next(path.iterdir(), None) is None
        except NotADirectoryError:
            raise CheckpointError(path, "is a file, not a checkpoint folder", remedy) from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CheckpointError(path, f"cannot be read ({reason})", remedy) from error
        if empty:
            raise CheckpointError(path, "is an empty folder", remedy)
        # 2. the configuration
        config = read_json(path, "config.json")
        # 3. the shards
        names, weight_map = shard_names(path, sorted(entry.name for entry in path.iterdir()))
        files: dict[Path, int] = {}
        try:
            for name in names:
                shard = plain_file(path, name)
                assert shard is not None
                files[shard] = open_regular(shard)
            sources = {shard: _reader(descriptor) for shard, descriptor in files.items()}
            return cls(path, config, read_tensors(path, sources, weight_map), files)
        except BaseException:
            _close_all(files)
            raise

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards that lie on this machine."""
        return tuple(self._files)

    def read(self, tensor: SourceTensor, first_row: int, n_rows: int, out: NDArray[np.float32]) -> None:
        """Fill `out` (n_rows, n_columns) with rows from `first_row` on. Threads may call this at the same time."""
        assert tensor.dtype in FLOATS
        assert out.shape == (n_rows, tensor.n_columns)
        assert 0 <= first_row <= first_row + n_rows <= tensor.n_rows
        offset = tensor.offset + first_row * tensor.n_columns * WIDTHS[tensor.dtype]
        if tensor.dtype == "F32":
            self._read_bytes(tensor, out.data.cast("B"), offset)
            return
        raw = np.empty(out.shape, np.uint16)
        self._read_bytes(tensor, raw.data.cast("B"), offset)
        decode(tensor.dtype, raw.data.cast("B"), out)

    def rows(self, name: str, first_row: int = 0, n_rows: int | None = None) -> NDArray[np.float32]:
        """Some rows of one tensor as float32 (n_rows, n_columns)."""
        tensor = self.tensors[name]
        n_rows = tensor.n_rows - first_row if n_rows is None else n_rows
        out = np.empty((n_rows, tensor.n_columns), np.float32)
        self.read(tensor, first_row, n_rows, out)
        return out

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a shard has been replaced or written to since `open`."""
        for path, stamp in self._stamps.items():
            try:
                now = _stamp(path.stat())
            except OSError as error:
                raise CheckpointError(path, f"cannot be read any more ({error.strerror})", _CONVERT_AGAIN) from error
            if now != stamp:
                raise CheckpointError(path, "has changed during the conversion", _CONVERT_AGAIN)

    def stream(
        self, places: Sequence[tuple[str, int, int]], check: Callable[[], None], *, is_whole: bool
    ) -> Iterator[bytearray]:
        """Yield the bytes at each place (shard, from, to), given in the order of the source. Only of a remote one.

        check: called often, may raise. is_whole: the places are all that is wanted of the shards, so that each can be
        read to its end and its hash be checked.
        """
        raise NotImplementedError

    @property
    def n_bytes(self) -> int:
        """Length of the shards together."""
        return sum(path.stat().st_size for path in self.shards)

    @property
    def n_bytes_to_fetch(self) -> int:
        """What `fetch` would bring to this disk. Only of a remote one."""
        raise NotImplementedError

    def fetch(self, report: Callable[[str, int, int], None]) -> Path:
        """Bring the shards to this disk; returns the folder. report: phase, bytes done, all. Only of a remote one."""
        raise NotImplementedError

    def record(self, path: Path) -> tuple[str | None, str | None, int]:
        """Revision, SHA-256 and bytes of a shard, as far as its folder tells."""
        return (*hub_record(path), path.stat().st_size)

    @property
    def shards(self) -> tuple[Path, ...]:
        return self.files

    def close(self) -> None:
        _close_all(self._files)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_bytes(self, tensor: SourceTensor, out: memoryview, offset: int) -> None:
        n_done = 0
        while n_done < len(out):
            try:
                n_read = os.preadv(self._files[tensor.path], [out[n_done:]], offset + n_done)
            except OSError as error:
                problem = f"tensor {tensor.name} cannot be read ({error.strerror})"
                raise CheckpointError(tensor.path, problem, "check the disk, then convert again") from error
            if n_read == 0:
                raise CheckpointError(tensor.path, f"ends inside tensor {tensor.name}", _CONVERT_AGAIN)
            n_done += n_read


# the shards of a folder


def shard_names(folder: Path, names: list[str]) -> tuple[list[str], Json | None]:
    """Which of `names` are the shards, and the index's map from tensor to shard where there is one.

    The index is read from `folder`; the shards themselves may lie elsewhere.
    """
    if plain_file(folder, "model.safetensors.index.json"):
        index = read_json(folder, "model.safetensors.index.json")
        path = folder / "model.safetensors.index.json"
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(path, "has no weight_map", DOWNLOAD_AGAIN)
        shards = sorted({_shard_name(path, value) for value in weight_map.values()})
        for name in shards:
            if name not in names:
                raise CheckpointError(path, f"names the shard {name}, which is not there", DOWNLOAD_AGAIN)
        return shards, weight_map
    shards = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    if not shards:
        raise _no_weights(folder, names)
    return shards, None


def read_tensors(
    folder: Path, shards: Mapping[Path, tuple[ReadAt, int]], index: Json | None
) -> dict[str, SourceTensor]:
    """The tensors of all shards, each given by a reader and its length in bytes; checked against the index."""
    tensors: dict[str, SourceTensor] = {}
    for shard, (read_at, n_bytes) in shards.items():
        for tensor in read_header(shard, read_at, n_bytes):
            if tensor.name in tensors:
                other = tensors[tensor.name].path.name
                raise CheckpointError(shard, f"tensor {tensor.name} is in {other} too", DOWNLOAD_AGAIN)
            tensors[tensor.name] = tensor
        if len(tensors) > N_TENSORS_MAX:
            raise CheckpointError(shard, f"more than {N_TENSORS_MAX} tensors", NOT_A_MODEL)
    if index is not None:
        _check_index(folder, index, tensors)
    return tensors


def _reader(descriptor: int) -> tuple[ReadAt, int]:
    return lambda offset, n: os.pread(descriptor, n, offset), os.fstat(descriptor).st_size


def _shard_name(index: Path, name: object) -> str:
    plain = isinstance(name, str) and NAME.fullmatch(name) and not name.startswith(".")
    if not isinstance(name, str) or not plain or not name.endswith(".safetensors"):
        problem = f"names a shard {str(name)[:80]!r}, which is not a plain *.safetensors file name"
        raise CheckpointError(index, problem, "do not convert checkpoints from this source")
    return name


def _no_weights(folder: Path, names: Iterable[str]) -> CheckpointError:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        problem = f"holds its weights as a pickle ({pickles[0]}), which can run code when it is opened"
        return CheckpointError(folder, problem, "get the safetensors version of this checkpoint")
    return CheckpointError(folder, "holds no model*.safetensors", DOWNLOAD_AGAIN)


def _check_index(folder: Path, weight_map: Json, tensors: Mapping[str, SourceTensor]) -> None:
    path = folder / "model.safetensors.index.json"
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise CheckpointError(path, f"says tensor {name[:80]} is in {shard}, and it is not", DOWNLOAD_AGAIN)
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise CheckpointError(path, f"does not list tensor {name}, which is in {tensor.path.name}", DOWNLOAD_AGAIN)


def _close_all(files: dict[Path, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    """Another stamp later means another file."""
    return found.st_size, found.st_mtime_ns, found.st_ino
