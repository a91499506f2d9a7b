"""Is this text going round in circles? Small reasoning models do, at low temperature above all. Knows characters only.

Two signs, looked for every STEP characters: the end repeats itself exactly, at least REPEATS times; or the last WINDOW
bytes compress to less than RATIO of their size, which finds circles whose words change a little. Honest repetition is
spared: a table of sums compresses to 0.2 and more, a row of dashes is short.
"""

import zlib

STEP = 256
SEED = 48  # characters whose last occurrence gives the period
REPEATS, MIN_REPEATED = 5, 400
LOOKBACK = 8192
WINDOW, RATIO = 4096, 0.06


class LoopDetector:
    """Feed it the text as it grows; `feed` says when it has begun to go in circles."""

    def __init__(self) -> None:
        self._tail = ""
        self._n_unseen = 0

    def feed(self, text: str) -> bool:
        self._tail = (self._tail + text)[-LOOKBACK:]
        self._n_unseen += len(text)
        if self._n_unseen < STEP:
            return False
        self._n_unseen = 0
        return repeats(self._tail) or is_too_regular(self._tail)


def repeats(tail: str) -> bool:
    """The end of tail is one piece REPEATS times over, MIN_REPEATED characters or more in all."""
    if len(tail) < MIN_REPEATED:
        return False
    before = tail.rfind(tail[-SEED:], 0, len(tail) - 1)
    if before < 0:
        return False
    period = len(tail) - SEED - before
    n_repeated = max(MIN_REPEATED, REPEATS * period)
    return len(tail) >= n_repeated and tail[-n_repeated + period :] == tail[-n_repeated:-period]


def is_too_regular(tail: str) -> bool:
    """The last WINDOW bytes hold next to nothing new."""
    data = tail.encode("utf-8", "replace")[-WINDOW:]
    return len(data) == WINDOW and len(zlib.compress(data, 1)) < RATIO * WINDOW
