"""What is on this machine, whoever keeps it, and nothing of other programs is ever touched."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from edge.errors import HubError
from edge.model.cache import Cache, find_found, found_models
from edge.model.download import download
from edge.model.names import ModelName

FILES = {"m-Q4_K_M.gguf": b"4" * 500, "m-Q8_0.gguf": b"8" * 900, "README.md": b"# m\n", "LICENSE": b"MIT\n"}


@pytest.fixture
def cache(hub, server):
    server.add("Owner/Repo", FILES)
    repository = hub.repository("Owner/Repo")
    download(hub, repository, [file for file in repository.files if file.name != "m-Q8_0.gguf"])
    return Cache(hub.cache)


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setattr(Path, "home", lambda: folder)
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def write(path, data=b"GGUF"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found_path(name):
    model = find_found(name)
    return model.path if model else None


def test_a_fetched_model_is_found_by_any_spelling(cache):
    for repo_id, quant in (("Owner/Repo", None), ("owner/repo", "Q4_K_M")):
        (path,) = cache.find(ModelName(repo_id, quant)) or [None]
        assert path is not None
        assert path.read_bytes() == FILES["m-Q4_K_M.gguf"]
    assert cache.find(ModelName("Owner/Repo", "Q8_0")) is None
    assert cache.find(ModelName("Owner/Other")) is None


def test_a_branch_and_a_revision_are_found_by_name(cache, server):
    revision = server.repos["Owner/Repo"].sha
    assert cache.find(ModelName("Owner/Repo", revision="main"))
    assert cache.find(ModelName("Owner/Repo", revision=revision))
    assert cache.find(ModelName("Owner/Repo", revision="v2")) is None
    assert cache.find(ModelName("Owner/Repo", revision="../../etc")) is None


def test_the_branch_wins_over_older_revisions(cache, hub, server):
    server.repos["Owner/Repo"].files["m-Q4_K_M.gguf"] = b"new"
    repository = hub.repository("Owner/Repo")
    download(hub, repository, [repository.file("m-Q4_K_M.gguf")])
    (path,) = cache.find(ModelName("Owner/Repo"))
    assert path.read_bytes() == b"new"
    assert [model.n_bytes for model in cache.models()] == [3, 500]


def test_models_are_listed_with_a_name_that_finds_them(cache):
    (model,) = cache.models()
    assert (model.name, model.n_bytes, model.keeper) == ("Owner/Repo:Q4_K_M", 500, "hub")


def test_an_empty_or_strange_cache_is_no_error(tmp_path):
    assert list(Cache(tmp_path / "none").models()) == []
    write(tmp_path / "models--x" / "snapshots" / "file")
    write(tmp_path / "models--o--r" / "refs" / "main", b"\xff")
    (tmp_path / "models--o--r" / "snapshots" / "a").mkdir(parents=True)
    (tmp_path / "models--o--r" / "snapshots" / "a" / "m-Q4_0.gguf").symlink_to("nowhere")
    assert list(Cache(tmp_path).models()) == []


def test_removing_takes_the_last_bytes_but_not_another_model(cache, hub, server):
    repository = hub.repository("Owner/Repo")
    download(hub, repository, [repository.file("m-Q8_0.gguf")])
    assert cache.remove(ModelName("Owner/Repo", "Q4_K_M")) >= 500
    assert [model.name for model in cache.models()] == ["Owner/Repo:Q8_0"]
    cache.remove(ModelName("owner/repo", "Q8_0"))
    assert not cache.repo_folder("Owner/Repo").exists()


def test_removing_leaves_what_else_is_there(cache, hub, server):
    server.repos["Owner/Repo"].files["config.json"] = b"{}"
    repository = hub.repository("Owner/Repo")
    download(hub, repository, list(repository.files))
    cache.remove(ModelName("Owner/Repo", "Q4_K_M"))
    assert len(list(cache.folder.rglob("config.json"))) == 1


def test_removing_what_is_not_there_is_told(cache):
    for name in (ModelName("Owner/Repo", "Q2_K"), ModelName("o/r")):
        with pytest.raises(HubError, match="edge ls"):
            cache.remove(name)


def test_a_broken_off_download_is_listed_and_removed(cache):
    partial = write(cache.repo_folder("Owner/Repo") / "blobs" / ("a" * 64 + ".incomplete"), b"12345")
    assert [(part.repo_id, part.n_bytes) for part in cache.partials()] == [("Owner/Repo", 5)]
    cache.remove(ModelName("Owner/Repo", "Q2_K"))
    assert not partial.exists()


def test_ollamas_models_are_found(home):
    models, blob = home / ".ollama/models", b"GGUF of Ollama"
    digest = hashlib.sha256(blob).hexdigest()
    path = write(models / "blobs" / f"sha256-{digest}", blob)
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:x"},
    ]
    manifests = models / "manifests/registry.ollama.ai"
    write(manifests / "library/deepseek-r1/1.5b", json.dumps({"layers": layers}).encode())
    write(manifests / "me/mine/latest", json.dumps({"layers": layers}).encode())
    assert [model.name for model in found_models()] == ["ollama:deepseek-r1:1.5b", "ollama:me/mine:latest"]
    for name in ("ollama:deepseek-r1:1.5b", "deepseek-r1:1.5b"):
        assert found_path(name) == path


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"layers": 5}', b'{"layers": [{}]}', b"[" * 100_000,
     b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
     b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 5}]}'],
)  # fmt: skip
def test_a_strange_manifest_is_passed_over(home, manifest):
    write(home / ".ollama/models/manifests/registry.ollama.ai/library/x/latest", manifest)
    assert list(found_models()) == []


def test_lm_studio_and_llama_cpp_are_found(home, monkeypatch):
    studio = write(home / ".lmstudio/models/Owner/Repo/m-Q4_K_M.gguf")
    write(home / ".lmstudio/models/Owner/Repo/mmproj-F16.gguf")
    old = write(home / ".cache/llama.cpp/ggml-org_gemma_m-Q8_0.gguf")
    if os.uname().sysname == "Darwin":
        monkeypatch.setenv("LLAMA_CACHE", str(home / ".cache/llama.cpp"))
    names = {model.name: model.path for model in found_models()}
    assert names == {"lmstudio:Owner/Repo/m-Q4_K_M": studio, "llama.cpp:ggml-org_gemma_m-Q8_0": old}
    assert found_path("owner/repo:Q4_K_M") == studio
    assert found_path("owner/repo:Q8_0") is None
    monkeypatch.setenv("LLAMA_CACHE", str(home / "none"))
    assert [model.keeper for model in found_models()] == ["lmstudio"]
