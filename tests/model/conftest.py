"""What tests of the hub share: a local hub, and a way to it whose waits take no time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.model.hub import Hub
from tests.hub_server import HubServer


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    """How long the hub was waited for."""
    return []


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, waits: list[float]) -> Hub:
    return Hub(server.url(), server.token, tmp_path / "hub", timeout_s=1.0, pause=waits.append)
