"""A Llama-like network in plain numpy, straight from the checkpoint's own names: the truth about what a model says.

Written from the papers, in double precision and without a cache; slow and small on purpose.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def logits(config: dict[str, Any], tensors: dict[str, NDArray[Any]], tokens: list[int]) -> Array:
    """(n_tokens, n_vocab) for a text of token ids."""
    weights = {name: value.astype(np.float64) for name, value in tensors.items()}
    x = weights["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        block = {name.removeprefix(f"model.layers.{i}."): value for name, value in weights.items()}
        x = x + _attention(config, block, _norm(config, x, block["input_layernorm.weight"]))
        x = x + _feed_forward(block, _norm(config, x, block["post_attention_layernorm.weight"]))
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    found: Array = _norm(config, x, weights["model.norm.weight"]) @ head.T
    return found


def _norm(config: dict[str, Any], x: Array, weight: Array) -> Array:
    scaled: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config["rms_norm_eps"]) * weight
    return scaled


def _linear(block: dict[str, Array], name: str, x: Array) -> Array:
    found: Array = x @ block[f"{name}.weight"].T + block.get(f"{name}.bias", np.zeros(1))
    return found


def _feed_forward(block: dict[str, Array], x: Array) -> Array:
    gate = _linear(block, "mlp.gate_proj", x)
    return _linear(block, "mlp.down_proj", gate / (1 + np.exp(-gate)) * _linear(block, "mlp.up_proj", x))


def _attention(config: dict[str, Any], block: dict[str, Array], x: Array) -> Array:
    n_head, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_head
    n_tokens = len(x)
    q = _linear(block, "self_attn.q_proj", x).reshape(n_tokens, n_head, head_dim)
    k = _linear(block, "self_attn.k_proj", x).reshape(n_tokens, n_kv, head_dim)
    v = _linear(block, "self_attn.v_proj", x).reshape(n_tokens, n_kv, head_dim)
    if "self_attn.q_norm.weight" in block:
        q = _norm(config, q, block["self_attn.q_norm.weight"])
        k = _norm(config, k, block["self_attn.k_norm.weight"])
    q, k = _rotated(config, q), _rotated(config, k)
    k, v = (np.repeat(part, n_head // n_kv, axis=1) for part in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim)
    scores[:, np.triu(np.ones((n_tokens, n_tokens), bool), 1)] = -np.inf
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
    return _linear(block, "self_attn.o_proj", mixed.reshape(n_tokens, -1))


def _rotated(config: dict[str, Any], x: Array) -> Array:
    """Position p turns the pair (i, i + head_dim / 2) by p x frequency i."""
    n_tokens, _, head_dim = x.shape
    frequencies = config["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling := config.get("rope_scaling"):
        frequencies = _llama3(scaling, frequencies)
    angles = np.arange(n_tokens)[:, None, None] * frequencies
    first, second = x[..., : head_dim // 2], x[..., head_dim // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _llama3(scaling: dict[str, Any], frequencies: Array) -> Array:
    n_turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = np.clip((n_turns - low) / (high - low), 0, 1)
    slowed: Array = frequencies * (blend + (1 - blend) / scaling["factor"])
    return slowed
