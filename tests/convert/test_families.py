"""A checkpoint of a known family gives every tensor under its GGUF name, or an error that names the tensor or field."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from convert import families
from convert.checkpoint import Checkpoint
from convert.families import FAMILIES, Model, understand
from convert.pipeline import convert
from edge.errors import CheckpointError, UnsupportedArchitectureError
from tests.convert import checkpoints, reference, upstream
from tests.convert.checkpoints import Shape

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def understood(folder: Path) -> Model:
    with Checkpoint.open(folder) as checkpoint:
        return understand(checkpoint)


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        understood(folder)
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "model")


def rewrite(folder: Path, changes: dict[str, Any], shape: Shape | None = None) -> None:
    """Write the tensors again, some of them changed, None taken out."""
    values = checkpoints.tensors(shape or Shape()) | changes
    checkpoints.write_tensors(folder, {name: value for name, value in values.items() if value is not None})


def test_every_tensor_gets_its_name_and_shape(folder: Path) -> None:
    model = understood(folder)
    shapes = {weight.name: weight.shape for weight in model.weights}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (288, 256)
    assert shapes["blk.1.attn_q.weight"] == (256, 256)
    assert shapes["blk.1.attn_k.weight"] == (128, 256)
    assert shapes["blk.0.attn_v.bias"] == (128,)
    assert shapes["blk.0.ffn_down.weight"] == (256, 512)
    assert len(shapes) == len(checkpoints.tensors(Shape())) == 3 + 2 * 12
    assert model.n_parameters == sum(value.size for value in checkpoints.tensors(Shape()).values())


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    shape = Shape(is_tied=True)
    folder = checkpoints.write(tmp_path / "model", shape)
    assert "output.weight" not in {weight.name for weight in understood(folder).weights}
    rewrite(folder, {"lm_head.weight": np.zeros((288, 256))}, shape)  # some save it once more
    assert "output.weight" not in {weight.name for weight in understood(folder).weights}


def test_unknown_architecture_is_named_with_the_known(folder: Path) -> None:
    checkpoints.change(folder, "config.json", architectures=["MambaForCausalLM"])
    with pytest.raises(UnsupportedArchitectureError) as caught:
        understood(folder)
    assert caught.value.architecture == "MambaForCausalLM"
    assert caught.value.supported == tuple(FAMILIES)
    assert str(caught.value).startswith(
        "architecture MambaForCausalLM is not supported; convert one of: Qwen2ForCausalLM"
    )


def test_missing_tensor_is_named_with_its_shape(folder: Path) -> None:
    rewrite(folder, {"model.layers.1.mlp.down_proj.weight": None})
    error = refused(folder)
    assert error.path == folder
    assert error.problem == (
        "has no tensor model.layers.1.mlp.down_proj.weight, which should have the shape (256, 512)"
    )


def test_untied_head_must_be_there(folder: Path) -> None:
    rewrite(folder, {"lm_head.weight": None})
    assert refused(folder).problem == "has no tensor lm_head.weight, which should have the shape (288, 256)"


def test_wrong_shape_is_named_with_both(folder: Path) -> None:
    rewrite(folder, {"model.layers.0.self_attn.k_proj.weight": np.zeros((256, 256))})
    error = refused(folder)
    assert error.path == folder / "model.safetensors"
    assert error.problem == (
        "tensor model.layers.0.self_attn.k_proj.weight has the shape (256, 256), config.json says (128, 256)"
    )


def test_strange_tensors_are_refused_and_harmless_ones_skipped(folder: Path) -> None:
    rewrite(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(32)})
    understood(folder)
    rewrite(folder, {"model.layers.2.mlp.up_proj.weight": np.zeros((512, 256))})
    error = refused(folder)
    assert error.problem == "tensor model.layers.2.mlp.up_proj.weight (512, 256) is none that this architecture has"


def test_quantised_checkpoints_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" '))
    error = refused(folder)
    assert error.problem == "tensor model.embed_tokens.weight holds I16 numbers"
    assert error.remedy == "convert a checkpoint in BF16, F16, F32, not a quantised one"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("architectures", [], "architectures is '[]', not a list with one name"),
        ("hidden_size", None, "has no hidden_size, a whole number from 1 to 1,048,576"),
        ("hidden_size", -5, "hidden_size is '-5', not a whole number from 1 to 1,048,576"),
        ("hidden_size", 256.0, "hidden_size is '256.0', not a whole number from 1 to 1,048,576"),
        ("num_hidden_layers", 513, "num_hidden_layers is '513', not a whole number from 1 to 512"),
        ("num_hidden_layers", True, "num_hidden_layers is 'True', not a whole number from 1 to 512"),
        ("num_attention_heads", 3, "num_key_value_heads is '2', not a divisor of 3"),
        ("num_key_value_heads", 8, "num_key_value_heads is '8', not a whole number from 1 to 4"),
        ("vocab_size", 10**30, f"vocab_size is '{10**30}', not a whole number from 1 to 16,777,216"),
        ("rms_norm_eps", "1e-6", "rms_norm_eps is '1e-6', not a number from 0 to 1"),
        ("rope_theta", 0, "rope_theta is '0', not a number from 1 to 1e+12"),
        ("rope_scaling", [1], "rope_scaling is '[1]', not an object"),
        ("rope_scaling", {"rope_type": "magic"}, "rope_type is 'magic', not default, linear, yarn or llama3"),
        ("rope_scaling", {"type": "linear"}, "has no factor, a number from 1 to 1e+06"),
        (
            "rope_scaling",
            LLAMA3 | {"low_freq_factor": 4},
            "low_freq_factor is '4.0', not less than high_freq_factor, 4.0",
        ),
        ("rope_scaling", LLAMA3 | {"factor": None}, "has no factor, a number from 1 to 1e+06"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', not silu, which llama.cpp takes for granted"),
        ("quantization_config", {"quant_method": "gptq"}, "says the weights are quantised already (gptq)"),
        ("max_position_embeddings", 0, "max_position_embeddings is '0', not a whole number from 1 to 2,147,483,648"),
    ],
)
def test_config_fields_are_checked_and_named(folder: Path, key: str, value: object, problem: str) -> None:
    checkpoints.change(folder, "config.json", **{key: value})
    error = refused(folder)
    assert error.path == folder / "config.json"
    assert error.problem == problem


def test_head_sizes_must_come_out_even(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model", Shape(embd=250, head=4, head_kv=2))
    assert refused(folder).problem == "num_attention_heads is '4', not a divisor of hidden_size, 250"
    folder = checkpoints.write(tmp_path / "model", replace(Shape(), embd=12, head=4))
    assert refused(folder).problem == "head_dim is '3', not an even number"


# the families, against what upstream's converter makes of the same checkpoints


def described(folder: Path) -> dict[str, Any]:
    """The architecture's metadata by key, without its prefix."""
    model = understood(folder)
    writer = GGUFWriter(None, model.architecture)
    model.describe(writer)
    return {key.removeprefix(f"{model.architecture}."): value.value for key, value in writer.kv_data[0].items()}


def test_qwen3_has_head_norms_and_a_head_size_of_its_own(tmp_path: Path) -> None:
    shape = Shape("Qwen3ForCausalLM", embd=64, head=4, head_kv=2, head_dim=32, bias=False, is_tied=True)
    folder = checkpoints.write(tmp_path / "model", shape)
    shapes = {weight.name: weight.shape for weight in understood(folder).weights}
    assert shapes["blk.0.attn_q.weight"] == (128, 64)
    assert shapes["blk.0.attn_output.weight"] == (64, 128)
    assert shapes["blk.1.attn_q_norm.weight"] == shapes["blk.1.attn_k_norm.weight"] == (32,)
    found = described(folder)
    assert found["general.architecture"] == "qwen3"
    assert (found["attention.key_length"], found["attention.value_length"]) == (32, 32)


def test_llama_says_its_head_size_and_vocabulary(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model", Shape("LlamaForCausalLM", bias=False))
    assert described(folder) == {
        "general.architecture": "llama",
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "vocab_size": 288,
        "rope.dimension_count": 64,
    }


def test_llama_rotates_neighbours_where_the_checkpoint_rotates_halves(tmp_path: Path) -> None:
    """Rows h*64 + i and h*64 + 32 + i of the checkpoint are a pair; in GGUF they stand side by side."""
    source = checkpoints.write(tmp_path / "model", Shape("LlamaForCausalLM", head=4, head_kv=2))
    made = {tensor.name: tensor for tensor in GGUFReader(convert(source, ["F32"], tmp_path)[0].path).tensors}
    for short, n_heads in (("q", 4), ("k", 2)):
        with Checkpoint.open(source) as checkpoint:
            weight = checkpoint.rows(f"model.layers.1.self_attn.{short}_proj.weight")
            bias = checkpoint.rows(f"model.layers.1.self_attn.{short}_proj.bias")[0]
        for head in range(n_heads):
            for i in range(32):
                for half in range(2):
                    there, here = head * 64 + half * 32 + i, head * 64 + 2 * i + half
                    assert np.array_equal(made[f"blk.1.attn_{short}.weight"].data[here], weight[there])
                    assert made[f"blk.1.attn_{short}.bias"].data[here] == bias[there]


def test_llama_3_gets_its_frequency_divisors(tmp_path: Path) -> None:
    """Upstream's numbers for Llama-3.2-1B's settings and heads of 32, to the bit."""
    folder = checkpoints.write(tmp_path / "model", Shape("LlamaForCausalLM", embd=128, bias=False))
    checkpoints.change(folder, "config.json", rope_theta=500000.0, rope_scaling=LLAMA3)
    made = next(weight for weight in understood(folder).weights if weight.name == "rope_freqs.weight")
    assert made.values is not None
    assert made.values.tolist() == [1.0] * 8 + [3.2922627925872803] + [32.0] * 7
    assert "rope.scaling.type" not in described(folder)


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_is_told(folder: Path, where: str) -> None:
    yarn = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768, "beta_fast": 32, "rope_theta": 1e6}
    checkpoints.change(folder, "config.json", rope_theta=1e6, **{where: yarn})
    found = {key: value for key, value in described(folder).items() if key.startswith("rope")}
    assert found == {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32768,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.freq_base": 1e6,
    }
    checkpoints.change(folder, "config.json", **{where: {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}})
    assert described(folder)["rope.scaling.type"] == "linear"


def test_biases_that_a_llama_may_have(tmp_path: Path) -> None:
    shape = Shape("LlamaForCausalLM")
    folder = checkpoints.write(tmp_path / "model", shape)
    rewrite(folder, {"model.layers.0.mlp.down_proj.bias": np.zeros(256)}, shape)
    names = {weight.name for weight in understood(folder).weights}
    assert {"blk.0.ffn_down.bias", "blk.1.attn_k.bias"} <= names
    assert "blk.1.ffn_down.bias" not in names


QWEN3 = Shape("Qwen3ForCausalLM", embd=64, ff=96, head=4, head_kv=2, head_dim=32, layer=3, bias=False, is_tied=True)
MODELS = {
    "qwen2": (Shape(embd=64, ff=96, head=4, head_kv=2, layer=3), {}),
    "qwen2, tied": (Shape(embd=64, ff=96, head=4, head_kv=1, layer=3, is_tied=True), {}),
    "qwen3": (QWEN3, {}),
    "llama": (Shape("LlamaForCausalLM", embd=64, ff=96, head=4, head_kv=2, layer=3, bias=False), {}),
    "llama with biases": (Shape("LlamaForCausalLM", embd=64, ff=96, head=2, head_kv=2, layer=3), {}),
    "llama 3": (
        Shape("LlamaForCausalLM", embd=128, ff=96, head=4, head_kv=2, layer=3, bias=False),
        # so short that a few tokens tell slow frequencies from fast ones
        {"rope_scaling": LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 32}},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_libllama_says_what_the_checkpoint_says(tmp_path: Path, name: str) -> None:
    """The network computed in numpy from the checkpoint, and by libllama from our file: the same logits."""
    check_logits(tmp_path, *MODELS[name])


def test_the_family_that_the_page_for_contributors_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"```python\n(FAMILIES\[.+?)```", page, re.DOTALL)
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    exec(row, vars(families))
    shape = Shape("MistralForCausalLM", embd=64, ff=96, head=4, head_kv=2, layer=3, bias=False)
    check_logits(tmp_path, shape, {})


def check_logits(tmp_path: Path, shape: Shape, changes: dict[str, Any]) -> None:
    shape = replace(shape, dtype="F32")
    folder = checkpoints.write(tmp_path / "model", shape)
    checkpoints.change(folder, "config.json", **changes)
    weights = {name: 4 * value + ("norm" in name) for name, value in checkpoints.tensors(shape).items()}
    checkpoints.write_tensors(folder, weights, dtype="F32")
    tokens = [257, *range(7, 283, 23)]
    expected = reference.logits(checkpoints.config(shape) | changes, weights, tokens)
    found = np.array(upstream.logits(convert(folder, ["F32"], tmp_path)[0].path, tokens))
    assert np.abs(expected).max() > 2
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
