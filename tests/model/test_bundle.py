"""A model on a stick arrives as it left, on a machine without a network; a stick from a stranger does no harm."""

import hashlib
import json
import os

import pytest

from edge.errors import EdgeError, FileError, HubError
from edge.model import bundle
from edge.model.bundle import Bundle
from edge.model.cache import Cache
from edge.model.download import download
from edge.model.names import ModelName
from edge.model.pull import pull, resolve
from tests.hostile.gguf_files import sound_file

MODEL = sound_file()
ENTRY = {"name": "m.gguf", "n_bytes": 5, "sha256": "0" * 64, "git_sha1": "0" * 40}
FILES = {"m-Q4_K_M.gguf": MODEL, "m-Q4_K_M.gguf.json": b"{}", "LICENSE": b"MIT\n", "README.md": b"# m\n"}


@pytest.fixture
def stick(hub, server, tmp_path):
    server.add("owner/repo", FILES)
    (path,) = pull(hub, ModelName("owner/repo"))
    bundle.make([path], tmp_path / "usb", "owner/repo", path.parent.name)
    server.close()
    return tmp_path / "usb"


def install(stick, cache):
    found = Bundle.open(stick, cache)
    return download(found, found.repository, found.repository.files)


def test_a_bundle_gives_the_cache_a_pull_gives(hub, stick, tmp_path):
    install(stick, tmp_path / "board")
    for root, _, names in os.walk(hub.cache / "models--owner--repo"):
        for name in names:
            theirs = tmp_path / "board" / os.path.relpath(os.path.join(root, name), hub.cache)  # noqa: PTH118
            assert theirs.read_bytes() == (hub.cache / theirs.relative_to(tmp_path / "board")).read_bytes()
    assert [model.name for model in Cache(tmp_path / "board").models()] == ["owner/repo:Q4_K_M"]


def test_the_stick_holds_the_model_once_with_licence_and_manifest(stick):
    assert {path.name for path in (stick / "model").iterdir()} == set(FILES)
    files = {entry["name"]: entry for entry in json.loads((stick / "bundle.json").read_text())["files"]}
    assert files["m-Q4_K_M.gguf"]["sha256"] == hashlib.sha256(MODEL).hexdigest()


def test_a_model_of_ones_own_is_found_by_name(hub, tmp_path):
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / "My Model-Q4_0.gguf"
    path.write_bytes(MODEL)
    bundle.make([path], tmp_path / "usb", None, None)
    install(tmp_path / "usb", hub.cache)
    assert resolve("local/My-Model-Q4_0", hub).read_bytes() == MODEL


def test_a_changed_byte_is_not_installed(stick, tmp_path):
    path = stick / "model" / "m-Q4_K_M.gguf"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(HubError, match="another hash"):
        install(stick, tmp_path / "board")
    assert not list((tmp_path / "board").rglob("*.gguf"))


def test_a_missing_or_short_file_is_told(stick, tmp_path):
    os.truncate(stick / "model" / "m-Q4_K_M.gguf", 100)
    with pytest.raises(FileError, match="has 100 of"):
        install(stick, tmp_path / "board")
    (stick / "model" / "m-Q4_K_M.gguf").unlink()
    with pytest.raises(FileError, match="check the stick"):
        install(stick, tmp_path / "board")


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle": 2}, {"repo_id": "../../x"}, {"repo_id": "a/b--c"}, {"repo_id": 5}, {"revision": "../x"},
        {"files": []}, {"files": [5]},
        *({"files": [{**ENTRY, **change}]} for change in (
            {"name": "../../evil"}, {"name": "/etc/passwd"}, {"name": "a/b"}, {"n_bytes": -1}, {"n_bytes": "5"},
            {"sha256": "../x"}, {"git_sha1": "../x"}, {"git_sha1": None},
        )),
    ],
)  # fmt: skip
def test_a_stick_from_a_stranger_writes_nowhere(stick, tmp_path, changes):
    document = json.loads((stick / "bundle.json").read_text())
    (stick / "bundle.json").write_text(json.dumps({**document, **changes}))
    with pytest.raises(EdgeError):
        install(stick, tmp_path / "board")
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "\0"])
def test_what_is_no_bundle_is_told(tmp_path, text):
    with pytest.raises(FileError, match=r"bundle\.json"):
        Bundle.open(tmp_path, tmp_path / "board")
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(FileError):
        Bundle.open(tmp_path, tmp_path / "board")


def test_a_stick_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "m-Q4_0.gguf").write_bytes(MODEL)
    (tmp_path / "usb").write_text("a file")
    with pytest.raises(FileError, match="--out"):
        bundle.make([tmp_path / "m-Q4_0.gguf"], tmp_path / "usb", None, None)
