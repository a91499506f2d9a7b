"""What type each tensor gets under Q4_K_M, Q4_0 …: the rule of llama.cpp's quantiser. Knows names and shapes only.

The rule is that of llama_tensor_get_type, and the counters count as it does, so that a file made here and one made by
llama-quantize are the same file:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-quant.cpp
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from edge.errors import UnsupportedTypeError

Kind = GGMLQuantizationType
UNQUANTISED = (Kind.F32, Kind.F16, Kind.BF16)
# where a row is no multiple of the block of 256: the type of 32 that loses no more
FALLBACK = {Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0, Kind.IQ4_XS: Kind.IQ4_NL}


@dataclass(frozen=True)
class Network:
    """What the rule wants to know of a model beside its tensors."""

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    has_imatrix: bool = False

    @property
    def is_70b(self) -> bool:
        """llama.cpp's own idea of a 70B model; its eight-fold smaller attn_v gets more bits."""
        return self.n_layer == 80 and (self.architecture == "qwen2" or self.n_head != self.n_head_kv)


@dataclass(frozen=True)
class Place:
    """The i-th of n such tensors in a network."""

    i: int
    n: int
    network: Network


Places = Callable[[Place], bool]


def _outer_and_every_third(at: Place) -> bool:
    return at.i < at.n // 8 or at.i >= 7 * at.n // 8 or (at.i - at.n // 8) % 3 == 2


def _first_four(at: Place) -> bool:
    return at.i < 4


def _first_eighth(at: Place) -> bool:
    return at.i < at.n // 8


def _first_eighth_blind(at: Place) -> bool:
    return _first_eighth(at) and not at.network.has_imatrix


def _first_eighth_informed(at: Place) -> bool:
    """With an importance matrix some of the first ffn_down go crazy in Q4_0."""
    return _first_eighth(at) and at.network.has_imatrix


def _many_heads_per_value(at: Place) -> bool:
    return at.network.n_head // at.network.n_head_kv >= 4


@dataclass(frozen=True)
class Recipe:
    """A type of file: what most weights get, and where attn_v and ffn_down get more."""

    name: str
    file_type: LlamaFileType
    base: Kind
    attn_v: tuple[Places, Kind] | None = None
    ffn_down: tuple[Places, Kind] | None = None


_ROWS = (
    Recipe("F32", LlamaFileType.ALL_F32, Kind.F32),
    Recipe("F16", LlamaFileType.MOSTLY_F16, Kind.F16),
    Recipe("BF16", LlamaFileType.MOSTLY_BF16, Kind.BF16),
    Recipe("Q8_0", LlamaFileType.MOSTLY_Q8_0, Kind.Q8_0),
    Recipe("Q6_K", LlamaFileType.MOSTLY_Q6_K, Kind.Q6_K),
    Recipe(
        "Q5_K_M",
        LlamaFileType.MOSTLY_Q5_K_M,
        Kind.Q5_K,
        attn_v=(_outer_and_every_third, Kind.Q6_K),
        ffn_down=(_outer_and_every_third, Kind.Q6_K),
    ),
    Recipe("Q5_K_S", LlamaFileType.MOSTLY_Q5_K_S, Kind.Q5_K),
    Recipe(
        "Q4_K_M",
        LlamaFileType.MOSTLY_Q4_K_M,
        Kind.Q4_K,
        attn_v=(_outer_and_every_third, Kind.Q6_K),
        ffn_down=(_outer_and_every_third, Kind.Q6_K),
    ),
    Recipe(
        "Q4_K_S",
        LlamaFileType.MOSTLY_Q4_K_S,
        Kind.Q4_K,
        attn_v=(_first_four, Kind.Q5_K),
        ffn_down=(_first_eighth, Kind.Q5_K),
    ),
    Recipe("Q4_0", LlamaFileType.MOSTLY_Q4_0, Kind.Q4_0, ffn_down=(_first_eighth_informed, Kind.Q4_1)),
    Recipe("Q4_1", LlamaFileType.MOSTLY_Q4_1, Kind.Q4_1),
    Recipe(
        "IQ4_NL",
        LlamaFileType.MOSTLY_IQ4_NL,
        Kind.IQ4_NL,
        attn_v=(_many_heads_per_value, Kind.Q5_K),
        ffn_down=(_first_eighth_blind, Kind.Q5_K),
    ),
    Recipe(
        "IQ4_XS",
        LlamaFileType.MOSTLY_IQ4_XS,
        Kind.IQ4_XS,
        attn_v=(_many_heads_per_value, Kind.Q5_K),
        ffn_down=(_first_eighth_blind, Kind.Q5_K),
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ROWS}
KINDS = {kind.name: kind for kind in {recipe.base for recipe in _ROWS} | set(FALLBACK.values())}


@dataclass(frozen=True)
class Wishes:
    """Types the user names himself. They win over the recipe; the first pattern found in a name counts."""

    patterns: tuple[tuple[re.Pattern[str], Kind], ...] = ()
    output: Kind | None = None
    token_embedding: Kind | None = None
    pure: bool = False


def kind_named(name: str) -> Kind:
    """A tensor type by its name in any case. Raises UnsupportedTypeError."""
    if name.upper() not in KINDS:
        raise UnsupportedTypeError(name, tuple(sorted(KINDS)))
    return KINDS[name.upper()]


def file_order(name: str) -> tuple[int, str]:
    """Sort key: tensors outside the blocks first, then block by block, then by name."""
    block = re.match(r"blk\.(\d+)\.", name)
    return (int(block[1]) if block else -1, name)


def tensor_kinds(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], network: Network, wishes: Wishes | None = None
) -> dict[str, Kind]:
    """The type of each tensor, in the order of the file. shapes: (rows, columns) or (columns,)."""
    rule = _Rule(recipe, network, wishes or Wishes(), tuple(shapes))
    return {name: rule.kind(name, shapes[name]) for name in sorted(shapes, key=file_order)}


class _Rule:
    """Walks the tensors once. The counters move only where the recipe itself decides."""

    def __init__(self, recipe: Recipe, network: Network, wishes: Wishes, names: tuple[str, ...]) -> None:
        self.recipe = recipe
        self.network = network
        self.wishes = wishes
        self.is_tied = "output.weight" not in names
        self.n_attn_v = sum("attn_v.weight" in name for name in names)
        self.i_attn_v = 0
        self.i_ffn_down = 0

    def kind(self, name: str, shape: tuple[int, ...]) -> Kind:
        if len(shape) < 2 or not name.endswith("weight") or "_norm.weight" in name:
            return Kind.F32
        if name == "token_embd.weight" and self.wishes.token_embedding is not None:
            return fitting(self.wishes.token_embedding, shape[-1])
        if name == "output.weight" and self.wishes.output is not None:
            return fitting(self.wishes.output, shape[-1])
        if self.recipe.base in UNQUANTISED:
            return self.recipe.base
        for pattern, wished in self.wishes.patterns:
            if pattern.search(name):
                return fitting(wished, shape[-1])
        return fitting(self.recipe.base if self.wishes.pure else self._by_recipe(name, shape[-1]), shape[-1])

    def _by_recipe(self, name: str, n_columns: int) -> Kind:
        base = self.recipe.base
        if name == "output.weight" or (self.is_tied and name == "token_embd.weight"):
            return self._output(n_columns)
        if "attn_v.weight" in name:
            kind = self._raised(self.recipe.attn_v, self.i_attn_v, self.n_attn_v)
            self.i_attn_v += 1
            return Kind.Q5_K if self.network.is_70b and kind is Kind.Q4_K else kind
        if "ffn_down" in name:
            kind = self._raised(self.recipe.ffn_down, self.i_ffn_down, self.network.n_layer)
            self.i_ffn_down += 1
            return kind
        return base

    def _output(self, n_columns: int) -> Kind:
        if self.wishes.output is not None:
            return self.wishes.output
        if n_columns % GGML_QUANT_SIZES[self.recipe.base][0] or self.recipe.base is Kind.Q8_0:
            return Kind.Q8_0
        return Kind.Q6_K

    def _raised(self, rule: tuple[Places, Kind] | None, i: int, n: int) -> Kind:
        return rule[1] if rule and rule[0](Place(i, n, self.network)) else self.recipe.base


def fitting(kind: Kind, n_columns: int) -> Kind:
    """`kind`, or the nearest type whose blocks divide a row."""
    if n_columns % GGML_QUANT_SIZES[kind][0] == 0:
        return kind
    kind = FALLBACK.get(kind, kind)
    return kind if n_columns % GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16
