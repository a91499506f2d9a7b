"""Summaries are derived from raw samples; the record says what it measured."""

import json

import pytest

from benchmarks.accuracy import held_out_sums, last_number
from benchmarks.record import Record, Samples
from benchmarks.stats import summarize
from benchmarks.workload import Workload


def record(prompt_ns: tuple[int, ...], generation_ns: tuple[int, ...]) -> Record:
    samples = Samples(0.5, prompt_ns, generation_ns, 300, 200, 100, 2, "CPU")
    return Record(Workload("m.gguf", 500, 100), samples, 1000, "Q4_0", 900, "a board", "2026-01-01T00:00:00+00:00")


def test_one_disturbed_run_moves_the_spread_not_the_median() -> None:
    quiet, disturbed = summarize([10.0, 10.0, 10.0, 10.0, 10.0]), summarize([10.0, 10.0, 10.0, 10.0, 5.0])
    assert quiet.median == disturbed.median
    assert (quiet.spread, disturbed.spread) == (0, 0.25)


def test_rates_are_tokens_over_the_median_time() -> None:
    r = record((10**9, 10**9, 2 * 10**9), (5 * 10**8,) * 3)
    assert r.prompt_tokens_per_s.median == 500
    assert r.generation_tokens_per_s.median == 200
    assert r.weight_bytes_per_s == 900 * 200


def test_json_holds_the_raw_samples_and_the_summaries() -> None:
    r = record((10**9,), (5 * 10**8,))
    body = json.loads(json.dumps(r.to_json()))
    assert body["schema"] == 1
    assert body["samples"]["prompt_ns"] == [10**9]
    assert body["summary"]["generation_tokens_per_s"]["median"] == 200


@pytest.mark.parametrize(
    ("answer", "number"),
    [("347 - 500 = -153", -153), ("347 减 500 等于 -153。", -153), ("7 + 5 = 12", 12), ("Sorry", None), ("", None)],
)
def test_the_last_number_of_an_answer_is_its_result(answer: str, number: int | None) -> None:
    assert last_number(answer) == number


def test_the_held_out_list_is_five_hundred_true_sums_in_two_languages() -> None:
    sums = held_out_sums()
    assert len({item.question for item in sums}) == 500
    assert sum(any(ord(c) > 0x2E80 for c in item.question) for item in sums) == 166
    assert sum(item.result < 0 for item in sums) > 50
