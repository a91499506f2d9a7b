"""The type of each tensor. The rule as a whole is held against llama-quantize in test_pipeline; here are its edges."""

import re

import pytest

from convert.recipes import RECIPES, Kind, Network, Wishes, file_order, fitting, tensor_kinds

R1 = Network("qwen2", n_layer=28, n_head=12, n_head_kv=2)
MORE_BITS = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27}


def shapes(network: Network, *, embd: int = 1536, ff: int = 8960, tied: bool = False) -> dict[str, tuple[int, ...]]:
    """The tensors of DeepSeek-R1-Distill-Qwen-1.5B, or of its like."""
    kv = embd // network.n_head * network.n_head_kv
    found: dict[str, tuple[int, ...]] = {"output_norm.weight": (embd,), "token_embd.weight": (151_936, embd)}
    if not tied:
        found["output.weight"] = (151_936, embd)
    for i in range(network.n_layer):
        for name, shape in {
            "attn_norm.weight": (embd,),
            "attn_q.weight": (embd, embd),
            "attn_q.bias": (embd,),
            "attn_k.weight": (kv, embd),
            "attn_v.weight": (kv, embd),
            "attn_output.weight": (embd, embd),
            "ffn_norm.weight": (embd,),
            "ffn_gate.weight": (ff, embd),
            "ffn_up.weight": (ff, embd),
            "ffn_down.weight": (embd, ff),
        }.items():
            found[f"blk.{i}.{name}"] = shape
    return found


def kinds(name: str, network: Network = R1, wishes: Wishes | None = None, **changes: int) -> dict[str, Kind]:
    tied = bool(changes.pop("tied", False))
    return tensor_kinds(RECIPES[name], shapes(network, tied=tied, **changes), network, wishes)


def layers(found: dict[str, Kind], name: str, kind: Kind) -> set[int]:
    return {i for i in range(len(found)) if found.get(f"blk.{i}.{name}") is kind}


def test_q4_k_m_of_r1() -> None:
    found = kinds("Q4_K_M")
    assert found["output.weight"] is Kind.Q6_K
    assert found["token_embd.weight"] is Kind.Q4_K
    assert layers(found, "attn_v.weight", Kind.Q6_K) == MORE_BITS
    assert layers(found, "ffn_down.weight", Kind.Q6_K) == MORE_BITS
    assert layers(found, "ffn_up.weight", Kind.Q4_K) == set(range(28))
    assert {kind for name, kind in found.items() if "norm" in name or "bias" in name} == {Kind.F32}


def test_q4_0_of_r1() -> None:
    found = kinds("Q4_0")
    assert found["output.weight"] is Kind.Q6_K
    assert {kind for name, kind in found.items() if name.startswith("blk") and kind is not Kind.F32} == {Kind.Q4_0}


def test_tied_embedding_is_treated_as_the_output() -> None:
    for name, kind in {"Q4_K_M": Kind.Q6_K, "Q4_0": Kind.Q6_K, "Q8_0": Kind.Q8_0, "BF16": Kind.BF16}.items():
        assert kinds(name, tied=1)["token_embd.weight"] is kind


def test_file_order_is_outer_tensors_then_blocks_by_number() -> None:
    found = list(kinds("Q8_0"))
    assert found[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]
    assert [name for name in found if "attn_k" in name] == [f"blk.{i}.attn_k.weight" for i in range(28)]
    assert file_order("blk.10.a") > file_order("blk.9.b") > file_order("output.weight")


@pytest.mark.parametrize(
    ("kind", "n_columns", "expected"),
    [
        (Kind.Q4_K, 896, Kind.Q5_0),
        (Kind.Q5_K, 896, Kind.Q5_1),
        (Kind.Q6_K, 896, Kind.Q8_0),
        (Kind.IQ4_XS, 896, Kind.IQ4_NL),
        (Kind.Q4_0, 896, Kind.Q4_0),
        (Kind.Q4_K, 900, Kind.F16),
        (Kind.Q8_0, 900, Kind.F16),
        (Kind.Q4_K, 512, Kind.Q4_K),
        (Kind.BF16, 7, Kind.BF16),
    ],
)
def test_rows_that_do_not_divide_get_the_next_type(kind: Kind, n_columns: int, expected: Kind) -> None:
    assert fitting(kind, n_columns) is expected


def test_importance_matrix_guards_q4_0() -> None:
    informed = Network("qwen2", 28, 12, 2, has_imatrix=True)
    assert layers(kinds("Q4_0", informed), "ffn_down.weight", Kind.Q4_1) == {0, 1, 2}
    assert layers(kinds("IQ4_XS", informed), "ffn_down.weight", Kind.Q5_K) == set()
    assert layers(kinds("IQ4_XS"), "ffn_down.weight", Kind.Q5_K) == {0, 1, 2}


def test_wishes_win() -> None:
    wishes = Wishes(
        patterns=((re.compile(r"ffn_down"), Kind.Q8_0), (re.compile(r"blk\.0\."), Kind.Q5_K)),
        output=Kind.Q8_0,
        token_embedding=Kind.F16,
    )
    found = kinds("Q4_K_M", wishes=wishes)
    assert found["output.weight"] is Kind.Q8_0
    assert found["token_embd.weight"] is Kind.F16
    assert layers(found, "ffn_down.weight", Kind.Q8_0) == set(range(28))
    assert found["blk.0.attn_k.weight"] is Kind.Q5_K
    # attn_v of block 0 was taken by a wish, so the counter starts with block 1
    assert layers(found, "attn_v.weight", Kind.Q6_K) == {i + 1 for i in MORE_BITS if i < 27}


def test_pure_gives_one_type() -> None:
    found = kinds("Q4_K_M", wishes=Wishes(pure=True))
    assert {kind for kind in found.values() if kind is not Kind.F32} == {Kind.Q4_K}


def test_70b_values_get_more_bits() -> None:
    large = Network("llama", n_layer=80, n_head=64, n_head_kv=8)
    assert set(layers(kinds("Q4_K_S", large, embd=8192, ff=28672), "attn_v.weight", Kind.Q4_K)) == set()
