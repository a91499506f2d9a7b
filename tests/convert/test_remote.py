"""A checkpoint on the hub gives the same file as one on this disk, whatever breaks on the way, and hardly more disk."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert import pipeline
from convert.checkpoint import Checkpoint
from convert.remote import RemoteCheckpoint
from edge.errors import CheckpointError, HubError
from edge.model.hub import Hub
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape
from tests.hub_server import Fault, HubServer

SHAPE = Shape(layer=3, seed=3)
NAME = "owner/Tiny-R1"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def source(server: HubServer, tmp_path: Path) -> Path:
    """The checkpoint as a folder; the server has the same."""
    folder = checkpoints.write(tmp_path / "src" / "Tiny-R1", SHAPE, n_shards=3)
    server.add(NAME, {path.name: path.read_bytes() for path in folder.iterdir()}, card={"license": "mit"})
    return folder


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(server.url(), server.token, tmp_path / "hub", timeout_s=1.0, pause=lambda _: None)


def local(source: Path, folder: Path, *types: str) -> list[bytes]:
    return [made.path.read_bytes() for made in pipeline.convert(source, types or ("Q4_K_M",), folder)]


def remote(hub: Hub, folder: Path, *types: str) -> list[bytes]:
    made = pipeline.convert(RemoteCheckpoint.look_up(hub, NAME), types or ("Q4_K_M",), folder)
    return [file.path.read_bytes() for file in made]


def disk_bytes(*folders: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for folder in folders for path in folder.rglob("*"))


@pytest.mark.parametrize("types", [("Q4_K_M",), ("F16", "Q8_0")])
def test_the_file_is_the_one_a_folder_gives(hub, source, out, tmp_path, types):
    assert remote(hub, out, *types) == local(source, tmp_path / "local", *types)


def test_row_orders_and_made_up_tensors_too(hub, server, out, tmp_path):
    shape = Shape("LlamaForCausalLM", embd=64, ff=96, head=2, head_kv=1, dtype="F32", bias=False)
    folder = checkpoints.write(tmp_path / "Tiny-R1", shape)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 128}  # fmt: skip
    checkpoints.change(folder, "config.json", rope_scaling=scaling)
    server.add(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    assert remote(hub, out, "F32") == local(folder, tmp_path / "local", "F32")


def test_the_manifest_tells_where_it_comes_from(hub, server, source, out):
    remote(hub, out)
    text = (out / "Tiny-R1-Q4_K_M.gguf.json").read_text()
    assert server.repos[NAME].sha in text
    assert text.count("sha256") == 4


def test_the_weights_never_lie_on_this_disk(hub, source, out):
    remote(hub, out)
    n_made = disk_bytes(out)
    assert n_made < 1_300_000
    assert disk_bytes(hub.cache) < 200_000  # config, tokenizer and index; the weights have 3.8 MB


def test_shards_in_the_cache_are_not_fetched_again(hub, server, source, out, tmp_path):
    from edge.model.download import download

    repository = hub.repository(NAME)
    download(hub, repository, list(repository.files))
    n_sent = server.n_bytes_sent
    checkpoint = RemoteCheckpoint.look_up(hub, NAME)
    assert not checkpoint.is_remote
    (made,) = pipeline.convert(checkpoint, ["Q4_K_M"], out)
    assert [made.path.read_bytes()] == local(source, tmp_path / "local")
    assert server.n_bytes_sent - n_sent < 10_000


def test_a_stream_that_breaks_goes_on(hub, server, source, out, tmp_path):
    checkpoint = RemoteCheckpoint.look_up(hub, NAME)
    server.faults += [Fault(cut_after=300_000), Fault(status=503), Fault(ignore_range=True, cut_after=500_000)]
    server.faults += [Fault(status=429, retry_after="1"), Fault(cut_after=0)]
    (made,) = pipeline.convert(checkpoint, ["Q4_K_M"], out)
    assert [made.path.read_bytes()] == local(source, tmp_path / "local")


def test_a_wrong_byte_is_found_out_and_leaves_nothing(hub, server, source, out):
    checkpoint = RemoteCheckpoint.look_up(hub, NAME)
    server.faults += [Fault(), Fault(flip=True)]
    with pytest.raises(CheckpointError, match=r"another hash|NaN|too large"):
        pipeline.convert(checkpoint, ["Q4_K_M"], out)
    assert list(out.iterdir()) == []


def test_a_hub_that_goes_away_leaves_what_is_done(hub, server, source, out, tmp_path):
    checkpoint = RemoteCheckpoint.look_up(hub, NAME)
    server.faults += [Fault(), Fault(cut_after=700_000), *[Fault(status=503)] * 5]
    with pytest.raises(HubError, match="kept"):
        pipeline.convert(checkpoint, ["Q4_K_M", "Q8_0"], out)
    assert not list(out.glob("[!.]*"))
    server.seen.clear()
    assert remote(hub, out, "Q4_K_M", "Q8_0") == local(source, tmp_path / "local", "Q4_K_M", "Q8_0")
    first = [seen.range for seen in server.seen if seen.origin == "cdn" and seen.range][6]  # after the 6 of the headers
    assert int(first[6:].split("-")[0]) > 100_000
    assert not list(out.glob(".*"))


def test_a_journal_that_lies_is_not_believed(hub, server, source, out, tmp_path):
    checkpoint = RemoteCheckpoint.look_up(hub, NAME)
    server.faults += [Fault(), Fault(cut_after=700_000), *[Fault(status=503)] * 5]
    with pytest.raises(HubError):
        pipeline.convert(checkpoint, ["Q4_K_M"], out)
    (partial,) = out.glob(".*.partial")
    with partial.open("r+b") as file:  # what a power cut does
        file.seek(20_000)
        file.write(bytes(200_000))
    assert remote(hub, out) == local(source, tmp_path / "local")


@pytest.mark.parametrize("rubbish", [b"", b"{}\n", b"\0" * 5000, b'["x", 5]\n', b'["x", [[1, 2]]]\n'])
def test_rubbish_left_behind_does_no_harm(hub, source, out, tmp_path, rubbish):
    (out / ".Tiny-R1-Q4_K_M.gguf.partial").write_bytes(b"\xff" * 2_000_000)
    (out / ".Tiny-R1-Q4_K_M.gguf.journal").write_bytes(rubbish)
    assert remote(hub, out) == local(source, tmp_path / "local")


def test_another_conversion_does_not_take_over(hub, server, source, out, tmp_path):
    """The checkpoint has changed on the hub: nothing of the old one may come into the new."""
    checkpoint = RemoteCheckpoint.look_up(hub, NAME)
    server.faults += [Fault(), Fault(cut_after=700_000), *[Fault(status=503)] * 5]
    with pytest.raises(HubError):
        pipeline.convert(checkpoint, ["Q4_K_M"], out)
    folder = checkpoints.write(tmp_path / "new" / "Tiny-R1", Shape(layer=3, seed=4), n_shards=3)
    server.add(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    assert remote(hub, out) == local(folder, tmp_path / "local")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README.md": b"x"}, "holds no checkpoint; name one with"),
        ({"m-Q4_0.gguf": b"x"}, "edge pull owner/Tiny-R1"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "pickle"),
        ({"config.json": b"{}", "model.safetensors": b"\xff" * 100}, "says its header has"),
        ({"config.json": b"{}", "model.safetensors": b""}, "too few"),
        ({"config.json": b"[]"}, "not an object"),
        ({"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "plain"),
    ],
)
def test_what_is_no_checkpoint_is_told(hub, server, files, says):
    server.add(NAME, files)
    with pytest.raises((HubError, CheckpointError), match=says):
        RemoteCheckpoint.look_up(hub, NAME)


def test_a_local_checkpoint_is_not_remote(source):
    with Checkpoint.open(source) as checkpoint:
        assert not checkpoint.is_remote
        assert checkpoint.shards == checkpoint.files


CHILD = """
import sys
from pathlib import Path
from convert import blocks, pipeline, quantize
from convert.remote import RemoteCheckpoint
from edge.model.hub import Hub
blocks.N_BLOCK_VALUES = 1 << 14
hub = Hub(sys.argv[1], sys.argv[2], Path(sys.argv[3]), pause=lambda _: None)
checkpoint = RemoteCheckpoint.look_up(hub, sys.argv[4])
pipeline.convert(checkpoint, ["Q4_K_M"], Path(sys.argv[5]), progress=lambda at: print(at.n_bytes_done, flush=True))
"""


def test_killed_twenty_times_it_ends_with_the_same_file(hub, server, source, out, tmp_path):
    """kill -9 at random moments of the stream: the same file, with no more disk than the result and 64 MB."""
    (expected,) = local(source, tmp_path / "local")
    rng, n_killed, disk = random.Random(2), 0, [0]
    command = [sys.executable, "-c", CHILD, server.url(), server.token, str(hub.cache), NAME, str(out)]
    done, began = threading.Event(), list[int]()
    server.bytes_per_s = 2e6

    def watch() -> None:
        while not done.wait(0.02):
            try:
                disk[0] = max(disk[0], disk_bytes(out, hub.cache))
            except FileNotFoundError:  # a file that just went
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    while n_killed < 20:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            began.append(int(child.stdout.readline()))  # the first block has arrived
            try:
                child.wait(rng.random() * 0.4)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                n_killed += 1
        for path in out.glob("[!.]*.gguf"):  # it was done: begin anew
            assert path.read_bytes() == expected
            path.unlink()
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)
    assert max(began) > 1_000_000  # of 3.8 MB: what was done before was not done again
    server.bytes_per_s = 0
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    done.set()
    watcher.join()
    assert (out / "Tiny-R1-Q4_K_M.gguf").read_bytes() == expected
    assert disk[0] <= len(expected) + (64 << 20)
    assert sorted(path.name for path in out.iterdir()) == ["Tiny-R1-Q4_K_M.gguf", "Tiny-R1-Q4_K_M.gguf.json"]
