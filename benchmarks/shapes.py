"""GGUF files in the true shape of known models, with random blocks for weights: what would this model do here?

The time a matrix takes depends on its shape and type and not on its values, so such a file measures as the real one
does, and is made in seconds without a download. Its vocabulary has the true size: single bytes, and fillers.
"""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFWriter, TokenType
from numpy.typing import NDArray

from benchmarks.fingerprint import SYNTHETIC_KEY
from convert.plan import N_ALIGNMENT, head_bytes
from convert.quantize import Kind, encode, row_bytes
from convert.recipes import RECIPES, Network, tensor_kinds
from edge.config import cache_dir
from edge.errors import EngineError, NoSpaceError, OutputError, UnsupportedTypeError

N_POOL_VALUES = 1 << 21  # random numbers that are encoded once for each type; every tensor is cut from them
N_FILLED_ROWS = 4096  # of an embedding table that is only looked up: the rest is a hole in the file
N_CHUNK_BYTES = 1 << 23


@dataclass(frozen=True)
class Shape:
    """The numbers of a model's config.json that its speed depends on."""

    name: str
    architecture: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_heads_kv: int
    n_vocab: int
    n_ctx: int
    is_tied: bool  # the embedding is also the output matrix
    head_dim: int | None = None
    rope_theta: float = 1e6
    rms_eps: float = 1e-6

    @property
    def n_head_dim(self) -> int:
        return self.head_dim or self.n_embd // self.n_heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """(rows, columns) of each matrix, (columns,) of each vector."""
        n_q, n_kv = self.n_heads * self.n_head_dim, self.n_heads_kv * self.n_head_dim
        found: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.n_vocab, self.n_embd)}
        if not self.is_tied:
            found["output.weight"] = (self.n_vocab, self.n_embd)
        found["output_norm.weight"] = (self.n_embd,)
        for i in range(self.n_layers):
            block = {
                "attn_norm.weight": (self.n_embd,),
                "attn_q.weight": (n_q, self.n_embd),
                "attn_k.weight": (n_kv, self.n_embd),
                "attn_v.weight": (n_kv, self.n_embd),
                "attn_output.weight": (self.n_embd, n_q),
                "ffn_norm.weight": (self.n_embd,),
                "ffn_gate.weight": (self.n_ff, self.n_embd),
                "ffn_up.weight": (self.n_ff, self.n_embd),
                "ffn_down.weight": (self.n_embd, self.n_ff),
            }
            if self.architecture == "qwen2":
                block |= {"attn_q.bias": (n_q,), "attn_k.bias": (n_kv,), "attn_v.bias": (n_kv,)}
            if self.architecture == "qwen3":
                block |= {"attn_q_norm.weight": (self.n_head_dim,), "attn_k_norm.weight": (self.n_head_dim,)}
            found |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
        return found


_KNOWN = (
    Shape("deepseek-r1-distill-qwen-1.5b", "qwen2", 28, 1536, 8960, 12, 2, 151936, 131072, False, rope_theta=1e4),
    Shape("qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 151936, 32768, True),
    Shape("qwen2.5-1.5b", "qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, True),
    Shape("qwen2.5-3b", "qwen2", 36, 2048, 11008, 16, 2, 151936, 32768, True),
    Shape("qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 151936, 40960, True, head_dim=128),
    Shape("qwen3-1.7b", "qwen3", 28, 2048, 6144, 16, 8, 151936, 40960, True, head_dim=128),
    Shape("tinyllama-1.1b", "llama", 22, 2048, 5632, 32, 4, 32000, 2048, False, rope_theta=1e4, rms_eps=1e-5),
    Shape("llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 128256, 131072, True, rope_theta=5e5, rms_eps=1e-5),
    Shape("llama-3.2-3b", "llama", 28, 3072, 8192, 24, 8, 128256, 131072, True, rope_theta=5e5, rms_eps=1e-5),
    Shape("deepseek-r1-distill-qwen-7b", "qwen2", 28, 3584, 18944, 28, 4, 152064, 131072, False, rope_theta=1e4),
    Shape("deepseek-r1-distill-llama-8b", "llama", 32, 4096, 14336, 32, 8, 128256, 131072, False, rope_theta=5e5),
)
SHAPES = {shape.name: shape for shape in _KNOWN}


@dataclass(frozen=True)
class Layout:
    """A file to come: the type of each tensor, where it begins, and what a token reads of it."""

    shape: Shape
    type: str
    head: bytes
    kinds: dict[str, Kind]
    sizes: dict[str, int]
    offsets: dict[str, int]

    @property
    def n_bytes(self) -> int:
        name = next(reversed(self.offsets))
        return self.offsets[name] + GGUFWriter.ggml_pad(self.sizes[name], N_ALIGNMENT)

    @property
    def bytes_read_per_token(self) -> int:
        """As of a real file: all but a table that is looked up."""
        return sum(self.sizes.values()) - (0 if self.shape.is_tied else self.sizes["token_embd.weight"])

    @property
    def kv_bytes_per_token(self) -> int:
        return self.shape.n_layers * self.shape.n_heads_kv * self.shape.n_head_dim * 2 * 2

    @property
    def n_params(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shape.tensors().values())


def known_shape(name: str) -> Shape:
    """A shape by its name in any case. Raises EngineError with those there are."""
    if name.lower() not in SHAPES:
        raise EngineError(f"no shape {name} is known", f"choose one of: {', '.join(SHAPES)}")
    return SHAPES[name.lower()]


@cache
def layout(shape: Shape, type_name: str) -> Layout:
    """What the file of this shape and type holds. Raises UnsupportedTypeError."""
    recipe = RECIPES.get(type_name.upper())
    if recipe is None:
        raise UnsupportedTypeError(type_name, tuple(RECIPES))
    tensors = shape.tensors()
    network = Network(shape.architecture, shape.n_layers, shape.n_heads, shape.n_heads_kv)
    kinds = tensor_kinds(recipe, tensors, network)
    sizes = {
        name: int(np.prod(tensors[name][:-1], dtype=np.int64)) * row_bytes(kind, tensors[name][-1])
        for name, kind in kinds.items()
    }
    writer = GGUFWriter(None, shape.architecture)
    _describe(writer, shape, int(recipe.file_type))
    for name, kind in kinds.items():
        writer.add_tensor_info(name, tensors[name], np.dtype(np.float32), sizes[name], raw_dtype=kind)
    head = head_bytes(writer)
    places = accumulate((GGUFWriter.ggml_pad(n, N_ALIGNMENT) for n in sizes.values()), initial=len(head))
    return Layout(shape, recipe.name, head, kinds, sizes, dict(zip(sizes, places, strict=False)))


def model_file(name: str, type_name: str, folder: Path | None = None) -> Path:
    """The path of the file in the cache folder, made if it is not there. Raises EdgeError."""
    made = layout(known_shape(name), type_name)
    folder = folder or cache_dir() / "shapes"
    path = folder / f"{made.shape.name}-{made.type}.gguf"
    if _is_made(path, made):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        n_free = shutil.disk_usage(folder).free
        if n_free < made.n_bytes:
            raise NoSpaceError(path, made.n_bytes, n_free)
        partial = path.with_suffix(".partial")
        write(made, partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror})", "set EDGE_CACHE to another folder") from error
    return path


def _is_made(path: Path, made: Layout) -> bool:
    """Is this the file, and not one that an earlier version made?"""
    try:
        with path.open("rb") as file:
            return path.stat().st_size == made.n_bytes and file.read(len(made.head)) == made.head
    except OSError:
        return False


def write(made: Layout, path: Path) -> None:
    """The file, with the same bytes every time."""
    draw = random.Random(0)
    pools: dict[tuple[Kind, int], NDArray[np.uint8]] = {}
    tensors = made.shape.tensors()
    with path.open("wb") as file:
        file.write(made.head)
        for name, kind in made.kinds.items():
            file.seek(made.offsets[name])
            n_bytes, n_columns = made.sizes[name], tensors[name][-1]
            if len(tensors[name]) == 1:
                value = 1.0 if "norm" in name else 0.0
                file.write(np.full(tensors[name], value, np.float32).tobytes())
                continue
            if name == "token_embd.weight" and not made.shape.is_tied:
                n_bytes = min(n_bytes, N_FILLED_ROWS * row_bytes(kind, n_columns))
            if (kind, n_columns) not in pools:
                pools[kind, n_columns] = _pool(kind, n_columns)
            for chunk in _cut(pools[kind, n_columns], n_bytes, row_bytes(kind, n_columns), draw):
                file.write(chunk)
        file.truncate(made.n_bytes)


def _pool(kind: Kind, n_columns: int) -> NDArray[np.uint8]:
    """Random rows of a matrix in the type `kind`, of a size that keeps values from growing layer by layer."""
    n_rows = max(1, N_POOL_VALUES // n_columns)
    values = np.random.default_rng(n_columns).standard_normal((n_rows, n_columns), dtype=np.float32)
    values /= np.float32(n_columns**0.5)
    out = np.empty(n_rows * row_bytes(kind, n_columns), np.uint8)
    assert encode(values, kind, out), "small random numbers can be encoded"
    return out


def _cut(pool: NDArray[np.uint8], n_bytes: int, n_row_bytes: int, draw: random.Random) -> Iterator[memoryview]:
    """n_bytes out of whole rows of the pool, from another row each time, so that no two tensors are alike."""
    left = n_bytes
    while left:
        start = draw.randrange(pool.size // n_row_bytes) * n_row_bytes
        chunk = pool.data[start : start + min(left, N_CHUNK_BYTES)]
        yield chunk
        left -= len(chunk)


def _describe(writer: GGUFWriter, shape: Shape, file_type: int) -> None:
    writer.add_name(f"{shape.name}, random weights")
    writer.add_string(SYNTHETIC_KEY, "synthetic")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_heads_kv)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_vocab_size(shape.n_vocab)
    if shape.head_dim:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.n_head_dim)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    # a vocabulary of the true size: every byte, an end, and words that no text is read as but that show when generated
    characters = _byte_characters()
    fillers = [f"{characters[ord(' ')]}filler_{i}" for i in range(shape.n_vocab - 257)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*characters, "<end>", *fillers])
    writer.add_token_types([*[TokenType.NORMAL] * 256, TokenType.CONTROL, *[TokenType.NORMAL] * len(fillers)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(256)
    writer.add_add_bos_token(False)


def _byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: printable ones for themselves, the rest
    from U+0100 on, as GPT-2 has it."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
