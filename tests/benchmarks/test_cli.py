"""edge bench as a person uses it: real processes, records on disk, one sentence where something is wrong."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import record as records
from benchmarks.choice import Choice
from benchmarks.cli import bench
from benchmarks.shapes import SHAPES
from benchmarks.workload import Workload
from edge.board import plan
from edge.board.library import Device
from edge.board.memory import Memory
from edge.board.plan import Board
from edge.board.topology import read_topology
from edge.errors import NoMemoryError
from edge.model.gguf import read_model_info
from tests.benchmarks.openai_server import Manners, openai_server
from tests.benchmarks.records import record
from tests.test_cli import EDGE, edge, refusal

SHAPE = ("--model", "qwen2.5-0.5b")


def names(**options: Any) -> list[str]:
    return [work.name for work in Choice(**options).workloads()]


def test_each_workload_is_measured_in_a_process_of_its_own_and_recorded(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    words = ("-p", "32", "-n", "8", "-r", "2", "--threads", "1", "--out", str(out))
    done = edge("bench", demo_model, *words, "--json")
    assert done.returncode == 0, done.stderr
    prompt, generation = json.loads(done.stdout)
    assert [len(record["samples"]) for record in (prompt, generation)] == [2, 2]
    assert prompt["model"]["file_type"] == "Q8_0"
    assert prompt["memory"]["peak_rss_bytes"] > prompt["model"]["n_bytes"]
    assert generation["summary"]["tokens_per_s"]["median"] > 0
    assert generation["board"]["read_bytes_per_s"] > 1e8
    assert [record.workload.name for record in records.read([out])] == ["pp32", "tg8"]
    assert str(demo_model.parent) not in out.read_text()  # nobody's folders
    table = edge("bench", demo_model, *words).stdout
    assert "tokens/s" in table
    assert demo_model.name in table
    assert len(records.read([out])) == 4


def test_layers_for_a_gpu_that_is_not_there_are_told_and_recorded_as_none(demo_model: Path, tmp_path: Path) -> None:
    words = ("-n", "8", "-r", "1", "--threads", "1", "--out", str(tmp_path / "out.jsonl"), "--gpu-layers", "3")
    done = edge("bench", demo_model, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert f"{demo_model.name}, tg8: " in done.stderr
    assert ": --gpu-layers does nothing" in done.stderr
    (record,) = json.loads(done.stdout)
    assert record["settings"]["n_gpu_layers"] == 0
    assert record["settings"]["load_mode"] == "read"


def test_what_a_gpu_has_room_for_goes_there_unless_a_number_was_given(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device("CUDA0", "a card", "gpu", 24 << 30, 24 << 30)
    memory = Memory(8 << 30, 6 << 30, 8 << 30, None, 0, 0, 0, 4096)
    monkeypatch.setattr(plan, "this_board", lambda: Board(read_topology(), memory, (gpu,)))
    work = Workload(n_generated_tokens=8)
    n_layers = read_model_info(demo_model).n_layers
    assert Choice(gpu_layers=None, force=False).settings(demo_model, work).n_gpu_layers == n_layers + 1
    assert Choice(gpu_layers=2, force=False).settings(demo_model, work).n_gpu_layers == 2
    assert Choice(gpu_layers=0, force=False).settings(demo_model, work) == records.USUAL


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded_unless_forced(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        plan, "this_board", lambda: Board(read_topology(), Memory(1 << 30, 90 << 20, 1 << 30, None, 0, 0, 0, 4096))
    )
    work = Workload(n_generated_tokens=8, n_depth_tokens=4000)
    with pytest.raises(NoMemoryError) as caught:
        Choice(gpu_layers=None, force=False).settings(demo_model, work)
    assert caught.value.n_ctx_tokens == 4008
    assert Choice(gpu_layers=None, force=True).settings(demo_model, work).load_mode == "map"


def test_options_multiply() -> None:
    assert names(prompt=(512,), gen=(128,), depth=(0, 1024)) == ["pp512", "tg128", "pp512 @ d1024", "tg128 @ d1024"]
    assert names(gen=(64,), streams=(1, 4), threads=(2, 4)) == ["tg64", "tg64 x4"] * 2
    assert names(chat=True, gen=(32,)) == ["chat pp16+tg32"]
    assert names() == ["pp128", "tg32"]
    assert names(chat=True) == ["chat pp16+tg128"]
    assert names(both=((64, 8),), depth=(0, 32)) == ["pp64+tg8", "pp64+tg8 @ d32"]
    assert [work.n_repetitions for work in Choice(preset_name="quick", repeat=7).workloads()] == [7, 7]


def test_a_model_that_has_the_name_of_a_command_is_given_as_a_path() -> None:
    assert "Judge a published number" in CliRunner().invoke(bench, ["check", "--help"]).output
    assert refusal("bench", "./check").startswith("check: ")


def test_shapes_and_devices_are_listed() -> None:
    say = CliRunner().invoke
    assert set(say(bench, ["check", "--model", "list"]).output.split()) == set(SHAPES)
    devices = say(bench, ["check", "--device", "list"]).output
    assert "17.1 GB/s  Raspberry Pi 5" in devices
    assert "55% to 63% of it reached: 9.8 to 10.6 GB/s" in devices


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--shape", "gpt-9"), 1, "no shape gpt-9 is known; choose one of"),
        (("-t", "Q4_0"), 2, "-t is the type of a --shape"),
        (("-p", "0"), 2, "nothing to measure"),
        (("-p", "1,x"), 2, "'--prompt'"),
        (("-p", "1,,2"), 2, "'1,,2' is not numbers with commas between them, such as 4,8"),
        (("--pg", "512"), 2, "'512' is not 2 numbers with commas between them, such as 4,8"),
        (("--preset", "quick", "-n", "8", "--chat"), 2, "leave out -n and --chat, or the preset"),
        (("-d", "64", "--streams", "2"), 2, "-d and --streams alone measures nothing; give -n too"),
        (("--chat", "-d", "64"), 2, "--chat starts with an empty cache"),
        (("--chat", "--pg", "64,8"), 2, "in place of --pg"),
        (("-p", "64", "--streams", "2"), 2, "--streams are generations; give -n too"),
        (("--peer", "llama-bench", "--url", "http://127.0.0.1:9/v1"), 2, "choose one of them"),
        (("--peer", "llama-bench", "--chat"), 2, "llama-bench has no such workload"),
        (("--model", "x.gguf"), 2, "give its --url, or a file without --model"),
        (("--url", "http://127.0.0.1:9/v1", "-p", "8"), 2, "a server can only generate"),
        (("check", "--claim", "9", "--size", "1"), 2, "--claim and --size are different claims"),
        (("check", *SHAPE, "--device", "pi-5", "--bandwidth", "9"), 2, "give one of them"),
        (
            ("check", *SHAPE, "--device", "pi-5", "--claim", "9", "--as", "prompt", "--depth", "9"),
            2,
            "leave out --depth",
        ),
        (("--url", "localhost"), 1, "no address of a server"),
        (("--url", "http://127.0.0.1:abc/v1"), 1, "no address of a server"),
        (("report", "no.jsonl"), 1, "no.jsonl: cannot be read"),
        (("compare", "no.jsonl", "no.jsonl"), 1, "no.jsonl: cannot be read"),
        (("load", "no.gguf"), 1, "no.gguf: "),
        (("--gpu-layers", "many"), 2, "'many' is neither auto, all nor a number of layers"),
        (("load", "--model", "x.gguf"), 2, "give its --url, or a file without --model"),
        (("load", "x.gguf", "--url", "http://127.0.0.1:9/v1"), 2, "not both"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(words: tuple[str, ...], code: int, said: str) -> None:
    assert said in refusal("bench", *words, code=code)


@pytest.mark.parametrize("place", ["file", "file/in/it"])
def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    done = edge("bench", "-n", "4", EDGE_CACHE=str(tmp_path / place))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be made (Not a directory); set EDGE_CACHE to another folder, or give --out FILE" in done.stderr


def test_a_run_that_is_interrupted_says_where_its_records_are(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    out.touch()
    words = ["bench", str(demo_model), "-n", "4,512", "-r", "100", "--threads", "1", "--out", str(out)]
    with subprocess.Popen([*EDGE, *words], stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        until = time.monotonic() + 60
        while not out.stat().st_size and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the children too
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert f"records so far: {out}" in said
    assert "Traceback" not in said
    assert [made.workload.name for made in records.read([out])] == ["tg4"]


def test_a_workload_that_a_server_cannot_do_is_named(tmp_path: Path) -> None:
    with openai_server(Manners()) as url:
        done = edge(
            "bench", "--url", url, "-n", "4", "-p", "8", "-d", "0,16", "-r", "1", "--out", tmp_path / "out.jsonl"
        )
    assert done.returncode == 0, done.stderr
    assert "from an empty cache: pp8; pp8 @ d16; tg4 @ d16" in done.stderr
    assert "chat tg4" in done.stdout


def test_a_form_of_markdown_is_not_passed_over_for_another_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records.append(path, record())
    words = ("bench", "report", path, "--as", "sbc-reviews", "--out", tmp_path / "out.csv")
    assert refusal(*words, code=2) == "--as sbc-reviews is a form of .md; .csv has its own"


def test_load_gives_its_levels(demo_model: Path) -> None:
    words = ("--clients", "1,2", "--seconds", "0.3", "-p", "8", "-n", "8", "--threads", "1")
    done = edge("bench", "load", demo_model, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert [level["n_clients"] for level in json.loads(done.stdout)] == [1, 2]
    table = edge("bench", "load", demo_model, *words).stdout
    assert "2 client(s)" in table
    assert "full with" in table
