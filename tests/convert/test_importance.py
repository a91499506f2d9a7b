"""An importance matrix is what llama-imatrix writes, or an error that names the file and the tensor."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from convert.importance import ImportanceMatrix
from convert.pipeline import dry_run
from edge.errors import ModelFileError
from tests.convert import checkpoints

Tensors = dict[str, NDArray[Any]]


def write(path: Path, tensors: Tensors) -> Path:
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entry(name: str, sums: list[float], count: float) -> Tensors:
    return {
        f"{name}.in_sum2": np.array([sums], np.float32),
        f"{name}.counts": np.array([[count]], np.float32),
    }


def refused(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        ImportanceMatrix.read(path)
    assert caught.value.path == path
    return caught.value


def test_columns_are_sums_by_counts(tmp_path: Path) -> None:
    found = ImportanceMatrix.read(
        write(tmp_path / "m.gguf", entry("blk.0.ffn_up.weight", [2, 4, 6], 2) | entry("blk.1.ffn_up.weight", [5], 0))
    )
    assert found.columns["blk.0.ffn_up.weight"].tolist() == [1, 2, 3]
    assert found.columns["blk.1.ffn_up.weight"].tolist() == [1]  # nothing was counted
    assert (found.datasets, found.n_chunks) == (("a.txt", "b.txt"), 7)


def test_a_column_count_must_be_the_model_s(tmp_path: Path) -> None:
    known = entry("blk.0.ffn_up.weight", [1, 2], 1) | entry("token_embd.weight", [1, 2], 1)
    found = ImportanceMatrix.read(write(tmp_path / "m.gguf", known))
    assert found.of("blk.0.ffn_up.weight", 2) is not None
    assert found.of("blk.7.ffn_up.weight", 2) is None
    assert found.of("token_embd.weight", 9) is None
    with pytest.raises(ModelFileError) as caught:
        found.of("blk.0.ffn_up.weight", 3)
    assert caught.value.problem == "has 2 columns for blk.0.ffn_up.weight, the model has 3"
    assert caught.value.remedy == "make it again from this model with `edge imatrix`"


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"x.in_sum2": np.ones((1, 4), np.float32)}, "has no plain sums and counts for x"),
        (
            {"x.in_sum2": np.ones((1, 4), np.float32), "x.counts": np.ones((2, 1), np.float32)},
            "has no plain sums and counts for x",
        ),
        (
            {"x.in_sum2": np.ones((1, 4), np.float16), "x.counts": np.ones((1, 1), np.float32)},
            "has no plain sums and counts for x",
        ),
        (entry("x", [1, np.nan], 1), "has numbers for x that are no sums of squares"),
        (entry("x", [1, -1], 1), "has numbers for x that are no sums of squares"),
        (entry("x", [1, 1], np.inf), "has numbers for x that are no sums of squares"),
        ({"y": np.ones((1, 4), np.float32)}, "is a GGUF file, but no importance matrix"),
    ],
)
def test_matrices_that_make_no_sense(tmp_path: Path, tensors: Tensors, problem: str) -> None:
    assert refused(write(tmp_path / "m.gguf", tensors)).problem == problem


def test_files_that_are_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").problem == "cannot be opened (No such file or directory)"
    (tmp_path / "old.dat").write_bytes(b"\x01\0\0\0 the format of 2024")
    assert "GGUF" in refused(tmp_path / "old.dat").problem
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe")
    whole = write(tmp_path / "m.gguf", entry("x", [1, 2], 1)).read_bytes()
    n_padding = 28  # after the last number
    for n_bytes in range(0, len(whole) - n_padding, 7):
        (tmp_path / "part.gguf").write_bytes(whole[:n_bytes])
        refused(tmp_path / "part.gguf")


def test_matrix_of_another_model(tmp_path: Path) -> None:
    source = checkpoints.write(tmp_path / "model")
    path = write(tmp_path / "m.gguf", entry("blk.90.ffn_up.weight", [1, 2], 1))
    with pytest.raises(ModelFileError) as caught:
        dry_run(source, ["Q4_0"], imatrix=path)
    assert caught.value.problem == "knows no tensor of this model"
