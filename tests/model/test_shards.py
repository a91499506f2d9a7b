"""A model in several files is one model: told, planned, run and measured by its first file. Lies are refused."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from convert.quality import Reading, measure
from edge.cli import cli
from edge.config import EngineSettings, Sampling
from edge.demo import demo_model as demo
from edge.engine.client import Engine
from edge.engine.protocol import Generate, Text
from edge.errors import ModelFileError
from edge.model import shards
from edge.model.cache import Cache, find_found, found_models
from edge.model.gguf import read_model_info
from edge.model.names import ModelName
from edge.model.pull import look_up, pull, read_info
from tests.gguf_split import split
from tests.hostile.gguf_files import BOOL, F32, I32, STRING, U16, U32, entry, joined

PROMPT = (("<｜begin▁of▁sentence｜><｜User｜>", True), ("What is 347 + 85?", False), ("<｜Assistant｜><think>\n", True))
NAMES = [f"demo-Q8_0-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="session")
def parts(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo in three files. The first holds no tensor, as in many repositories."""
    return split(demo_model, tmp_path_factory.mktemp("split"), (0, 17, 34))


@pytest.fixture
def copied(parts: list[Path], tmp_path: Path) -> list[Path]:
    """The same, to be spoilt."""
    for path in parts:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return [tmp_path / path.name for path in parts]


def test_it_is_told_as_the_whole(demo_model, parts):
    whole, found = read_model_info(demo_model), read_model_info(parts[0])
    assert found.paths == tuple(parts)
    assert found.path == parts[0]
    assert found.n_bytes == sum(path.stat().st_size for path in parts)
    assert [t.file for t in found.tensors] == [1] * 17 + [2] * 34
    for one, other in zip(found.tensors, whole.tensors, strict=True):
        assert (one.name, one.shape, one.type_name, one.n_bytes) == (
            other.name,
            other.shape,
            other.type_name,
            other.n_bytes,
        )
    for fact in ("n_params", "tensor_bytes", "bytes_read_per_token", "bits_per_weight", "name", "n_vocab"):
        assert getattr(found, fact) == getattr(whole, fact), fact
    assert "in 3 files" in CliRunner().invoke(cli, ["inspect", str(parts[0])]).stdout
    told = json.loads(CliRunner().invoke(cli, ["plan", str(parts[0]), "--json"]).stdout)["predicted"]
    assert told == json.loads(CliRunner().invoke(cli, ["plan", str(demo_model), "--json"]).stdout)["predicted"]


def test_what_gguf_s_own_writer_splits_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "qwen2", split_max_tensors=2, small_first_shard=True)
    for name in ("block_count", "context_length", "embedding_length", "head_count"):
        getattr(writer, f"add_{name}")({"block_count": 1, "head_count": 4}.get(name, 64))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(20)])
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((i + 1, 32), i, np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.iterdir())
    info = read_model_info(files[0])
    assert info.paths == tuple(files)
    assert [tensor.name for tensor in info.tensors] == [f"t{i}" for i in range(5)]
    for tensor in info.tensors:
        values = np.fromfile(info.paths[tensor.file], np.float32, tensor.n_elements, offset=tensor.offset)
        assert set(values) == {int(tensor.name[1:])}, "file and offset say where its values lie"


def test_it_answers_as_the_whole_does(demo_model, parts):
    said = []
    for path in (demo_model, parts[0]):
        with Engine(EngineSettings(str(path), n_threads=1)) as engine:
            engine.start()
            events = list(engine.generate(Generate("1", PROMPT, Sampling(temperature=0))))
        said.append("".join(event.text for event in events if isinstance(event, Text)))
    assert "432" in said[0]
    assert said[0] == said[1]


def test_it_is_measured_as_the_whole_is(parts, tmp_path):
    text = tmp_path / "sums.txt"
    text.write_text("".join(f"{i} + {i + 7} = {2 * i + 7}\n" for i in range(100, 250)))
    reading, reference = Reading(text, n_ctx=64, n_chunks=3), demo("F16")
    whole, found = measure(demo("Q8_0"), reference, reading), measure(parts[0], reference, reading)
    assert found.divergence == whole.divergence


def test_each_of_its_files_names_what_is_kept_for_it(copied):
    """A state saved for one model must not be given to another that differs in its last file only."""
    script = (
        "import sys; from pathlib import Path; from edge.engine.llama import Loading, fingerprint\n"
        "loading = Loading(64, 64, 1, 1, 1)\n"
        "first, last = map(Path, sys.argv[1:])\n"
        "before = fingerprint(first, loading)\n"
        "data = bytearray(last.read_bytes()); data[-100] ^= 1; last.write_bytes(data)\n"
        "assert fingerprint(first, loading) != before"
    )
    subprocess.run([sys.executable, "-c", script, str(copied[0]), str(copied[2])], check=True)


# ---- what is wrong


def refused(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        read_model_info(path)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_missing_file_is_named_with_the_next_step(copied):
    copied[1].unlink()
    error = refused(copied[0])
    assert error.path == copied[1]
    assert str(error).endswith(
        "is missing, file 2 of the 3 of this model; fetch what is missing: edge pull OWNER/REPO:TYPE"
    )


def test_another_file_than_the_first_names_the_first(copied):
    assert str(refused(copied[1])).endswith(f"is file 2 of 3 of a model; name the first: {NAMES[0]}")


def test_a_file_under_another_name_asks_for_its_own(copied):
    for name in ("renamed.gguf", "demo-00001-of-00004.gguf", "demo-00002-of-00003.gguf"):
        copied[0] = copied[0].rename(copied[0].with_name(name))
        assert str(refused(copied[0])).endswith("give it its name back, which ends in -00001-of-00003.gguf")


@pytest.mark.parametrize(
    ("which", "changes", "says"),
    [
        (1, {"split__no": (U16, 2)}, "is file 3 of 3 inside, and by its name file 2 of 3"),
        (1, {"split__count": (U16, 4)}, "is file 2 of 4 inside, and by its name file 2 of 3"),
        (1, {"split__no": None}, "is no part of a model"),
        (1, {"split__no": (U32, 1)}, "split.no is of a type that llama.cpp cannot read"),
        (2, {"split__no": (STRING, "2")}, "split.no is of a type"),
        (0, {"split__count": (F32, 3.0)}, "split.count is of a type"),
        (0, {"split__count": (BOOL, True)}, "split.count is of a type"),
        (0, {"split__count": (U16, 65535)}, "says it is file 1 of 65535"),
        (0, {"split__no": (U16, 3)}, "says it is file 4 of 3"),
        (0, {"split__tensors__count": (I32, 50)}, "says that its 3 files hold 50 tensors; they hold 51"),
        (0, {"split__tensors__count": (I32, -1)}, "they hold 51"),
        (0, {"split__tensors__count": (STRING, "51")}, "split.tensors.count is of a type"),
        (0, {"split__tensors__count": None}, "they hold 51"),
    ],
)
def test_files_that_lie_are_refused(demo_model, copied, tmp_path, which, changes, says):
    lies = split(demo_model, tmp_path / "lies", (0, 17, 34), **changes)
    copied[which].write_bytes(lies[which].read_bytes())
    error = refused(copied[0])
    assert says in str(error)
    assert error.path == copied[which]


@pytest.mark.parametrize("data", [b"", b"<html>", b"GGUF", b"GGUF" + bytes(100)])
def test_a_further_file_is_believed_no_more_than_the_first(copied, data):
    copied[2].write_bytes(data)
    assert refused(copied[0]).path == copied[2]
    copied[2].unlink()
    copied[2].mkdir()
    assert "is a folder" in str(refused(copied[0]))


def test_a_tensor_in_two_files_is_refused(demo_model, copied, tmp_path):
    twice = split(demo_model, tmp_path / "twice", (0, 34, 17), split__no=(U16, 2))
    copied[2].write_bytes(twice[1].read_bytes())  # as many as should be there, 17 of them those of the file before
    assert "has a tensor in two of its 3 files" in str(refused(copied[0]))


def test_the_file_of_another_model_is_refused(copied):
    other = entry("split.no", (U16, 2)), entry("split.count", (U16, 3))
    copied[2].write_bytes(joined(list(other)))
    assert "says that its 3 files hold 51 tensors; they hold 17" in str(refused(copied[0]))


# ---- on the hub and in the cache


@pytest.fixture
def repo(server, parts, monkeypatch, tmp_path):
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return server.add("owner/demo", {path.name: path.read_bytes() for path in parts}, card={"license": "mit"})


def test_on_the_hub_the_headers_tell_all(hub, repo, demo_model):
    whole, remote = read_model_info(demo_model), look_up(hub, ModelName("owner/demo"))
    assert remote.info.n_params == whole.n_params
    assert remote.info.n_bytes == remote.n_bytes == sum(map(len, repo.files.values()))
    assert read_info("owner/demo:Q8_0", hub).tensor_bytes == whole.tensor_bytes
    assert not hub.cache.exists()


def test_a_lying_part_is_refused_before_anything_is_fetched(hub, repo):
    repo.files[NAMES[1]] = repo.files[NAMES[2]]
    with pytest.raises(ModelFileError, match="inside, and by its name file 2 of 3"):
        pull(hub, ModelName("owner/demo"))
    assert not hub.cache.exists()


def test_what_is_missing_in_the_cache_comes_by_the_command_that_is_told(hub, repo):
    paths = pull(hub, ModelName("owner/demo"))
    assert read_model_info(paths[0]).paths == tuple(paths)
    (model,) = Cache(hub.cache).models()
    assert (model.name, model.n_bytes) == ("owner/demo:Q8_0", sum(map(len, repo.files.values())))
    paths[1].resolve().unlink()
    paths[1].unlink()
    error = refused(paths[0])
    assert str(error).endswith(f"fetch what is missing: edge pull owner/demo/{NAMES[1]}")
    assert list(Cache(hub.cache).models()) == [], "only whole models are listed"
    pull(hub, ModelName("owner/demo", file=NAMES[1]))
    assert read_model_info(paths[0]).n_bytes == model.n_bytes


def test_another_program_s_split_model_is_one_model(hub, repo, copied, tmp_path):
    folder = tmp_path / "home/.lmstudio/models/owner/demo"
    folder.mkdir(parents=True)
    for path in copied:
        path.rename(folder / path.name)
    (found,) = found_models()
    assert (found.name, found.path.name) == ("lmstudio:owner/demo/demo-Q8_0", NAMES[0])
    assert found.n_bytes == sum(map(len, repo.files.values()))
    assert find_found("lmstudio:owner/demo/demo-Q8_0") == found
    (folder / NAMES[2]).unlink()
    assert list(found_models()) == []


def test_names_are_taken_apart():
    assert shards.place(NAMES[1]) == ("demo-Q8_0", 2, 3)
    assert shards.siblings(Path("a") / NAMES[2]) == tuple(Path("a") / name for name in NAMES)
    for name in ("m.gguf", "m-1-of-3.gguf", "m-00001-of-00003", "-00001-of-00003.gguf", "m-00001-of-00003.txt"):
        assert shards.place(name) is None
        assert shards.siblings(Path(name)) == (Path(name),)
