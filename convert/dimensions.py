"""The numbers of config.json that shape a model, each within its bounds. Knows no tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType
from numpy.typing import NDArray

from edge.errors import CheckpointError

N_LAYERS_MAX = 512  # llama.cpp's own limit
YARN_EXTRAS = {  # optional numbers of YaRN: the writer's method, least and most
    "extrapolation_factor": ("ext_factor", -1.0, 100.0),
    "attention_factor": ("attn_factor", 0.0, 100.0),
    "beta_fast": ("beta_fast", 0.0, 1e6),
    "beta_slow": ("beta_slow", 0.0, 1e6),
}


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's way to stretch positions: slow frequencies are divided, fast ones kept, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    n_ctx_original: int

    def divisors(self, theta: float, head_dim: int) -> NDArray[np.float32]:
        """What each of the head_dim / 2 frequencies is divided by; single precision throughout, as upstream."""
        frequencies = np.float32(1) / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        wavelengths = np.float32(2 * math.pi) / frequencies
        blend = (np.float32(self.n_ctx_original) / wavelengths - self.low_freq_factor) / np.float32(
            self.high_freq_factor - self.low_freq_factor
        )
        blended = np.float32(1) / ((np.float32(1) - blend) / np.float32(self.factor) + blend)
        is_fast = wavelengths < self.n_ctx_original / self.high_freq_factor
        is_slow = wavelengths > self.n_ctx_original / self.low_freq_factor
        return np.where(is_fast, 1, np.where(is_slow, self.factor, blended)).astype(np.float32)


@dataclass(frozen=True)
class Rope:
    """How positions are rotated."""

    theta: float
    scaling: RopeScalingType = RopeScalingType.NONE
    factor: float = 1.0
    n_ctx_original: int = 0
    yarn: Mapping[str, float] = field(default_factory=dict)
    llama3: Llama3 | None = None

    def describe(self, writer: GGUFWriter) -> None:
        if self.scaling is not RopeScalingType.NONE:
            writer.add_rope_scaling_type(self.scaling)
            writer.add_rope_scaling_factor(self.factor)
        if self.scaling is RopeScalingType.YARN:
            writer.add_rope_scaling_orig_ctx_len(self.n_ctx_original)
            for name, value in self.yarn.items():
                getattr(writer, f"add_rope_scaling_yarn_{name}")(value)
        writer.add_rope_freq_base(self.theta)


@dataclass(frozen=True)
class Dimensions:
    """How many of what."""

    vocab: int
    embd: int
    ff: int
    layer: int
    head: int
    head_kv: int
    head_dim: int
    ctx: int
    rms_eps: float
    rope: Rope
    is_tied: bool
    says_head_dim: bool  # config.json does, or it is embd / head

    def size(self, axis: str) -> int:
        sizes = {
            "vocab": self.vocab,
            "embd": self.embd,
            "ff": self.ff,
            "q": self.head * self.head_dim,
            "kv": self.head_kv * self.head_dim,
            "head_dim": self.head_dim,
        }
        return sizes[axis]


class Config:
    """config.json, asked for one thing at a time. Raises CheckpointError that names the field."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def architecture(self) -> str:
        names = self.values.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise self._wrong("architectures", names, "a list with one name")
        return names[0][:80]

    def dimensions(self) -> Dimensions:
        if (quantised := self.values.get("quantization_config")) is not None:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            problem = f"says the weights are quantised already ({str(method)[:20]})"
            raise CheckpointError(self.path, problem, "convert the original checkpoint, in BF16, F16 or F32")
        if (act := self.values.get("hidden_act", "silu")) != "silu":
            raise self._wrong("hidden_act", act, "silu, which llama.cpp takes for granted")
        head, embd = self.count("num_attention_heads", 4096), self.count("hidden_size", 1 << 20)
        head_kv = self.count("num_key_value_heads", head, default=head)
        if head % head_kv:
            raise self._wrong("num_key_value_heads", head_kv, f"a divisor of {head}")
        says_head_dim = self.values.get("head_dim") is not None
        if not says_head_dim and embd % head:
            raise self._wrong("num_attention_heads", head, f"a divisor of hidden_size, {embd}")
        head_dim = self.count("head_dim", 1 << 16, default=embd // head)
        if head_dim % 2:
            raise self._wrong("head_dim", head_dim, "an even number")
        return Dimensions(
            vocab=self.count("vocab_size", 1 << 24),
            embd=embd,
            ff=self.count("intermediate_size", 1 << 22),
            layer=self.count("num_hidden_layers", N_LAYERS_MAX),
            head=head,
            head_kv=head_kv,
            head_dim=head_dim,
            ctx=self.count("max_position_embeddings", 1 << 31),
            rms_eps=self.number("rms_norm_eps", 0, 1),
            rope=self._rope(),
            is_tied=self.values.get("tie_word_embeddings") is True,
            says_head_dim=says_head_dim,
        )

    def count(self, key: str, most: int, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(key, value, f"a whole number from 1 to {most:,}")
        return value

    def number(self, key: str, least: float, most: float, values: dict[str, Any] | None = None) -> float:
        value = (self.values if values is None else values).get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self._wrong(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def _rope(self) -> Rope:
        """From rope_theta and rope_scaling, or from rope_parameters, where newer checkpoints put both."""
        found = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(found, dict):
            raise self._wrong("rope_scaling", found, "an object")
        given = {"rope_theta": 10000.0, **self.values, **found}
        theta = self.number("rope_theta", 1, 1e12, given)
        kind = found.get("rope_type", found.get("type", "default"))
        if kind == "default":
            return Rope(theta)
        if kind == "linear":
            return Rope(theta, RopeScalingType.LINEAR, self.number("factor", 1, 1e6, found))
        if kind == "yarn":
            yarn = {
                name: self.number(key, least, most, found)
                for key, (name, least, most) in YARN_EXTRAS.items()
                if found.get(key) is not None
            }
            n_ctx = self._original_ctx(given)
            return Rope(theta, RopeScalingType.YARN, self.number("factor", 1, 1e6, found), n_ctx, yarn)
        if kind == "llama3":
            low, high = (
                self.number("low_freq_factor", 1e-3, 1e3, found),
                self.number("high_freq_factor", 1e-3, 1e3, found),
            )
            if low >= high:
                raise self._wrong("low_freq_factor", low, f"less than high_freq_factor, {high}")
            factor = self.number("factor", 1, 1e6, found)
            return Rope(theta, llama3=Llama3(factor, low, high, self._original_ctx(given)))
        raise self._wrong("rope_type", kind, "default, linear, yarn or llama3")

    def _original_ctx(self, given: dict[str, Any]) -> int:
        return int(self.number("original_max_position_embeddings", 1, 1 << 31, given))

    def _wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        problem = f"{key} is {str(value)[:60]!r}, not {wanted}" if value is not None else f"has no {key}, {wanted}"
        return CheckpointError(self.path, problem, "download the checkpoint again")
