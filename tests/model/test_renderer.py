"""Marked text: it behaves as its text does, and every character keeps its mark wherever it goes."""

import random
import subprocess
import sys

import pytest

from edge.model.renderer import Marked, concatenated, marks_of, own, segments

OWN, USER = "ABCDEF \n,", "abcdefgh"  # two alphabets: a mark is right when it tells which one a character is of


def mixed(rng: random.Random) -> Marked:
    """Pieces of both kinds, joined."""
    parts = []
    for _ in range(rng.randrange(6)):
        letters = rng.choice((OWN, USER))
        part = "".join(rng.choice(letters) for _ in range(rng.randrange(5)))
        parts.append(own(part) if letters is OWN else part)
    text = concatenated(parts)
    assert isinstance(text, Marked)
    return text


def assert_true_marks(text: str) -> None:
    if isinstance(text, Marked):
        assert [bool(mark) for mark in text.marks] == [character in OWN for character in text]


OPERATIONS = {
    "add": lambda text, rng: text + "ab",
    "radd": lambda text, rng: "ab" + text,
    "both": lambda text, rng: text + text,
    "times": lambda text, rng: text * rng.randrange(-1, 4),
    "times_left": lambda text, rng: rng.randrange(-1, 4) * text,
    "slice": lambda text, rng: text[rng.randrange(-9, 9) : rng.randrange(-9, 9) : rng.choice((None, 1, 2, -1))],
    "index": lambda text, rng: text[rng.randrange(-len(text), len(text))] if text else text,
    "strip": lambda text, rng: text.strip(),
    "strip_chars": lambda text, rng: text.strip("Aa,"),
    "lstrip": lambda text, rng: text.lstrip(rng.choice((None, "ABab"))),
    "rstrip": lambda text, rng: text.rstrip(rng.choice((None, "ABab"))),
    "split": lambda text, rng: text.split(),
    "split_some": lambda text, rng: text.split(None, rng.randrange(3)),
    "split_at": lambda text, rng: text.split(rng.choice(("a", "A", ",", "ab")), rng.randrange(-1, 3)),
    "rsplit": lambda text, rng: text.rsplit(None, rng.randrange(-1, 3)),
    "rsplit_at": lambda text, rng: text.rsplit(rng.choice(("a", "A", ",", "ab")), rng.randrange(-1, 3)),
    "splitlines": lambda text, rng: text.splitlines(rng.random() < 0.5),
    "partition": lambda text, rng: list(text.partition(rng.choice(("a", "A", "xyz")))),
    "rpartition": lambda text, rng: list(text.rpartition(rng.choice(("a", "A", "xyz")))),
    "join": lambda text, rng: text.join([text, "ab", text]),
    "join_none": lambda text, rng: text.join([]),
    "replace": lambda text, rng: text.replace(
        rng.choice(("a", "A", "", "ab")), rng.choice(("", "cd")), rng.randrange(-1, 3)
    ),
    "removeprefix": lambda text, rng: text.removeprefix(rng.choice(("a", "A", ""))),
    "removesuffix": lambda text, rng: text.removesuffix(rng.choice(("a", "A", ""))),
    "str": lambda text, rng: str(text),
}
CASES = {
    "upper": lambda text: text.upper(),
    "lower": lambda text: text.lower(),
    "title": lambda text: text.title(),
    "capitalize": lambda text: text.capitalize(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gives_what_str_gives_and_marks_stay_true(name):
    operation = OPERATIONS[name]
    for seed in range(300):
        text = mixed(random.Random(seed))
        plain = "".join(list(text))
        assert type(plain) is str
        ours, theirs = operation(text, random.Random(seed)), operation(plain, random.Random(seed))
        assert ours == theirs
        for piece in ours if isinstance(ours, list) else [ours]:
            assert_true_marks(piece)
            assert isinstance(piece, Marked) or name == "replace"


@pytest.mark.parametrize("name", CASES)
def test_change_of_case_keeps_marks_where_no_character_grows(name):
    text = own("ab ß") + "x" + own("é")
    changed = CASES[name](text)
    assert changed == CASES[name]("ab ßxé")
    assert marks_of(changed) == (b"\1\1\1\1\0\1" if len(changed) == len(text) else bytes(len(changed)))


def test_other_operations_lose_marks_and_nothing_else():
    text = own("<{}>")
    assert not any(marks_of(own("<%s>") % "a"))
    for result in (text.format("a"), text.center(9), text.zfill(9), text.expandtabs(), f"{text:>9}"):
        assert not any(marks_of(result))


def test_wrong_operand_raises_as_str_does():
    for wrong in (lambda text: text + 5, lambda text: 5 + text, lambda text: text["key"], lambda text: text[99]):
        with pytest.raises((TypeError, IndexError)) as ours:
            wrong(own("abc"))
        with pytest.raises(ours.type):
            wrong("abc")


def test_segments_cut_where_marks_change():
    text = own("<a>") + "hello" + own("") + "!" + own("<b>") + own("<c>")
    assert segments(text) == [("<a>", True), ("hello!", False), ("<b><c>", True)]
    assert segments("") == []
    assert segments("plain") == [("plain", False)]
    assert all(type(piece) is str for piece, _ in segments(text))


def test_confined_process_opens_and_allocates_nothing():
    """Even code that got out of the sandbox would find no file, no socket and little memory."""
    script = """if True:
        import socket
        from edge.model import renderer
        renderer._confine(256 << 20)
        for attempt in (lambda: open("/dev/null"), lambda: socket.socket(), lambda: bytearray(256 << 20)):
            try:
                attempt()
            except (OSError, MemoryError) as error:
                print(type(error).__name__)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["OSError", "OSError", *(["MemoryError"] if sys.platform == "linux" else [])]
