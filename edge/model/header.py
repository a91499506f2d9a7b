"""The header of a GGUF file: metadata and tensors. Knows nothing of paths, models or libllama; `read_at` gives bytes.

Every count, length, offset and shape is compared with what is left of the file before anything is read or allocated,
and the header as a whole has ceilings (MAX_…), so a hostile one ends in HeaderError in well under a second, whatever
it claims. Arrays of more than 1,024 values stay in the file as StoredArray and are decoded when somebody asks.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3 have the same layout.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from edge.model.cursor import (
    DOWNLOAD_AGAIN,
    MAX_ITEMS,
    SCALARS,
    Cursor,
    HeaderError,
    ReadAt,
    Scalar,
    StoredArray,
    Value,
)

MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = 1 << 16
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME with its closing zero
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_SHARDS = 512  # of one model; the largest known has 163
EAGER_ITEMS = 1024  # arrays up to this length are decoded at once
DEFAULT_ALIGNMENT = 32

STRING, ARRAY = 8, 9
TENSOR_TYPES = {  # ggml type -> (name, elements per block, bytes per block); ggml-common.h
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
FIXED_TYPES = {SPLIT_NO: 2, SPLIT_COUNT: 2, SPLIT_TENSORS: 5}  # of another type, libllama refuses them or aborts
RETIRED_TENSOR_TYPES = (4, 5, 31, 32, 33, 36, 37, 38)  # once in files, no longer in ggml


@dataclass(frozen=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]  # fastest dimension first, as in the file: (n_embd, n_vocab) for token_embd.weight
    type_name: str
    offset: int  # from the start of the file
    n_bytes: int
    file: int = 0  # which of the model's files, where it is kept in several

    @property
    def n_elements(self) -> int:
        n = 1
        for dim in self.shape:
            n *= dim
        return n


@dataclass(frozen=True)
class Header:
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    kept: tuple[bytes, ...]  # the items of the one string array that was asked for, as they lie in the file

    @property
    def shard(self) -> tuple[int, int]:
        """Which of how many files of a model this is, counted from 0; (0, 1) for a whole one."""
        number, count = self.metadata.get(SPLIT_NO, 0), self.metadata.get(SPLIT_COUNT, 1)
        assert isinstance(number, int)
        assert isinstance(count, int)
        return number, count or 1


def read_header(read_at: ReadAt, n_bytes: int, keep: str = "") -> Header:
    """Return the header of a GGUF file of n_bytes. keep: key of a string array whose raw items are wanted too.

    Raises HeaderError. Whatever read_at raises passes through.
    """
    cursor = Cursor(read_at, n_bytes)
    version, n_tensors, n_keys = _preamble(cursor)

    # metadata
    metadata: dict[str, Value] = {}
    kept: list[bytes] = []
    for _ in range(n_keys):
        key = _key(cursor)
        if key in metadata:
            raise HeaderError(f"has the key {key!r} twice")
        metadata[key] = _value(cursor, key, kept if key == keep else None)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise HeaderError(f"general.alignment is {alignment!r}, not a power of two")
    if alignment < DEFAULT_ALIGNMENT and n_tensors:
        raise HeaderError(  # ggml asserts 32-byte aligned buffers when it maps the file
            f"its tensors are aligned to {alignment} bytes, ggml needs {DEFAULT_ALIGNMENT}", "convert the model again"
        )

    # tensors
    infos = [_tensor_info(cursor) for _ in range(n_tensors)]
    if len({name for name, *_ in infos}) != len(infos):
        raise HeaderError("has two tensors of the same name")
    tensors = _placed(infos, cursor.position, alignment, n_bytes)
    return Header(version, MappingProxyType(metadata), tensors, tuple(kept))


def joined(headers: Sequence[Header]) -> tuple[TensorInfo, ...]:
    """The tensors of a model in several files, given in order. Raises HeaderError if they are not all of one model."""
    tensors = tuple(replace(tensor, file=i) for i, header in enumerate(headers) for tensor in header.tensors)
    n_told = headers[0].metadata.get(SPLIT_TENSORS)
    if n_told != len(tensors):
        raise HeaderError(f"says that its {len(headers)} files hold {n_told} tensors; they hold {len(tensors)}")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise HeaderError(f"has a tensor in two of its {len(headers)} files")
    return tensors


def check_shard(header: Header, number: int, count: int) -> None:
    """Raise HeaderError if a file is not this one of the files of a model, counted from 0."""
    if SPLIT_NO not in header.metadata:  # libllama reads nothing else of the metadata of a further file
        raise HeaderError("is no part of a model", DOWNLOAD_AGAIN)
    if header.shard != (number, count):
        told = f"file {header.shard[0] + 1} of {header.shard[1]}"
        raise HeaderError(f"is {told} inside, and by its name file {number + 1} of {count}", DOWNLOAD_AGAIN)


def _preamble(cursor: Cursor) -> tuple[int, int, int]:
    """Return (version, n_tensors, n_keys), or say what the file is instead."""
    if cursor.n_bytes == 0:
        raise HeaderError("is empty", DOWNLOAD_AGAIN)
    start = cursor.peek(64)
    if start[:4] != b"GGUF":
        raise _stranger(start, cursor.n_bytes)
    cursor.take(4)
    version = cursor.u32()
    if version & 0xFFFF == 0:
        raise HeaderError("is a big-endian GGUF file", "convert the model again on a little-endian machine")
    if version not in (2, 3):
        raise HeaderError(f"is GGUF version {version}, versions 2 and 3 can be read", "convert the model again")
    n_tensors, n_keys = cursor.u64(), cursor.u64()
    for n, what, n_most, n_bytes_least in (
        (n_tensors, "tensors", MAX_TENSORS, 33),  # name length, a dimension count, one dimension, type, offset, …
        (n_keys, "metadata entries", MAX_KEYS, 14),  # key length, one letter, type, one byte
    ):
        if n > n_most or n * n_bytes_least > cursor.n_bytes:
            raise HeaderError(f"claims {n} {what}, too many for its {cursor.n_bytes} bytes")
    return version, n_tensors, n_keys


def _stranger(start: bytes, n_bytes: int) -> HeaderError:
    """Name a file that is not GGUF by its first bytes."""
    shown = start[:8].decode("ascii", "replace")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if n_bytes < 4 and b"GGUF".startswith(start):
        return HeaderError(f"is incomplete: it has {n_bytes} bytes", DOWNLOAD_AGAIN)
    if text.startswith((b"<!do", b"<htm", b"<?xm")):
        return HeaderError(f"is a web page, not a GGUF file (starts with {shown!r})", "download the file itself")
    if text.startswith(b"version https://git-lfs"):
        return HeaderError("is a git-lfs pointer, not the model itself", "run git lfs pull in its folder")
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < n_bytes:
        return HeaderError("is a safetensors checkpoint, not a GGUF file", "convert its folder with edge convert")
    if start[:4] == b"PK\x03\x04" or start[:2] == b"\x80\x02":
        return HeaderError(
            "is a PyTorch or zip file, not a GGUF file", "convert the model's safetensors folder with edge convert"
        )
    if start[:4] in (b"lmgg", b"tjgg", b"algg", b"fmgg"):
        return HeaderError("is in a format from before GGUF", "download or convert a GGUF file of the model")
    return HeaderError(f"is not a GGUF file (starts with {shown!r})", "name a .gguf file")


def _key(cursor: Cursor) -> str:
    raw = cursor.string(MAX_KEY_BYTES, "a metadata key")
    if not raw or not raw.isascii() or not raw.decode("ascii").isprintable():
        raise HeaderError(f"has the metadata key {raw[:40]!r}")  # a NUL would hide a second key from C code
    return raw.decode("ascii")


def _value(cursor: Cursor, key: str, kept: list[bytes] | None) -> Value:
    """Return the value of a key. kept, if given, receives the raw items of a string array."""
    kind = cursor.u32()
    if FIXED_TYPES.get(key, kind) != kind:
        raise HeaderError(f"{key} is of a type that llama.cpp cannot read")
    if kind == STRING:
        return cursor.text(key)
    if kind == ARRAY:
        return _array(cursor, key, kept)
    if kind not in SCALARS:
        raise HeaderError(f"{key} has the unknown value type {kind}")
    return cursor.scalar(SCALARS[kind][1])


def _array(cursor: Cursor, key: str, kept: list[bytes] | None) -> Value:
    kind, count = cursor.u32(), cursor.u64()
    if kind == ARRAY:
        raise HeaderError(f"{key} is an array of arrays, which nothing reads")
    if kind != STRING and kind not in SCALARS:
        raise HeaderError(f"{key} is an array of the unknown type {kind}")
    item_bytes = 8 if kind == STRING else struct.calcsize(SCALARS[kind][1])  # of a string: its length at least
    if count > MAX_ITEMS or count * item_bytes > cursor.n_bytes - cursor.position:
        raise HeaderError(f"{key} claims {count} items, too many for its {cursor.n_bytes} bytes")
    offset = cursor.position
    if kind == STRING:
        items = cursor.walk_strings(count, keep=kept is not None or count <= EAGER_ITEMS)
        if kept is not None:
            kept.extend(items)
        if count <= EAGER_ITEMS:
            cursor.charge_text(sum(map(len, items)), key)
            return tuple(item.decode("utf-8", "replace") for item in items)
        return StoredArray("string", count, offset, cursor.position - offset, cursor.read_at)
    name, code = SCALARS[kind]
    if count <= EAGER_ITEMS:
        values: tuple[Scalar, ...] = struct.unpack(f"<{count}{code}", cursor.take(count * item_bytes))
        return values
    cursor.skip(count * item_bytes)
    return StoredArray(name, count, offset, count * item_bytes, cursor.read_at)


def _tensor_info(cursor: Cursor) -> tuple[str, tuple[int, ...], str, int, int]:
    """Return (name, shape, type name, offset in the data section, n_bytes)."""
    raw = cursor.string(MAX_TENSOR_NAME_BYTES, "a tensor name")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name.isprintable() or not name:
        raise HeaderError(f"has a tensor named {raw!r}")
    n_dims = cursor.u32()
    if not 1 <= n_dims <= MAX_DIMS:
        raise HeaderError(f"tensor {name} has {n_dims} dimensions")
    shape: tuple[int, ...] = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims))
    kind, offset = cursor.u32(), cursor.u64()
    if kind in RETIRED_TENSOR_TYPES:
        raise HeaderError(f"tensor {name} has type {kind}, which llama.cpp dropped", "convert the model again")
    if kind not in TENSOR_TYPES:
        raise HeaderError(f"tensor {name} has the unknown type {kind}", "update edge, or convert the model again")
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    n_elements = 1
    for dim in shape:
        n_elements *= dim
        if dim < 1 or n_elements >= 1 << 63:
            raise HeaderError(f"tensor {name} has the impossible shape {shape}")
    if shape[0] % block:
        raise HeaderError(f"tensor {name} has rows of {shape[0]} values, {type_name} needs multiples of {block}")
    return name, shape, type_name, offset, n_elements // block * block_bytes


def _placed(
    infos: list[tuple[str, tuple[int, ...], str, int, int]], end: int, alignment: int, n_bytes: int
) -> tuple[TensorInfo, ...]:
    """Turn offsets in the data section into offsets in the file, each tensor right behind the last, all inside."""
    start = -(-end // alignment) * alignment
    expected = 0
    tensors = []
    for name, shape, type_name, offset, size in infos:
        if offset != expected:  # llama.cpp accepts no other place, so overlaps and holes end here too
            raise HeaderError(f"tensor {name} lies at {offset}, it must lie at {expected}")
        if start + offset + size > n_bytes:
            needed = start + offset + size
            problem = f"is incomplete: tensor {name} ends at byte {needed}, the file has {n_bytes}"
            raise HeaderError(problem, DOWNLOAD_AGAIN)
        tensors.append(TensorInfo(name, shape, type_name, start + offset, size))
        expected = -(-(offset + size) // alignment) * alignment
    return tuple(tensors)
