"""A Hugging Face checkpoint: config.json and lazily read safetensors. Knows nothing of GGUF or architectures.

Every number in a header is checked against the length of its file before it is used: a checkpoint comes from a
stranger. Only JSON and raw numbers are read; code and pickles in the folder are never opened.
"""

import json
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CheckpointError

Json = dict[str, Any]
ReadAt = Callable[[int, int], bytes]  # (offset, n) -> n bytes, fewer only where the file ends

# Parsed JSON takes up to 20 times its text, so the limits are near what the largest files in the field have.
N_HEADER_BYTES_MAX = 16_000_000  # 20 000 tensors; the format's own limit is 100 MB
N_JSON_BYTES_MAX = 8_000_000
N_TENSORS_MAX = 20_000  # a dense 126-layer model has 1138
N_DIMENSIONS_MAX = 4
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
_REVISION, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
WIDTHS = {  # bytes per number of each safetensors dtype
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("BF16", "F16", "F32")  # what `Checkpoint.read` turns into float32
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


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
                shard = _plain_file(path, name)
                assert shard is not None
                files[shard] = _open_regular(shard)
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
        return (*_hub_record(path), path.stat().st_size)

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


def decode(dtype: str, raw: memoryview, out: NDArray[np.float32]) -> None:
    """Fill `out` with the numbers that `raw` holds as one of FLOATS."""
    if dtype == "F32":
        out[...] = np.frombuffer(raw, np.float32).reshape(out.shape)
    elif dtype == "F16":
        out[...] = np.frombuffer(raw, np.float16).reshape(out.shape)
    else:  # bf16 is the upper half of a float32
        upper = np.frombuffer(raw, np.uint16).reshape(out.shape)
        np.left_shift(upper, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)


_DOWNLOAD_AGAIN = "download the checkpoint again"
_CONVERT_AGAIN = "leave the checkpoint alone while it is read, and convert again"
_NOT_A_MODEL = "convert a checkpoint of a language model"


def read_json(folder: Path, name: str, *, n_bytes_max: int = N_JSON_BYTES_MAX) -> Json:
    """The JSON object in `folder`/`name`. Raises CheckpointError for whatever is not one."""
    path = _plain_file(folder, name)
    if path is None:
        raise CheckpointError(folder, f"has no {name}", _DOWNLOAD_AGAIN)
    return parse_json(path, read_text(path, n_bytes_max=n_bytes_max))


def read_json_if_there(folder: Path, name: str) -> Json:
    """As `read_json`; a missing file is an empty object."""
    return read_json(folder, name) if _plain_file(folder, name) else {}


def read_text_if_there(folder: Path, name: str, *, n_bytes_max: int) -> str | None:
    path = _plain_file(folder, name)
    return read_text(path, n_bytes_max=n_bytes_max) if path else None


def read_text(path: Path, *, n_bytes_max: int) -> str:
    descriptor = _open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        n_bytes = os.fstat(descriptor).st_size
        if n_bytes > n_bytes_max:
            problem = f"has {n_bytes:,} bytes, more than the {n_bytes_max:,} such a file may have"
            raise CheckpointError(path, problem, _DOWNLOAD_AGAIN)
        try:
            return file.read(n_bytes_max).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CheckpointError(path, f"is not UTF-8 text (byte {error.start})", _DOWNLOAD_AGAIN) from error


def parse_json(path: Path, text: str) -> Json:
    """The JSON object in `text`; duplicate keys, NaN and bottomless nesting are refused."""
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise CheckpointError(path, "is nested too deeply", _DOWNLOAD_AGAIN) from None
    except MemoryError:
        raise CheckpointError(path, "needs more memory than there is", "close other programs") from None
    except ValueError as error:
        raise CheckpointError(path, f"is not valid JSON ({error})", _remedy_for(text)) from error
    if not isinstance(value, dict):
        raise CheckpointError(path, f"holds a {type(value).__name__}, not an object", _DOWNLOAD_AGAIN)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} appears twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _remedy_for(text: str) -> str:
    return "run `git lfs pull` in the folder" if text.startswith("version https://git-lfs") else _DOWNLOAD_AGAIN


# the shards of a folder


def shard_names(folder: Path, names: list[str]) -> tuple[list[str], Json | None]:
    """Which of `names` are the shards, and the index's map from tensor to shard where there is one.

    The index is read from `folder`; the shards themselves may lie elsewhere.
    """
    if _plain_file(folder, "model.safetensors.index.json"):
        index = read_json(folder, "model.safetensors.index.json")
        path = folder / "model.safetensors.index.json"
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(path, "has no weight_map", _DOWNLOAD_AGAIN)
        shards = sorted({_shard_name(path, value) for value in weight_map.values()})
        for name in shards:
            if name not in names:
                raise CheckpointError(path, f"names the shard {name}, which is not there", _DOWNLOAD_AGAIN)
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
        for tensor in _read_header(shard, read_at, n_bytes):
            if tensor.name in tensors:
                other = tensors[tensor.name].path.name
                raise CheckpointError(shard, f"tensor {tensor.name} is in {other} too", _DOWNLOAD_AGAIN)
            tensors[tensor.name] = tensor
        if len(tensors) > N_TENSORS_MAX:
            raise CheckpointError(shard, f"more than {N_TENSORS_MAX} tensors", _NOT_A_MODEL)
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
    return CheckpointError(folder, "holds no model*.safetensors", _DOWNLOAD_AGAIN)


def _check_index(folder: Path, weight_map: Json, tensors: Mapping[str, SourceTensor]) -> None:
    path = folder / "model.safetensors.index.json"
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise CheckpointError(path, f"says tensor {name[:80]} is in {shard}, and it is not", _DOWNLOAD_AGAIN)
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise CheckpointError(path, f"does not list tensor {name}, which is in {tensor.path.name}", _DOWNLOAD_AGAIN)


def _plain_file(folder: Path, name: str) -> Path | None:
    """`folder`/`name` if it exists, and None if not. Raises CheckpointError for a link that leads out of the folder."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if home in target.parents or _is_hub_blob(target, home):
        return path
    raise CheckpointError(path, "is a link that leads out of the folder", "copy the file itself into the folder")


def _is_hub_blob(target: Path, home: Path) -> bool:
    """The Hugging Face cache keeps snapshots/REVISION/NAME as links to ../../blobs/HASH."""
    return home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"


def _open_regular(path: Path) -> int:
    """A descriptor for reading. Not a FIFO, a device or a folder: opening those may block for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(path, f"cannot be opened ({error.strerror})", "check its permissions") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(path, "is not a regular file", _DOWNLOAD_AGAIN)
    return descriptor


def _close_all(files: dict[Path, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    """Another stamp later means another file."""
    return found.st_size, found.st_mtime_ns, found.st_ino


# one shard's header: u64 length, JSON, then the numbers without holes


def _read_header(path: Path, read_at: ReadAt, n_file_bytes: int) -> Iterator[SourceTensor]:
    prefix = read_at(0, 8)
    if len(prefix) < 8:
        problem = f"has {n_file_bytes} bytes, too few for a safetensors header"
        raise CheckpointError(path, problem, _DOWNLOAD_AGAIN)
    (n_header_bytes,) = struct.unpack("<Q", prefix)
    if n_header_bytes > min(N_HEADER_BYTES_MAX, n_file_bytes - 8):
        start = read_at(0, 64).decode("latin-1")
        problem = f"says its header has {n_header_bytes:,} bytes, in {n_file_bytes:,} that start with {start[:8]!r}"
        raise CheckpointError(path, problem, _remedy_for(start))
    raw = read_at(8, n_header_bytes)
    try:
        header = parse_json(path, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"has a header that is not UTF-8 (byte {error.start})", _DOWNLOAD_AGAIN) from error
    header.pop("__metadata__", None)
    if len(header) > N_TENSORS_MAX:
        raise CheckpointError(path, f"lists {len(header):,} tensors, more than {N_TENSORS_MAX:,}", _NOT_A_MODEL)
    data_start = 8 + n_header_bytes
    tensors = [_read_entry(path, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _check_layout(path, tensors, data_start, n_file_bytes)
    yield from tensors


def _read_entry(path: Path, name: str, entry: object, data_start: int) -> SourceTensor:
    if not NAME.fullmatch(name) or ".." in name:
        raise CheckpointError(path, f"has a tensor name that is none: {name[:80]!r}", _NOT_A_MODEL)
    if not isinstance(entry, dict):
        raise CheckpointError(path, f"describes tensor {name} with a {type(entry).__name__}", _DOWNLOAD_AGAIN)
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise CheckpointError(path, f"tensor {name} has the unknown dtype {str(dtype)[:20]!r}", _NOT_A_MODEL)
    if not 1 <= len(shape) <= N_DIMENSIONS_MAX or 0 in shape:
        problem = f"tensor {name} has the impossible shape {str(entry.get('shape'))[:80]}"
        raise CheckpointError(path, problem, _DOWNLOAD_AGAIN)
    if len(offsets) != 2:
        problem = f"tensor {name} has the impossible offsets {str(entry.get('data_offsets'))[:80]}"
        raise CheckpointError(path, problem, _DOWNLOAD_AGAIN)
    n_bytes = prod(shape) * WIDTHS[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        problem = f"tensor {name} needs {n_bytes:,} bytes for {dtype} {shape}, has {offsets[1] - offsets[0]:,}"
        raise CheckpointError(path, problem, _DOWNLOAD_AGAIN)
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
            raise CheckpointError(path, f"tensor {tensor.name} {what}", _DOWNLOAD_AGAIN)
        end += tensor.n_bytes
    if end > n_file_bytes:
        problem = f"is incomplete: it needs {end:,} bytes and has {n_file_bytes:,}"
        raise CheckpointError(path, problem, _DOWNLOAD_AGAIN)
    if end < n_file_bytes:
        problem = f"has {n_file_bytes - end:,} bytes after its last tensor"
        raise CheckpointError(path, problem, _DOWNLOAD_AGAIN)


# what the hub told of a file


def _hub_record(path: Path) -> tuple[str | None, str | None]:
    """Revision and SHA-256 of a file, from what the Hugging Face client leaves beside it: names, or a small text."""
    folder = path.parent.resolve()
    if folder.parent.name == "snapshots":  # the cache: snapshots/REVISION/NAME is a link to ../../blobs/SHA256
        return _matching(_REVISION, folder.name), _matching(_SHA256, path.resolve().name)
    record = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"  # download into a folder
    try:
        lines = read_text(record, n_bytes_max=1000).split("\n")
    except CheckpointError:
        return None, None
    revision, digest, *_ = [*lines, "", ""]
    return _matching(_REVISION, revision), _matching(_SHA256, digest)


def _matching(pattern: re.Pattern[str], text: str) -> str | None:
    return text if pattern.fullmatch(text) else None
