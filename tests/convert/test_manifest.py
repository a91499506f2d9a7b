"""The manifest says what a file should be and what it was made of, and nothing about this machine."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convert.manifest import verify
from convert.pipeline import convert
from edge import __version__
from edge.cli import cli
from edge.errors import ModelFileError, OutputError
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape

TINY = Shape(embd=64, ff=96, head=2, head_kv=1, layer=1)
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "Tiny-Chat", TINY)


def manifest(source: Path, out: Path) -> dict[str, Any]:
    made = convert(source, ["Q4_0"], out, overwrite=True)[0]
    found: dict[str, Any] = json.loads(made.manifest.read_text())
    return found


def test_it_describes_the_file(checkpoint: Path, tmp_path: Path) -> None:
    found = manifest(checkpoint, tmp_path)
    model = tmp_path / "Tiny-Chat-Q4_0.gguf"
    content = model.read_bytes()
    assert found["file"] == {
        "name": model.name,
        "n_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert found["type"] == "Q4_0"
    assert found["architecture"] == "qwen2"
    assert sum(found["tensor_types"].values()) == 15
    assert found["source"]["name"] == "Tiny-Chat"
    assert found["source"]["revision"] is None
    n_bytes = (checkpoint / "model.safetensors").stat().st_size
    assert found["source"]["files"] == [{"name": "model.safetensors", "n_bytes": n_bytes, "sha256": None}]
    assert found["imatrix"] is None
    assert found["tool"]["edge-gguf"] == __version__


def test_same_checkpoint_gives_same_manifest(checkpoint: Path, tmp_path: Path) -> None:
    first = convert(checkpoint, ["Q4_0"], tmp_path)[0].manifest.read_bytes()
    assert str(tmp_path).encode() not in first
    assert convert(checkpoint, ["Q4_0"], checkpoint)[0].manifest.read_bytes() == first


def test_a_download_into_a_folder_tells_its_revision(checkpoint: Path, tmp_path: Path) -> None:
    records = checkpoint / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    (records / "model.safetensors.metadata").write_text(f"{REVISION}\n{digest}\n1700000000.0\n")
    found = manifest(checkpoint, tmp_path)["source"]
    assert (found["revision"], found["files"][0]["sha256"]) == (REVISION, digest)


@pytest.mark.parametrize("record", ["", "x", "main\nno hash\n", "\0" * 5000])
def test_a_record_that_tells_nothing_is_ignored(checkpoint: Path, tmp_path: Path, record: str) -> None:
    records = checkpoint / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    (records / "model.safetensors.metadata").write_text(record)
    found = manifest(checkpoint, tmp_path)["source"]
    assert (found["revision"], found["files"][0]["sha256"]) == (None, None)


def test_the_hub_cache_tells_its_revision(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--somebody--Tiny-Chat"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in checkpoint.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    found = manifest(snapshot, tmp_path)["source"]
    blob = (snapshot / "model.safetensors").resolve()
    assert (found["name"], found["revision"], found["files"][0]["sha256"]) == ("Tiny-Chat", REVISION, blob.name)


def test_an_existing_manifest_stays_unless_forced(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "Tiny-Chat-Q4_0.gguf.json"
    path.write_text("mine")
    with pytest.raises(OutputError) as caught:
        convert(checkpoint, ["Q4_0"], tmp_path)
    assert caught.value.path == path
    assert path.read_text() == "mine"
    assert manifest(checkpoint, tmp_path)["type"] == "Q4_0"


# is the file still what it says?


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    return convert(checkpoint, ["Q4_0"], tmp_path)[0].path


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_every_byte_is_looked_at(model: Path) -> None:
    assert verify(model)["type"] == "Q4_0"
    for offset in (0, 1000, model.stat().st_size - 1):
        flip(model, offset)
        with pytest.raises(ModelFileError) as caught:
            verify(model)
        assert caught.value.path == model
        assert "it was changed or damaged; fetch or convert" in str(caught.value)
        flip(model, offset)
    verify(model)


def test_a_file_of_another_length_is_told_before_it_is_read(model: Path) -> None:
    os.truncate(model, 1000)
    with pytest.raises(ModelFileError, match="has 1,000 bytes, its manifest says") as caught:
        verify(model)
    assert caught.value.path == model


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"manifest": 2}', '{"manifest": 1, "file": {"n_bytes": "x", "sha256": 7}}']
)
def test_a_manifest_that_is_none_is_named(model: Path, text: str | None) -> None:
    path = model.with_name(f"{model.name}.json")
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ModelFileError) as caught:
        verify(model)
    assert caught.value.path == path
    assert str(caught.value).endswith(("convert again", "convert the model again"))


def test_inspect_verifies_when_asked(model: Path) -> None:
    said = CliRunner().invoke(cli, ["inspect", str(model), "--verify"])
    assert said.exit_code == 0, said.output
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert said.stdout.splitlines()[-1].split() == [
        "verified",
        "SHA-256",
        f"{digest},",
        "as",
        "its",
        "manifest",
        "says",
    ]
    document = json.loads(CliRunner().invoke(cli, ["inspect", str(model), "--verify", "--json"]).stdout)
    assert document["manifest"]["file"]["sha256"] == digest
    flip(model, model.stat().st_size - 1)
    assert CliRunner().invoke(cli, ["inspect", str(model)]).exit_code == 0
    damaged = CliRunner().invoke(cli, ["inspect", str(model), "--verify"])
    assert damaged.exit_code == 1
    assert damaged.stderr.startswith(f"Error: {model}: has the SHA-256")
