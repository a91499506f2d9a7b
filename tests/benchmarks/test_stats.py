"""A disturbed run moves the spread, not the median; a difference is called one as often as promised."""

import math
import random
from itertools import combinations

import pytest

from benchmarks.stats import _rank_counts, paired_ratio, percentile, ratio, summarize


def test_one_disturbed_run_moves_the_spread_not_the_median() -> None:
    quiet, disturbed = summarize([10.0] * 5), summarize([10.0] * 4 + [5.0])
    assert quiet.median == disturbed.median
    assert (quiet.spread, disturbed.spread) == (0, 0.25)
    assert disturbed.mad == 0
    assert disturbed.stddev == 2


def test_percentiles_lie_between_their_neighbours() -> None:
    samples = [4.0, 1.0, 3.0, 2.0]
    assert [percentile(samples, share) for share in (0, 0.5, 1)] == [1, 2.5, 4]
    assert percentile(samples, 0.9) == pytest.approx(3.7)
    assert percentile([7.0], 0.99) == 7


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 3)])
def test_rank_counts_are_those_of_all_orders(n: int, m: int) -> None:
    """Against every way to deal n + m ranks to two sides."""
    counts = [0] * (n * m + 1)
    for ranks in combinations(range(n + m), n):
        counts[sum(ranks) - n * (n - 1) // 2] += 1
    assert _rank_counts(n, m) == counts


def test_the_interval_of_five_and_five_is_the_one_of_the_tables() -> None:
    """Mann and Whitney's table: at 5 % two-sided, U up to 2 is significant for 5 and 5 samples."""
    a, b = [1.0, 1.01, 1.02, 1.03, 1.04], [2.0, 2.1, 2.2, 2.3, 2.4]
    quotients = sorted(y / x for x in a for y in b)
    found = ratio(a, b)
    assert (found.low, found.high) == (quotients[2], quotients[-3])
    assert found.is_shown


def test_pairs_do_not_see_what_slows_both_sides() -> None:
    """The machine is up to three times as slow from one pair to the next; b is 2 % faster."""
    draw = random.Random(5)
    slowness = [draw.uniform(1, 3) for _ in range(25)]
    a = [slow * draw.gauss(1, 0.01) for slow in slowness]
    b = [slow * draw.gauss(0.98, 0.01) for slow in slowness]
    found = paired_ratio(a, b)
    assert found.value == pytest.approx(0.98, abs=0.01)
    assert found.high < 1
    assert not ratio(a, b).is_shown


def test_the_interval_of_pairs_is_the_sign_tests() -> None:
    """Its table: with 12 pairs the third smallest and largest, with 6 the outermost, with 5 none."""
    b = [1 + i / 100 for i in range(12)]
    assert (paired_ratio([1.0] * 12, b).low, paired_ratio([1.0] * 12, b).high) == (b[2], b[-3])
    assert (paired_ratio([1.0] * 6, b[:6]).low, paired_ratio([1.0] * 6, b[:6]).high) == (b[0], b[5])
    assert paired_ratio([1.0] * 5, b[:5]).high == math.inf


def test_too_few_samples_show_nothing() -> None:
    found = ratio([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert (found.low, found.high) == (0, math.inf)
    assert not found.is_shown


def test_a_difference_smaller_than_processes_differ_is_not_shown() -> None:
    assert not ratio([100.0, 100.1, 100.2, 100.3, 100.4], [100.9, 100.8, 100.85, 100.95, 101.0]).is_shown
    assert ratio([100.0, 100.1, 100.2, 100.3, 100.4], [104.9, 104.8, 104.85, 104.95, 105.0]).is_shown


def test_equal_pairs_are_called_different_less_than_one_time_in_twenty() -> None:
    """Samples of one skewed distribution, as times are: 400 pairs, the seed is fixed."""
    draw = random.Random(5)
    n_shown = sum(
        ratio(*([math.exp(abs(draw.gauss(0, 0.03))) for _ in range(5)] for _ in range(2))).is_shown for _ in range(400)
    )
    assert n_shown <= 20


def test_a_tenth_is_found_through_noise_of_two_percent() -> None:
    draw = random.Random(5)
    pairs = [([draw.gauss(100, 2) for _ in range(5)], [draw.gauss(110, 2) for _ in range(5)]) for _ in range(100)]
    assert sum(ratio(a, b).is_shown for a, b in pairs) >= 95
