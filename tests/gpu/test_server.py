"""The server with all layers on a GPU: an answer over HTTP, and another one after its engine was killed."""

import os
import signal
from pathlib import Path

from tests.serve.conftest import eventually, serving
from tests.serve.test_life import engine_pid

SUM = "347 + 85 = 432"


def test_it_answers_and_comes_back_after_a_kill(demo_model: Path, tmp_path: Path, gpu: object) -> None:
    with serving(tmp_path, "--gpu-layers", "all", "--slots", "2", "--ctx", "2048", model=demo_model) as found:
        reply = found.chat()
        assert reply.status_code == 200
        assert reply.json()["choices"][0]["message"]["content"] == SUM
        pid = engine_pid(found)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: found.metric("edge_engine_restarts_total") == 1, 60)
        eventually(lambda: found.get("/health").json() == {"status": "ok"}, 60)
        assert engine_pid(found) != pid
        pieces = [event["choices"][0]["delta"].get("content") or "" for event in found.stream() if event["choices"]]
        assert "".join(pieces) == SUM
