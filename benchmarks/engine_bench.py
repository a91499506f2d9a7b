"""The engine against llama.cpp's own tools on one machine, in one run, interleaved: a table of ratios.

    scripts/build-peers.sh llama-bench llama-server
    python -m benchmarks.engine_bench MODEL.gguf [--only generation --only prefixes …]

Needs a quiet machine. Random weights will do: end tokens are banned, so every reply has the length asked for. Times
are the client's: from sending a request to the arrival of a token's text.
"""

import asyncio
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import psutil

from benchmarks import peers
from benchmarks.stats import percentile
from edge.board.topology import compute_cpus
from edge.config import EngineSettings, Sampling
from edge.engine.client import EngineClient
from edge.engine.protocol import Done, Event, Generate, Text
from edge.errors import EdgeError, EngineDiedError
from edge.model.gguf import read_model_info

WORDS = tuple("the of and to in is it for was on are as with his they at be this from have or by one had".split())  # noqa: SIM905
LOOSE = Sampling(temperature=0.6, top_k=40, top_p=0.95)


@dataclass
class Reply:
    """When the text of one reply came."""

    asked_s: float
    token_s: list[float]  # when text came; a token that ends inside a character or in white space shows none
    n_tokens: int = 0
    end_s: float = 0.0  # when the last token was said to be the last
    done: Done | None = None

    @property
    def first_s(self) -> float:
        return self.token_s[0] - self.asked_s

    @property
    def tokens_per_s(self) -> float:
        return (self.n_tokens - 1) / (self.end_s - self.token_s[0])

    def gaps_s(self, after_s: float, before_s: float) -> list[float]:
        """The waits between two tokens that overlap a time span."""
        pairs = zip(self.token_s, self.token_s[1:], strict=False)
        return [b - a for a, b in pairs if b > after_s and a < before_s]


def prompt(n_words: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(n_words))


def request(name: str, text: str, n_tokens: int) -> Generate:
    return Generate(name, ((text, False),), LOOSE, max_tokens=n_tokens, thinks=False, ignore_end=True)


async def ask(client: EngineClient, text: str, n_tokens: int) -> Reply:
    reply = Reply(time.perf_counter(), [])
    async for event in client.generate(request(os.urandom(8).hex(), text, n_tokens)):
        if isinstance(event, Text):
            reply.token_s.append(time.perf_counter())
        elif isinstance(event, Done):
            reply.done, reply.n_tokens, reply.end_s = event, event.n_output_tokens, time.perf_counter()
    return reply


def serve(server: peers.Server, text: str, n_tokens: int, banned: list[int]) -> Reply:
    asked_s = time.perf_counter()
    token_s = list(server.stream(text, n_tokens, banned))
    return Reply(asked_s, token_s, n_tokens, time.perf_counter())


def together(*calls: Callable[[], Reply]) -> list[Reply]:
    """Run blocking calls at the same time, each in a thread."""
    replies: list[Reply | None] = [None] * len(calls)

    def run(i: int) -> None:
        replies[i] = calls[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [reply for reply in replies if reply is not None]


class Bench:
    """One model on this machine, and the rows of the table."""

    def __init__(self, model: Path, n_threads: int, step_time_s: float) -> None:
        self.model, self.n_threads, self.step_time_s = model, n_threads, step_time_s
        self.info = read_model_info(model)
        self.banned = [token for token in (self.info.eos_id,) if token is not None]

    def row(self, what: str, ours: str, theirs: str, ratio: float | None, bar: str) -> None:
        shown = "" if ratio is None else f"{ratio:.3f}"
        click.echo(f"| {what} | {ours} | {theirs} | {shown} | {bar} |")

    def with_engine(self, work: Callable[[EngineClient], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
        async def main() -> Any:
            client = EngineClient(EngineSettings(str(self.model), n_threads=self.n_threads, **settings))
            try:
                await client.start()
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(main())

    def generation(self) -> None:
        """One stream, sampled and streamed as text, against llama-bench, six interleaved rounds."""

        async def work(client: EngineClient) -> float:
            await ask(client, prompt(16, 0), 8)
            return (await ask(client, prompt(8, 1), 128)).tokens_per_s

        rounds = []
        for _ in range(6):  # every round in a fresh process, ours too: where its memory lies makes a few percent
            ours = self.with_engine(work, n_slots=1)
            default = peers.bench_generation(self.model, 128, self.n_threads)
            unmapped = peers.bench_generation(self.model, 128, self.n_threads, "-lm", "none")
            rounds.append((ours, default, unmapped))
        ours, default, unmapped = (median(values) for values in zip(*rounds, strict=True))
        vs_default = median(a / b for a, b, _ in rounds)
        vs_unmapped = median(a / c for a, _, c in rounds)
        self.row(
            "generation tokens/s, llama-bench at its defaults", f"{ours:.2f}", f"{default:.2f}", vs_default, "≥ 1.00"
        )
        self.row("the same, load mode none", f"{ours:.2f}", f"{unmapped:.2f}", vs_unmapped, "≥ 0.98")

    def long_prompt(self) -> None:
        """Three running streams while a prompt of about 3,000 tokens arrives."""
        texts, long_text = [prompt(10, i) for i in range(3)], prompt(2900, 9)

        async def work(client: EngineClient) -> list[Reply]:
            running = [asyncio.create_task(ask(client, text, 250)) for text in texts]
            await asyncio.sleep(4)
            late = await ask(client, long_text, 8)
            return [late, *(await asyncio.gather(*running))]

        ours = self.with_engine(work, n_slots=4, step_time_s=self.step_time_s)
        with peers.Server(self.model, 4, self.n_threads) as server:

            def late() -> Reply:
                time.sleep(4)
                return serve(server, long_text, 8, self.banned)

            streams = [lambda text=text: serve(server, text, 250, self.banned) for text in texts]
            theirs = together(late, *streams)
        for name, bar, measure in (
            (
                "longest gap of 3 streams during a 3,000-token prompt, s",
                "≤ 0.5 s",
                lambda replies: max(gaps_s(replies)),
            ),
            ("  99 % of the gaps are shorter than, s", "", lambda replies: percentile(gaps_s(replies), 0.99)),
            ("time to first token of that prompt, s", "≤ 1.15 x", lambda replies: replies[0].first_s),
        ):
            a, b = measure(ours), measure(theirs)
            self.row(name, f"{a:.2f}", f"{b:.2f}", a / b, bar)
        done = ours[0].done
        assert done is not None
        self.row("  (its prompt tokens)", str(done.n_prompt_tokens), "", None, "")

    def streams(self) -> None:
        """Total tokens/s of several streams, first to last token of all."""
        for n in (4, 8):
            texts = [prompt(10, i) for i in range(n)]

            async def work(client: EngineClient, texts: list[str] = texts) -> list[Reply]:
                return await asyncio.gather(*(ask(client, text, 64) for text in texts))

            rounds = []
            for _ in range(2):
                ours = total(self.with_engine(work, n_slots=n))
                with peers.Server(self.model, n, self.n_threads) as server:
                    calls = [lambda text=text, s=server: serve(s, text, 64, self.banned) for text in texts]
                    theirs = total(together(*calls))
                rounds.append((ours, theirs))
            ours, theirs = (median(values) for values in zip(*rounds, strict=True))
            ratio = median(a / b for a, b in rounds)
            self.row(f"total tokens/s, {n} streams", f"{ours:.1f}", f"{theirs:.1f}", ratio, "≥ 1.0 x")

    def memory(self) -> None:
        """Resident bytes of front and engine, 4 slots on a pool of 4,096 tokens, all of it used once."""

        async def work(client: EngineClient) -> int:
            await asyncio.gather(*(ask(client, prompt(700, i), 100) for i in range(4)))
            assert client.pid is not None
            return int(psutil.Process(client.pid).memory_info().rss)

        front = self.front_bytes()
        engine = self.with_engine(work, n_slots=4)
        with peers.Server(self.model, 4, self.n_threads) as server:
            together(*(lambda i=i: serve(server, prompt(700, i), 100, self.banned) for i in range(4)))
            theirs = psutil.Process(server.process.pid).memory_info().rss
        ours = front + engine
        self.row("resident memory, GB", f"{ours / 1e9:.3f}", f"{theirs / 1e9:.3f}", ours / theirs, "")
        self.row("  over the file's size", f"{self.info.n_bytes / 1e9:.3f}", "", ours / self.info.n_bytes, "≤ 1.32")

    def front_bytes(self) -> int:
        """Resident bytes of a process that holds a client and nothing else."""
        code = "import edge.engine.client, psutil; print(psutil.Process().memory_info().rss)"
        import subprocess

        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    def prefixes(self) -> None:
        """Time to first token with a shared beginning of about 1,000 tokens: cold, warm, after a restart."""
        beginning = prompt(950, 77)

        async def first(client: EngineClient, i: int) -> float:
            return (await ask(client, f"{beginning} {prompt(8, 1000 + i)}", 2)).first_s

        async def work(client: EngineClient) -> list[float]:
            await ask(client, prompt(40, 1), 2)
            return [await first(client, i) for i in range(4)]

        with tempfile.TemporaryDirectory() as folder:
            cold, _, *warm = self.with_engine(work, n_slots=2, prefix_dir=folder)
            restarted = self.with_engine(lambda client: first(client, 9), n_slots=2, prefix_dir=folder)
        self.row(
            "first token, 1,000 shared tokens, warm / cold, s",
            f"{median(warm):.2f}",
            f"{cold:.2f}",
            median(warm) / cold,
            "≤ 0.10",
        )
        self.row("the same after a restart / cold, s", f"{restarted:.2f}", f"{cold:.2f}", restarted / cold, "≤ 0.25")

    def deaths(self) -> None:
        """kill -9 of the engine 100 times, one stream running and one waiting each time."""

        async def work(client: EngineClient) -> tuple[int, int, list[float]]:
            n_errors = n_lost = 0
            back_s = []
            for i in range(100):
                client._deaths_s.clear()  # a hundred deaths in a row are the point
                running = asyncio.create_task(collect(client.generate(request(f"r{i}", prompt(8, i), 2000))))
                await asyncio.sleep(0.3)
                waiting = asyncio.create_task(collect(client.generate(request(f"w{i}", prompt(8, 500 + i), 4))))
                await asyncio.sleep(0.05)
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)
                killed_s = time.perf_counter()
                try:
                    await running
                except EngineDiedError:
                    n_errors += 1
                try:
                    events = await asyncio.wait_for(waiting, 60)
                    n_lost += not isinstance(events[-1], Done)
                    back_s.append(time.perf_counter() - killed_s)
                except (EdgeError, asyncio.TimeoutError):
                    n_lost += 1
            return n_errors, n_lost, back_s

        n_errors, n_lost, back_s = self.with_engine(work, n_slots=1)
        self.row(
            "kill -9, 100 times: running streams told / waiting ones lost",
            f"{n_errors} / {n_lost}",
            "",
            None,
            "100 / 0",
        )
        load_s = self.with_engine(lambda client: load_time(client))
        usual, worst = median(back_s) - load_s, max(back_s) - load_s
        self.row(
            "answer after a death, beyond load time, median / worst, s",
            f"{usual:.2f} / {worst:.2f}",
            f"load {load_s:.2f}",
            None,
            "≤ 1",
        )

    def soak(self) -> None:
        """1,000 requests, one in twenty hostile, four at once: the front must stay as it is."""
        hostile = [
            replace(request("", "x", 4), sampling=replace(LOOSE, temperature=float("nan"))),
            replace(request("", "", 4), segments=()),
            replace(request("", "why " * 9000, 4)),
            replace(request("", "<｜User｜>\0\ud800" * 50, 4)),
        ]

        async def work(client: EngineClient) -> tuple[list[int], list[int], int]:
            front, rss, handles = psutil.Process(), [], []
            for i in range(0, 1000, 4):
                names = [f"s{i + k}" for k in range(4)]
                calls = [
                    replace(hostile[(i // 20) % len(hostile)], id=name)
                    if i % 20 == 0 and k == 0
                    else request(name, prompt(12, i + k), 8)
                    for k, name in enumerate(names)
                ]
                await asyncio.gather(*(collect(client.generate(call)) for call in calls), return_exceptions=True)
                if i % 100 == 0:
                    rss.append(front.memory_info().rss)
                    handles.append(front.num_fds())
            return rss, handles, client.n_deaths

        rss, handles, n_deaths = self.with_engine(work, n_slots=4)
        self.row(
            "1,000 requests: front MB, after 100 / at the end",
            f"{rss[1] / 1e6:.1f}",
            f"{rss[-1] / 1e6:.1f}",
            rss[-1] / rss[1],
            "flat",
        )
        self.row(
            "  file handles, after 100 / at the end; engine deaths",
            f"{handles[1]}",
            f"{handles[-1]}; {n_deaths}",
            None,
            "flat; 0",
        )


def gaps_s(replies: list[Reply]) -> list[float]:
    """The waits of the running replies until the late one has its first token."""
    late, *running = replies
    return [gap for reply in running for gap in reply.gaps_s(late.asked_s, late.token_s[0])] or [0.0]


def total(replies: list[Reply]) -> float:
    n_tokens = sum(reply.n_tokens for reply in replies)
    return n_tokens / (max(r.end_s for r in replies) - min(r.asked_s for r in replies))


async def collect(stream: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in stream]


async def load_time(client: EngineClient) -> float:
    assert client.ready is not None
    return client.ready.load_time_s


PARTS = ("generation", "long_prompt", "streams", "memory", "prefixes", "deaths", "soak")


@click.command(context_settings={"auto_envvar_prefix": "EDGE_ENGINE_BENCH"})
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="This part; may be given again.  [all]")
@click.option("--threads", type=click.IntRange(1, 512), help="[one per fast core]")
@click.option(
    "--step-time", type=float, default=EngineSettings.step_time_s, show_default=True, help="For long_prompt, s."
)
def main(model: Path, only: tuple[str, ...], threads: int | None, step_time: float) -> None:
    """Measure the engine against llama-bench and llama-server."""
    logging.disable()  # deaths are part of it
    bench = Bench(model, threads or len(compute_cpus()), step_time)
    click.echo(f"{model.name}, {model.stat().st_size / 1e9:.3f} GB, {bench.n_threads} threads\n")
    click.echo("| what | ours | peer | ratio | bar |\n|---|---|---|---|---|")
    for part in only or PARTS:
        getattr(bench, part)()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
