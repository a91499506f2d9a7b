"""Our importance matrix is llama-imatrix's on the same text, and the converter takes it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader

from convert import child, tasks
from convert.imatrix import collect
from convert.importance import ImportanceMatrix
from edge.cli import cli
from edge.demo import CHECKPOINT, demo_model
from edge.errors import ModelFileError, OutputError
from tests import peers


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "sums.txt"
    path.write_text("\n".join(one.text for one in tasks.read("sums")), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_the_sums_are_llama_imatrix_s(tmp_path: Path, text: Path, kind: str) -> None:
    ours = collect(demo_model(kind), text, tmp_path / "ours.gguf", n_chunks=4)
    # one chunk at a time: of several it cuts rests of some tokens, which it leaves out
    options = ("-m", demo_model(kind), "-f", text, "--chunks", 4, "-b", 512, "-t", 1, "-o", "theirs.gguf")
    peers.run("llama-imatrix", *options, folder=tmp_path)
    found, expected = GGUFReader(ours.path), GGUFReader(tmp_path / "theirs.gguf")
    assert [tensor.name for tensor in found.tensors] == [tensor.name for tensor in expected.tensors]
    for tensor, other in zip(found.tensors, expected.tensors, strict=True):
        assert tensor.shape.tolist() == other.shape.tolist()
        assert np.allclose(tensor.data, other.data, rtol=1e-3, atol=0), tensor.name
    for key in ("general.type", "imatrix.chunk_count", "imatrix.chunk_size"):
        assert found.fields[key].contents() == expected.fields[key].contents()
    assert set(found.fields) == set(expected.fields)
    assert (ours.n_chunks, ours.n_tensors) == (4, 28)


def test_the_sums_are_those_of_the_first_layer_s_input(tmp_path: Path, text: Path) -> None:
    """attn_q, attn_k and attn_v of a block are multiplied with the same rows, gate and up too."""
    matrix = ImportanceMatrix.read(collect(demo_model("F16"), text, tmp_path / "m.gguf", n_chunks=2).path)
    columns = matrix.columns
    assert np.array_equal(columns["blk.0.attn_q.weight"], columns["blk.0.attn_k.weight"])
    assert np.array_equal(columns["blk.3.ffn_up.weight"], columns["blk.3.ffn_gate.weight"])
    assert (columns["blk.2.ffn_down.weight"] > 0).all()
    assert (matrix.n_chunks, matrix.datasets) == (2, (text.name,))


def test_the_converter_takes_it(tmp_path: Path, text: Path) -> None:
    made = CliRunner().invoke(
        cli, ["imatrix", str(demo_model("F16")), "--text", str(text), "-o", str(tmp_path / "m.gguf")]
    )
    assert made.exit_code == 0, made.output
    assert "28 tensors from" in made.stdout
    for name, options in (("plain", []), ("weighted", ["--imatrix", str(tmp_path / "m.gguf")])):
        words = ["convert", str(CHECKPOINT), "-t", "Q4_0", "-o", str(tmp_path / name), *options]
        assert CliRunner().invoke(cli, words).exit_code == 0
    plain, weighted = ((tmp_path / name / "demo-Q4_0.gguf").read_bytes() for name in ("plain", "weighted"))
    assert plain != weighted
    manifest = json.loads((tmp_path / "weighted" / "demo-Q4_0.gguf.json").read_text())
    assert manifest["imatrix"]["datasets"] == [text.name]


def test_from_its_own_replies(tmp_path: Path) -> None:
    words = ["imatrix", str(demo_model("F16")), "--self", "16", "--questions", "sums", "-o", str(tmp_path / "m.gguf")]
    made = CliRunner().invoke(cli, [*words, "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["dataset"] == "16 replies of demo-F16.gguf"
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 1
    assert "add --force" in again.stderr


def test_what_cannot_be_done_is_said(tmp_path: Path, text: Path) -> None:
    with pytest.raises(OutputError, match="is not a folder"):
        collect(demo_model("F16"), text, tmp_path / "nowhere" / "m.gguf")
    with pytest.raises(ModelFileError):
        collect(text, text, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
    for words in (["imatrix", "x.gguf"], ["imatrix", "x.gguf", "--text", "x", "--self", "8"]):
        assert CliRunner().invoke(cli, words).exit_code == 2


_WATCH = """
import sys
from pathlib import Path
from edge.engine.llama import Llama, Loading

def fail(name, rows):
    raise ValueError(f"{name} {rows.shape}")

llama = Llama(Path(sys.argv[1]), Loading(64, 64, 1, 64, 1), watch=fail)
batch = llama.new_batch()
for i in range(20):
    batch.add(i, i, 0, output=True)
try:
    llama.decode(batch)
except ValueError as error:
    print(error)
"""


def test_an_error_of_the_watcher_comes_out_of_decode() -> None:
    """C cannot carry an exception: it is kept, and raised where Python called C."""
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, str(demo_model("F16"))], capture_output=True, text=True, cwd=child.PACKAGE_ROOT
    )
    assert done.stdout == "blk.0.attn_q.weight (20, 256)\n", done.stderr
