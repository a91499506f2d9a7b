"""The search keeps what is measurably better and nothing else; a child really measures."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.board import tuned
from edge.board.plan import Board, Plan, Wish, make_plan
from edge.board.topology import read_topology
from edge.board.tune import Candidate, Outcome, Sample, Trials, candidates, chance, compare, tune
from edge.board.tuned import Tuned
from edge.errors import EngineError
from edge.model.gguf import ModelInfo, read_model_info
from tests.board.test_plan import with_memory
from tests.board.trees import build

Cost = Callable[[Candidate], float]


class FakeBench:
    """Measures by a formula, with noise; a tick of its clock for each sample."""

    def __init__(self, cost: Cost, noise: float = 0.01) -> None:
        self.cost, self.noise, self.n_samples, self.is_closed = cost, noise, 0, False
        self.seen: list[Candidate] = []
        self._draw = random.Random(4)

    def sample(self, candidate: Candidate) -> Sample:
        self.n_samples += 1
        self.seen.append(candidate)
        factor = self.cost(candidate) * self._draw.uniform(1 - self.noise, 1 + self.noise)
        return Sample(0.01 * factor, 0.1 * factor)

    def close(self) -> None:
        self.is_closed = True

    def clock(self) -> float:
        return float(self.n_samples)


@pytest.fixture
def info(demo_model: Path) -> ModelInfo:
    return read_model_info(demo_model)


@pytest.fixture
def plan(info: ModelInfo, tmp_path: Path) -> Plan:
    topology = replace(read_topology(build("rk3588", tmp_path)), is_pinnable=True)
    return make_plan(info, Wish(n_threads=4), with_memory(Board(topology, None), 16 << 30, 14 << 30), use_tuned=False)


def search(
    info: ModelInfo, plan: Plan, cost: Cost, budget_s: float = 10_000, noise: float = 0.01
) -> "tuple[Outcome, Tuned | None, FakeBench]":
    bench = FakeBench(cost, noise)
    try:
        outcome = tune(info, plan, bench=bench, budget_s=budget_s, clock=bench.clock)
        return outcome, tuned.load(info, plan.board.topology), bench
    finally:
        tuned.forget(info, plan.board.topology)


def test_what_is_faster_is_kept(info: ModelInfo, plan: Plan) -> None:
    def cost(candidate: Candidate) -> float:
        return (0.8 if candidate.flash_attention is False else 1) * (0.9 if candidate.n_ubatch_tokens == 128 else 1)

    outcome, record, bench = search(info, plan, cost)
    assert record is not None
    assert record == outcome.tuned
    assert (record.flash_attention, record.n_ubatch_tokens, record.n_threads) == (False, 128, None)
    assert record.decode_gain == pytest.approx(1 / 0.72, rel=0.05)
    assert bench.is_closed


def test_where_all_are_alike_the_default_stays(info: ModelInfo, plan: Plan) -> None:
    outcome, record, _ = search(info, plan, lambda _: 1.0, noise=0.1)
    assert record is not None
    assert record.changes() == {}
    assert outcome.best == outcome.default


def test_a_gain_that_does_not_come_back_is_not_kept(info: ModelInfo, plan: Plan) -> None:
    """The search saw a gain (a neighbour was busy during the default's samples), the last comparison does not."""
    flash_off_samples = 0

    def cost(candidate: Candidate) -> float:
        nonlocal flash_off_samples
        if candidate.flash_attention is False:
            flash_off_samples += 1
            return 0.7 if flash_off_samples <= 5 else 1.1
        return 1.0

    outcome, record, _ = search(info, plan, cost)
    assert outcome.comparisons[0].is_better
    assert outcome.final is None or not outcome.final.is_better
    assert record is not None
    assert record.changes() == {}


def test_the_budget_is_kept(info: ModelInfo, plan: Plan) -> None:
    outcome, _, bench = search(info, plan, lambda c: 0.5 if c.flash_attention is False else 1.0, budget_s=30)
    assert bench.n_samples <= 33
    assert outcome.skipped
    assert outcome.final is not None


def test_a_candidate_that_cannot_run_is_skipped(info: ModelInfo, plan: Plan) -> None:
    def cost(candidate: Candidate) -> float:
        if candidate.flash_attention is False:
            raise EngineError("no context", "x")
        return 1.0

    outcome, record, _ = search(info, plan, cost)
    assert outcome.skipped == ["flash attention off (no context)"]
    assert record is not None


def test_all_clusters_are_tried_on_a_board_that_has_some(plan: Plan) -> None:
    default = Candidate(4, None, 256, "read", (4, 5, 6, 7))
    tried = dict(candidates(plan, default))
    assert tried["all clusters"].cpus == tuple(range(8))
    assert {candidate.n_threads for candidate in tried.values()} == {2, 3, 4, 8}
    assert tried["weights mapped"].load_mode == "map"


def test_a_second_engine_is_not_started_where_there_is_no_room(info: ModelInfo, plan: Plan) -> None:
    tight = replace(plan, board=with_memory(plan.board, 1 << 30, plan.footprint.total + (60 << 20)))
    default = Candidate(4, None, 256, "read", ())
    assert all(candidate.process == default.process for _, candidate in candidates(tight, default))


def test_two_are_measured_in_turns() -> None:
    bench = FakeBench(lambda _: 1.0)
    a, b = Candidate(1, None, 256, "read", ()), Candidate(2, None, 256, "read", ())
    found = compare(bench, "x", a, b, 8, 1e9, bench.clock)
    assert found.n_pairs <= 8
    first = [candidate.n_threads for candidate in bench.seen[:8]]
    assert first[:4] == [1, 2, 2, 1]


def test_the_sign_test() -> None:
    assert chance(5, 5) == 1 / 32
    assert chance(7, 8) == 9 / 256
    assert chance(0, 3) == 1


def test_a_child_measures_the_demo(demo_model: Path) -> None:
    trials = Trials(demo_model)
    try:
        for flash, n_ubatch in ((None, 256), (False, 64)):
            sample = trials.sample(Candidate(1, flash, n_ubatch, "read", ()))
            assert 0 < sample.prompt_s_per_token < 1
            assert 0 < sample.generation_s_per_token < 1
        mapped = trials.sample(Candidate(1, None, 256, "map", (0,), (("OMP_WAIT_POLICY", "active"),)))
        assert mapped.reply_s > 0
    finally:
        trials.close()


def test_a_child_that_cannot_load_is_an_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    trials = Trials(bad)
    started_s = time.monotonic()
    with pytest.raises(EngineError):
        trials.sample(Candidate(1, None, 256, "read", ()))
    trials.close()
    assert time.monotonic() - started_s < 250
