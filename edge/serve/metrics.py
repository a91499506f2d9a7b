"""Counts and times for Prometheus, in its text form. Labels are few and bounded: nothing a client sends becomes one."""

import os
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.engine.client import EngineClient
from edge.engine.protocol import Done
from edge.serve.condition import resident_bytes, temperature_celsius

FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second line for every count, which nobody reads
STATES = ("loading", "ok", "busy", "restarting", "down", "stopping")


class Metrics:
    """One server's numbers. state tells where the server stands (see STATES)."""

    def __init__(self, engine: EngineClient, state: Callable[[], str]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "edge_requests_total", "HTTP requests answered", ["route", "status"], registry=self._registry
        )
        self.tokens = Counter("edge_tokens_total", "Tokens by kind", ["kind"], registry=self._registry)
        self.replies = Counter(
            "edge_replies_total", "Replies by how they ended", ["finish_reason"], registry=self._registry
        )
        self.queue_time = Histogram(
            "edge_queue_seconds", "From arrival to the first prompt token", registry=self._registry,
            buckets=FIRST_TOKEN_S,
        )  # fmt: skip
        self.first_token = Histogram(
            "edge_time_to_first_token_seconds", "From arrival to the first output token", registry=self._registry,
            buckets=FIRST_TOKEN_S,
        )  # fmt: skip
        self.per_token = Histogram(
            "edge_time_per_output_token_seconds", "Between output tokens, the mean of each reply",
            registry=self._registry, buckets=PER_TOKEN_S,
        )  # fmt: skip
        for kind in ("prompt", "cached", "thought", "answer"):
            self.tokens.labels(kind)
        self._registry.register(_Engine(engine, state))

    def done(self, done: Done) -> None:
        """Count one reply."""
        self.replies.labels(done.finish_reason).inc()
        self.tokens.labels("prompt").inc(done.n_prompt_tokens)
        self.tokens.labels("cached").inc(done.n_cached_tokens)
        self.tokens.labels("thought").inc(done.n_thought_tokens)
        self.tokens.labels("answer").inc(done.n_answer_tokens)
        self.queue_time.observe(done.queue_time_s)
        if done.n_output_tokens:
            self.first_token.observe(done.time_to_first_token_s)
        if done.n_output_tokens > 1:
            self.per_token.observe(done.decode_time_s / (done.n_output_tokens - 1))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Engine(Collector):
    """What is read when somebody looks: the engine's state, its memory, the board's temperature."""

    def __init__(self, engine: EngineClient, state: Callable[[], str]) -> None:
        self._engine, self._state = engine, state
        self._started_s = time.time()

    def collect(self) -> Iterable[Metric]:
        engine, beat = self._engine, self._engine.beat
        yield _gauge("edge_requests_running", "Requests in a slot of the engine", beat.n_running)
        yield _gauge("edge_requests_waiting", "Requests in the engine's queue", beat.n_waiting)
        yield _gauge("edge_kv_tokens", "Tokens the KV cache holds", beat.n_kv_tokens)
        if engine.ready is not None:
            yield _gauge("edge_kv_tokens_max", "Tokens the KV cache can hold", engine.ready.n_ctx_tokens)
            yield _gauge("edge_slots", "Requests that can run at the same time", engine.ready.n_slots)
            yield _gauge("edge_load_seconds", "Time the model took to load", engine.ready.load_time_s)
        yield CounterMetricFamily("edge_engine_restarts", "Times the engine process died", value=engine.n_deaths)
        state = GaugeMetricFamily("edge_state", "1 for the state the server is in", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == self._state()))
        yield state
        memory = GaugeMetricFamily("edge_memory_bytes", "Resident memory of each process", labels=["process"])
        for name, pid in (("front", os.getpid()), ("engine", engine.pid)):
            if (n_bytes := resident_bytes(pid)) is not None:
                memory.add_metric([name], n_bytes)
        yield memory
        if (degrees := temperature_celsius()) is not None:
            yield _gauge("edge_temperature_celsius", "The hottest sensor of the board", degrees)
        yield _gauge("edge_start_time_seconds", "When the server started, Unix time", self._started_s)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
