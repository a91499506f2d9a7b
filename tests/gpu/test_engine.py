"""Layers on a GPU: right sums through the engine process and its sandbox, memory as predicted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.board.footprint import MIB
from edge.board.library import Device
from edge.board.memory import process_memory
from edge.board.plan import Wish, make_plan, this_board
from edge.config import EngineSettings, Sampling
from edge.engine.client import Engine
from edge.engine.protocol import Generate
from edge.model.gguf import ModelInfo
from tests.engine.test_client import PROMPT, answer, ask
from tests.test_cli import edge, refusal

SUM = "347 + 85 = 432"
LAYERS = ("0", "1", "3", "all", "auto")
# Opens a model as the engine does, and prints what the library says it reserved where, in MiB, for each setting given.
LISTEN = """
import ctypes, json, re, sys
from dataclasses import replace
from pathlib import Path
from edge.engine import llama
lib, said = llama.lib, []
keep = lib.llama_log_callback(lambda level, text, data: said.append(text.decode("utf-8", "replace")))
lib.llama_log_set(keep, ctypes.c_void_p(0))
def sizes():
    found = {}
    for line in said:
        if m := re.search(r"(\\S+) +(model|KV|compute|output) buffer size = +([0-9.]+) MiB", line):
            found[f"{m[1]} {m[2]}"] = found.get(f"{m[1]} {m[2]}", 0) + float(m[3])
    said.clear()
    return found
result = []
for n_gpu_layers, n_ctx, n_ubatch, n_sequences in json.loads(sys.argv[2]):
    loading = llama.Loading(n_ctx, n_ubatch, n_sequences, n_sequences, 1, n_gpu_layers=n_gpu_layers)
    model = llama.Llama(Path(sys.argv[1]), loading)
    result.append(sizes())
    model.close()
print(json.dumps(result))
"""
# Greedy tokens of a prompt, by CPU and GPU: at once, from a state that was saved and put back, with a watcher.
STATES = """
import json, sys
from pathlib import Path
from edge.config import Sampling
from edge.engine.llama import Llama, Loading
def tokens(model, batch, prompt, start):
    sampler, found = model.new_sampler(Sampling(temperature=0)), []
    for i in range(12):
        batch.clear()
        for j, token in enumerate(prompt):
            last = batch.add(token, start + j, 0, output=j + 1 == len(prompt))
        assert model.decode(batch) == 0
        found.append(model.sample(sampler, last))
        start, prompt = start + len(prompt), [found[-1]]
    return found
result = {}
for name, n_gpu_layers, kv_type, watch in (
    ("cpu", 0, "f16", None), ("gpu", 99, "f16", None), ("half", 2, "f16", None), ("q8_0", 99, "q8_0", None),
    ("watched", 99, "f16", True),
):
    rows = []
    loading = Loading(1024, 256, 2, 2, 1, kv_type=kv_type, n_gpu_layers=n_gpu_layers)
    see = (lambda name, values: rows.append((name, float(abs(values).sum())))) if watch else None
    model = Llama(Path(sys.argv[1]), loading, watch=see)
    prompt = model.tokenize(sys.argv[2], control=True)
    batch = model.new_batch()
    result[name] = tokens(model, batch, prompt, 0)
    model.remove(0, len(prompt) - 1)
    state = model.save_sequence(0)
    model.clear()
    assert model.load_sequence(0, state)
    result[f"{name} restored"] = tokens(model, batch, prompt[-1:], len(prompt) - 1)
    if watch:
        result["rows"] = rows
    model.close()
print(json.dumps(result))
"""


def listen(path: Path, *settings: tuple[int, int, int, int]) -> list[dict[str, float]]:
    command = [sys.executable, "-c", LISTEN, str(path), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, float]] = json.loads(done.stdout)
    return found


def threads(pid: int) -> set[str]:
    return {(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()}


@pytest.mark.parametrize("n_layers", LAYERS)
def test_every_number_of_layers_gives_the_right_sum(n_layers: str) -> None:
    done = edge("run", "What is 347 + 85?", "--temp", "0", "--ctx", "512", "--gpu-layers", n_layers, "--json")
    assert (done.returncode, done.stderr.count("Note")) == (0, 0), done.stderr
    assert json.loads(done.stdout)["answer"] == SUM


def test_the_engine_is_on_the_device_and_without_a_network(demo_model: Path, gpu: Device) -> None:
    for n_layers in (0, 99):
        with Engine(EngineSettings(str(demo_model), n_ctx_tokens=512, n_threads=1, n_gpu_layers=n_layers)) as engine:
            assert engine.start().network == ""
            assert SUM in answer(list(engine.generate(ask())))
            assert engine.pid is not None
            if "llvmpipe" in gpu.description:
                assert any(name.startswith("llvmpipe") for name in threads(engine.pid)) == (n_layers > 0)


def test_the_engine_needs_no_folder_to_write_in(demo_model: Path, tmp_path: Path) -> None:
    """Drivers keep compiled shaders in a cache; without one they compile again, no more."""
    env = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/proc/nonexistent", "MESA_SHADER_CACHE_DIR": "/proc/nonexistent"}
    words = ("run", demo_model, "What is 347 + 85?", "--temp", "0", "--ctx", "512", "--gpu-layers", "all", "--json")
    done = edge(*words, **env)
    assert json.loads(done.stdout)["answer"] == SUM, done.stderr


def test_what_the_device_cannot_hold_is_refused_in_one_sentence(demo_model: Path, shared: Device) -> None:
    """A context of a million tokens takes 2 GB in this model."""
    words = ("run", demo_model, "hi", "--gpu-layers", "all", "--ctx", "1048576")
    if shared.free_bytes > 2 << 30:
        pytest.skip("this one can hold it")
    assert f"MB on {shared.description} with a context of 1,048,576 tokens" in refusal(*words)


def test_buffers_are_as_large_as_the_library_says(demo_model: Path, info: ModelInfo, gpu: Device) -> None:
    board, every = this_board(), info.n_layers + 1
    cases = [(n, 1024, 256, 2) for n in range(every + 1)] + [(every, 4096, 256, 5), (2, 4096, 512, 2)]
    for case, said in zip(cases, listen(demo_model, *cases), strict=True):
        n_layers, n_ctx, n_ubatch, n_sequences = case
        settings = EngineSettings("", n_ctx_tokens=n_ctx, n_slots=n_sequences - 1, n_ubatch_tokens=n_ubatch)
        found = board.needs(info, EngineSettings(**{**vars(settings), "n_gpu_layers": n_layers}))
        on_device = sum(size for name, size in said.items() if name.split()[0] == gpu.name)
        on_host = sum(said.values()) - on_device
        assert found.device / MIB == pytest.approx(on_device, rel=0.1, abs=0.5), case
        host = found.weights + found.kv + found.compute + found.logits
        assert host / MIB == pytest.approx(on_host, rel=0.1, abs=0.5), case


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("n_layers", [0, 2, None])
def test_the_engine_takes_what_was_predicted(
    demo_model: Path, info: ModelInfo, shared: Device, n_layers: int | None
) -> None:
    plan = make_plan(info, Wish(n_ctx_tokens=4096, n_gpu_layers=n_layers, n_threads=1))
    for _ in range(2 if plan.settings.n_gpu_layers else 1):  # the first one compiles, in memory that is not planned
        with Engine(plan.settings) as engine:
            engine.start()
            text = "the sum of it " * 60
            list(engine.generate(Generate("1", ((text, False),), Sampling(temperature=0), 4, thinks=False)))
            assert engine.pid is not None
            memory = process_memory(engine.pid)
    assert memory is not None
    assert 0.95 * memory.peak_bytes <= plan.footprint.total <= 1.15 * memory.peak_bytes


def test_states_and_watchers_work_on_the_device(demo_model: Path) -> None:
    prompt = "".join(text for text, _ in PROMPT)
    done = subprocess.run([sys.executable, "-c", STATES, str(demo_model), prompt], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    cpu = found["cpu"]
    for name in ("gpu", "half", "q8_0", "watched"):
        assert found[name] == cpu
        assert found[f"{name} restored"] == cpu
    assert {name for name, _ in found["rows"]} >= {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"}
    assert all(total > 0 for _, total in found["rows"])
