"""Text that grows piece by piece: whole characters from token bytes, stop strings across pieces. Knows no tokens."""

import codecs
from collections.abc import Sequence


class CharacterStream:
    """Bytes in, whole characters out. A character split over tokens is held until its last byte arrives."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never became whole."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Finds the first of several strings in text that arrives in pieces, and never lets part of one through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """The text that is now safe to show, and the stop string that ended it, if one did.

        After a stop, `finish()` gives the text behind it.
        """
        text = self._held + piece
        found = min(((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            at, stop = found
            self._held = text[at + len(stop) :]
            return text[:at], stop
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """The text still held back; the matcher is empty afterwards."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
