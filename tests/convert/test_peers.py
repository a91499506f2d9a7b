"""Our files against those of the real llama-quantize, to the last byte, as somebody would make them by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert.cli import convert
from convert.recipes import RECIPES
from tests import peers
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape
from tests.convert.test_pipeline import NINE, importance_of, write_imatrix

QUANTISED = tuple(name for name in RECIPES if name not in ("F32", "F16", "BF16"))
FAMILIES = {
    "qwen2": Shape(ff=256),
    "qwen2 tied": Shape(ff=256, is_tied=True),
    "qwen2 odd rows": Shape(embd=224, ff=608, head=7, head_kv=1),
    "qwen3": NINE,
    "llama": Shape("LlamaForCausalLM", ff=256, bias=False),
}
OPTIONS = {
    "pure": ("--pure",),
    "outer": ("--output-tensor-type", "q8_0", "--token-embedding-type", "f16"),
    "pattern": ("--tensor-type", "ffn_(up|down)=q6_k", "--tensor-type", r"blk\.1\.=q5_0"),
    "weighted": ("--imatrix", "model.imatrix.gguf"),
}


def make(folder: Path, types: tuple[str, ...], *options: str) -> None:
    chosen = [word for name in types for word in ("-t", name)]
    result = CliRunner().invoke(convert, [str(folder / "model"), *chosen, "-o", str(folder), *options])
    assert result.exit_code == 0, result.output


def check(folder: Path, types: tuple[str, ...], *options: str) -> None:
    for name in types:
        peers.run("llama-quantize", *options, "model-BF16.gguf", "theirs.gguf", name, 1, folder=folder)
        assert (folder / f"model-{name}.gguf").read_bytes() == (folder / "theirs.gguf").read_bytes(), name


@pytest.mark.parametrize("name", FAMILIES)
def test_each_type_of_each_family_is_the_tool_s(tmp_path: Path, name: str) -> None:
    checkpoints.write(tmp_path / "model", FAMILIES[name])
    make(tmp_path, ("BF16", *QUANTISED))
    check(tmp_path, QUANTISED)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_does_what_the_tool_s_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)  # both note the matrix by the name they were given
    checkpoints.write(tmp_path / "model", replace(NINE, layer=8))
    make(tmp_path, ("BF16",))
    write_imatrix(tmp_path / "model.imatrix.gguf", importance_of(tmp_path / "model-BF16.gguf"))
    make(tmp_path, ("Q4_K_M", "Q4_0"), *OPTIONS[name])
    check(tmp_path, ("Q4_K_M", "Q4_0"), *OPTIONS[name])
