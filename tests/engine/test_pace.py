"""A pace follows the prompt's depth and ignores a single hiccup."""

import pytest

from edge.engine.pace import Pace


def paced(*s_per_row: float) -> Pace:
    pace = Pace()
    for value in s_per_row:
        pace.observe(16, 16 * value)
    return pace


def test_the_first_step_already_counts() -> None:
    assert paced(0.2).n_rows_within(1.0) == 5


def test_one_slow_step_among_many_changes_nothing() -> None:
    calm = [0.02] * 7
    assert paced(*calm, 0.5).s_per_row == paced(*calm).s_per_row


def test_rows_that_become_slower_are_followed_at_once() -> None:
    growing = [0.02 + 0.001 * i for i in range(20)]
    assert paced(*growing).s_per_row == pytest.approx(growing[-2])


def test_what_was_slow_long_ago_is_forgotten() -> None:
    assert paced(*[0.5] * 8, *[0.02] * 8).s_per_row == pytest.approx(0.02)
