"""Ctrl-C and SIGTERM at places where nothing is half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Remembers a signal until a place where nothing is half done. A second one is obeyed at once."""

    def __init__(self) -> None:
        self._signal = 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        if self._signal:
            self._raise(number)
        self._signal = number

    def check(self) -> None:
        if self._signal:
            self._raise(self._signal)

    def _raise(self, number: int) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def safe_stops() -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and SIGHUP wait for `check`. Ignored signals stay ignored: nohup means it.

    Outside the main thread signals are somebody else's.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, stop.note) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
