"""Middle and spread of a few samples. Medians: one disturbed run must not move the number."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Summary:
    """Median and relative spread (half the distance from smallest to largest, over the median)."""

    median: float
    spread: float


def summarize(samples: Sequence[float]) -> Summary:
    """Samples in any unit, at least one, all > 0."""
    middle = median(samples)
    return Summary(middle, (max(samples) - min(samples)) / 2 / middle)
