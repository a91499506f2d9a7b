"""The devices that are there: listed, planned for, counted once; and what is said where there are none."""

import json
from pathlib import Path

import pytest

from edge.board.footprint import PROGRAMS_BYTES
from edge.board.library import Device
from edge.board.memory import read_memory
from edge.board.plan import Wish, make_plan, this_board
from edge.model.gguf import ModelInfo
from tests.test_cli import edge

MISSING = {"GGML_VK_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": ""}
WRONG = [
    MISSING,
    {"GGML_VK_VISIBLE_DEVICES": "7"},
    {"VK_ICD_FILENAMES": "/nonexistent/driver.json", "VK_DRIVER_FILES": "/nonexistent/driver.json"},
]


def test_plan_and_doctor_list_the_device_with_its_memory(demo_model: Path, gpu: Device) -> None:
    plan = json.loads(edge("plan", demo_model, "--json").stdout)
    (listed, *_) = plan["devices"]
    assert (listed["name"], listed["kind"]) == (gpu.name, gpu.kind)
    assert 0 < listed["free_bytes"] <= listed["total_bytes"]
    seen = json.loads(edge("doctor", "--json").stdout)
    assert seen["seen"]["library"]["devices"][0]["description"] == gpu.description
    assert seen["seen"]["gpu_backends"]
    for words in (["plan", str(demo_model)], ["doctor"]):
        (row,) = [line for line in edge(*words).stdout.splitlines() if line.startswith("device")]
        assert gpu.description in row
        assert "MB free" in row


def test_a_device_without_memory_of_its_own_is_known_as_such(shared: Device) -> None:
    """ggml calls Mesa's software device a GPU like any card."""
    memory = read_memory()
    assert memory is not None
    assert shared.total_bytes <= 1.01 * memory.total_bytes


def test_auto_takes_all_layers_and_counts_them_once(info: ModelInfo, gpu: Device) -> None:
    board = this_board()
    plan = make_plan(info, board=board)
    assert plan.settings.n_gpu_layers == info.n_layers + 1
    assert plan.notes == (f"all layers on {gpu.description}",)
    assert plan.warnings == ()
    parts, on_cpu = plan.footprint, make_plan(info, Wish(n_gpu_layers=0), board).footprint
    assert parts.device > 0.9 * info.tensor_bytes - parts.weights
    host = parts.weights + parts.kv + parts.compute + parts.logits + parts.engine
    assert parts.total == host + (parts.device if gpu.kind == "igpu" else 0)
    if gpu.kind == "igpu":
        assert abs(parts.total - PROGRAMS_BYTES - on_cpu.total) < 0.1 * on_cpu.total


@pytest.mark.parametrize("env", WRONG, ids=["hidden", "no such device", "no driver"])
def test_without_a_device_the_cpu_answers_and_one_sentence_says_so(env: dict[str, str], gpu: Device) -> None:
    if not gpu.name.startswith("Vulkan") and env is not MISSING:
        pytest.skip("these are Vulkan's variables")
    done = edge("run", "What is 347 + 85?", "--temp", "0", "--gpu-layers", "all", "--json", **{**MISSING, **env})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == "347 + 85 = 432"
    (note,) = [line for line in done.stderr.splitlines() if "GPU" in line]
    assert note.startswith("Note: llama.cpp found no GPU with its ")
    assert note.endswith("so the CPU computes all; see edge doctor.")
    assert edge("run", "What is 1 + 1?", "--gpu-layers", "0", **{**MISSING, **env}).stderr.count("GPU") == 0
    found = json.loads(edge("doctor", "--json", **{**MISSING, **env}).stdout)["findings"]
    (finding,) = [finding for finding in found if "GPU" in finding["what"]]
    assert finding["mend"]
