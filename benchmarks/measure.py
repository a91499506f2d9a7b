"""The measuring child: one workload in a fresh process, JSON lines in and out.

    printf '%s\n' '{"path": "model.gguf", "workload": {"n_prompt_tokens": 512}}' repeat | python -m benchmarks.measure

A fresh process because peak memory belongs to a process's lifetime. The first line says what to measure; then the
parent says when: `repeat`, `gate`, `end`, a line each. Each gets one line of JSON. So the parent can let two children
take turns, and knows when a clock runs.
"""

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.endpoint import EngineEndpoint, Reply, UrlEndpoint, words, words_per_token
from benchmarks.kernel import Kernel, Loader, kv_bytes
from benchmarks.record import USUAL, Gate, Loads, Memory, Sample, Settings
from benchmarks.schema import from_json, to_json
from benchmarks.workload import Workload
from edge.board.memory import process_memory
from edge.config import N_CTX_TOKENS, EngineSettings
from edge.errors import EdgeError
from edge.model.gguf import read_model_info

N_GATE_TOKENS = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What a child is to measure. path: of the model; url and model: of a server."""

    workload: Workload
    path: str | None = None
    url: str | None = None
    model: str | None = None
    key: str | None = None
    settings: Settings = USUAL


@dataclass(frozen=True)
class Ready:
    """The child's first line: it is loaded."""

    n_threads: int | None
    pids: tuple[int, ...]  # the processes that compute
    features: str | None = None
    load_s: float | None = None
    model: str | None = None  # a server's name for it
    cpus: tuple[int, ...] = ()  # that its threads may run on


@dataclass(frozen=True)
class Ended:
    """The child's last line."""

    memory: Memory | None
    loads: Loads | None


class Instrument(Protocol):
    """One workload, set up."""

    def ready(self) -> Ready: ...

    def repeat(self) -> Sample: ...

    def gate(self) -> Gate: ...

    def end(self) -> Ended: ...


class KernelInstrument:
    def __init__(self, order: Order) -> None:
        assert order.path is not None
        self._kernel = Kernel(Path(order.path), order.workload, order.settings)
        self.repeat, self.gate = self._kernel.repeat, self._kernel.gate

    def ready(self) -> Ready:
        kernel, pid = self._kernel, os.getpid()
        return Ready(kernel.n_threads, (pid,), kernel.features, kernel.load_s, cpus=cpus_of(pid))

    def end(self) -> Ended:
        return Ended(self._kernel.memory(), Loads(None, (self._kernel.load_s,)))


class LoadInstrument:
    def __init__(self, order: Order) -> None:
        assert order.path is not None
        self._loader = Loader(Path(order.path), order.workload, order.settings)
        self.repeat = self._loader.repeat

    def ready(self) -> Ready:
        return Ready(self._loader.n_threads, (os.getpid(),), self._loader.features, cpus=cpus_of(os.getpid()))

    def gate(self) -> Gate:
        return Gate()

    def end(self) -> Ended:
        return Ended(self._loader.memory(), self._loader.loads())


class ClientInstrument:
    """End to end: replies of the engine or of a server, as a client sees them."""

    def __init__(self, order: Order) -> None:
        self.workload = work = order.workload
        self._loop = asyncio.new_event_loop()
        self._kv_bytes = 0
        if order.url is not None:
            self._endpoint: EngineEndpoint | UrlEndpoint = UrlEndpoint(order.url, order.model, order.key)
        else:
            assert order.path is not None
            n_ctx = max(N_CTX_TOKENS, work.n_ctx_tokens + 64 * work.n_streams)
            self._kv_bytes = kv_bytes(read_model_info(Path(order.path)), order.settings, n_ctx)
            settings = EngineSettings(order.path, n_ctx, n_slots=work.n_streams, n_threads=work.n_threads)
            self._endpoint = EngineEndpoint(replace(settings, **vars(order.settings)))
        self._run(self._endpoint.start())
        self._words_per_token = self._run(words_per_token(self._endpoint))
        self._n_asked = 0

    def ready(self) -> Ready:
        if isinstance(self._endpoint, UrlEndpoint):
            return Ready(None, (), model=self._endpoint.model)
        engine = self._endpoint
        pids = tuple(filter(None, (os.getpid(), engine.pid)))
        return Ready(engine.n_threads, pids, engine.features, engine.load_s, cpus=cpus_of(pids[-1]))

    def repeat(self) -> Sample:
        replies = self._run(self._ask_together())
        begin_ns = min(reply.asked_ns for reply in replies)
        slowest = max(replies, key=lambda reply: reply.end_ns)
        n_asked = self.workload.n_streams * self.workload.n_generated_tokens
        n_tokens = sum(reply.n_tokens for reply in replies)
        return Sample(
            slowest.end_ns - begin_ns,
            min(reply.first_ns for reply in replies),
            tuple(slowest.gaps_ns),
            n_tokens if n_tokens != n_asked else None,
        )

    async def _ask_together(self) -> list[Reply]:
        work = self.workload
        n_words = int((work.n_depth_tokens + work.n_prompt_tokens) * self._words_per_token)
        self._n_asked += work.n_streams
        texts = [words(n_words, self._n_asked + i) for i in range(work.n_streams)]
        calls = [self._endpoint.reply(text, max(1, work.n_generated_tokens)) for text in texts]
        return await asyncio.gather(*calls)

    def gate(self) -> Gate:
        reply = self._run(self._endpoint.reply(words(N_GATE_TOKENS, 0), N_GATE_TOKENS, greedy=True))
        return Gate(reply_sha256=reply.sha256)

    def end(self) -> Ended:
        memory = None
        if isinstance(self._endpoint, EngineEndpoint) and self._endpoint.pid is not None:
            memory = _memory_of(self._endpoint.pid, self._kv_bytes)
            loads = Loads(None, (self._endpoint.load_s,))
        else:
            loads = None
        self._run(self._endpoint.close())
        return Ended(memory, loads)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


def _memory_of(pid: int, kv_bytes: int) -> Memory | None:
    """Of another process."""
    found = process_memory(pid)
    return None if found is None else Memory(found.peak_bytes, found.anonymous_bytes, found.file_bytes, kv_bytes)


def cpus_of(pid: int) -> tuple[int, ...]:
    """The CPUs that a process may run on; () where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(pid))) if hasattr(os, "sched_getaffinity") else ()


def instrument(order: Order) -> Instrument:
    """What measures this order. Raises EdgeError."""
    if order.url is not None or order.workload.view == "end-to-end":
        return ClientInstrument(order)
    return KernelInstrument(order) if order.workload.n_tokens else LoadInstrument(order)


def main() -> None:
    # the protocol gets a descriptor of its own: a library that prints must not break a line of it
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(body: Any) -> None:
        answers.write(json.dumps(to_json(body)) + "\n")
        answers.flush()

    try:
        made = instrument(from_json(Order, json.loads(sys.stdin.readline()), "order"))
        answer(made.ready())
        for line in sys.stdin:
            answer({"repeat": made.repeat, "gate": made.gate, "end": made.end}[line.strip()]())
    except EdgeError as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    main()
