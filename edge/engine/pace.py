"""How long a row of a prompt takes now, from the steps just made. Knows no model and no clock."""

from collections import deque

FIRST_S_PER_ROW = 0.02  # before anything was measured: a 1.5B model on two cores of a laptop
N_STEPS = 8


class Pace:
    """Seconds per row: the second slowest of the last eight steps.

    The slowest would let one hiccup of the machine shrink the chunks that follow, and a mean would let half of them
    take longer than they may. Rows become slower as a prompt becomes longer, so what is old counts for nothing.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=N_STEPS)

    def observe(self, n_rows: int, elapsed_s: float) -> None:
        self._recent.append(elapsed_s / n_rows)

    @property
    def s_per_row(self) -> float:
        if len(self._recent) < 2:
            return max(self._recent, default=FIRST_S_PER_ROW)
        return sorted(self._recent)[-2]

    def n_rows_within(self, time_s: float) -> int:
        return int(time_s / self.s_per_row)
