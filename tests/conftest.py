"""What every test shares: the demo model as GGUF, made once per run, and a cache folder of the run's own."""

import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """A run in the background ignores Ctrl-C and hang-up, and so would everything that the tests start and stop."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EDGE_CACHE and EDGE_DATA point into the run's temporary folder: no test sees the user's files."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EDGE_CACHE"] = str(folder)
    os.environ["EDGE_DATA"] = str(tmp_path_factory.mktemp("data"))
    return folder


@pytest.fixture(scope="session")
def demo_model(cache: Path) -> Path:
    """The bundled demo, converted to Q8_0."""
    from edge.demo import demo_model

    return demo_model("Q8_0")
