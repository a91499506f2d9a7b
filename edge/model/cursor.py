"""A place in the bytes of a GGUF header, and what is read there with bounds: numbers, texts, arrays.

Every length is compared with what is left of the file before anything is read or allocated, and all of them together
have ceilings (MAX_…). Knows nothing of the order in which a header holds what it holds: that is header.py's.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_HEADER_BYTES = 64 << 20  # the largest known (262,144 tokens with merges) is near 20 MB
MAX_ITEMS = 1_500_000  # of one array, and of all string arrays together; Gemma 3 has 776,000. Half a second to walk
MAX_TEXT_BYTES = 1 << 20  # one string value; the longest known chat template is 17 kB
MAX_TEXTS_BYTES = 16 << 20  # all string values together
WINDOW_BYTES = 1 << 20  # read ahead: one range request on a hub, one read on an SD card

ReadAt = Callable[[int, int], bytes]  # (offset, n) -> n bytes, fewer only where the file ends
Scalar = bool | int | float | str
SCALARS = {  # GGUF value type -> (name, struct code)
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}

DOWNLOAD_AGAIN = "download it again, or convert the model again"
DO_NOT_USE = "do not use this file; get the model from a source you trust"


class HeaderError(Exception):
    """A header that cannot be believed. The reader of a file adds the path."""

    def __init__(self, problem: str, remedy: str = DO_NOT_USE) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


class Cursor:
    """A place in the file, and the window of bytes around it."""

    def __init__(self, read_at: ReadAt, n_bytes: int, position: int = 0) -> None:
        self.read_at = read_at
        self.n_bytes = n_bytes
        self._start = position  # of the window in the file
        self._window = b""
        self._at = 0  # in the window
        self._n_items_left = MAX_ITEMS
        self._n_text_bytes_left = MAX_TEXTS_BYTES

    @property
    def position(self) -> int:
        return self._start + self._at

    def peek(self, n: int) -> bytes:
        """Return the next n bytes without moving; fewer where the file ends."""
        n = min(n, self.n_bytes - self.position)
        self._fill(n)
        return self._window[self._at : self._at + n]

    def take(self, n: int) -> bytes:
        self._fill(n)
        self._at += n
        return self._window[self._at - n : self._at]

    def skip(self, n: int) -> None:
        self._check(n)
        self._at += n  # may leave the window; the next _fill starts a new one

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def scalar(self, code: str) -> Scalar:
        value: Scalar = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]
        return value

    def string(self, n_bytes_most: int, what: str) -> bytes:
        n = self.u64()
        if n > n_bytes_most:
            raise HeaderError(f"{what} claims {n} bytes")
        return self.take(n)

    def text(self, key: str) -> str:
        raw = self.string(MAX_TEXT_BYTES, key)
        self.charge_text(len(raw), key)
        return raw.decode("utf-8", "replace")

    def charge_text(self, n: int, key: str) -> None:
        self._n_text_bytes_left -= n
        if self._n_text_bytes_left < 0:
            raise HeaderError(f"{key} brings the text in its metadata above {MAX_TEXTS_BYTES >> 20} MB")

    def walk_strings(self, count: int, keep: bool) -> list[bytes]:
        """Step over count strings; return their bytes if asked to. The hot loop: 300,000 turns for Qwen2."""
        self._n_items_left -= count
        if self._n_items_left < 0:
            raise HeaderError(f"has more than {MAX_ITEMS} strings in its metadata")
        length_at = struct.Struct("<Q").unpack_from
        items: list[bytes] = []
        self._fill(min(8 * count, WINDOW_BYTES))
        window, at = self._window, self._at
        for _ in range(count):
            if at + 8 > len(window):
                self._at = at
                self._fill(8)
                window, at = self._window, self._at
            end = at + 8 + length_at(window, at)[0]
            if end > len(window):
                self._at = at
                self._fill(end - at)
                end += self._at - at
                window, at = self._window, self._at
            if keep:
                items.append(window[at + 8 : end])
            at = end
        self._at = at
        return items

    def _check(self, n: int) -> None:
        if n > self.n_bytes - self.position:
            raise HeaderError(f"is incomplete: its header does not end within its {self.n_bytes} bytes", DOWNLOAD_AGAIN)
        if self.position + n > MAX_HEADER_BYTES:
            raise HeaderError(f"has a header of more than {MAX_HEADER_BYTES >> 20} MB")

    def _fill(self, n: int) -> None:
        """Make the window hold the next n bytes."""
        if self._at + n <= len(self._window):
            return
        self._check(n)
        self._start, self._at = self.position, 0
        self._window = self.read_at(self._start, min(max(n, WINDOW_BYTES), self.n_bytes - self._start))
        if len(self._window) < n:
            raise HeaderError("became shorter while it was read", DOWNLOAD_AGAIN)


@dataclass(frozen=True)
class StoredArray:
    """An array left in the file: where it lies, how long it is. decode() reads and returns it."""

    type_name: str
    count: int
    offset: int  # of the first item, from the start of the file
    n_bytes: int
    read_at: ReadAt = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.count

    def decode(self) -> tuple[Scalar, ...]:
        """Return the values; at most MAX_ITEMS of them. Text that is not UTF-8 gets replacement characters."""
        cursor = Cursor(self.read_at, self.offset + self.n_bytes, self.offset)
        if self.type_name == "string":
            return tuple(text.decode("utf-8", "replace") for text in cursor.walk_strings(self.count, keep=True))
        code = next(code for name, code in SCALARS.values() if name == self.type_name)
        return struct.unpack(f"<{self.count}{code}", cursor.take(self.n_bytes))


Value = Scalar | tuple[Scalar, ...] | StoredArray


def shown(value: object) -> str:
    """A value as a problem names it: short, printable, whatever it is."""
    if value is None:
        return "missing"
    if isinstance(value, StoredArray | tuple):
        return f"an array of {len(value)}"
    return ascii(value) if len(ascii(value)) <= 60 else ascii(value)[:57] + "..."
