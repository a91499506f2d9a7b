"""A slower program is found by its ratio; a slower machine is none."""

import json
from pathlib import Path

from benchmarks.baseline import FILE, SHAPE, TYPE, WORKLOADS, results
from benchmarks.overhead import share_of_a_core, times_ns
from benchmarks.workload import Workload
from tests.benchmarks.records import record

TIMES = (10.0, 10.02, 9.98, 10.01, 9.99, 10.0)
NAME = "model-Q4_0.gguf tg100"


def scaled(share: float) -> tuple[float, ...]:
    return tuple(seconds * share for seconds in TIMES)


def test_a_slower_machine_is_no_slower_program() -> None:
    for machine in (1, 3):
        (result,) = results([(record(elapsed_s=scaled(machine)), record(elapsed_s=scaled(machine)))], {NAME: 1.0})
        assert not result.is_slower
        assert "kept 1.000" in str(result)


def test_a_tenth_more_time_than_kept_is_slower() -> None:
    (result,) = results([(record(elapsed_s=scaled(1.1)), record(elapsed_s=TIMES))], {NAME: 1.0})
    assert result.is_slower
    assert str(result).endswith("slower")


def test_within_the_tolerance_and_without_a_kept_ratio_nothing_is_slower() -> None:
    pair = (record(elapsed_s=scaled(1.03)), record(elapsed_s=TIMES))
    assert not results([pair], {NAME: 1.0})[0].is_slower
    assert not results([pair], {})[0].is_slower


def test_the_kept_ratios_are_those_of_the_workloads_that_are_measured() -> None:
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    assert set(kept) <= {f"{SHAPE}-{TYPE}.gguf {work.name}" for work in WORKLOADS}
    assert all(0.5 < value < 2 for value in kept.values())


def test_the_cost_of_watching_is_measured_in_equal_turns(demo_model: Path) -> None:
    unwatched, watched = times_ns(demo_model, Workload(n_generated_tokens=4, n_threads=1), n_turns=2)
    assert len(unwatched) == len(watched) == 2


def test_watching_takes_next_to_nothing_of_a_core() -> None:
    """Processor time, not time that goes by: a busy machine does not lengthen it much."""
    assert 0 < share_of_a_core(2.0) < 0.02
