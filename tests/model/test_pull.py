"""From a name to a file, and the commands around it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edge.board.memory import Memory
from edge.board.plan import Board, Wish, make_plan
from edge.board.topology import read_topology
from edge.errors import ModelFileError, NoMemoryError, TooLargeError
from edge.model import fit
from edge.model.gguf import read_model_info
from edge.model.names import ModelName
from edge.model.pull import find, look_up, pull, read_info, resolve
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape
from tests.hostile.gguf_files import sound_file
from tests.hub_server import Fault

MODEL = sound_file()
FILES = {
    "m-Q4_K_M.gguf": MODEL,
    "m-Q4_K_M.gguf.json": b"{}",
    "LICENSE": b"MIT\n",
    "README.md": b"# m\n",
    "config.json": b"{}",
    "other.gguf.json": b"{}",
}


@pytest.fixture
def repo(server):
    return server.add("owner/repo", dict(FILES), card={"license": "mit"})


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """No model of this machine's user is found."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")


def test_a_model_comes_with_its_licence_card_and_manifest(hub, repo):
    (path,) = pull(hub, ModelName("owner/repo"))
    assert path.read_bytes() == MODEL
    assert {file.name for file in path.parent.iterdir()} == {*list(FILES)[:4]}


def test_what_is_here_needs_no_network(hub, server, repo):
    (path,) = pull(hub, ModelName("owner/repo"))
    server.close()
    assert resolve("owner/repo", hub) == path
    assert resolve("hf.co/OWNER/repo:q4_k_m", hub) == path
    assert find("owner/repo:Q8_0", hub) is None


def test_what_is_not_here_is_fetched(hub, repo):
    assert resolve("owner/repo:Q4_K_M", hub).read_bytes() == MODEL


def test_a_path_stays_a_path(hub, server, tmp_path):
    (tmp_path / "m.gguf").write_bytes(MODEL)
    assert resolve(str(tmp_path / "m.gguf"), hub) == tmp_path / "m.gguf"
    for text in ("nosuch.gguf", "models/nosuch.gguf", "./a/b"):
        assert resolve(text, hub) == Path(text)
    assert server.seen == []


def test_a_header_is_read_without_the_rest(hub, server, repo):
    repo.files["m-Q4_K_M.gguf"] = MODEL
    info = read_info("owner/repo", hub)
    assert (info.architecture, info.n_bytes) == ("qwen2", len(MODEL))
    assert not hub.cache.exists()


def test_a_model_that_is_none_is_refused_before_it_is_fetched(hub, server, repo):
    repo.files["m-Q4_K_M.gguf"] = b"<html>" + bytes(50_000_000)
    with pytest.raises(ModelFileError, match="web page"):
        pull(hub, ModelName("owner/repo"))
    assert server.n_bytes_sent < 8_000_000
    assert not hub.cache.exists()


def small(n_bytes):
    """A board with so much memory, most of it taken by others."""
    return Board(read_topology(), Memory(n_bytes, n_bytes // 10, n_bytes, None, 0, 0, 0, 4096))


def test_a_model_too_large_for_the_memory_is_refused_unless_forced(hub, repo, monkeypatch):
    monkeypatch.setattr(fit, "this_board", lambda: small(100_000_000))
    with pytest.raises(TooLargeError, match="--force") as caught:
        pull(hub, ModelName("owner/repo"))
    assert caught.value.n_bytes_there == small(100_000_000).alone().usable_bytes
    assert caught.value.n_bytes_needed > 61 << 20, "what the engine itself takes counts"
    assert not hub.cache.exists()
    assert pull(hub, ModelName("owner/repo"), force=True)


def test_what_is_fetched_is_what_the_plan_would_start_with_nothing_else_running(demo_model):
    info = read_model_info(demo_model)
    needed = fit.usual_plan(info).footprint.total
    for n_bytes in range(90_000_000, 300_000_000, 5_000_000):
        refused = error_of(lambda board: fit.check_memory("demo", info.n_bytes, info, board), small(n_bytes))
        stopped = error_of(lambda board: make_plan(info, Wish(), board.alone(), use_tuned=False), small(n_bytes))
        assert (refused is None) == (stopped is None)
        assert refused is None or refused.n_bytes_needed <= needed
    assert refused is None, "the last one has room"


def error_of(act, board):
    try:
        act(board)
    except (NoMemoryError, TooLargeError) as error:
        return error
    return None


def test_of_a_model_in_parts_the_bytes_of_its_files_count(demo_model):
    fit.check_memory("big", 1_000_000_000, None, small(2_000_000_000))
    with pytest.raises(TooLargeError, match="choose a smaller type or model; add --force"):
        fit.check_memory("big", 3_000_000_000, None, small(2_000_000_000))


def test_all_parts_are_fetched(hub, server):
    parts = {f"big-Q4_K_M-{i:05d}-of-00002.gguf": MODEL for i in (1, 2)}
    server.add("owner/big", parts)
    assert [path.name for path in pull(hub, ModelName("owner/big"))] == sorted(parts)
    assert look_up(hub, ModelName("owner/big")).n_bytes == 2 * len(MODEL)


# ---- the commands


@dataclass(frozen=True)
class Edge:
    """The command in a process of its own."""

    environment: dict[str, str]

    def __call__(self, *words, **changes):
        command, environment = [sys.executable, "-m", "edge.cli", *words], {**self.environment, **changes}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def edge(server, tmp_path):
    """`edge …` with this hub in its environment."""
    return Edge({
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))},
        "HF_ENDPOINT": server.url(), "HF_TOKEN": server.token, "HF_HOME": str(tmp_path / "hf"),
        "HOME": str(tmp_path / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    })  # fmt: skip


def test_pull_ls_show_rm(edge, server, repo, tmp_path):
    pulled = edge("pull", "owner/repo")
    assert pulled.returncode == 0, pulled.stderr
    path = Path(pulled.stdout.strip())
    assert path.read_bytes() == MODEL
    assert path.is_relative_to(tmp_path / "hf" / "hub")
    (listed,) = json.loads(edge("ls", "--json").stdout)["models"]
    assert (listed["name"], listed["path"], listed["n_bytes"]) == ("owner/repo:Q4_K_M", str(path), len(MODEL))
    offline = edge("show", "owner/repo:Q4_K_M", "--json", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert json.loads(offline.stdout)["architecture"] == "qwen2", offline.stderr
    assert edge("rm", "owner/repo", "--yes").returncode == 0
    assert not path.exists()
    assert "edge ls" in edge("rm", "owner/repo", "--yes").stderr


def test_show_and_inspect_ask_the_hub_for_the_header_only(edge, server, repo, tmp_path):
    shown = edge("show", "owner/repo")
    assert "Q4_K_M" in shown.stdout
    assert "mit" in shown.stdout
    assert json.loads(edge("inspect", "owner/repo", "--json").stdout)["architecture"] == "qwen2"
    planned = json.loads(edge("plan", "owner/repo", "--json").stdout)
    assert planned["predicted"]["weights_bytes"] > 0
    for refused in (edge("tune", "owner/repo"), edge("service", "install", "owner/repo", "--user", "--dry-run")):
        assert refused.stderr == "Error: owner/repo: is not on this machine; fetch it with: edge pull owner/repo\n"
    assert not (tmp_path / "hf" / "hub").exists()


def test_errors_are_one_sentence(edge, server, repo):
    for words, says, changes in (
        (["pull", "owner/none"], "does not exist", {}),
        (["pull", "owner/repo:Q2_K"], "choose one of: Q4_K_M", {}),
        (["pull", "nosuch"], "edge pull --list", {}),
        (["pull", "owner/repo"], "HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
        (["run", "owner/repo:Q2_K", "hi"], "choose one of", {}),
        (["pull", "owner/repo"], "HF_ENDPOINT", {"HF_ENDPOINT": "nonsense"}),
    ):
        result = edge(*words, **changes)
        assert result.returncode == 1, words
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert "Traceback" not in result.stderr


def test_models_of_other_programs_are_used_but_not_removed(edge, server, tmp_path):
    path = tmp_path / "home/.lmstudio/models/o/r/m-Q4_0.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(MODEL)
    assert "lmstudio:o/r/m-Q4_0" in edge("ls").stdout
    assert json.loads(edge("inspect", "lmstudio:o/r/m-Q4_0", "--json").stdout)["path"] == str(path)
    refused = edge("rm", "o/r:Q4_0", "--yes")
    assert refused.returncode == 1
    assert "belongs to lmstudio" in refused.stderr
    assert path.exists()


def test_a_question_to_a_name_is_answered_by_the_model_it_fetches(edge, server, demo_model):
    server.add("edge/demo", {"demo-Q8_0.gguf": demo_model.read_bytes()})
    asked = edge("run", "edge/demo:Q8_0", "What is 2 + 3?", "--temp", "0", "--no-think")
    assert "= 5" in asked.stdout, asked.stderr


def test_ctrl_c_says_how_to_go_on_and_does(edge, server, repo, tmp_path):
    repo.files["m-Q4_K_M.gguf"] = MODEL + bytes(3_000_000)
    server.bytes_per_s = 2e6
    command = [sys.executable, "-m", "edge.cli", "pull", "owner/repo"]
    with subprocess.Popen(command, env=edge.environment, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 60
        while not any(file.stat().st_size > 200_000 for file in (tmp_path / "hf").rglob("*.incomplete")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        psutil.Process(child.pid).send_signal(2)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the same command goes on from here" in said
    server.bytes_per_s = 0
    assert edge("pull", "owner/repo").returncode == 0
    assert int([seen.range for seen in server.seen if seen.origin == "cdn"][-1][6:].split("-")[0]) > 200_000


def test_hub_faults_seen_from_the_command(edge, server, repo):
    server.faults += [Fault(cut_after=50), Fault(status=503, retry_after="0")]
    result = edge("pull", "owner/repo")
    assert result.returncode == 0, result.stderr
    assert "trying again in 0 s" in result.stderr


def test_a_bundle_brings_a_model_to_a_machine_without_a_network(edge, server, repo, tmp_path):
    made = edge("bundle", "owner/repo", "-o", str(tmp_path / "usb"))
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "usb/model/m-Q4_K_M.gguf").read_bytes() == MODEL
    board = {"HF_HOME": str(tmp_path / "board"), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    installed = edge("install-bundle", str(tmp_path / "usb"), **board)
    assert installed.returncode == 0, installed.stderr
    assert "edge chat owner/repo:Q4_K_M" in installed.stderr
    assert json.loads(edge("inspect", "owner/repo", "--json", **board).stdout)["architecture"] == "qwen2"
    assert "bundle.json" in edge("install-bundle", str(tmp_path), **board).stderr


def test_a_checkpoint_on_the_hub_is_converted_and_published(edge, server, tmp_path):
    source = checkpoints.write(tmp_path / "Tiny-R1", Shape(embd=64, ff=96, head=2, head_kv=1, layer=1))
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    server.add("owner/Tiny-R1", {**files, "README.md": b"---\nlicense: mit\n---\n"})
    out = tmp_path / "made"
    made = edge("convert", "owner/Tiny-R1", "-t", "Q8_0", "-o", str(out), "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)[0]["path"] == str(out / "Tiny-R1-Q8_0.gguf")
    for refused in (edge("convert", "owner/Tiny-R1:Q8_0"), edge("convert", "owner/none"), edge("convert", "nosuch")):
        assert refused.returncode in (1, 2)
        assert "Traceback" not in refused.stderr
    shown = edge("push", str(out), "me/Tiny-R1-GGUF")
    assert shown.returncode == 0, shown.stderr
    assert "base_model: owner/Tiny-R1" in shown.stdout
    assert "nothing was uploaded" in shown.stderr
    assert "me/Tiny-R1-GGUF" not in server.repos
    assert edge("push", str(out), "me/Tiny-R1-GGUF", "--yes").returncode == 0
    there = server.repos["me/Tiny-R1-GGUF"].files["Tiny-R1-Q8_0.gguf"]
    assert there == (out / "Tiny-R1-Q8_0.gguf").read_bytes()
