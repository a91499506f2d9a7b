"""llama.cpp's own tools as peers, built by scripts/build-peers.sh: llama-bench and llama-server."""

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.config import cache_dir
from edge.errors import EngineError

START_TIMEOUT_S = 120


def tool(name: str) -> Path:
    """Path of a built peer. Raises EngineError with the command that builds it."""
    found = sorted((cache_dir() / "peers").glob(f"*/build/bin/{name}"))
    if not found:
        raise EngineError(f"{name} is not built", f"run: scripts/build-peers.sh {name}")
    return found[-1]


def bench_generation(model: Path, n_tokens: int, n_threads: int, *options: str) -> float:
    """llama-bench's tokens/s for one generation of n_tokens."""
    row = bench(model, "-p", "0", "-n", str(n_tokens), "-t", str(n_threads), *options)
    return float(row["avg_ts"])


def bench(model: Path, *options: str) -> dict[str, Any]:
    """One row of llama-bench's own JSON, of one repetition. Raises EngineError."""
    words = [str(tool("llama-bench")), "-m", str(model), "-r", "1", "-o", "json", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        row: dict[str, Any] = json.loads(done.stdout)[0]
    except (ValueError, LookupError) as error:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise EngineError(f"llama-bench failed on {model} ({last})", "run it by hand on the same model") from error
    return row


class Server:
    """A running llama-server. Use as a context manager."""

    def __init__(self, model: Path, n_slots: int, n_threads: int, n_ctx_tokens: int = 4096) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        words = [str(tool("llama-server")), "-m", str(model), "--port", str(self.port), "-np", str(n_slots)]
        words += ["-c", str(n_ctx_tokens), "-t", str(n_threads), "--kv-unified", "--no-webui"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.1)
        raise EngineError("llama-server did not start", "run it by hand on the same model")

    def stream(self, prompt: str, n_tokens: int, banned: list[int]) -> Iterator[float]:
        """The time (perf_counter, seconds) of each token's arrival. End tokens are banned, so lengths are equal."""
        body: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": n_tokens,
            "stream": True,
            "cache_prompt": False,
            "temperature": 0.6,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.0,
            "logit_bias": [[token, False] for token in banned],
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if not event.get("stop"):
                    yield time.perf_counter()
