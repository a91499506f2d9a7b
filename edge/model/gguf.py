"""What a GGUF file says of itself: ModelInfo, from the header alone. Believes nothing; libllama comes after us.

libllama ends its process on some files that are well-formed (a layer count of 0, a token that occurs twice, …), so
what a header can reveal of that is refused here, by name. What it cannot reveal, the engine process absorbs.

    read_model_info(Path("model.gguf")).n_layers        # raises ModelFileError

A model in several files is named by its first one, and told as a whole.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.model import shards
from edge.model.cursor import HeaderError, ReadAt, Scalar, StoredArray, Value, shown
from edge.model.disk import blamed_on, open_on_disk
from edge.model.header import MAX_SHARDS, Header, TensorInfo, check_shard, joined, read_header
from edge.model.vocabulary import TOKENS_KEY, check_vocabulary, special_id, special_ids

OpenFile = Callable[[Path], tuple[ReadAt, int]]  # how to read a file, and its length

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS, asserted
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS, asserted
MAX_CTX_TOKENS = 1 << 24  # a longer context is a slip or a trap; the longest known model claims 10,485,760
ROPE_SCALING_TYPES = ("none", "linear", "yarn", "longrope")
FILE_TYPES = {  # general.file_type -> name; llama.h, enum llama_ftype
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS"},
    **{20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M"},
    **{28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE"},
    **{39: "NVFP4", 40: "Q1_0", 41: "Q2_0"},
}
SAMPLING_KEYS = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}  # theirs -> ours
LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight")  # one row read per token
# Architectures whose graph asserts that K, V and the rotated part of a head are of one size (src/models/*.cpp).
# fmt: off
ROTATES_WHOLE_HEADS = {
    "apertus", "arcee", "arctic", "baichuan", "chameleon", "codeshell", "dbrx", "deepseek", "dots1", "dream",
    "ernie4_5", "ernie4_5-moe", "exaone", "exaone-moe", "exaone4", "falcon", "granite", "granitemoe", "grok",
    "grovemoe", "hunyuan-dense", "hunyuan-moe", "internlm2", "llada", "llada-moe", "llama", "llama4", "maincoder",
    "mellum", "minicpm", "mistral3", "olmo", "olmo2", "olmoe", "orion", "pangu-embedded", "plamo", "qwen2",
    "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "rnd1", "seed_oss", "smallthinker",
    "smollm3", "starcoder2", "xverse",
}
# fmt: on


@dataclass(frozen=True)
class ModelInfo:
    """A model file's header. Sizes in bytes; what is derived is a property. Numbers are checked, texts are as found."""

    paths: tuple[Path, ...]  # of all its files, in order
    n_bytes: int  # of all of them
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    special_tokens: Mapping[str, str]  # "bos", "eos", "padding", … -> text, for the ids that are valid

    @property
    def path(self) -> Path:
        """What names the model: its file, or the first of several."""
        return self.paths[0]

    def key(self, name: str) -> Value | None:
        """The value of an architecture's key: key("block_count") is metadata["qwen2.block_count"]."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def array(self, name: str) -> tuple[Scalar, ...]:
        """The items of an array in the metadata, read from the file if they are many. () if there is none."""
        value = self.metadata.get(name, ())
        with blamed_on(self.path):
            return value.decode() if isinstance(value, StoredArray) else value if isinstance(value, tuple) else ()

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        return self._text("general.name") or shards.stem(self.path.name)

    @property
    def license(self) -> str | None:
        return self._text("general.license")

    @property
    def chat_template(self) -> str | None:
        return self._text("tokenizer.chat_template") or None

    @property
    def thinks(self) -> bool:
        """True if the template knows a thought, as those of DeepSeek-R1 and Qwen3 do."""
        return "</think>" in (self.chat_template or "")

    @property
    def file_type(self) -> str:
        """The recipe, such as Q4_K_M; where the file names none, the type most of its bytes have."""
        number = self.metadata.get("general.file_type")
        if isinstance(number, int) and number in FILE_TYPES:
            return FILE_TYPES[number]
        n_bytes: Counter[str] = Counter()
        for tensor in self.tensors:
            n_bytes[tensor.type_name] += tensor.n_bytes
        return f"mostly {n_bytes.most_common(1)[0][0]}" if n_bytes else "none"

    @property
    def n_layers(self) -> int:
        return self._number("block_count")

    @property
    def n_embd(self) -> int:
        return self._number("embedding_length")

    @property
    def n_heads(self) -> int:
        """Of the layer that has most; 0 in a model without attention."""
        return max(self._per_layer("attention.head_count"))

    @property
    def n_heads_kv(self) -> int:
        return max(self._heads_kv())

    @property
    def head_dim(self) -> int:
        """Values per head of K; 0 in a model without attention."""
        return self._number("attention.key_length", self._head_share())

    @property
    def head_dim_v(self) -> int:
        return self._number("attention.value_length", self._head_share())

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context the model was trained for, never above MAX_CTX_TOKENS."""
        return min(self._number("context_length"), MAX_CTX_TOKENS)

    @property
    def n_vocab(self) -> int:
        tokens = self.metadata[TOKENS_KEY]
        return len(tokens) if isinstance(tokens, StoredArray | tuple) else 0

    @property
    def n_params(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / self.n_params if self.n_params else 0.0

    @property
    def kv_bytes_per_token(self) -> int:
        """Room one token takes in the KV cache, K and V in f16. An upper bound where layers look back only so far."""
        return sum(self._heads_kv()) * (self.head_dim + self.head_dim_v) * 2

    @property
    def bytes_read_per_token(self) -> int:
        """Weight bytes that generating one token moves: not the tables it looks up, of the experts those it uses."""
        names = {tensor.name for tensor in self.tensors}
        is_tied = "output.weight" not in names  # then the embedding is also the output matrix
        n_experts = self._number("expert_count", 0)
        n_used = max(self._per_layer("expert_used_count"))
        total = 0
        for tensor in self.tensors:
            if tensor.name in LOOKED_UP and not (is_tied and tensor.name == "token_embd.weight"):
                continue
            total += tensor.n_bytes * n_used // n_experts if "_exps." in tensor.name and n_experts else tensor.n_bytes
        return total

    @property
    def sampling(self) -> Mapping[str, float]:
        """The sampling the model's makers advise (general.sampling.*), under the names of config.Sampling."""
        found = {ours: self.metadata.get(f"general.sampling.{theirs}") for theirs, ours in SAMPLING_KEYS.items()}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    @property
    def bos_id(self) -> int | None:
        return special_id(self.metadata, "bos", self.n_vocab)

    @property
    def eos_id(self) -> int | None:
        return special_id(self.metadata, "eos", self.n_vocab)

    @property
    def bos_text(self) -> str:
        return self.special_tokens.get("bos", "")

    @property
    def eos_text(self) -> str:
        return self.special_tokens.get("eos", "")

    @property
    def add_bos(self) -> bool | None:
        """Whether a prompt begins with bos. None: the file does not say, the tokenizer decides."""
        value = self.metadata.get("tokenizer.ggml.add_bos_token")
        return value if isinstance(value, bool) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd but can be lived with."""
        found = []
        if (n := self._number("context_length")) > MAX_CTX_TOKENS:
            found.append(f"claims a context of {n:,} tokens; {MAX_CTX_TOKENS:,} are believed")
        for name, number in special_ids(self.metadata):
            if number >= self.n_vocab:
                found.append(f"the {name} token {number} is outside the vocabulary and ignored")
        if self.chat_template is None:
            found.append("carries no chat template")
        return tuple(found)

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def _number(self, name: str, default: int | None = None) -> int:
        value = self.key(name)
        if value is None and default is not None:
            return default
        assert isinstance(value, int), f"{name} was not checked"
        return value

    def _per_layer(self, name: str) -> tuple[int, ...]:
        value = self.key(name)
        if isinstance(value, tuple):
            return tuple(int(item) for item in value)
        return (self._number(name, 0),) * self.n_layers

    def _head_share(self) -> int:
        return self.n_embd // self.n_heads if self.n_heads else 0

    def _heads_kv(self) -> tuple[int, ...]:
        is_named = self.key("attention.head_count_kv") is not None
        return self._per_layer("attention.head_count_kv" if is_named else "attention.head_count")


# ---- reading


def read_model_info(path: Path) -> ModelInfo:
    """Read a file's header: a few MB, well under a second. Raises ModelFileError for anything but a sound model."""
    with blamed_on(path):
        return parse_header(*open_on_disk(path), path)


def parse_header(read_at: ReadAt, n_bytes: int, path: Path, open_file: OpenFile | None = None) -> ModelInfo:
    """The same for bytes that come from elsewhere, such as ranges of a file on a hub; path only names them.

    read_at(offset, n) returns n bytes, fewer only where the file ends; it is asked for 1 MB at a time, forwards.
    open_file(path) returns the same two for the other files of a model in several; None: they lie beside path.
    """
    with blamed_on(path):
        header = read_header(read_at, n_bytes, keep=TOKENS_KEY)
        paths, tensors = _shard_paths(path, header), header.tensors
        _check_kind(header.metadata)
        special_tokens = check_vocabulary(header.metadata, header.kept)
        if len(paths) > 1:
            others = [_read_shard(open_file or open_on_disk, paths, i) for i in range(1, len(paths))]
            tensors = joined([header, *(other for other, _ in others)])
            n_bytes += sum(n for _, n in others)
        info = ModelInfo(paths, n_bytes, header.version, header.metadata, tensors, special_tokens)
        _check_shape(info)
        return info


def _shard_paths(path: Path, header: Header) -> tuple[Path, ...]:
    """All files of a model, from its first one."""
    number, count = header.shard
    if count == 1:
        return (path,)
    if count > MAX_SHARDS or number >= count:
        raise HeaderError(f"says it is file {number + 1} of {count}")
    end = f"-{number + 1:05d}-of-{count:05d}.gguf"
    if (found := shards.place(path.name)) is None or found[1:] != (number + 1, count):
        raise HeaderError(f"is file {number + 1} of {count} of a model", f"give it its name back, which ends in {end}")
    paths = shards.siblings(path)
    if number:
        raise HeaderError(f"is file {number + 1} of {count} of a model", f"name the first: {paths[0].name}")
    return paths


def _read_shard(open_file: OpenFile, paths: tuple[Path, ...], i: int) -> tuple[Header, int]:
    path = paths[i]
    with blamed_on(path):
        try:
            read_at, n_bytes = open_file(path)
        except FileNotFoundError:
            name = shards.hub_name(path) or "OWNER/REPO:TYPE"
            problem = f"is missing, file {i + 1} of the {len(paths)} of this model"
            raise HeaderError(problem, f"fetch what is missing: edge pull {name}") from None
        header = read_header(read_at, n_bytes)
        check_shard(header, i, len(paths))
        return header, n_bytes


# ---- checks: each names what libllama would do with the value


def _check_kind(metadata: Mapping[str, Value]) -> None:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", architecture):
        raise HeaderError(f"names the architecture {shown(architecture)}", "convert the model again")
    kind = metadata.get("general.type", "model")
    if kind != "model" or architecture == "clip":
        other = "clip" if kind == "model" else kind
        raise HeaderError(f"is not a language model but {shown(other)}", "name the model it belongs to")
    if metadata.get(f"{architecture}.attention.causal", True) is not True:
        raise HeaderError("is an embedding model and writes no text", "use a chat model")
    for key, value in metadata.items():
        if key.startswith(f"{architecture}.") and isinstance(value, float):
            is_sound = math.isfinite(value) and (value >= 0 or not key.endswith("_epsilon"))  # asserted in the norm
            if not is_sound:
                raise HeaderError(f"{key} is {value}", "convert the model again")
        elif key.startswith("general.sampling.") and key.rpartition(".")[2] in SAMPLING_KEYS:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise HeaderError(f"{key} is {shown(value)}", "convert the model again")
        elif key in ("general.name", "general.license", "tokenizer.chat_template") and not isinstance(value, str):
            raise HeaderError(f"{key} is {shown(value)}, not text", "convert the model again")


def _check_shape(info: ModelInfo) -> None:
    """Layers, heads, experts and rope."""
    for name, low, high, is_needed in (
        ("block_count", 1, MAX_LAYERS, True),  # asserted
        ("context_length", 1, (1 << 32) - 1, True),
        ("embedding_length", 1, 1 << 20, True),
        ("attention.key_length", 1, 1 << 16, False),
        ("attention.value_length", 1, 1 << 16, False),
        ("rope.dimension_count", 0, 1 << 16, False),
        ("expert_count", 0, MAX_EXPERTS, False),  # asserted
        ("expert_group_count", 0, MAX_EXPERTS, False),
        ("expert_group_used_count", 0, MAX_EXPERTS, False),
        ("nextn_predict_layers", 0, MAX_LAYERS, False),
        ("pooling_type", 0, 4, False),  # an unknown one is an abort
    ):
        value = info.key(name)
        if value is None and not is_needed:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise HeaderError(f"{info.architecture}.{name} is {shown(value)}, not a number from {low} to {high}")
    for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count"):
        value = info.key(name)
        values = value if isinstance(value, tuple) else (value,) * info.n_layers
        if value is not None and (
            len(values) != info.n_layers
            or any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= 1 << 20 for n in values)
        ):
            raise HeaderError(f"{info.architecture}.{name} is {shown(value)}, not one number, nor one per layer")
    if info.key("rope.scaling.type") not in (None, *ROPE_SCALING_TYPES):
        raise HeaderError(f"has rope scaling of the unknown type {shown(info.key('rope.scaling.type'))}")  # asserted
    if info._number("nextn_predict_layers", 0) >= info.n_layers:
        raise HeaderError("says that every layer predicts further tokens")  # asserted
    _check_experts(info)
    _check_attention(info)


def _check_experts(info: ModelInfo) -> None:
    """The asserts of llama_model_base::load_hparams, in its order."""
    n_experts, n_groups = info._number("expert_count", 0), info._number("expert_group_count", 0)
    n_used, n_groups_used = max(info._per_layer("expert_used_count")), info._number("expert_group_used_count", 0)
    if n_experts == 0:
        is_sound = n_used == 0 and n_groups == 0
    else:
        is_sound = 1 <= n_used <= n_experts and n_groups < n_experts
        if n_groups > 1:
            is_sound = is_sound and n_experts % n_groups == 0 and 0 < n_groups_used < n_groups
    if not is_sound:
        raise HeaderError(f"uses {n_used} of {n_experts} experts and {n_groups_used} of {n_groups} groups of them")


def _check_attention(info: ModelInfo) -> None:
    heads = set(zip(info._per_layer("attention.head_count"), info._heads_kv(), strict=True))
    if any(n_kv and n % n_kv for n, n_kv in heads):
        raise HeaderError(f"{info.n_heads} attention heads do not share {info.n_heads_kv} KV heads evenly")
    if info.architecture not in ROTATES_WHOLE_HEADS:
        return
    n_rotated = info._number("rope.dimension_count", info.head_dim)
    is_sound = all(n > 0 and n_kv > 0 for n, n_kv in heads) and info.head_dim % 2 == 0
    is_sound = is_sound and info.head_dim == info.head_dim_v == n_rotated > 0
    if info.architecture == "qwen2":  # its query matrix is square, then reshaped to heads
        is_sound = is_sound and info.head_dim * info.n_heads == info.n_embd
    if not is_sound:
        sizes = f"K {info.head_dim}, V {info.head_dim_v}, rotated {n_rotated}"
        raise HeaderError(f"{info.n_heads} heads of a width of {info.n_embd} cannot be of size {sizes}")
