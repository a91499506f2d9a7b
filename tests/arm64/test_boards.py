"""edge on an emulated Raspberry Pi 5 and Raspberry Pi 4: convert, ask, serve, plan, doctor, bench; and the wrong build.

Not covered, because the emulator has none of it: speed, affinity to fast cores, the kernel's filter for system calls.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf.quants import dequantize

from convert.pipeline import convert
from edge.demo import CHECKPOINT
from tests.arm64.board import Board

TYPES = ("F16", "Q4_K_M", "Q4_0")
QUANTS = TYPES[1:]
N_SUMS = 3
# wrong answers of a model, as JSON
SUMS = """
import json, sys
from pathlib import Path
from benchmarks.accuracy import held_out_sums, wrong_answers
wrong = wrong_answers(Path(sys.argv[1]), held_out_sums()[: int(sys.argv[2])])
print(json.dumps([(item.question, text) for item, text in wrong]))
"""
# what the engine says of itself when its model is loaded, as JSON
READY = """
import json, sys
from dataclasses import asdict
from edge.config import EngineSettings
from edge.engine.client import Engine
with Engine(EngineSettings(sys.argv[1], n_slots=1)) as engine:
    print(json.dumps(asdict(engine.start())))
"""


@pytest.fixture(scope="session", params=["pi5", "pi4"])
def board(request: pytest.FixtureRequest) -> Board:
    found: Board = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def models(board: Board) -> dict[str, Path]:
    """The demo, converted there."""
    return converted(board, board.home / "models", *TYPES)


@pytest.fixture(scope="session")
def model(demo_model: Path) -> Path:
    """The demo, converted here."""
    return demo_model


def converted(board: Board, folder: Path, *types: str) -> dict[str, Path]:
    """The demo in these types, converted on the board."""
    board.edge("convert", str(CHECKPOINT), *[word for name in types for word in ("-t", name)], "--out", str(folder))
    found = {name: next(folder.glob(f"*{name}.gguf")) for name in types}
    assert len(set(found.values())) == len(types)
    return found


@contextmanager
def serving(board: Board, model: Path) -> Iterator[str]:
    """The address of `edge serve` there, until the block ends."""
    process = board.start("-m", "edge.cli", "serve", str(model), "--port", "0")
    assert process.stderr
    try:
        addresses = (re.search(r"serving .* at (http://\S*:\d+)", line) for line in process.stderr)
        started = next(filter(None, addresses), None)
        assert started, "it did not start"
        yield started[1]
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


# ---- the right build


def test_the_library_computes_with_what_the_core_has_and_no_more(board: Board, pi5: Board) -> None:
    said = json.loads(board.python("-m", "edge.engine.devices").stdout)["system_info"]
    has = {name for name, value in re.findall(r"(\w+) = (\d+)", said) if int(value)}
    assert {"NEON", "REPACK"} <= has
    assert ({"DOTPROD", "FP16_VA"} <= has) == (board == pi5)
    assert not {"MATMUL_INT8", "SVE"} & has


def test_the_engine_runs_and_says_that_nothing_keeps_it_from_the_network(board: Board, models: dict[str, Path]) -> None:
    """The emulator knows no filter of system calls; a kernel does, and the board's own numbers are in the filter."""
    ready = json.loads(board.python("-c", READY, str(models["Q4_0"])).stdout)
    assert ready["network"].startswith("seccomp: ")
    assert "NEON = 1" in ready["system"]


@pytest.mark.parametrize("kind", QUANTS)
def test_sums_come_out_right(kind: str, board: Board, models: dict[str, Path]) -> None:
    wrong = json.loads(board.python("-c", SUMS, str(models[kind]), str(N_SUMS)).stdout)
    assert wrong == []


def test_chat_over_http(board: Board, models: dict[str, Path]) -> None:
    question = {"messages": [{"role": "user", "content": "What is 347 + 85?"}], "temperature": 0}
    with serving(board, models["Q4_K_M"]) as url:
        whole = httpx2.post(f"{url}/v1/chat/completions", json=question, timeout=120).json()
        with httpx2.stream(
            "POST", f"{url}/v1/chat/completions", json={**question, "stream": True}, timeout=120
        ) as reply:
            lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: {")]
    assert whole["choices"][0]["message"]["content"].strip().endswith("432")
    assert "carry 1" in whole["choices"][0]["message"]["reasoning_content"]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]


def test_doctor_finds_nothing_wrong_with_the_build(board: Board, pi5: Board) -> None:
    said = board.json("doctor")
    assert said["build_target"] == ("pi5" if board == pi5 else "pi4")
    assert said["seen"]["topology"]["name"].startswith(f"Raspberry Pi {5 if board == pi5 else 4}")
    assert said["seen"]["library"]["problem"] is None
    assert not [found for found in said["findings"] if "llama.cpp" in found["what"]]


def test_plan_and_bench(board: Board, models: dict[str, Path]) -> None:
    planned = board.json("plan", str(models["Q4_0"]))
    assert planned["board"].startswith("Raspberry Pi")
    assert planned["load_mode"] == "read"
    assert planned["predicted"]["total_bytes"] < 200e6
    (record,) = board.json("bench", str(models["Q4_0"]), "-n", "4", "-r", "2", "--threads", "1")
    assert record["board"]["name"] == planned["board"]
    assert len(record["samples"]) == 2
    assert all(sample["elapsed_ns"] > 0 for sample in record["samples"])
    gate = record["gate"]
    assert gate["n_paths_agree"] == gate["n_paths"]


# ---- what the converter writes there


def test_the_converter_writes_what_it_writes_here(board: Board, models: dict[str, Path], tmp_path: Path) -> None:
    """F16 to the bit. The compiler fuses multiplications with additions there, so the search for a block's scale can
    end elsewhere: in few blocks, and as near the weights. docs/builds.md has the counts."""
    here = {
        made.path.name.rpartition("-")[2].removesuffix(".gguf"): made.path
        for made in convert(CHECKPOINT, TYPES, tmp_path)
    }
    for name, there in models.items():
        n_blocks, n_different = differences(here[name], there)
        print(f"{name}: {n_different} of {n_blocks} blocks differ")  # noqa: T201 - pytest -s shows it
        assert n_different <= (0 if name == "F16" else 0.1 * n_blocks)
        assert error(there, models["F16"]) == pytest.approx(error(here[name], here["F16"]), rel=1e-3)


def differences(one: Path, other: Path) -> tuple[int, int]:
    """Blocks of all tensors, and how many of them are not the same in both files. Names, shapes and types must be."""
    n_blocks = n_different = 0
    for mine, theirs in zip(GGUFReader(one).tensors, GGUFReader(other).tensors, strict=True):
        assert (mine.name, mine.tensor_type, list(mine.shape)) == (theirs.name, theirs.tensor_type, list(theirs.shape))
        _, n_block_bytes = GGML_QUANT_SIZES[mine.tensor_type]
        a, b = (np.asarray(tensor.data).view(np.uint8).reshape(-1, n_block_bytes) for tensor in (mine, theirs))
        n_blocks += len(a)
        n_different += int((a != b).any(axis=1).sum())
    return n_blocks, n_different


def error(quantised: Path, reference: Path) -> float:
    """Root of the mean squared difference over all weights."""
    total, n = 0.0, 0
    for mine, theirs in zip(GGUFReader(quantised).tensors, GGUFReader(reference).tensors, strict=True):
        a, b = (dequantize(tensor.data, tensor.tensor_type).reshape(-1) for tensor in (mine, theirs))
        total += float(np.square(a - b, dtype=np.float64).sum())
        n += len(a)
    return float((total / n) ** 0.5)


# ---- the wrong build


def test_a_build_for_another_core_is_refused_in_one_sentence(pi4_with_the_pi5_build: Board, model: Path) -> None:
    said = pi4_with_the_pi5_build.edge("run", str(model), "What is 1 + 1?", expect=1)
    assert said.stdout == ""
    (line,) = said.stderr.strip().splitlines()
    assert line.startswith("Error: llama.cpp was built for another CPU")
    assert line.endswith("; run: bash scripts/build-llama.sh --target pi4 --install")


def test_doctor_names_the_build_that_fits(pi4_with_the_pi5_build: Board) -> None:
    first = pi4_with_the_pi5_build.json("doctor")["findings"][0]
    assert first["severity"] == "broken"
    assert "llama.cpp" in first["what"]
    assert first["mend"] == "bash scripts/build-llama.sh --target pi4 --install"


def test_bench_with_a_build_for_another_core_ends_in_one_sentence(pi4_with_the_pi5_build: Board, model: Path) -> None:
    said = pi4_with_the_pi5_build.edge("bench", str(model), "-n", "4", expect=1)
    assert "built for another CPU" in said.stderr
    assert "--target pi4 " in said.stderr
    assert "Traceback" not in said.stderr


def test_the_converter_works_with_the_build_for_another_core(pi4_with_the_pi5_build: Board, tmp_path: Path) -> None:
    """It takes ggml's base library, which has no code for special cores."""
    assert converted(pi4_with_the_pi5_build, tmp_path, "Q4_0")


def test_a_build_that_leaves_the_core_idle_is_told(pi5_with_the_pi4_build: Board) -> None:
    findings = pi5_with_the_pi4_build.json("doctor")["findings"]
    (found,) = (found for found in findings if "llama.cpp" in found["what"])
    assert found["what"] == "llama.cpp was built without DOTPROD, FP16_VA, which this CPU has"
    assert found["mend"] == "bash scripts/build-llama.sh --target pi5 --install"
