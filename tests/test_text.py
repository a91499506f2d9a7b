"""Text in pieces: characters stay whole, stop strings never leak."""

import random

import pytest

from edge.text import CharacterStream, StopMatcher

FAMILY = "a👩‍👩‍👧é方程\u200d!"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_characters_arrive_whole_however_their_bytes_are_cut(size: int) -> None:
    data, stream = FAMILY.encode(), CharacterStream()
    pieces = [stream.feed(data[i : i + size]) for i in range(0, len(data), size)] + [stream.finish()]
    assert "".join(pieces) == FAMILY
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_that_never_ends_is_shown_as_replacement() -> None:
    stream = CharacterStream()
    assert stream.feed("方".encode()[:2]) == ""
    assert stream.finish() == "\ufffd"


def test_a_stop_string_never_leaks_across_pieces() -> None:
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices("ab<", k=30))
        stops = ["".join(draw.choices("ab<", k=draw.randrange(1, 5))) for _ in range(2)]
        expected = min((text.find(stop) for stop in stops if stop in text), default=None)
        matcher, shown, hit, at = StopMatcher(stops), "", None, 0
        while at < len(text) and hit is None:
            size = draw.randrange(1, 6)
            safe, hit = matcher.feed(text[at : at + size])
            shown, at = shown + safe, at + size
        if expected is None:
            assert hit is None
            assert shown + matcher.finish() == text
        else:
            assert hit is not None
            assert shown == text[:expected]


def test_text_behind_the_stop_is_kept_for_whoever_wants_it() -> None:
    matcher = StopMatcher(["</think>"])
    assert matcher.feed("so 5</thi") == ("so 5", None)
    assert matcher.feed("nk>\n\nfive") == ("", "</think>")
    assert matcher.finish() == "\n\nfive"
