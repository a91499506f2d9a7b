"""A model file told to a person (describe) or to a program (to_json). Knows no format: it asks ModelInfo."""

import math
from collections import Counter
from typing import Any

from edge.model.cursor import StoredArray, Value
from edge.model.gguf import ModelInfo

DERIVED = (
    *("architecture", "name", "license", "file_type", "bits_per_weight", "n_params", "n_layers", "n_embd"),
    *("n_heads", "n_heads_kv", "head_dim", "n_ctx_train", "n_vocab", "tensor_bytes", "kv_bytes_per_token"),
    *("bytes_read_per_token", "bos_id", "eos_id", "add_bos", "thinks"),
)
N_CTX_TOKENS_SHOWN = 4096


def describe(info: ModelInfo) -> list[tuple[str, str]]:
    """The facts a person asks for, as (name, value) in the order to show them."""
    types = Counter(tensor.type_name for tensor in info.tensors)
    kv_bytes = info.kv_bytes_per_token * N_CTX_TOKENS_SHOWN
    facts = [
        ("file", str(info.path)),
        ("size", f"{info.n_bytes / 1e6:,.1f} MB" + (f" in {len(info.paths)} files" if len(info.paths) > 1 else "")),
        ("architecture", info.architecture),
        ("name", info.name),
        ("quantisation", info.file_type),
        ("bits per weight", f"{info.bits_per_weight:.2f}"),
        ("parameters", f"{info.n_params:,}"),
        ("layers", f"{info.n_layers}, width {info.n_embd}, {info.n_heads} heads, {info.n_heads_kv} for K and V"),
        ("context", f"{info.n_ctx_train:,} tokens trained"),
        ("vocabulary", f"{info.n_vocab:,} tokens"),
        ("KV cache", f"{kv_bytes / 1e6:,.1f} MB for {N_CTX_TOKENS_SHOWN:,} tokens in f16"),
        ("read per token", f"{info.bytes_read_per_token / 1e6:,.1f} MB"),
        ("licence", info.license or "not named"),
        ("chat template", "yes" if info.chat_template else "no"),
        ("thinks", "yes" if info.thinks else "no"),
        ("sampling", ", ".join(f"{name} {value:.6g}" for name, value in info.sampling.items()) or "not named"),
        ("tensors", ", ".join(f"{n} {name}" for name, n in types.most_common()) or "none"),
    ]
    facts = [(name, "".join(c if c.isprintable() else " " for c in value)) for name, value in facts]
    return facts + [("note", note) for note in info.notes]


def to_json(info: ModelInfo) -> dict[str, Any]:
    """The same and every key and tensor, of types that JSON has. Long arrays are told by type and count."""
    return {
        "path": str(info.path),
        "paths": [str(path) for path in info.paths],
        "n_bytes": info.n_bytes,
        "version": info.version,
        **{name: getattr(info, name) for name in DERIVED},
        "sampling": dict(info.sampling),
        "special_tokens": dict(info.special_tokens),
        "notes": list(info.notes),
        "metadata": {key: _jsonable(value) for key, value in info.metadata.items()},
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type_name}
            | {"file": t.file, "offset": t.offset, "n_bytes": t.n_bytes}
            for t in info.tensors
        ],
    }


def _jsonable(value: Value) -> Any:
    if isinstance(value, StoredArray):
        return {"type": value.type_name, "count": value.count}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
