"""Small random checkpoints in the form of real ones, and real vocabularies from tests/data."""

import json
import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data"
Tensors = dict[str, NDArray[Any]]
Json = dict[str, Any]

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = _WORDS + r"\p{N}" + _REST
LLAMA3_SPLIT = _WORDS + r"\p{N}{1,3}" + _REST
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
BPE: Json = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True)
class Shape:
    """What a random model looks like. Rows of 256 take K-quants, others the fallback types."""

    architecture: str = "Qwen2ForCausalLM"
    embd: int = 256
    ff: int = 512
    layer: int = 2
    head: int = 4
    head_kv: int = 2
    vocab: int = 288
    head_dim: int | None = None
    is_tied: bool = False
    dtype: str = "BF16"
    bias: bool = True
    seed: int = 0


def write(folder: Path, shape: Shape | None = None, *, n_shards: int = 1, vocabulary: Json | None = None) -> Path:
    """A whole checkpoint folder."""
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config(shape))
    write_json(folder / "tokenizer.json", vocabulary or tiny_vocabulary())
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 0.6, "top_p": 0.95})
    write_tensors(folder, tensors(shape), n_shards=n_shards, dtype=shape.dtype)
    return folder


def change(folder: Path, name: str, **values: Any) -> None:
    """Set keys of a JSON file; None takes them out."""
    path = folder / name
    old = json.loads(path.read_text())
    write_json(path, {key: value for key, value in {**old, **values}.items() if value is not None})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# the model


def config(shape: Shape) -> Json:
    found = {
        "architectures": [shape.architecture],
        "hidden_size": shape.embd,
        "intermediate_size": shape.ff,
        "num_hidden_layers": shape.layer,
        "num_attention_heads": shape.head,
        "num_key_value_heads": shape.head_kv,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.is_tied,
        "vocab_size": shape.vocab,
        "bos_token_id": 257,
        "eos_token_id": 256,
    }
    return found if shape.head_dim is None else {**found, "head_dim": shape.head_dim}


def tensors(shape: Shape) -> Tensors:
    """Random float32 weights under their Hugging Face names, in the order of a real file."""
    rng = np.random.default_rng(shape.seed)
    head_dim = shape.head_dim or shape.embd // shape.head
    q, kv, embd = shape.head * head_dim, shape.head_kv * head_dim, shape.embd
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, embd)}
    for i in range(shape.layer):
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (embd,),
            "mlp.down_proj.weight": (embd, shape.ff),
            "mlp.gate_proj.weight": (shape.ff, embd),
            "mlp.up_proj.weight": (shape.ff, embd),
            "post_attention_layernorm.weight": (embd,),
            "self_attn.k_proj.weight": (kv, embd),
            "self_attn.o_proj.weight": (embd, q),
            "self_attn.q_proj.weight": (q, embd),
            "self_attn.v_proj.weight": (kv, embd),
        }
        if shape.bias:
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                block[f"self_attn.{name}_proj.bias"] = (rows,)
        if shape.architecture == "Qwen3ForCausalLM":
            block["self_attn.q_norm.weight"] = block["self_attn.k_norm.weight"] = (head_dim,)
        shapes |= {f"model.layers.{i}.{name}": found for name, found in block.items()}
    shapes["model.norm.weight"] = (embd,)
    if not shape.is_tied:
        shapes["lm_head.weight"] = (shape.vocab, embd)
    return {name: rng.standard_normal(found, dtype=np.float32) * np.float32(0.05) for name, found in shapes.items()}


def write_tensors(folder: Path, values: Tensors, *, n_shards: int = 1, dtype: str = "BF16") -> None:
    """One model.safetensors, or shards with their index."""
    names = list(values)
    per_shard = -(-len(names) // n_shards)
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        part = names[i * per_shard : (i + 1) * per_shard]
        file = "model.safetensors" if n_shards == 1 else f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        write_safetensors(folder / file, {name: values[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    if n_shards > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_safetensors(path: Path, values: Mapping[str, NDArray[Any]], dtype: str = "BF16") -> None:
    header: Json = {"__metadata__": {"format": "pt"}}
    blobs, place = [], 0
    for name, value in values.items():
        blobs.append(encode(value, dtype))
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [place, place + len(blobs[-1])]}
        place += len(blobs[-1])
    path.write_bytes(raw_safetensors(header, b"".join(blobs)))


def raw_safetensors(header: Json | str | bytes, data: bytes, n_header_bytes: int | None = None) -> bytes:
    """The bytes of a file, which may lie about itself."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    blob = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(blob) if n_header_bytes is None else n_header_bytes) + blob + data


def encode(value: NDArray[Any], dtype: str) -> bytes:
    """bf16 by truncation."""
    if dtype == "BF16":
        return (value.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return value.astype(NUMPY[dtype]).tobytes()


# the vocabulary


def byte_tokens() -> list[str]:
    """GPT-2's letters for the 256 bytes, in its order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


def byte_level(merges: Sequence[str], added: Sequence[tuple[str, bool]], split: str | None = QWEN2_SPLIT) -> Json:
    """tokenizer.json of a byte-level BPE: bytes, then the merges in order, then added (text, is special)."""
    texts = byte_tokens() + [merge.replace(" ", "") for merge in merges]
    steps = [{"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(len(texts) + i, text, special) for i, (text, special) in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if split else {**BYTE_LEVEL, "use_regex": True},
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {**BPE, "vocab": {text: i for i, text in enumerate(texts)}, "merges": list(merges)},
    }


def added_token(token_id: int, text: str, special: bool) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, **flags, "special": special}


def sentence_piece(pieces: Sequence[str], scores: Mapping[str, float], special: Sequence[tuple[str, bool]]) -> Json:
    """tokenizer.json as transformers makes it of a SentencePiece BPE: every split of a piece is a merge, best first."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges: list[tuple[float, int, int, str]] = []
    for piece, score in scores.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        splits.sort(key=lambda split: (ids[split[0]], ids[split[1]]))
        merges += [(score, len(left), len(right), f"{left} {right}") for left, right in splits]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(ids[text], text, is_special) for text, is_special in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {
            **BPE,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": [merge for _, _, _, merge in merges],
        },
    }


def phi_3() -> Json:
    """The 32,000 pieces of Llama 2 and the added tokens of Phi-3. Scores count down from 0 at id 259."""
    pieces = lines("phi-3-pieces.txt.xz")
    scores = {piece: -1e9 if set(piece) == {"▁"} else 259.0 - i for i, piece in enumerate(pieces) if 259 <= i < 32_000}
    added = [("<unk>", True), ("<s>", True), ("</s>", False)] + [(piece, True) for piece in pieces[32_000:]]
    return sentence_piece(pieces, scores, added)


TINY_ADDED = (("<eos>", True), ("<bos>", True), ("<｜User｜>", False), ("<think>", False))


def tiny_vocabulary() -> Json:
    """256 bytes, four added tokens (ids 256 to 259), four merges."""
    found = byte_level((), TINY_ADDED)
    merges = ("h e", "l l", "he ll", "hell o")
    found["model"]["vocab"] |= {merge.replace(" ", ""): 260 + i for i, merge in enumerate(merges)}
    found["model"]["merges"] = list(merges)
    return found


def tokenizer_config() -> Json:
    return {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<bos>"},
        "eos_token": "<eos>",
        "pad_token": "<eos>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


@cache
def lines(name: str) -> tuple[str, ...]:
    """A file of tests/data, one merge or piece a line."""
    return tuple(lzma.decompress((DATA / name).read_bytes()).decode().split("\n"))


def reference_texts() -> list[str]:
    return (DATA / "vocab.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]


def reference_ids(name: str) -> list[list[int]]:
    return [[int(token) for token in line.split()] for line in (DATA / f"vocab-{name}.out").read_text().splitlines()]


def with_vocabulary(folder: Path, vocabulary: Json, n_tokens: int, shape: Shape | None = None) -> Path:
    """A model so small that its vocabulary is the most of it."""
    tiny = replace(shape or Shape(embd=32, ff=32, layer=1, head=2, head_kv=1), vocab=n_tokens)
    return write(folder, tiny, vocabulary=vocabulary)
