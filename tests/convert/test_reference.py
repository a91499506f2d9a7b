"""What files of a checkpoint are measured against is made in the same pass, fits where it is made, and goes away again.

A checkpoint on the hub is measured as one on this disk is: by the commands, against a hub on this machine.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from convert import output, plan, tasks
from convert.choose import choose
from convert.manifest import manifest_path
from convert.passport import models, reference_beside
from convert.pipeline import convert, dry_run
from convert.plan import Reference
from convert.recipes import Wishes, kind_named
from convert.remote import RemoteCheckpoint
from edge.demo import CHECKPOINT
from edge.errors import CheckpointError, HubError, NoSpaceError, OutputError
from edge.model.hub import Hub
from tests.convert import checkpoints
from tests.hub_server import Fault, HubServer

NAME = "owner/demo"
FILES = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir() if path.suffix in (".json", ".jinja")}
WEIGHTS = (CHECKPOINT / "model.safetensors").read_bytes()


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add(NAME, {**FILES, "model.safetensors": WEIGHTS}, card={"license": "mit"})
        yield server


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(server.url(), server.token, tmp_path / "hub", timeout_s=1.0, pause=lambda _: None)


@pytest.fixture
def edge(server: HubServer, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_ENDPOINT": server.url(), "HF_TOKEN": server.token, "HF_HOME": str(tmp_path / "hf")}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge.cli", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "sums.txt"
    path.write_text("\n".join(f"{one.text} The answer is {one.expected}." for one in tasks.read("sums")))
    return path


def leave_room_for(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "n_bytes_free", lambda _: n_bytes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ---- which type, and where


def test_it_comes_last_and_has_the_checkpoint_s_own_type(out: Path) -> None:
    *made, reference = convert(CHECKPOINT, ["Q4_0"], out, reference=Reference(out / "kept"))
    assert [file.type for file in made] == ["Q4_0"]
    assert reference.path == out / "kept" / "demo-BF16.gguf"
    (alone,) = convert(CHECKPOINT, ["BF16"], out)
    assert reference.sha256 == alone.sha256
    (without,) = convert(CHECKPOINT, ["Q4_0"], out / "without")
    assert without.sha256 == made[0].sha256


def test_wishes_for_the_others_do_not_change_it(out: Path) -> None:
    q8_0, q4_0 = kind_named("q8_0"), kind_named("q4_0")
    wishes = Wishes(output=q8_0, token_embedding=q4_0, pure=True)
    made = dry_run(CHECKPOINT, ["Q4_0"], out, wishes=wishes, reference=Reference(out))
    plain = dry_run(CHECKPOINT, ["BF16"], out)
    assert made.files[-1].kinds == plain.files[0].kinds


def test_where_the_disk_is_too_small_it_is_a_q8_0(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {file.type: file.n_bytes for file in dry_run(CHECKPOINT, ["Q4_0", "Q8_0", "BF16"], out).files}

    def chosen(n_bytes_free: int, n_bytes_beside: int = 0) -> str:
        leave_room_for(n_bytes_free, monkeypatch)
        reference = Reference(out, n_bytes_beside=n_bytes_beside)
        return dry_run(CHECKPOINT, ["Q4_0"], out, reference=reference).files[-1].type

    both = sizes["Q4_0"] + sizes["BF16"]
    assert [chosen(both), chosen(both - 1), chosen(both, n_bytes_beside=1)] == ["BF16", "Q8_0", "Q8_0"]
    leave_room_for(sizes["Q4_0"] + sizes["Q8_0"] - 1, monkeypatch)
    with pytest.raises(NoSpaceError) as caught:
        convert(CHECKPOINT, ["Q4_0"], out, reference=Reference(out / "kept"))
    assert caught.value.n_bytes_needed == sizes["Q4_0"] + sizes["Q8_0"]
    assert names(out) == []


def test_where_the_memory_is_too_small_it_is_a_q8_0(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_n_memory_bytes", lambda: 8_000_000)
    assert dry_run(CHECKPOINT, ["Q4_0"], out, reference=Reference(out)).files[-1].type == "Q8_0"


def test_a_checkpoint_that_cannot_write_a_text_is_refused_before_it_is_read(tmp_path: Path, out: Path) -> None:
    source = checkpoints.write(tmp_path / "plain")
    checkpoints.change(source, "tokenizer_config.json", chat_template=None)
    with pytest.raises(CheckpointError, match="has no chat template; name a text to measure with: --text FILE"):
        convert(source, ["Q8_0"], out, reference=Reference(out, writes=True))
    assert names(out) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, NoSpaceError, None])
def test_it_goes_away_whatever_happens(out: Path, error: type[BaseException] | None) -> None:
    with suppress(KeyboardInterrupt, NoSpaceError), reference_beside(CHECKPOINT, out, writes=False) as reference:
        convert(CHECKPOINT, [], reference=reference)
        assert names(out) == [".demo.reference"]
        if error:
            raise error(out, 1, 0) if error is NoSpaceError else error
    assert names(out) == []


def test_two_processes_do_not_share_it(out: Path) -> None:
    with reference_beside(CHECKPOINT, out, writes=False) as reference:
        (reference.folder / "demo-BF16.gguf").touch()
        with pytest.raises(OutputError, match="is in use by another process; wait for it"):
            reference_beside(CHECKPOINT, out, writes=False).__enter__()
        assert names(reference.folder) == ["demo-BF16.gguf"]


def test_what_a_killed_process_left_is_not_taken_for_it(out: Path) -> None:
    (out / ".demo.reference").mkdir()
    (out / ".demo.reference" / "demo-BF16.gguf").write_bytes(b"old")
    with reference_beside(CHECKPOINT, out / "", writes=False) as reference:
        (made,) = convert(CHECKPOINT, [], reference=reference)
        assert made.path.stat().st_size == made.n_bytes
    assert names(out) == []


# ---- from the hub


def test_one_stream_makes_the_files_and_their_reference(hub: Hub, server: HubServer, out: Path) -> None:
    source = RemoteCheckpoint.look_up(hub, NAME)
    n_before = server.n_bytes_sent
    with reference_beside(source, out, writes=True) as reference:
        made = convert(source, ["Q4_0", "Q8_0"], out, reference=reference)
        assert [file.path.name for file in made] == ["demo-Q4_0.gguf", "demo-Q8_0.gguf", "demo-BF16.gguf"]
        assert [file.path for file in made[:2]] == models(source, ("q4_0", "Q8_0"), out)
    assert server.n_bytes_sent - n_before < 1.01 * len(WEIGHTS)
    (local,) = convert(CHECKPOINT, ["BF16"], out / "local")
    assert local.sha256 == made[2].sha256


def test_a_stream_that_breaks_goes_on_with_the_reference_too(hub: Hub, server: HubServer, out: Path) -> None:
    source = RemoteCheckpoint.look_up(hub, NAME)
    server.faults += [Fault(cut_after=5_000_000), *[Fault(status=503)] * 6]
    with pytest.raises(HubError, match="kept"), reference_beside(source, out, writes=False) as reference:
        convert(source, ["Q4_0"], out, reference=reference)
    assert names(out / ".demo.reference") == [".demo-BF16.gguf.journal", ".demo-BF16.gguf.partial"]
    n_before = server.n_bytes_sent
    source = RemoteCheckpoint.look_up(hub, NAME)
    with reference_beside(source, out, writes=False) as reference:
        made = convert(source, ["Q4_0"], out, reference=reference)
        assert [file.sha256 for file in made] == [
            file.sha256 for file in convert(CHECKPOINT, ["Q4_0", "BF16"], out / "local")
        ]
    assert server.n_bytes_sent - n_before < 0.6 * len(WEIGHTS)
    assert names(out) == ["demo-Q4_0.gguf", "demo-Q4_0.gguf.json", "local"]


def test_the_disk_is_looked_at_before_the_weights_are_fetched(
    hub: Hub, server: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RemoteCheckpoint.look_up(hub, NAME)
    n_before = server.n_bytes_sent
    leave_room_for(15_000_000, monkeypatch)  # the checkpoint and the result, but not the reference
    with pytest.raises(NoSpaceError) as caught:
        choose(source, out, Reference(out / "kept"), n_ram_bytes=4 * 10**9, min_same_top=0.5)
    assert caught.value.n_bytes_needed > len(WEIGHTS) + 2 * 3_900_000
    assert server.n_bytes_sent - n_before < 0.01 * len(WEIGHTS)
    assert names(out) == []


def test_a_passport_from_the_hub_is_that_of_the_folder(edge, server: HubServer, text: Path, tmp_path: Path) -> None:
    options = ("-t", "Q4_0", "--passport", "--text", text)
    found = []
    for source, out in ((NAME, tmp_path / "remote"), (CHECKPOINT, tmp_path / "local")):
        made = edge("convert", source, "-o", out, *options)
        assert made.returncode == 0, made.stderr
        assert names(out) == [f"demo-Q4_0.{end}" for end in ("gguf", "gguf.json", "passport.json", "passport.md")]
        found.append(json.loads((out / "demo-Q4_0.passport.json").read_text()))
    assert found[0] == found[1]
    assert found[0]["reference"] == "demo-BF16.gguf"
    assert server.n_bytes_sent < 1.1 * len(WEIGHTS)
    n_before = server.n_bytes_sent
    for spoilt in (("--text", tmp_path / "none.txt"), ("--tasks", "none"), ()):
        refused = edge("convert", NAME, "-o", tmp_path / "remote", "-t", "Q4_0", "--passport", *spoilt)
        assert refused.returncode == 1, "a text, a task, a passport that is there"
        assert len(refused.stderr.strip().splitlines()) == 1
    assert server.n_bytes_sent - n_before < 0.1 * len(WEIGHTS)


def test_the_type_is_found_for_a_checkpoint_on_the_hub(edge, server: HubServer, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = edge("convert", NAME, "--auto", "--min-top1", "0.5", "--text", text, "--passport", "-o", out, "--json")
    assert made.returncode == 0, made.stderr
    chosen = json.loads(made.stdout)
    assert chosen["trials"][-1]["verdict"] == "the smallest that passes"
    path = Path(chosen["path"])
    assert {path.name, manifest_path(path).name} < set(names(out))
    assert json.loads(manifest_path(path).read_text())["source"]["repo_id"] == NAME
    assert len(names(out)) == 4, "the model, its manifest, its passport twice"
    assert server.n_bytes_sent < 1.1 * len(WEIGHTS), "fetched once for all trials"
    assert "7 MB of the checkpoint stay in the hub's cache; remove them with: edge rm owner/demo" in made.stderr
    assert "7 MB are free again" in edge("rm", NAME, "--yes").stdout
    assert not (tmp_path / "hf/hub/models--owner--demo").exists()
    assert "is not in the cache" in edge("rm", NAME, "--yes").stderr
