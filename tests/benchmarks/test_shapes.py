"""A synthetic file is read by libllama as the model it has the shape of, and answers like a network, not like noise."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import fingerprint, harness, shapes
from benchmarks.runner import Job
from benchmarks.shapes import SHAPES, Shape, layout
from benchmarks.workload import Workload
from edge.errors import OutputError
from edge.model.gguf import read_model_info

SMALL = {
    "qwen2": Shape("small-qwen2", "qwen2", 2, 256, 512, 4, 2, 6000, 512, False),
    "qwen3": Shape("small-qwen3", "qwen3", 2, 256, 512, 4, 2, 6000, 512, True, head_dim=128),
    "llama": Shape("small-llama", "llama", 2, 256, 512, 4, 2, 6000, 512, False),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_numbers_of_parameters_are_the_published_ones(shape: Shape) -> None:
    billions = {
        "deepseek-r1-distill-qwen-1.5b": 1.777, "qwen2.5-0.5b": 0.494, "qwen2.5-1.5b": 1.544, "qwen2.5-3b": 3.086,
        "qwen3-0.6b": 0.596, "qwen3-1.7b": 1.721, "tinyllama-1.1b": 1.100, "llama-3.2-1b": 1.236,
        "llama-3.2-3b": 3.213, "deepseek-r1-distill-qwen-7b": 7.616, "deepseek-r1-distill-llama-8b": 8.030,
    }  # fmt: skip
    assert layout(shape, "Q4_0").n_params / 1e9 == pytest.approx(billions[shape.name], abs=0.001)


@pytest.mark.parametrize("architecture", SMALL)
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_a_file_is_what_its_layout_says_and_can_be_measured(tmp_path: Path, architecture: str, kind: str) -> None:
    made = layout(SMALL[architecture], kind)
    path = tmp_path / "small.gguf"
    shapes.write(made, path)
    info = read_model_info(path)
    assert (info.n_bytes, info.n_params, info.n_vocab) == (made.n_bytes, made.n_params, 6000)
    assert info.bytes_read_per_token == made.bytes_read_per_token
    assert info.kv_bytes_per_token == made.kv_bytes_per_token
    assert info.file_type == kind
    work = Workload(n_generated_tokens=4, n_threads=1, n_repetitions=1, n_warmups_max=1)
    (record,) = harness.run([[Job(work, path)]])
    assert record.model.weights == "synthetic"
    assert record.gate is not None
    assert len(set(record.gate.first_choices)) > 16  # of 32: other tokens, other answers
    assert record.gate.n_paths_agree == record.gate.n_paths
    assert not {reason.kind for reason in record.reasons} & {"correctness gate failed"}


def test_a_synthetic_file_takes_text_and_shows_each_token(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    shapes.write(layout(replace(SMALL["qwen2"], n_vocab=20000), "Q4_0"), path)
    work = Workload(16, 8, view="end-to-end", n_threads=1, n_repetitions=1, n_warmups_max=1)
    (record,) = harness.run([[Job(work, path)]])
    (sample,) = record.samples
    assert sample.n_tokens is None  # as many as were asked for
    assert sample.first_token_ns is not None
    assert sample.first_token_ns < sample.elapsed_ns
    assert len(sample.token_ns) > 4  # a word each, but for the few tokens that are one byte
    assert record.tokens_per_s is not None


def test_the_same_bytes_every_time_and_a_hole_where_nothing_is_read(tmp_path: Path) -> None:
    made = layout(replace(SMALL["qwen2"], n_vocab=40000), "Q4_0")
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    for path in (first, second):
        shapes.write(made, path)
    assert fingerprint.model(read_model_info(first)).sha256 == fingerprint.model(read_model_info(second)).sha256
    assert first.stat().st_blocks * 512 < 0.8 * made.n_bytes


def test_a_file_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "small-qwen2", SMALL["qwen2"])
    path = shapes.model_file("Small-Qwen2", "q4_0", tmp_path)
    changed_ns = path.stat().st_mtime_ns
    assert shapes.model_file("small-qwen2", "Q4_0", tmp_path).stat().st_mtime_ns == changed_ns
    of_another_version = bytes(8) + path.read_bytes()[8:]
    path.write_bytes(of_another_version)
    assert shapes.model_file("small-qwen2", "Q4_0", tmp_path).read_bytes() != of_another_version
    path.write_bytes(b"half")
    assert shapes.model_file("small-qwen2", "Q4_0", tmp_path).stat().st_size > 4


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "small-qwen2", SMALL["qwen2"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="EDGE_CACHE"):
        shapes.model_file("small-qwen2", "Q4_0", tmp_path / "file")
