"""GGUF files made byte by byte: one sound tiny model, and many that lie. For any test that needs a file to survive.

for bad in BAD_FILES: path = bad.write(tmp_path)     # bad.says: words the refusal must hold
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

U8, U16, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 5, 6, 7, 8, 9, 10
CODES = {U8: "B", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", U16: "H", 1: "b", 3: "h", 11: "q", 12: "d"}
F32_TENSOR, F16_TENSOR, Q4_0_TENSOR = 0, 1, 2

Typed = tuple[Any, ...]  # (kind, value), or (ARRAY, item kind, [items])


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def packed(kind: int, value: Any) -> bytes:
    return text(value) if kind == STRING else struct.pack(f"<{CODES[kind]}", value)


def entry(key: str | bytes, typed: Typed) -> bytes:
    """One metadata entry."""
    if typed[0] == ARRAY:
        _, kind, items = typed
        body = struct.pack("<IQ", kind, len(items)) + b"".join(packed(kind, item) for item in items)
    else:
        body = packed(*typed)
    return text(key) + struct.pack("<I", typed[0]) + body


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One entry of the tensor table."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def joined(
    entries: list[bytes],
    tensors: list[bytes] | None = None,
    n_data_bytes: int = 0,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these parts; the counts can lie."""
    tensors = tensors or []
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_keys = len(entries) if n_keys is None else n_keys
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment + n_data_bytes)


# ---- a sound tiny model that libllama loads: qwen2, one layer, zeros for weights

N_EMBD, N_FF, N_VOCAB = 32, 64, 264


def vocabulary() -> list[str]:
    """The 256 letters that byte-level BPE spells bytes with, one merge, and special tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [n for n in range(256) if n not in plain]
    letters = {n: chr(n) for n in plain} | {n: chr(256 + i) for i, n in enumerate(rest)}
    special = ["<|end|>", "<|begin|>", "<|User|>", "<|Assistant|>", "<think>", "</think>", "<|pad|>"]
    return [letters[n] for n in range(256)] + ["th"] + special


def sound_metadata() -> dict[str | bytes, Typed]:
    tokens = vocabulary()
    return {
        "general.architecture": (STRING, "qwen2"),
        "general.name": (STRING, "Tiny"),
        "general.file_type": (U32, 0),
        "general.license": (STRING, "mit"),
        "general.sampling.temp": (F32, 0.5),
        "general.sampling.top_k": (I32, 20),
        "qwen2.block_count": (U32, 1),
        "qwen2.context_length": (U32, 512),
        "qwen2.embedding_length": (U32, N_EMBD),
        "qwen2.feed_forward_length": (U32, N_FF),
        "qwen2.attention.head_count": (U32, 4),
        "qwen2.attention.head_count_kv": (U32, 2),
        "qwen2.attention.layer_norm_rms_epsilon": (F32, 1e-6),
        "qwen2.rope.freq_base": (F32, 10000.0),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "qwen2"),
        "tokenizer.ggml.tokens": (ARRAY, STRING, tokens),
        "tokenizer.ggml.token_type": (ARRAY, I32, [1] * 257 + [3] * 7),
        "tokenizer.ggml.merges": (ARRAY, STRING, ["t h"]),
        "tokenizer.ggml.eos_token_id": (U32, 257),
        "tokenizer.ggml.bos_token_id": (U32, 258),
        "tokenizer.ggml.padding_token_id": (U32, 263),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
        "tokenizer.chat_template": (STRING, "{{ messages[0].content }}<think></think>"),
    }


def sound_shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "attn_norm.weight": (N_EMBD,),
        "attn_q.weight": (N_EMBD, N_EMBD),
        "attn_q.bias": (N_EMBD,),
        "attn_k.weight": (N_EMBD, N_EMBD // 2),
        "attn_k.bias": (N_EMBD // 2,),
        "attn_v.weight": (N_EMBD, N_EMBD // 2),
        "attn_v.bias": (N_EMBD // 2,),
        "attn_output.weight": (N_EMBD, N_EMBD),
        "ffn_norm.weight": (N_EMBD,),
        "ffn_gate.weight": (N_EMBD, N_FF),
        "ffn_up.weight": (N_EMBD, N_FF),
        "ffn_down.weight": (N_FF, N_EMBD),
    }
    return {
        "token_embd.weight": (N_EMBD, N_VOCAB),
        **{f"blk.0.{name}": shape for name, shape in layer.items()},
        "output_norm.weight": (N_EMBD,),
        "output.weight": (N_EMBD, N_VOCAB),
    }


def sound_tensors() -> tuple[list[bytes], int]:
    """The tensor table and the length of the data behind it."""
    table, offset = [], 0
    for name, shape in sound_shapes().items():
        table.append(tensor(name, shape, F32_TENSOR, offset))
        offset += -(-4 * _product(shape) // 32) * 32
    return table, offset


def sound_file(**changes: Typed | None) -> bytes:
    """The sound model with metadata changed, or left out where None. Dots in keys are written as __."""
    return changed_file({key.replace("__", "."): value for key, value in changes.items()})


def changed_file(changes: dict[Any, Typed | None]) -> bytes:
    metadata = {**sound_metadata(), **changes}
    table, n_data_bytes = sound_tensors()
    return joined([entry(key, typed) for key, typed in metadata.items() if typed is not None], table, n_data_bytes)


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for dim in shape:
        n *= dim
    return n


# ---- the bad ones


@dataclass(frozen=True)
class BadFile:
    name: str
    data: bytes
    says: str  # words the refusal must hold
    n_bytes: int | None = None  # length of the file, a hole behind the data; None: the data's own

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.gguf"
        with path.open("wb") as file:
            file.write(self.data)
            if self.n_bytes is not None:
                file.truncate(self.n_bytes)
        return path


def _strangers() -> Iterator[BadFile]:
    sound = sound_file()
    yield BadFile("empty", b"", "is empty")
    yield BadFile("three_bytes", b"GGU", "incomplete")
    yield BadFile("html", b"<!DOCTYPE html><html><body>404</body></html>", "web page")
    yield BadFile("html_upper", b"\n<HTML><body>sign in</body>", "web page")
    yield BadFile(
        "lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"
    )
    body = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    yield BadFile("safetensors", struct.pack("<Q", len(body)) + body + bytes(4), "safetensors")
    yield BadFile("pytorch_zip", b"PK\x03\x04" + bytes(60), "PyTorch")
    yield BadFile("before_gguf", b"tjgg" + bytes(60), "before GGUF")
    yield BadFile("text", b"hello, world, this is not a model", "not a GGUF file (starts with 'hello, w')")
    yield BadFile("zeros", bytes(4096), "not a GGUF file")
    yield BadFile("version_0", sound[:4] + struct.pack("<I", 0) + sound[8:], "big-endian")
    yield BadFile("version_1", sound[:4] + struct.pack("<I", 1) + sound[8:], "GGUF version 1,")
    yield BadFile("version_4", sound[:4] + struct.pack("<I", 4) + sound[8:], "GGUF version 4,")
    yield BadFile("big_endian", sound[:4] + struct.pack(">I", 3) + sound[8:], "big-endian")


def _counts() -> Iterator[BadFile]:
    architecture = entry("general.architecture", (STRING, "qwen2"))
    huge = 1 << 40  # a file of 1 TB that takes no room
    for power in (20, 40, 63):
        yield BadFile(f"n_keys_2_{power}", joined([architecture], n_keys=1 << power), "metadata entries")
        yield BadFile(f"n_tensors_2_{power}", joined([architecture], n_tensors=1 << power), "tensors, too many")
    yield BadFile("n_keys_all_ones", joined([architecture], n_keys=2**64 - 1), "metadata entries")
    yield BadFile("n_keys_in_a_hole", joined([architecture], n_keys=1 << 40), "metadata entries", huge)
    yield BadFile("key_length", joined([struct.pack("<Q", 1 << 62) + bytes(32)]), "metadata key claims")
    yield BadFile("key_empty", joined([entry("", (U32, 1)), architecture]), "metadata key")
    yield BadFile("key_with_nul", changed_file({b"qwen2.block_count\0": (U32, 9999)}), "metadata key")
    yield BadFile("key_not_ascii", joined([entry("général", (U32, 1))]), "metadata key")
    yield BadFile("key_twice", joined([architecture, architecture]), "twice")
    string = text("k") + struct.pack("<IQ", STRING, 1 << 63)
    yield BadFile("string_length", joined([architecture, string + bytes(64)]), "claims 9223372036854775808 bytes")
    yield BadFile("string_in_a_hole", joined([architecture, string + bytes(64)]), "claims", huge)
    yield BadFile("value_type_13", joined([architecture, text("k") + struct.pack("<IQ", 13, 0)]), "unknown value type")
    array = text("k") + struct.pack("<I", ARRAY)
    for name, kind, count, says in (
        ("array_2_62", U32, 1 << 62, "items, too many"),
        ("array_of_arrays", ARRAY, 1, "array of arrays"),
        ("array_type_99", 99, 1, "unknown type"),
        ("array_of_strings_10_12", STRING, 10**12, "items, too many"),
        ("array_of_bytes_10_12", U8, 10**12, "items, too many"),
    ):
        data = joined([architecture, array + struct.pack("<IQ", kind, count) + bytes(64)])
        yield BadFile(name, data, says)
        yield BadFile(f"{name}_in_a_hole", data, says, huge)
    strings = array + struct.pack("<IQ", STRING, 1_500_000)
    yield BadFile("strings_in_a_hole", joined([architecture, strings]), "", huge)  # empty strings, then no vocabulary
    doubles = struct.pack("<IIQ", ARRAY, 12, 1 << 20)
    entries = [text(f"k{i}") + doubles + bytes(1 << 23) for i in range(9)]
    yield BadFile("header_of_72_mb", joined([architecture, *entries]), "header of more than")
    longs = [entry(f"k{i}", (STRING, b"a" * ((1 << 20) - 1))) for i in range(18)]
    yield BadFile("texts_of_18_mb", joined([architecture, *longs]), "text in its metadata above")


def _tensor_tables() -> Iterator[BadFile]:
    entries = [entry(key, typed) for key, typed in sound_metadata().items()]

    def table(*rows: bytes, n_data_bytes: int = 4096) -> bytes:
        return joined(entries, list(rows), n_data_bytes)

    def one(shape: tuple[int, ...], kind: int = F32_TENSOR, offset: int = 0) -> bytes:
        return table(tensor("t", shape, kind, offset))

    two = tensor("a", (32,), F32_TENSOR, 0)
    yield BadFile("tensor_twice", table(two, tensor("a", (32,), F32_TENSOR, 128)), "two tensors of the same name")
    yield BadFile("tensor_name_64", table(tensor("n" * 64, (32,), 0, 0)), "tensor name claims 64")
    yield BadFile("tensor_name_2_62", table(struct.pack("<Q", 1 << 62) + bytes(64)), "tensor name claims")
    yield BadFile("tensor_name_nul", table(tensor("a\0b", (32,), 0, 0)), "tensor named")
    yield BadFile("tensor_name_latin1", table(tensor(b"a\xff", (32,), 0, 0)), "tensor named")
    yield BadFile("dims_0", one(()), "0 dimensions")
    yield BadFile("dims_5", one((1, 1, 1, 1, 1)), "5 dimensions")
    yield BadFile("dims_2_32", table(text("t") + struct.pack("<I", 0xFFFFFFFF) + bytes(64)), "dimensions")
    yield BadFile("dim_0", one((32, 0)), "impossible shape")
    yield BadFile("dim_negative", one((32, 2**64 - 1)), "impossible shape")
    yield BadFile("dims_overflow", one((1 << 32, 1 << 32)), "impossible shape")
    yield BadFile("dims_overflow_to_0", one((1 << 32, 1 << 32, 1 << 32, 1 << 32)), "impossible shape")
    yield BadFile("rows_not_of_blocks", one((33,), Q4_0_TENSOR), "multiples of 32")
    yield BadFile("tensor_type_4", one((32,), 4), "llama.cpp dropped")
    yield BadFile("tensor_type_43", one((32,), 43), "unknown type 43")
    yield BadFile("tensor_type_2_32", one((32,), 0xFFFFFFFF), "unknown type")
    yield BadFile("data_outside", one((1 << 20,)), "incomplete")
    yield BadFile("data_far_outside", one((1 << 61,)), "incomplete")
    yield BadFile("offset_far_outside", one((32,), offset=1 << 63), "must lie at 0")
    yield BadFile("offset_wraps", one((32,), offset=2**64 - 32), "must lie at 0")
    yield BadFile("overlap", table(two, tensor("b", (32,), F32_TENSOR, 64)), "must lie at 128")
    yield BadFile("misaligned", table(two, tensor("b", (32,), F32_TENSOR, 129)), "must lie at 128")
    yield BadFile("hole_between", table(two, tensor("b", (32,), F32_TENSOR, 160)), "must lie at 128")
    for alignment in (0, 3, 8, 2**32 - 1):
        data = changed_file({"general.alignment": (U32, alignment)})
        yield BadFile(f"alignment_{alignment}", data, "aligned" if alignment == 8 else "power of two")
    yield BadFile("alignment_2_31", changed_file({"general.alignment": (U32, 1 << 31)}), "incomplete")
    yield BadFile("alignment_text", changed_file({"general.alignment": (STRING, "32")}), "power of two")


def _models() -> Iterator[BadFile]:
    def bad(name: str, key: str, typed: Typed | None, says: str) -> BadFile:
        return BadFile(name, changed_file({key: typed}), says)

    yield bad("no_architecture", "general.architecture", None, "architecture missing")
    yield bad("architecture_number", "general.architecture", (U32, 1), "architecture 1")
    yield bad("architecture_path", "general.architecture", (STRING, "../x"), "architecture")
    yield bad("adapter", "general.type", (STRING, "adapter"), "not a language model")
    yield bad("one_of_three", "split.count", (U16, 3), "is file 1 of 3 of a model")
    yield bad("split_count_of_u32", "split.count", (U32, 3), "of a type that llama.cpp cannot read")
    yield bad("embedding_model", "qwen2.attention.causal", (BOOL, False), "embedding model")
    for n in (0, 513, 2**32 - 1):
        yield bad(f"block_count_{n}", "qwen2.block_count", (U32, n), f"block_count is {n}")
    yield bad("block_count_missing", "qwen2.block_count", None, "block_count is missing")
    yield bad("block_count_text", "qwen2.block_count", (STRING, "1"), "block_count is '1'")
    yield bad("block_count_true", "qwen2.block_count", (BOOL, True), "block_count is True")
    yield bad("block_count_float", "qwen2.block_count", (F32, 1.0), "block_count is 1.0")
    yield bad("context_0", "qwen2.context_length", (U32, 0), "context_length is 0")
    yield bad("width_0", "qwen2.embedding_length", (U32, 0), "embedding_length is 0")
    yield bad("heads_0", "qwen2.attention.head_count", (U32, 0), "heads")
    yield bad("heads_3", "qwen2.attention.head_count", (U32, 3), "heads")
    yield bad("heads_per_layer", "qwen2.attention.head_count", (ARRAY, U32, [4, 4]), "nor one per layer")
    yield bad("kv_heads_0", "qwen2.attention.head_count_kv", (U32, 0), "heads")
    yield bad("kv_heads_3", "qwen2.attention.head_count_kv", (U32, 3), "evenly")
    yield bad("key_length_16", "qwen2.attention.key_length", (U32, 16), "cannot be of size")
    yield bad("value_length_4", "qwen2.attention.value_length", (U32, 4), "cannot be of size")
    yield bad("rotated_4", "qwen2.rope.dimension_count", (U32, 4), "cannot be of size")
    sixteen = {
        f"qwen2.{k}": (U32, 16) for k in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    }
    yield BadFile("heads_wider_than_model", changed_file(dict(sixteen)), "cannot be of size")
    yield bad("rope_type", "qwen2.rope.scaling.type", (STRING, "bogus"), "unknown type 'bogus'")
    yield bad("experts_2_20", "qwen2.expert_count", (U32, 1 << 20), "expert_count")
    yield bad("experts_used_of_none", "qwen2.expert_used_count", (U32, 4), "uses 4 of 0 experts")
    yield bad("experts_none_used", "qwen2.expert_count", (U32, 8), "uses 0 of 8 experts")
    yield bad("expert_groups_of_none", "qwen2.expert_group_count", (U32, 2), "experts")
    yield bad("nextn_all", "qwen2.nextn_predict_layers", (U32, 1), "predicts further")
    epsilon = "qwen2.attention.layer_norm_rms_epsilon"
    yield bad("epsilon_nan", epsilon, (F32, float("nan")), "epsilon is nan")
    yield bad("epsilon_negative", epsilon, (F32, -1.0), "epsilon is -1.0")
    yield bad("rope_base_infinite", "qwen2.rope.freq_base", (F32, float("inf")), "freq_base is inf")
    yield bad("pooling_99", "qwen2.pooling_type", (U32, 99), "pooling_type")
    yield bad("temperature_nan", "general.sampling.temp", (F32, float("nan")), "general.sampling.temp is nan")
    yield bad("temperature_text", "general.sampling.temp", (STRING, "hot"), "general.sampling.temp is 'hot'")
    yield bad("template_number", "tokenizer.chat_template", (U32, 1), "chat_template is 1")


def _vocabularies() -> Iterator[BadFile]:
    def bad(name: str, key: str, typed: Typed | None, says: str) -> BadFile:
        return BadFile(name, changed_file({f"tokenizer.ggml.{key}": typed}), says)

    tokens = vocabulary()
    yield bad("no_tokens", "tokens", None, "no vocabulary")
    yield bad("no_tokenizer", "model", None, "no vocabulary")
    yield bad("tokenizer_none", "model", (STRING, "none"), "no vocabulary")
    yield bad("tokens_empty", "tokens", (ARRAY, STRING, []), "no vocabulary")
    yield bad("tokens_numbers", "tokens", (ARRAY, U32, [1, 2, 3]), "no vocabulary")
    yield bad("token_twice", "tokens", (ARRAY, STRING, [*tokens[:-1], "a"]), "'a' 2 times")
    yield bad("token_twice_behind_nul", "tokens", (ARRAY, STRING, [*tokens[:-1], "a\0b"]), "'a' 2 times")
    yield bad("token_named_empty", "tokens", (ARRAY, STRING, ["", "[EMPTY_0]", *tokens[2:]]), "'[EMPTY_0]' 2 times")
    yield bad("token_types_short", "token_type", (ARRAY, I32, [1] * 10), "token_type is an array of 10")
    yield bad("token_types_text", "token_type", (STRING, "x"), "token_type is 'x'")
    yield bad("scores_short", "scores", (ARRAY, F32, [0.0] * 10), "scores is an array of 10")
    for name in ("bos", "eos"):
        yield bad(f"{name}_outside", f"{name}_token_id", (U32, N_VOCAB), f"the {name} token is {N_VOCAB}")
    yield bad("eos_negative", "eos_token_id", (I32, -1), "eos_token_id is -1")
    yield bad("eos_text", "eos_token_id", (STRING, "end"), "eos_token_id is 'end'")
    yield bad("spm_without_bytes", "model", (STRING, "llama"), "no token for")


BAD_FILES = (*_strangers(), *_counts(), *_tensor_tables(), *_models(), *_vocabularies())
