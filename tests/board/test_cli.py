"""edge plan, doctor and tune as a person uses them."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.board import plan
from edge.board.cli import cpus_text
from edge.board.memory import Memory
from edge.board.plan import Board
from edge.board.topology import read_topology
from edge.cli import cli
from edge.config import EngineSettings, Sampling
from edge.engine.client import Engine
from edge.engine.protocol import Generate, Text
from tests.test_cli import edge, refusal


def test_plan_tells_every_part_and_their_sum(demo_model: Path) -> None:
    done = edge("plan", demo_model, "--ctx", "1024", "--slots", "2", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    parts = plan["predicted"]
    summed = sum(parts[f"{name}_bytes"] for name in ("weights", "kv", "compute", "logits", "engine"))
    assert parts["total_bytes"] == summed
    assert (plan["n_ctx_tokens"], plan["n_slots"], plan["n_outputs_max"]) == (1024, 2, 3)
    table = edge("plan", demo_model).stdout
    for word in ("threads", "weights", "KV cache", "total", "remaining"):
        assert word in table


def test_what_does_not_fit_is_refused_by_every_command(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Board(read_topology(), Memory(200 << 20, 150 << 20, 200 << 20, None, 0, 0, 0, 4096))
    monkeypatch.setattr(plan, "this_board", lambda: small)
    path = str(demo_model)
    for words in (["plan", path], ["run", path, "hi"], ["chat", path]):
        done = CliRunner().invoke(cli, [*words, "--ctx", "65536"])
        assert done.exit_code == 1
        assert f"{path}: needs " in done.output
        assert "a context of 8,192 tokens fits" in done.output
        assert done.output.strip().endswith("--force")
    done = CliRunner().invoke(cli, ["bench", path, "-p", "65536"])
    assert (done.exit_code, done.output.strip().endswith("--force")) == (1, True)
    done = CliRunner().invoke(cli, ["plan", path, "--ctx", "65536", "--force", "--json"])
    forced = json.loads(done.output)
    assert (forced["n_ctx_tokens"], forced["load_mode"]) == (65536, "map")
    assert "forced" in forced["notes"][-1]


def test_gpu_layers_are_auto_or_a_number(demo_model: Path) -> None:
    assert "neither auto, all nor a number" in refusal("plan", demo_model, "--gpu-layers", "many", code=2)
    assert json.loads(edge("plan", demo_model, "--gpu-layers", "0", "--json").stdout)["n_gpu_layers"] == 0


def test_the_engine_runs_on_a_map_as_well(demo_model: Path) -> None:
    """What a plan for little memory chooses must give the same answer."""
    answers = set()
    for changes in (
        {},
        {"load_mode": "map"},
        {"load_mode": "map", "kv_type": "q8_0"},
        {"flash_attention": False},
        {"cpus": (0,), "environment": (("OMP_WAIT_POLICY", "active"),)},
    ):
        settings = EngineSettings(str(demo_model), n_ctx_tokens=512, n_slots=1, n_threads=1)
        with Engine(replace(settings, **changes)) as engine:
            engine.start()
            segments = (("<｜User｜>", True), ("What is 347 + 85?", False), ("<｜Assistant｜>", True))
            asked = Generate("1", segments, Sampling(temperature=0), 64, thinks=False)
            answers.add("".join(event.text for event in engine.generate(asked) if isinstance(event, Text)))
    assert len(answers) == 1
    assert "347 + 85" in answers.pop()


def test_doctor_is_quick_and_tells_the_machine() -> None:
    started_s = time.monotonic()
    done = edge("doctor", "--json")
    elapsed_s = time.monotonic() - started_s
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    seen = report["seen"]
    assert seen["library"]["problem"] is None
    assert set(seen["topology"]["features"]) <= set(seen["library"]["features"])  # built on this very machine
    assert seen["memory_bytes_per_s"] > 1e8
    assert report["build_target"]
    assert elapsed_s < 60  # 5 on an idle machine
    assert "llama.cpp has" in edge("doctor").stdout


def test_tune_keeps_a_record_and_forgets_it(demo_model: Path) -> None:
    done = edge("tune", demo_model, "--seconds", "10", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["comparisons"] or outcome["skipped"]
    is_better = outcome["tuned"]["flash_attention"] is not None or outcome["tuned"]["n_threads"] is not None
    notes = json.loads(edge("plan", demo_model, "--json").stdout)["notes"]
    assert ("uses what edge tune measured to be best" in notes) or not is_better
    assert edge("tune", demo_model, "--forget").returncode == 0
    assert json.loads(edge("plan", demo_model, "--json").stdout)["notes"] == []


def test_cpus_are_told_in_spans() -> None:
    assert cpus_text((0, 2, 4, 5, 6, 7)) == "0,2,4-7"
    assert cpus_text(()) == ""
