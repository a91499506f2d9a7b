"""Each thing that spoils a measurement is found in its samples and conditions, and nothing is found in a good one."""

from dataclasses import replace

import pytest

from benchmarks import verdict
from benchmarks.record import Conditions, Gate, Moment

STEADY = (100, 101, 99, 100, 102)
CALM = Conditions(
    tuple(Moment(float(i), True, 50.0, 2400.0, (), 5.0, 1000) for i in range(5)), 5.0, 0.02, 0.001, 0, 25.0, 2.0
)
GATE = Gate((1, 2, 3, 4), 4, 4, 1.0)


def test_a_steady_run_on_a_calm_machine_is_valid() -> None:
    assert verdict.reasons(STEADY, CALM, GATE) == []
    assert verdict.reasons(STEADY, Conditions(busy_s=5.0), None) == []


def moments(**changes: object) -> Conditions:
    last = replace(CALM.moments[-1], **changes)  # type: ignore[arg-type]
    return replace(CALM, moments=(*CALM.moments[:-1], last))


@pytest.mark.parametrize(
    ("conditions", "kind", "said"),
    [
        (moments(throttled=("undervoltage",), temperature_c=85.0), "throttled", "at 85 °C: undervoltage"),
        (moments(frequency_mhz=1500.0), "frequency moved", "between 1,500 and 2,400 MHz"),
        (replace(CALM, other_cores=0.8), "background load", "0.80 cores"),
        (replace(CALM, waited_share=0.2), "background load", "20% of its time"),
        (replace(CALM, n_swapped_pages=5000), "swapping", "5,000 pages"),
    ],
)
def test_a_disturbance_is_named(conditions: Conditions, kind: str, said: str) -> None:
    (found,) = verdict.reasons(STEADY, conditions, GATE)
    assert found.kind == kind
    assert said in found.text


def test_fewer_than_five_repetitions_are_no_result() -> None:
    (found,) = verdict.reasons(STEADY[:4], CALM, GATE)
    assert found.kind == "too few repetitions"
    assert verdict.reasons((), CALM, GATE) == []  # a load, a sustained run


def test_one_slow_repetition_is_a_wide_spread() -> None:
    (found,) = verdict.reasons((*STEADY[:-1], 130), CALM, GATE)
    assert found.kind == "spread too wide"


@pytest.mark.parametrize(
    "gate",
    [Gate((7, 7, 7, 7), 4, 4), replace(GATE, n_paths_agree=1), replace(GATE, agreement=0.5)],
    ids=["always the same token", "prompt and generation disagree", "the reference disagrees"],
)
def test_wrong_answers_fail_the_gate(gate: Gate) -> None:
    (found,) = verdict.reasons(STEADY, CALM, gate)
    assert found.kind == "correctness gate failed"


def test_ticks_of_the_clock_are_not_taken_for_load_in_a_short_run() -> None:
    assert verdict.reasons(STEADY, replace(CALM, busy_s=0.1, other_cores=0.3), None) == []
    assert verdict.reasons(STEADY, replace(CALM, busy_s=10.0, other_cores=0.3), None)
