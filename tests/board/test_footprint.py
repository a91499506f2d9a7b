"""Predicted bytes are what libllama says it reserves, and what the engine process takes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge.board.footprint import LIBRARY_BYTES, MIB, Footprint, footprint, repacks
from edge.board.memory import process_memory
from edge.board.topology import read_topology
from edge.config import EngineSettings, Sampling
from edge.engine.client import Engine
from edge.engine.protocol import Generate
from edge.model.gguf import ModelInfo, parse_header, read_model_info
from edge.model.header import TensorInfo

A76 = {"NEON", "DOTPROD", "FP16_VA"}
X86 = {"AVX", "AVX2", "FMA"}
CONTEXTS = [(256, 256, 1), (1024, 256, 2), (4096, 256, 5), (4096, 128, 2), (4096, 512, 5), (8192, 64, 2)]
# Loads a model as the door does, opens contexts, and prints the sizes in the library's own log, in MiB.
LISTEN = """
import ctypes, json, re, sys
import llama_cpp.llama_cpp as lib
said = []
keep = lib.llama_log_callback(lambda level, text, data: said.append(text.decode()))
lib.llama_log_set(keep, ctypes.c_void_p(0))
lib.llama_backend_init()
def sizes():
    found = {}
    for line in said:
        if m := re.search(r"(CPU\\w*) +(model|KV|compute|output) buffer size = +([0-9.]+) MiB", line):
            found[f"{m[1]} {m[2]}"] = float(m[3])
    said.clear()
    return found
params = lib.llama_model_default_params()
params.load_mode = lib.LLAMA_LOAD_MODE_NONE
model = lib.llama_model_load_from_file(sys.argv[1].encode(), params)
result = [sizes()]
for n_ctx, n_ubatch, n_sequences, flash in json.loads(sys.argv[2]):
    p = lib.llama_context_default_params()
    p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max, p.n_outputs_max = n_ctx, n_ubatch, n_ubatch, n_sequences, n_sequences
    p.kv_unified = True
    if flash is not None: p.flash_attn_type = int(flash)
    context = lib.llama_init_from_model(model, p)
    result.append(sizes())
    lib.llama_free(context)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def demo_4_bit() -> Path:
    from edge.demo import demo_model

    return demo_model("Q4_0")


def listen(path: Path, contexts: list[tuple[int, int, int, bool | None]]) -> list[Mapping[str, float]]:
    command = [sys.executable, "-c", LISTEN, str(path), json.dumps(contexts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[Mapping[str, float]] = json.loads(done.stdout)
    return found


def predict(info: ModelInfo, n_ctx: int, n_ubatch: int, n_sequences: int, **changes: object) -> Footprint:
    settings = EngineSettings("", n_ctx_tokens=n_ctx, n_ubatch_tokens=n_ubatch, n_slots=n_sequences - 1)
    return footprint(info, replace(settings, **changes), read_topology().features)  # type: ignore[arg-type]


def test_buffers_are_as_large_as_the_library_says(demo_4_bit: Path) -> None:
    info = read_model_info(demo_4_bit)
    weights, *contexts = listen(demo_4_bit, [(*context, None) for context in CONTEXTS])
    found = predict(info, 256, 256, 2)
    assert found.weights / MIB == pytest.approx(sum(weights.values()), abs=0.02)
    assert found.repacked / MIB == pytest.approx(weights.get("CPU_REPACK model", 0), abs=0.02)
    for context, said in zip(CONTEXTS, contexts, strict=True):
        found = predict(info, *context)
        assert found.kv / MIB == pytest.approx(said["CPU KV"], abs=0.01), context
        assert found.logits / MIB == pytest.approx(said["CPU output"], abs=0.01), context
        # our compute has the rows quantised for a product in it, which the library's log does not count
        assert said["CPU compute"] <= found.compute / MIB <= 1.1 * said["CPU compute"] + 0.3, context


def test_without_flash_attention_scores_take_room(demo_4_bit: Path) -> None:
    info = read_model_info(demo_4_bit)
    _, *contexts = listen(demo_4_bit, [(n_ctx, 256, 2, False) for n_ctx in (1024, 4096)])
    for n_ctx, said in zip((1024, 4096), contexts, strict=True):
        found = predict(info, n_ctx, 256, 2, flash_attention=False).compute / MIB
        assert 0.97 * said["CPU compute"] <= found <= 1.1 * said["CPU compute"] + 0.3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("n_ctx", "n_slots", "mode"), [(1024, 1, "read"), (4096, 4, "map")])
def test_the_engine_takes_what_was_predicted(demo_4_bit: Path, n_ctx: int, n_slots: int, mode: str) -> None:
    settings = EngineSettings(str(demo_4_bit), n_ctx_tokens=n_ctx, n_slots=n_slots, n_threads=1, load_mode=mode)  # type: ignore[arg-type]
    predicted = footprint(read_model_info(demo_4_bit), settings, read_topology().features).total
    with Engine(settings) as engine:
        engine.start()
        text = "the sum of it " * (n_ctx // 24)
        list(engine.generate(Generate("1", ((text, False),), Sampling(temperature=0), 4, thinks=False)))
        assert engine.pid is not None
        memory = process_memory(engine.pid)
    assert memory is not None
    # how much of its libraries the kernel has mapped is this machine's history, so that part is taken as it is
    n_mapped = demo_4_bit.stat().st_size if mode == "map" else 0
    expected = predicted - LIBRARY_BYTES + memory.file_bytes - n_mapped
    assert 0.97 * memory.peak_bytes <= expected <= 1.08 * memory.peak_bytes


def test_a_header_given_as_bytes_is_enough(demo_4_bit: Path) -> None:
    info = read_model_info(demo_4_bit)
    header = demo_4_bit.read_bytes()[: min(tensor.offset for tensor in info.tensors)]
    remote = parse_header(lambda offset, n: header[offset : offset + n], info.n_bytes, Path("hub/demo.gguf"))
    assert predict(remote, 4096, 256, 2) == predict(info, 4096, 256, 2)


def test_a_map_repacks_nothing(demo_4_bit: Path) -> None:
    info = read_model_info(demo_4_bit)
    mapped = predict(info, 1024, 256, 2, load_mode="map")
    assert mapped.repacked == 0
    assert mapped.weights == info.tensor_bytes


def test_q8_0_kv_takes_a_good_half(demo_4_bit: Path) -> None:
    info = read_model_info(demo_4_bit)
    ratio = predict(info, 4096, 256, 2, kv_type="q8_0").kv / predict(info, 4096, 256, 2).kv
    assert ratio == pytest.approx(34 / 64)


def test_layers_on_a_gpu_leave_memory(demo_4_bit: Path) -> None:
    info = read_model_info(demo_4_bit)
    none, some, every = (predict(info, 4096, 256, 2, n_gpu_layers=n) for n in (0, 2, info.n_layers + 1))
    assert none.device == 0
    assert 0 < some.device < every.device
    for found in (some, every):  # nothing is lost or held twice, but for intermediate results
        extra = found.weights + found.kv + found.device - none.weights - none.kv
        assert 0 < extra < 2 * none.compute
    assert (some.repacked, every.repacked, every.kv) == (0, 0, 0)


@pytest.mark.parametrize(
    ("type_name", "features", "is_repacked"),
    [
        ("Q4_0", X86, True), ("Q4_0", A76, True), ("Q4_0", {"NEON"}, False), ("Q4_K", A76, True), ("Q6_K", A76, True),
        ("Q6_K", X86, False), ("Q8_0", X86, False), ("Q8_0", A76, True), ("F16", A76, False), ("Q4_0", set(), False),
    ],
)  # fmt: skip
def test_what_is_repacked_depends_on_type_and_cpu(type_name: str, features: set[str], is_repacked: bool) -> None:
    matrix = TensorInfo("blk.0.ffn_up.weight", (1536, 8960), type_name, 0, 1)
    assert repacks(matrix, features) is is_repacked
    assert not repacks(TensorInfo("token_embd.weight", (1536, 8960), type_name, 0, 1), features)
    assert not repacks(TensorInfo("blk.0.attn_norm.weight", (1536,), type_name, 0, 1), features)
