"""The whole way: our file is llama-quantize's file, whole or not there, and the source stays as it was."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from convert import blocks, output, quantize
from convert.pipeline import Progress, convert
from convert.recipes import RECIPES, Kind, Wishes
from edge.errors import CheckpointError, NoSpaceError, OutputError, UnsupportedTypeError
from tests.convert import checkpoints, upstream
from tests.convert.checkpoints import Shape

QUANTISED = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS")
EVERY_TYPE = ("F32", "F16", *QUANTISED)
FEW = ("Q4_K_M", "Q4_0", "IQ4_XS")
# nine layers reach every rule for "the first eighth", "every third", …; four query heads per value head another one
NINE = Shape("Qwen3ForCausalLM", ff=256, head=8, head_kv=2, head_dim=4, layer=9, vocab=272, bias=False)
SHAPES = {
    "every rule": (NINE, EVERY_TYPE),
    "every rule, tied": (replace(NINE, is_tied=True), ("Q8_0", *FEW)),
    "llama": (Shape("LlamaForCausalLM"), FEW),
    "odd rows": (Shape(embd=224, ff=608, head=7, head_kv=1), EVERY_TYPE),  # like Qwen2.5-0.5B: no multiples of 256
    "odd rows, tied": (Shape(embd=224, ff=512, head=7, head_kv=7, is_tied=True), ("Q8_0", *FEW)),
    "rows of no block": (Shape(embd=60, ff=256, head=2, head_kv=1), FEW),  # not even multiples of 32
}


@pytest.mark.parametrize("name", SHAPES)
def test_gives_the_bytes_of_llama_quantize(tmp_path: Path, out: Path, name: str) -> None:
    """From our BF16 file the library itself makes the same file, to the last byte."""
    shape, types = SHAPES[name]
    source = checkpoints.write(tmp_path / "model", shape, n_shards=2)
    made = {conversion.type: conversion.path for conversion in convert(source, ["BF16", *types], out)}
    check_against_upstream(made, tmp_path, types)


def test_every_type_is_held_against_upstream() -> None:
    assert {"BF16", *EVERY_TYPE} == set(RECIPES)


def check_against_upstream(made: dict[str, Path], folder: Path, types: Sequence[str], **wishes: Any) -> None:
    theirs = {folder / f"{name}.gguf": RECIPES[name].file_type for name in types}
    upstream.quantize(made["BF16"], theirs, **wishes)
    for path in theirs:
        assert made[path.stem].read_bytes() == path.read_bytes(), path.stem


WISHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pure": ({"pure": True}, {"pure": True}),
    "outer": (
        {"output": Kind.Q8_0, "token_embedding": Kind.F16},
        {"output_tensor_type": Kind.Q8_0, "token_embedding_type": Kind.F16},
    ),
    "patterns": (
        {"patterns": ((re.compile("ffn_(up|down)"), Kind.Q6_K), (re.compile(r"blk\.1\."), Kind.Q5_0))},
        {"tensor_types": [("ffn_(up|down)", Kind.Q6_K), (r"blk\.1\.", Kind.Q5_0)]},
    ),
}


@pytest.mark.parametrize("name", WISHES)
@pytest.mark.parametrize("is_tied", [False, True])
def test_wishes_give_the_bytes_too(tmp_path: Path, out: Path, name: str, is_tied: bool) -> None:
    source = checkpoints.write(tmp_path / "model", replace(NINE, layer=3, is_tied=is_tied))
    ours, theirs = WISHES[name]
    made = {conversion.type: conversion.path for conversion in convert(source, FEW, out, wishes=Wishes(**ours))}
    made["BF16"] = convert(source, ["BF16"], tmp_path)[0].path
    check_against_upstream(made, tmp_path, FEW, **theirs)


def write_imatrix(path: Path, columns: dict[str, NDArray[np.float32]], n_chunks: int = 7) -> None:
    """As llama-imatrix writes it: sums of squares, and how many were summed."""
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", n_chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in columns.items():
        writer.add_tensor(f"{name}.in_sum2", (values * np.float32(512)).reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), 512, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def importance_of(model: Path) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    shapes = {tensor.name: tensor.shape for tensor in GGUFReader(model).tensors if tensor.name.startswith("blk")}
    return {name: rng.random(int(shape[0]), dtype=np.float32) for name, shape in shapes.items() if len(shape) > 1}


WEIGHTED = ("Q4_0", "Q4_K_M", "Q5_K_S", "IQ4_XS")


def test_importance_matrix_gives_the_weights_too(tmp_path: Path, out: Path) -> None:
    source = checkpoints.write(tmp_path / "model", NINE)
    plain = convert(source, ["BF16"], tmp_path)[0].path
    columns = importance_of(plain)
    write_imatrix(tmp_path / "model.imatrix.gguf", columns)
    theirs = {tmp_path / f"{name}.gguf": RECIPES[name].file_type for name in WEIGHTED}
    upstream.quantize(plain, theirs, importance={name: values.tolist() for name, values in columns.items()})
    for made in convert(source, WEIGHTED, out, imatrix=tmp_path / "model.imatrix.gguf"):
        ours, reference = GGUFReader(made.path), GGUFReader(tmp_path / f"{made.type}.gguf")
        for tensor, expected in zip(ours.tensors, reference.tensors, strict=True):
            assert (tensor.name, tensor.tensor_type) == (expected.name, expected.tensor_type)
            assert tensor.data.tobytes() == expected.data.tobytes(), f"{made.type} {tensor.name}"
        found = {key: field.contents() for key, field in ours.fields.items() if key.startswith("quantize.")}
        assert found == {
            "quantize.imatrix.file": "model.imatrix.gguf",
            "quantize.imatrix.dataset": "calibration.txt",
            "quantize.imatrix.entries_count": len(columns),
            "quantize.imatrix.chunks_count": 7,
        }


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_sources_give_the_bytes_too(tmp_path: Path, out: Path, dtype: str) -> None:
    """F16 and F32 hold more than BF16 does; the F32 file is the one that lost nothing."""
    source = checkpoints.write(tmp_path / "model", Shape(dtype=dtype))
    made = {conversion.type: conversion.path for conversion in convert(source, ["F32", "BF16", "Q4_K_M"], out)}
    theirs = {tmp_path / f"{name}.gguf": RECIPES[name].file_type for name in ("BF16", "Q4_K_M")}
    upstream.quantize(made["F32"], theirs)
    for path in theirs:
        assert made[path.stem].read_bytes() == path.read_bytes()


def test_block_size_does_not_matter(checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convert(checkpoint, ["Q8_0"], out)[0].sha256
    monkeypatch.setattr(blocks, "N_BLOCK_VALUES", 100)
    assert convert(checkpoint, ["Q8_0"], out, overwrite=True)[0].sha256 == whole


def test_one_pass_gives_what_single_passes_give(checkpoint: Path, out: Path, tmp_path: Path) -> None:
    together = [conversion.sha256 for conversion in convert(checkpoint, ["Q4_0", "q8_0", "Q4_0"], out)]
    assert together == [convert(checkpoint, [name], tmp_path)[0].sha256 for name in ("Q4_0", "Q8_0")]


def test_gguf_reader_finds_weights_and_metadata(tmp_path: Path, out: Path) -> None:
    """gguf-py, not we, reads what we wrote."""
    source = checkpoints.write(tmp_path / "Some-Model-7B-Chat", Shape())
    reader = GGUFReader(convert(source, ["BF16"], out)[0].path)
    found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}
    assert found["general.architecture"] == "qwen2"
    assert found["general.name"] == "Some Model 7B Chat"
    assert found["general.type"] == "model"
    assert found["general.sampling.temp"] == pytest.approx(0.6)
    assert found["qwen2.block_count"] == 2
    assert found["qwen2.attention.head_count_kv"] == 2
    assert found["qwen2.rope.freq_base"] == 10000.0
    assert found["tokenizer.ggml.pre"] == "deepseek-r1-qwen"
    assert found["tokenizer.ggml.bos_token_id"] == 257
    assert found["tokenizer.ggml.tokens"][287] == "[PAD287]"
    assert found["general.file_type"] == 32
    weights = checkpoints.tensors(Shape())
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    expected = checkpoints.encode(weights["model.layers.1.mlp.down_proj.weight"], "BF16")
    assert tensor.data.tobytes() == expected


def test_conversion_says_what_was_made(checkpoint: Path, out: Path) -> None:
    made = convert(checkpoint, ["Q4_0"], out)[0]
    assert made.path == out / "Tiny-R1-Q4_0.gguf"
    assert made.n_bytes == made.path.stat().st_size
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert made.n_source_bytes == 2 * made.n_parameters
    assert 4.5 < made.bits_per_weight < 8.6
    assert made.n_tensors == 15
    assert made.seconds > 0


def test_progress_reaches_the_end_of_both_phases(checkpoint: Path, out: Path) -> None:
    seen: list[Progress] = []
    convert(checkpoint, ["Q4_0"], out, progress=seen.append)
    for phase in ("convert", "verify"):
        steps = [step for step in seen if step.phase == phase]
        assert [step.n_bytes_done for step in steps] == sorted(step.n_bytes_done for step in steps)
        assert steps[-1].n_bytes_done >= 0.99 * steps[-1].n_bytes_total


def test_default_folder_is_the_current_one(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(checkpoint, ["Q8_0"])[0].path.resolve() == tmp_path / "Tiny-R1-Q8_0.gguf"


@pytest.mark.parametrize("name", ["模型 ü", "two\nlines", "a'b\"c", "-Q4_0", "bytes \udcff", "7B", "..."])
def test_any_folder_name_will_do(tmp_path: Path, out: Path, name: str) -> None:
    source = checkpoints.write(tmp_path / name, Shape(embd=32, ff=32, head=2, head_kv=1, layer=1))
    made = convert(source, ["Q8_0"], out)[0]
    assert made.path.name == f"{name}-Q8_0.gguf"
    assert GGUFReader(made.path).fields["general.name"].contents()


def test_name_comes_from_the_hub_cache(tmp_path: Path, out: Path) -> None:
    """snapshots/REVISION holds links to ../../blobs; the model's name is further up."""
    plain = checkpoints.write(tmp_path / "plain", Shape(embd=32, ff=32, head=2, head_kv=1, layer=1))
    repository = tmp_path / "hub" / "models--somebody--Tiny-Chat"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in plain.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    assert convert(snapshot, ["Q8_0"], out)[0].path.name == "Tiny-Chat-Q8_0.gguf"


def test_output_inside_the_source_is_fine(checkpoint: Path) -> None:
    convert(checkpoint, ["Q8_0"], checkpoint)
    assert convert(checkpoint, ["Q4_0"], checkpoint)[0].path.parent == checkpoint


# refusals


def test_unknown_type_is_named_with_the_known(checkpoint: Path, out: Path) -> None:
    with pytest.raises(UnsupportedTypeError) as caught:
        convert(checkpoint, ["Q4_9"], out)
    assert caught.value.name == "Q4_9"
    assert "Q4_K_M" in caught.value.supported
    assert str(caught.value).startswith("type Q4_9 cannot be made; choose one of: F32, F16")


def test_existing_output_stays_unless_forced(checkpoint: Path, out: Path) -> None:
    path = out / "Tiny-R1-Q4_0.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError) as caught:
        convert(checkpoint, ["Q8_0", "Q4_0"], out)
    assert caught.value.path == path
    assert "add --force" in caught.value.remedy
    assert path.read_bytes() == b"mine"
    assert list(out.iterdir()) == [path]
    convert(checkpoint, ["Q4_0"], out, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"


def test_output_that_comes_meanwhile_stays(checkpoint: Path, out: Path) -> None:
    path = out / "Tiny-R1-Q4_0.gguf"

    def somebody_else(progress: Progress) -> None:
        path.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists"):
        convert(checkpoint, ["Q4_0"], out, progress=somebody_else)
    assert path.read_bytes() == b"theirs"
    assert list(out.iterdir()) == [path]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_output_that_is_the_source_is_refused(checkpoint: Path, out: Path, link: Callable[[Path, Path], None]) -> None:
    """llama-quantize destroys its input when it is also the output."""
    path = out / "Tiny-R1-Q4_0.gguf"
    link(checkpoint / "model.safetensors", path)
    before = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(OutputError) as caught:
        convert(checkpoint, ["Q4_0"], out, overwrite=True)
    assert caught.value.path == path
    assert caught.value.problem == "is a file of the checkpoint itself"
    assert (checkpoint / "model.safetensors").read_bytes() == before


def test_missing_and_wrong_output_folders(checkpoint: Path, out: Path) -> None:
    (out / "Tiny-R1-Q4_0.gguf").mkdir()
    with pytest.raises(OutputError, match="is a folder; choose another"):
        convert(checkpoint, ["Q4_0"], out, overwrite=True)
    (out / "file").write_text("in the way")
    with pytest.raises(OutputError, match="is not a folder; choose another"):
        convert(checkpoint, ["Q4_0"], out / "file")
    with pytest.raises(OutputError, match="cannot be made"):
        convert(checkpoint, ["Q4_0"], out / "file" / "below")


def test_a_missing_output_folder_is_made_and_goes_again_when_nothing_comes_of_it(checkpoint: Path, out: Path) -> None:
    assert convert(checkpoint, ["Q4_0"], out / "a" / "b")[0].path.parent == out / "a" / "b"
    (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        convert(checkpoint, ["Q4_0"], out / "c")
    assert not (out / "c").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(checkpoint: Path, out: Path) -> None:
    out.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        convert(checkpoint, ["Q4_0"], out)


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="Linux only")
def test_a_folder_where_even_root_cannot_write(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "n_bytes_free", lambda folder: 10**9)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        convert(checkpoint, ["Q4_0"], Path("/sys/kernel"))
    assert caught.value.path.is_relative_to("/sys/kernel")
    assert str(caught.value).endswith("--out")


def test_too_long_name(tmp_path: Path, out: Path) -> None:
    source = checkpoints.write(tmp_path / ("n" * 245), Shape(embd=32, ff=32, head=2, head_kv=1, layer=1))
    with pytest.raises(OutputError, match="File name too long"):
        convert(source, ["Q4_0"], out)


def test_full_disk_is_seen_before_the_first_byte(checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "n_bytes_free", lambda folder: 1000)
    with pytest.raises(NoSpaceError) as caught:
        convert(checkpoint, ["Q4_0"], out)
    assert caught.value.n_bytes_free == 1000
    assert caught.value.n_bytes_needed > 40_000
    assert "0 MB are free; free some room" in str(caught.value)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, out: Path, value: float, word: str) -> None:
    weights = checkpoints.tensors(Shape())
    weights["model.layers.1.mlp.up_proj.weight"][100, 7] = value
    source = checkpoints.write(tmp_path / "model")
    checkpoints.write_tensors(source, weights)
    with pytest.raises(CheckpointError) as caught:
        convert(source, ["Q4_K_M"], out)
    assert caught.value.path == source / "model.safetensors"
    assert "blk.1.ffn_up.weight" in caught.value.problem
    assert word in caught.value.problem
    assert list(out.iterdir()) == []


def test_weights_too_large_for_the_type_are_named(tmp_path: Path, out: Path) -> None:
    """70 000 is a fine BF16 and no F16."""
    weights = checkpoints.tensors(Shape())
    weights["lm_head.weight"][3, 3] = 70_000
    source = checkpoints.write(tmp_path / "model")
    checkpoints.write_tensors(source, weights)
    convert(source, ["BF16"], out)
    with pytest.raises(CheckpointError, match=r"tensor output\.weight has numbers too large for F16"):
        convert(source, ["F16"], out)


# cost


def test_a_shared_type_is_encoded_once(checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q4_0 and Q4_K_M both want Q6_K heads; two files must cost hardly more than one."""
    made: list[Any] = []
    encode = quantize.encode

    def counting(values: Any, kind: Any, out: Any, importance: Any = None) -> bool:
        made.append(kind)
        return encode(values, kind, out, importance)

    monkeypatch.setattr(quantize, "encode", counting)
    convert(checkpoint, ["Q8_0", "Q4_0"], out)
    assert sum(kind.name == "F32" for kind in made) == 6  # norms and biases, for both files
