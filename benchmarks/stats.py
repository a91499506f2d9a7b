"""Middle and spread of a few samples, and how sure a difference is. Medians: one disturbed run must not move them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median, pstdev

CONFIDENCE = 0.95
# Runs of one workload in two processes differ by this much with nothing changed: memory lies elsewhere. Within one
# process it cannot be seen, so a smaller difference is never called one.
RESOLUTION = 0.01
MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Summary:
    """Samples in short; spread is relative: half the distance from smallest to largest, over the median."""

    median: float
    mad: float  # median distance from the median
    stddev: float
    spread: float


def summarize(samples: Sequence[float]) -> Summary:
    """Samples in any unit, at least one, all > 0."""
    middle = median(samples)
    mad = median(abs(sample - middle) for sample in samples)
    return Summary(middle, mad, pstdev(samples), (max(samples) - min(samples)) / 2 / middle)


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that `share` of the samples stay at or below (0.5: the median), between neighbours by proportion."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Ratio:
    """b over a, with the interval that holds the true ratio at CONFIDENCE; open with too few samples."""

    value: float
    low: float
    high: float

    @property
    def is_shown(self) -> bool:
        """True where a difference is shown: the interval leaves 1 out, and by more than processes differ anyway."""
        return (self.low > 1 or self.high < 1) and abs(math.log(self.value)) > math.log1p(RESOLUTION)


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """How many times b is a, by rank (Hodges and Lehmann; the interval is Mann and Whitney's).

    Asks nothing of how samples are distributed, and is exact for the handful that a benchmark has, where resampling
    their means is too sure. Samples > 0.
    """
    quotients = sorted(y / x for x in a for y in b)
    cut = _rank_cut(len(a), len(b))
    low, high = (quotients[cut - 1], quotients[-cut]) if cut else (0.0, math.inf)
    return Ratio(median(quotients), low, high)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """How many times b is a, for samples taken in turns: the middle of the pairs' quotients; the interval is the sign
    test's.

    What slows both sides of a pair, on a machine shared with others, leaves no trace in its quotient. Samples > 0, as
    many in a as in b.
    """
    quotients = sorted(y / x for x, y in zip(a, b, strict=True))
    cut = _sign_cut(len(quotients))
    low, high = (quotients[cut - 1], quotients[-cut]) if cut else (0.0, math.inf)
    return Ratio(median(quotients), low, high)


def _sign_cut(n: int) -> int:
    """The k for which the k-th smallest and largest of n quotients bound their middle at CONFIDENCE; 0 if none does."""
    below = 0
    for k in range(n + 1):
        below += math.comb(n, k)
        if 2 * below > (1 - CONFIDENCE) * 2**n:
            return k
    raise AssertionError("the counts add up to the total")


@cache
def _rank_cut(n: int, m: int) -> int:
    """The k for which the k-th smallest and largest quotient bound the ratio at CONFIDENCE; 0 if none does."""
    total = math.comb(n + m, n)
    below = 0
    for u, count in enumerate(_rank_counts(n, m)):
        below += count
        if 2 * below > (1 - CONFIDENCE) * total:
            return u
    raise AssertionError("the counts add up to the total")


def _rank_counts(n: int, m: int) -> list[int]:
    """In how many of the orders of n and m values the rank statistic U is 0, 1, …, n·m: a Gaussian binomial."""
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):  # multiply by (1 - q^(m+i)) / (1 - q^i)
        for k in range(n * m, m + i - 1, -1):
            counts[k] -= counts[k - m - i]
        for k in range(i, n * m + 1):
            counts[k] += counts[k - i]
    return counts
