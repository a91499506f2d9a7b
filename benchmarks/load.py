"""Many people at once: requests against an engine or a server, closed loop or open, and how long each had to wait.

Closed: so many clients, each asking again when it has its answer. Open: requests arrive at a rate of their own, as
people do, whether or not the last are answered; so a server that stalls cannot slow down what is asked of it.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.endpoint import Endpoint, Reply, words, words_per_token
from benchmarks.stats import percentile
from edge.errors import EdgeError

GROWTH_MIN = 1.05  # more clients that bring less than this have nothing left to use
BACKLOG_SHARE_MAX = 0.1  # of what arrived may still be unanswered at the end


@dataclass(frozen=True)
class Mix:
    """What is asked: prompts of these lengths, drawn at random, and so many generated tokens each."""

    n_prompt_tokens: tuple[int, ...] = (32, 256, 1024)
    n_generated_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Level:
    """One intensity of load and what came of it. Times in seconds; None where nothing was answered."""

    n_clients: int | None  # closed loop
    rate_per_s: float | None  # open loop
    duration_s: float
    n_asked: int
    n_answered: int  # within the duration
    n_failed: int
    tokens_per_s: float  # generated for all together
    first_token_s: dict[str, float]  # p50, p90, p99
    token_s: dict[str, float]  # from token to token
    longest_stall_s: float | None  # of all waits between two tokens

    @property
    def keeps_up(self) -> bool:
        """Whether nearly everything that arrived was answered."""
        return self.n_asked - self.n_answered <= max(2, BACKLOG_SHARE_MAX * self.n_asked)


async def run(
    endpoint: Endpoint,
    mix: Mix,
    duration_s: float,
    clients: Sequence[int] = (),
    rates: Sequence[float] = (),
    report: Callable[[str], None] = lambda _: None,
) -> list[Level]:
    """Each level in turn; requests that are not answered when its time is over are waited for, and not counted.

    report: gets a line before each level.
    """
    n_levels = len(clients) + len(rates)
    share = await words_per_token(endpoint)
    requests = _requests(mix, share)
    levels: list[Level] = []
    for n in clients:
        report(f"{n} client(s) for {duration_s:g} s, level {len(levels) + 1} of {n_levels}")
        levels.append(await _closed(endpoint, mix, requests, n, duration_s))
    for rate in rates:
        report(f"{rate:g} requests/s for {duration_s:g} s, level {len(levels) + 1} of {n_levels}")
        levels.append(await _open(endpoint, mix, requests, rate, duration_s))
    return levels


def saturation(levels: Sequence[Level]) -> str:
    """Where more load brings nothing: a sentence."""
    closed = [level for level in levels if level.n_clients is not None]
    opened = [level for level in levels if level.rate_per_s is not None]
    parts = []
    if len(closed) > 1:
        grown = itertools.pairwise(closed)
        full = next((a for a, b in grown if b.tokens_per_s < GROWTH_MIN * a.tokens_per_s), None)
        parts.append(
            f"full with {full.n_clients} client(s)" if full else f"not full with {closed[-1].n_clients} clients"
        )
    asked = [level for level in opened if level.n_asked]
    kept = [level.rate_per_s for level in asked if level.keeps_up and level.rate_per_s is not None]
    lost = [level.rate_per_s for level in asked if not level.keeps_up and level.rate_per_s is not None]
    idle = [f"{level.rate_per_s:g}" for level in opened if not level.n_asked]
    parts += [f"keeps up with {max(kept):g} requests/s"] if kept else []
    parts += [f"falls behind at {min(lost):g} requests/s"] if lost else []
    parts += [f"nothing arrived at {', '.join(idle)} requests/s: give more --seconds"] if idle else []
    return ", ".join(parts)


def _requests(mix: Mix, words_per_token: float) -> Iterator[str]:
    """Prompts without end, each with another beginning."""
    draw = random.Random(mix.seed)
    seed = mix.seed
    while True:
        seed += 1
        yield words(int(draw.choice(mix.n_prompt_tokens) * words_per_token), seed)


@dataclass
class _Seen:
    """What one level collects."""

    n_asked: int
    replies: list[Reply]
    n_failed: int = 0

    async def ask(self, endpoint: Endpoint, text: str, n_tokens: int) -> None:
        self.n_asked += 1
        try:
            self.replies.append(await endpoint.reply(text, n_tokens))
        except EdgeError:
            self.n_failed += 1


async def _closed(endpoint: Endpoint, mix: Mix, requests: Iterator[str], n_clients: int, duration_s: float) -> Level:
    seen, end_s = _Seen(0, []), time.perf_counter() + duration_s

    async def client() -> None:
        while time.perf_counter() < end_s:
            await seen.ask(endpoint, next(requests), mix.n_generated_tokens)
            await asyncio.sleep(0)  # a server that refuses at once must not stop the clock of the others

    await asyncio.gather(*(client() for _ in range(n_clients)))
    return _level(seen, end_s, duration_s, n_clients=n_clients)


async def _open(endpoint: Endpoint, mix: Mix, requests: Iterator[str], rate_per_s: float, duration_s: float) -> Level:
    draw = random.Random(mix.seed)
    began_s = at_s = time.perf_counter()
    end_s = began_s + duration_s
    seen, tasks = _Seen(0, []), []
    while (at_s := at_s + draw.expovariate(rate_per_s)) < end_s:  # a Poisson process: times do not depend on answers
        await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(seen.ask(endpoint, next(requests), mix.n_generated_tokens)))
    await asyncio.gather(*tasks)
    return _level(seen, end_s, duration_s, rate_per_s=rate_per_s)


def _level(
    seen: _Seen, end_s: float, duration_s: float, *, n_clients: int | None = None, rate_per_s: float | None = None
) -> Level:
    in_time = [reply for reply in seen.replies if reply.end_ns <= end_s * 1e9]
    n_tokens = sum(_tokens_before(reply, end_s * 1e9) for reply in seen.replies)
    gaps = [gap / 1e9 for reply in seen.replies for gap in reply.gaps_ns]
    return Level(
        n_clients=n_clients,
        rate_per_s=rate_per_s,
        duration_s=duration_s,
        n_asked=seen.n_asked,
        n_answered=len(in_time),
        n_failed=seen.n_failed,
        tokens_per_s=n_tokens / duration_s,
        first_token_s=_percentiles([reply.first_ns / 1e9 for reply in seen.replies]),
        token_s=_percentiles(gaps),
        longest_stall_s=max(gaps, default=None),
    )


def _tokens_before(reply: Reply, end_ns: float) -> float:
    """How many of a reply's tokens came in time; a token without text is counted with its neighbours."""
    n_texts = sum(at_ns <= end_ns for at_ns in reply.text_ns)
    return reply.n_tokens * n_texts / len(reply.text_ns) if reply.text_ns else 0.0


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {name: percentile(values, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)) if values}
