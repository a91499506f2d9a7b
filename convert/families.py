"""The architectures that can be converted, one row each: tensor names, shapes, metadata keys, the odd transform.

A new one is a row in FAMILIES, and a function where its numbers are stored in another order than llama.cpp wants them.
Knows nothing of files, vocabularies or quantised types.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint
from convert.dimensions import Config, Dimensions
from convert.safetensors import FLOATS, SourceTensor
from edge.errors import CheckpointError, UnsupportedArchitectureError

HARMLESS = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")  # derived from the config


@dataclass(frozen=True)
class Weight:
    """One tensor of the result: read from `source`, or made up, `values`."""

    name: str
    shape: tuple[int, ...]
    source: SourceTensor | None = None
    values: NDArray[np.float32] | None = None
    row_order: NDArray[np.int64] | None = None  # where each row comes from, in every group of so many

    @property
    def n_columns(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])


@dataclass(frozen=True)
class Name:
    """One kind of tensor: its name in the checkpoint, in GGUF, and its shape in words."""

    hf: str
    gguf: str
    shape: tuple[str, ...]
    optional: bool = False
    rotary: bool = False  # its rows are rotated in pairs


RowOrder = Callable[[Dimensions], NDArray[np.int64]]


@dataclass(frozen=True)
class Family:
    """How one architecture stores its weights, and what llama.cpp wants to know beside them."""

    arch: MODEL_ARCH
    layer: tuple[Name, ...]
    row_order: RowOrder | None = None  # of the rotary tensors
    always_says_head_dim: bool = False
    says_rope_dimension: bool = False  # and the size of the vocabulary


_OUTER = (
    Name("model.embed_tokens.weight", "token_embd.weight", ("vocab", "embd")),
    Name("model.norm.weight", "output_norm.weight", ("embd",)),
)
_HEAD = Name("lm_head.weight", "output.weight", ("vocab", "embd"))
_BLOCK = (
    Name("input_layernorm.weight", "attn_norm.weight", ("embd",)),
    Name("self_attn.q_proj.weight", "attn_q.weight", ("q", "embd"), rotary=True),
    Name("self_attn.k_proj.weight", "attn_k.weight", ("kv", "embd"), rotary=True),
    Name("self_attn.v_proj.weight", "attn_v.weight", ("kv", "embd")),
    Name("self_attn.o_proj.weight", "attn_output.weight", ("embd", "q")),
    Name("post_attention_layernorm.weight", "ffn_norm.weight", ("embd",)),
    Name("mlp.gate_proj.weight", "ffn_gate.weight", ("ff", "embd")),
    Name("mlp.up_proj.weight", "ffn_up.weight", ("ff", "embd")),
    Name("mlp.down_proj.weight", "ffn_down.weight", ("embd", "ff")),
)
_QK_NORM = (
    Name("self_attn.q_norm.weight", "attn_q_norm.weight", ("head_dim",)),
    Name("self_attn.k_norm.weight", "attn_k_norm.weight", ("head_dim",)),
)


def _qkv_bias(*, optional: bool) -> tuple[Name, ...]:
    return (
        Name("self_attn.q_proj.bias", "attn_q.bias", ("q",), optional, rotary=True),
        Name("self_attn.k_proj.bias", "attn_k.bias", ("kv",), optional, rotary=True),
        Name("self_attn.v_proj.bias", "attn_v.bias", ("kv",), optional),
    )


_OTHER_BIAS = (
    Name("self_attn.o_proj.bias", "attn_output.bias", ("embd",), optional=True),
    Name("mlp.gate_proj.bias", "ffn_gate.bias", ("ff",), optional=True),
    Name("mlp.up_proj.bias", "ffn_up.bias", ("ff",), optional=True),
    Name("mlp.down_proj.bias", "ffn_down.bias", ("embd",), optional=True),
)


def interleaved(dimensions: Dimensions) -> NDArray[np.int64]:
    """Llama: the checkpoint rotates the first half of a head with the second, llama.cpp neighbour with neighbour."""
    order: NDArray[np.int64] = np.arange(dimensions.head_dim).reshape(2, -1).T.reshape(-1)
    return order


FAMILIES = {
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2, _BLOCK + _qkv_bias(optional=False)),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3, _BLOCK + _qkv_bias(optional=True) + _QK_NORM),
    "LlamaForCausalLM": Family(
        MODEL_ARCH.LLAMA,
        _BLOCK + _qkv_bias(optional=True) + _OTHER_BIAS,
        row_order=interleaved,
        always_says_head_dim=True,
        says_rope_dimension=True,
    ),
}


@dataclass(frozen=True)
class Model:
    """A checkpoint understood: what the GGUF will hold, but for vocabulary and types."""

    family: Family
    dimensions: Dimensions
    weights: tuple[Weight, ...]

    @property
    def architecture(self) -> str:
        return MODEL_ARCH_NAMES[self.family.arch]

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(weight.shape) for weight in self.weights)

    def describe(self, writer: GGUFWriter) -> None:
        """Add the architecture's metadata, in the order of upstream's converter."""
        has = self.dimensions
        writer.add_block_count(has.layer)
        writer.add_context_length(has.ctx)
        writer.add_embedding_length(has.embd)
        writer.add_feed_forward_length(has.ff)
        writer.add_head_count(has.head)
        writer.add_head_count_kv(has.head_kv)
        has.rope.describe(writer)
        writer.add_layer_norm_rms_eps(has.rms_eps)
        if has.says_head_dim or self.family.always_says_head_dim:
            writer.add_key_length(has.head_dim)
            writer.add_value_length(has.head_dim)
        if self.family.says_rope_dimension:
            writer.add_vocab_size(has.vocab)
            writer.add_rope_dimension_count(has.head_dim)


def understand(checkpoint: Checkpoint) -> Model:
    """Everything the GGUF will hold. Raises UnsupportedArchitectureError; CheckpointError names the field or tensor."""
    config = Config(checkpoint.path / "config.json", checkpoint.config)
    # 1. which family
    name = config.architecture()
    if name not in FAMILIES:
        raise UnsupportedArchitectureError(name, tuple(FAMILIES))
    family = FAMILIES[name]
    # 2. its dimensions
    dimensions = config.dimensions()
    # 3. its tensors: all that should be there, and no others
    weights, known = [], set()
    for kind, hf, gguf in _names(family, dimensions):
        known.add(hf)
        if weight := _weight(checkpoint, family, dimensions, kind, hf, gguf):
            weights.append(weight)
    _check_no_others(checkpoint, known, dimensions)
    # 4. what the checkpoint leaves to its code
    if dimensions.rope.llama3:
        divisors = dimensions.rope.llama3.divisors(dimensions.rope.theta, dimensions.head_dim)
        weights.append(Weight("rope_freqs.weight", divisors.shape, values=divisors))
    return Model(family, dimensions, tuple(weights))


def _names(family: Family, dimensions: Dimensions) -> Iterator[tuple[Name, str, str]]:
    for name in _OUTER if dimensions.is_tied else (*_OUTER, _HEAD):
        yield name, name.hf, name.gguf
    for i in range(dimensions.layer):
        for name in family.layer:
            yield name, f"model.layers.{i}.{name.hf}", f"blk.{i}.{name.gguf}"


def _weight(
    checkpoint: Checkpoint, family: Family, dimensions: Dimensions, kind: Name, hf: str, gguf: str
) -> Weight | None:
    shape = tuple(dimensions.size(axis) for axis in kind.shape)
    tensor = checkpoint.tensors.get(hf)
    if tensor is None:
        if kind.optional:
            return None
        remedy = "download the checkpoint again"
        raise CheckpointError(checkpoint.path, f"has no tensor {hf}, which should have the shape {shape}", remedy)
    if tensor.shape != shape:
        problem = f"tensor {hf} has the shape {tensor.shape}, config.json says {shape}"
        raise CheckpointError(tensor.path, problem, "get config.json and the tensors from the same place")
    if tensor.dtype not in FLOATS:
        problem = f"tensor {hf} holds {tensor.dtype} numbers"
        raise CheckpointError(tensor.path, problem, f"convert a checkpoint in {', '.join(FLOATS)}, not a quantised one")
    order = family.row_order(dimensions) if kind.rotary and family.row_order else None
    return Weight(gguf, shape, source=tensor, row_order=order)


def _check_no_others(checkpoint: Checkpoint, known: set[str], dimensions: Dimensions) -> None:
    for name, tensor in checkpoint.tensors.items():
        tied_head = dimensions.is_tied and name == _HEAD.hf  # the embedding once more
        if name not in known and not tied_head and not name.endswith(HARMLESS):
            problem = f"tensor {name} {tensor.shape} is none that this architecture has"
            raise CheckpointError(tensor.path, problem, "convert the unchanged checkpoint of a supported model")
