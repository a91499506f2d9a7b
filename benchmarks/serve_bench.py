"""What the server costs: its front's time per token, its memory, idle connections beside active ones.

    python -m benchmarks.serve_bench                         the bundled demo
    python -m benchmarks.serve_bench model.gguf --tokens 64

The engine alone and the engine behind HTTP take turns, so that a machine that slows down slows both. The front's time
is processor time of its process, read before and after: what the engine and this program use does not count.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from edge.chat import Conversation, chat_template
from edge.config import EngineSettings, Sampling
from edge.demo import demo_model
from edge.engine.client import EngineClient
from edge.engine.protocol import Done, Text
from edge.model.gguf import read_model_info

N_STREAMS = 8
N_IDLE = 200
QUESTION = "Tell me the numbers from 1 to 200, please, one after the other."
BARS = {
    "front's processor time per streamed token": 0.3,  # ms
    "tokens/s of the engine alone that are left": 0.98,
    "time per token with idle connections, ratio": 1.05,
    "front's memory, idle": 90.0,  # MB
}


@dataclass(frozen=True)
class Run:
    """Some streams at once. Times in seconds."""

    n_tokens: int
    wall_s: float
    front_cpu_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.wall_s


@dataclass
class Front:
    """A running `edge serve`."""

    process: asyncio.subprocess.Process
    port: int
    ends: list[int]  # end tokens, banned so that each stream has the same length

    @property
    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def rss_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    async def post(self, path: str, body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return reader, writer

    async def stream(self, n_tokens: int) -> int:
        """Chunks with text in one streamed reply of n_tokens."""
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": True,
            "max_tokens": n_tokens,
            "temperature": 0,
            "logit_bias": {str(token): -100 for token in self.ends},
        }
        reader, writer = await self.post("/v1/chat/completions", body)
        text = await reader.read()
        writer.close()
        assert b"[DONE]" in text, text[:300]
        usage = re.findall(rb'"predicted_n":(\d+)', text)
        return int(usage[-1])

    async def streams(self, n_tokens: int) -> Run:
        cpu_s, started_s = self.cpu_s, time.perf_counter()
        counts = await asyncio.gather(*(self.stream(n_tokens) for _ in range(N_STREAMS)))
        return Run(sum(counts), time.perf_counter() - started_s, self.cpu_s - cpu_s)


@contextlib.asynccontextmanager
async def front(model: Path, n_threads: int) -> AsyncIterator[Front]:
    """A server with a slot for every stream."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge.cli", "serve", str(model), "--port", "0", "--slots", str(N_STREAMS)),
        *("--threads", str(n_threads), "--no-prefix-cache", "--quiet", "--max-connections", "512"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    port = 0
    while not port:
        line = (await process.stderr.readline()).decode()
        assert line, "the server did not start"
        if found := re.search(r"http://\S+:(\d+)", line):
            port = int(found[1])
    server = Front(process, port, [])
    try:
        while True:
            reader, writer = await server.post(
                "/tokenize", {"content": read_model_info(model).eos_text, "parse_special": True}
            )
            answer = await reader.read()
            writer.close()
            if b'"tokens"' in answer:
                server.ends = json.loads(answer.rpartition(b"\r\n")[2])["tokens"]
                break
            await asyncio.sleep(0.1)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def alone(engine: EngineClient, model: Path, n_tokens: int, ends: list[int]) -> Run:
    """The same streams without a server."""
    info = read_model_info(model)
    sampling = Sampling(temperature=0, logit_bias=tuple((token, -100.0) for token in ends))
    conversation = Conversation(chat_template(info), sampling, max_tokens=n_tokens)
    conversation.messages.append({"role": "user", "content": QUESTION})

    async def one() -> int:
        request = conversation.request()
        n = 0
        async for event in engine.generate(request):
            if isinstance(event, Done):
                n = event.n_output_tokens
            else:
                assert not isinstance(event, Text) or event.text
        return n

    started_s = time.perf_counter()
    counts = await asyncio.gather(*(one() for _ in range(N_STREAMS)))
    conversation.template.close()
    return Run(sum(counts), time.perf_counter() - started_s)


@contextlib.asynccontextmanager
async def crowd(port: int, n: int) -> AsyncIterator[None]:
    """n connections that have asked something, were answered, and stay."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(n)]
    try:
        for _, writer in opened:
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.gather(*(reader.readuntil(b"}") for reader, _ in opened))
        yield
    finally:
        for _, writer in opened:
            writer.close()


async def measure_tokens(model: Path, n_tokens: int, n_rounds: int, n_threads: int) -> None:
    async with front(model, n_threads) as server:
        idle_mb = server.rss_mb
        engine = EngineClient(EngineSettings(str(model), n_slots=N_STREAMS, n_threads=n_threads))
        await engine.start()
        await server.streams(8)
        await alone(engine, model, 8, server.ends)
        bare: list[Run] = []
        served: list[Run] = []
        crowded: list[Run] = []
        for i in range(n_rounds):
            bare.append(await alone(engine, model, n_tokens, server.ends))
            for is_crowded in (False, True) if i % 2 else (True, False):
                async with crowd(server.port, N_IDLE if is_crowded else 0):
                    (crowded if is_crowded else served).append(await server.streams(n_tokens))
        await engine.close()
    per_token_ms = statistics.median(run.front_cpu_s / run.n_tokens * 1000 for run in served)
    left = statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(served, bare, strict=True))
    slower = statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(served, crowded, strict=True))
    row("front's processor time per streamed token", per_token_ms, "ms")
    row("tokens/s of the engine alone that are left", left, "", more_is_better=True)
    row("time per token with idle connections, ratio", slower, "")
    row("front's memory, idle", idle_mb, "MB")
    rates = [statistics.median(run.tokens_per_s for run in runs) for runs in (bare, served, crowded)]
    click.echo(
        f"tokens/s of {N_STREAMS} streams: alone {rates[0]:.1f}, served {rates[1]:.1f}, "
        f"beside {N_IDLE} idle {rates[2]:.1f}"
    )


async def measure_memory(model: Path, n_requests: int, n_threads: int) -> None:
    """The front's memory over many short requests, a fifth of them wrong."""
    async with front(model, n_threads) as server:
        asked = {"messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": 1}
        bodies = [asked, {**asked, "stream": True}, {**asked, "nope": 1}, {"prompt": "x", "max_tokens": 1}, asked]
        paths = ["/v1/completions" if "prompt" in body else "/v1/chat/completions" for body in bodies]
        seen = []
        for i in range(0, n_requests, N_STREAMS):
            picked = [(i + k) % len(bodies) for k in range(N_STREAMS)]
            opened = await asyncio.gather(*(server.post(paths[k], bodies[k]) for k in picked))
            for reader, writer in opened:
                await reader.read()
                writer.close()
            if i % (n_requests // 10) < N_STREAMS:
                seen.append(server.rss_mb)
        click.echo(f"front's memory over {n_requests:,} requests, MB: {', '.join(f'{mb:.1f}' for mb in seen)}")


def row(name: str, value: float, unit: str, *, more_is_better: bool = False) -> None:
    bar = BARS[name]
    kept = value >= bar if more_is_better else value <= bar
    sign = ">=" if more_is_better else "<="
    click.echo(f"{name:<46} {value:8.3f} {unit:<3} bar {sign} {bar:g}  {'kept' if kept else 'NOT KEPT'}")


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--tokens", default=200, show_default=True, help="Per stream.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--requests", default=10_000, show_default=True, help="For the memory; 0 leaves it out.")
@click.option("--threads", default=max(1, (os.cpu_count() or 2) - 1), show_default=True, help="Of the engine.")
def main(model: Path | None, tokens: int, rounds: int, requests: int, threads: int) -> None:
    """Measure what the server costs beside its engine."""
    path = model or demo_model()
    asyncio.run(measure_tokens(path, tokens, rounds, threads))
    if requests:
        asyncio.run(measure_memory(path, requests, threads))


if __name__ == "__main__":
    main()
