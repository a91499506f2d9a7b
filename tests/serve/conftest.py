"""A real server for the tests: `edge serve` as its own process, with the demo model on a free port."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

CLIENT = httpx2.Client(timeout=60, verify=False, limits=httpx2.Limits(max_keepalive_connections=0))
KEY = "a-key-of-the-tests"
QUESTION = [{"role": "user", "content": "What is 347 + 85?"}]


@dataclass
class Server:
    """A running server. log: what it wrote to stderr so far."""

    process: subprocess.Popen[str]
    port: int
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return CLIENT.get(self.url + path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return CLIENT.post(self.url + path, json=body, **options)

    def chat(self, **fields: Any) -> httpx2.Response:
        body = {"messages": QUESTION, "temperature": 0, **fields}
        return self.post("/v1/chat/completions", {k: v for k, v in body.items() if v is not None})

    def chat_as(self, headers: dict[str, str], **fields: Any) -> httpx2.Response:
        return self.post("/v1/chat/completions", {"messages": QUESTION, "temperature": 0, **fields}, headers=headers)

    def endless(self, **fields: Any) -> dict[str, Any]:
        """A chat request that runs until the context is full: some seconds."""
        ends = self.post("/tokenize", {"content": "<｜end▁of▁sentence｜>", "parse_special": True}, **fields)
        bias = {str(token): -100 for token in ends.json()["tokens"]}
        return {"messages": QUESTION, "temperature": 0, "logit_bias": bias, "thinking_budget_tokens": 0, "stream": True}

    def stream(self, path: str = "/v1/chat/completions", **fields: Any) -> list[dict[str, Any]]:
        """The events of a streamed reply; the last must be [DONE]."""
        body = {"messages": QUESTION, "temperature": 0, "stream": True, **fields}
        body = {k: v for k, v in body.items() if v is not None}
        with CLIENT.stream("POST", self.url + path, json=body) as response:
            assert response.status_code == 200, response.read()
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def raw(self, data: bytes = b"", timeout_s: float = 20) -> socket.socket:
        """A connection on which data was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
        connection.sendall(data)
        return connection

    def exchange(self, data: bytes, timeout_s: float = 20) -> bytes:
        """Everything that comes back for data until the server closes."""
        with self.raw(data, timeout_s) as connection:
            return read_all(connection)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").text.splitlines()
        values = [line.rpartition(" ")[2] for line in lines if re.match(rf"{re.escape(name)}(\{{| )", line)]
        return sum(map(float, values))

    def n_running(self) -> int:
        return int(self.metric("edge_requests_running"))

    def wait_until_idle(self, within_s: float = 15) -> None:
        """Wait until nothing runs or waits in the engine; it tells once a second."""
        eventually(lambda: self.n_running() == 0 and self.metric("edge_requests_waiting") == 0, within_s)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            found += piece
    return found


def eventually(is_so: Callable[[], bool], within_s: float = 15) -> None:
    """Wait for something. Counts its own naps: a machine that stood still has used up no time."""
    for _ in range(int(within_s / 0.05)):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true in time")


def post_text(path: str, body: bytes, *headers: str, host: str = "localhost") -> bytes:
    """An HTTP/1.1 request, byte for byte."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


@contextlib.contextmanager
def serving(folder: Path, *options: str, model: Path | None = None, patch: str = "", **env: str) -> Iterator[Server]:
    """`edge serve` on a free port until the block ends; it must be gone in time, and without a traceback.

    patch: Python that runs before the command, for deadlines that a test cannot wait for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / "log"
    start = f"{patch}\nfrom edge.cli import main\nmain()"
    command = [sys.executable, "-c", start, "serve", *([str(model)] if model else [])]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--threads", "1", "--grace", "1", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "EDGE_CONFIG": str(folder / "config"), **env},
        )
    server = Server(process, 0, log_file)
    try:
        eventually(lambda: "serving" in server.log or process.poll() is not None, 60)
        found = re.search(r"serving .* at http://\S*:(\d+)", server.log)
        assert found, server.log
        server.port = int(found[1])
        eventually(lambda: is_up(server) or process.poll() is not None, 60)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert "Traceback" not in server.log, server.log


def is_up(server: Server) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return server.get("/health").status_code == 200
    return False


@pytest.fixture(scope="session")
def server(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server without a key for all tests that leave it as they found it."""
    with serving(tmp_path_factory.mktemp("server"), model=demo_model) as found:
        yield found
