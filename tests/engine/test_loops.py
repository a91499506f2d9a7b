"""Circles are found soon, honest repetition is left alone."""

import json
import random

import pytest

from edge.engine.loops import LoopDetector

WAIT = "Wait, let me check that again. The sum of 17 and 25 is 42, so the answer should be 42. "


def found_after(text: str, size: int = 5) -> int | None:
    """Characters fed before a loop was found, or None."""
    detector = LoopDetector()
    return next((i for i in range(0, len(text), size) if detector.feed(text[i : i + size])), None)


@pytest.mark.parametrize(
    "unit",
    ["ha", "= ", "So x = 3. ", WAIT, "嗯,让我再检查一遍。答案是 42。", "\n", WAIT * 5 + "But maybe not. "],
    ids=["two letters", "equals", "short", "sentence", "Chinese", "newline", "paragraph"],
)
def test_a_circle_is_found_within_a_few_rounds(unit: str) -> None:
    start = "First I think about the question in some detail, which is fine. "
    at = found_after(start + unit * (6000 // len(unit) + 1))
    assert at is not None
    assert at <= len(start) + max(6 * len(unit), 700) + 256


def test_a_circle_whose_numbers_change_is_found_by_its_regularity() -> None:
    text = "".join(f"Wait, let me check that once again, carefully and step by step, number {i}. " for i in range(200))
    assert found_after(text) is not None


def honest() -> dict[str, str]:
    draw = random.Random(4)
    table = "| a | b | a + b |\n|---|---|---|\n"
    rows = "".join(
        f"| {a} | {b} | {a + b} |\n" for a, b in ((draw.randrange(99), draw.randrange(99)) for _ in range(300))
    )
    times = "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 20) for b in range(1, 20))
    columns = "".join(
        f"ones: {a} + {b} + 0 = {a + b}, write {(a + b) % 10}, carry {(a + b) // 10}\n"
        for a, b in ((draw.randrange(10), draw.randrange(10)) for _ in range(300))
    )
    return {
        "table of sums": table + rows,
        "times table": times,
        "column sums": columns,
        "list of numbers": ", ".join(map(str, range(2000))),
        "JSON rows": json.dumps(
            [{"id": i, "name": f"item {draw.random()}", "price": draw.random()} for i in range(150)]
        ),
        "rule and code": "-" * 120 + "\n" + "\n".join(f"    if x == {i}:\n        return {i * 7}" for i in range(200)),
        "poem with refrain": (
            "Row, row, row your boat,\nGently down the stream.\n" + "Merrily, " * 4 + "\nLife is but a dream.\n"
        )
        * 3,
        "digits of a draw": "".join(str(draw.randrange(10)) for _ in range(6000)),
    }


@pytest.mark.parametrize("name", honest())
def test_honest_repetition_is_left_alone(name: str) -> None:
    assert found_after(honest()[name]) is None
