"""What options of `edge bench` may hold, where click has no word for it."""

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


def numbers(low: int, high: int) -> "Several":
    return Several(click.IntRange(low, high))


def rates(low: float, high: float) -> "Several":
    return Several(click.FloatRange(low, high))


class Several(click.ParamType[tuple[Any, ...]]):
    """1,2,4: values of one kind with commas between them."""

    name = "N,N…"

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._kind.convert(part, param, ctx) for part in str(value).split(","))
