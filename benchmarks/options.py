"""What options of `edge bench` may hold, where click has no word for it."""

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


def numbers(low: int, high: int) -> "Several":
    return Several(click.IntRange(low, high))


def rates(low: float, high: float) -> "Several":
    return Several(click.FloatRange(low, high))


def pair(low: int, high: int) -> "Several":
    return Several(click.IntRange(low, high), n=2)


class Several(click.ParamType[tuple[Any, ...]]):
    """1,2,4: values of one kind with commas between them."""

    name = "N,N…"

    def __init__(self, kind: click.ParamType[Any], n: int | None = None) -> None:
        """n: how many there must be; None for any number."""
        self._kind, self._n = kind, n

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if "" in parts or (self._n is not None and len(parts) != self._n):
            wanted = "numbers" if self._n is None else f"{self._n} numbers"
            self.fail(f"{value!r} is not {wanted} with commas between them, such as 4,8", param, ctx)
        return tuple(self._kind.convert(part, param, ctx) for part in parts)
