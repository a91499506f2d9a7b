"""Thought and answer apart, for models with and without tags, however the text is cut."""

import pytest

from edge.engine.reasoning import Reasoning, opens_thought


def split(phase: str, text: str, size: int) -> tuple[str, str]:
    """Thought and answer of a text that arrives in pieces of size."""
    reasoning = Reasoning(phase)  # type: ignore[arg-type]
    pieces = [p for i in range(0, len(text), size) for p in reasoning.feed(text[i : i + size])] + reasoning.finish()
    assert all(piece for _, piece in pieces), "no empty pieces"
    return tuple("".join(t for kind, t in pieces if kind == want) for want in ("thought", "answer"))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize(
    ("phase", "text", "expected"),
    [
        ("thought", "7 + 5\n= 12\n</think>\n\nIt is 12.\n\nYes.", ("7 + 5\n= 12", "It is 12.\n\nYes.")),
        ("start", "<think>\nhm\n</think>\n\nok", ("hm", "ok")),
        ("start", "\n\n<think>hm</think>ok", ("hm", "ok")),
        ("start", "plain answer", ("", "plain answer")),
        ("start", "<thin ice", ("", "<thin ice")),
        ("start", "<thi", ("", "<thi")),
        ("start", "", ("", "")),
        ("answer", "a </think> b", ("", "a </think> b")),
        ("thought", "never closed </thi", ("never closed </thi", "")),
        ("thought", "</think>\n\nnothing to think", ("", "nothing to think")),
        ("thought", "x</think>a</think>b", ("x", "a</think>b")),
    ],
)
def test_text_is_split_at_the_tags(phase: str, text: str, expected: tuple[str, str], size: int) -> None:
    assert split(phase, text, size) == expected


def test_a_prompt_that_ends_in_the_tag_starts_in_the_thought() -> None:
    assert opens_thought("<｜Assistant｜><think>\n")
    assert not opens_thought("<｜Assistant｜><think>\n</think>")
    assert not opens_thought("<|im_start|>assistant\n")
