"""Tests that compute on a GPU, for real. Where llama.cpp has no back end for one they are skipped.

scripts/test-vulkan.sh builds one and runs them on Mesa's software device; on a machine with a GPU and a build for it
they run with all the others.
"""

from pathlib import Path

import pytest

from edge.board import library
from edge.board.library import Device
from edge.model.gguf import ModelInfo, read_model_info

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if library.gpu_backends():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no GPU back end here; bash scripts/test-vulkan.sh builds one"))


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The device that everything here runs on."""
    found = [device for device in library.devices() if device.kind in ("gpu", "igpu")]
    assert found, "a back end and no device; see edge doctor"
    return found[0]


@pytest.fixture
def shared(gpu: Device) -> Device:
    """The same where its memory is the machine's, so that a process shows all that it takes."""
    if gpu.kind != "igpu":
        pytest.skip(f"{gpu.description} has memory of its own")
    return gpu


@pytest.fixture(scope="session")
def info(demo_model: Path) -> ModelInfo:
    return read_model_info(demo_model)
