"""What counts as a question, as right, and as sure."""

import json
from pathlib import Path

import pytest

from convert import tasks
from convert.tasks import Score, boxed, expected, is_right
from edge.errors import TextError


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("93 + 16 = 109", "109"),
        ("347 - 500 = -153", "-153"),
        ("It is $1,234.50.", "1234.5"),
        (r"So \boxed{\frac{3}{4}}.", "3/4"),
        (r"So \boxed{3/4}.", r"\dfrac{3}{4}"),
        (r"First 7, then \boxed{42}, of 100", "42"),
        (r"\boxed{\text{Monday}}", "Monday"),
        (r"\boxed{x^{2}+1}", "x^{2} + 1"),
        ("Let me see.\nParis.", "paris"),
        ("50 %", "50%"),
    ],
)
def test_right_is_right(answer: str, right: str) -> None:
    assert is_right(answer, right)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("", "5"),
        ("no number", "5"),
        ("5 or 6", "5"),
        (r"\boxed{5} not 6", "6"),
        ("15", "5"),
        ("1/0", "1"),
        ("", "Paris"),
    ],
)
def test_wrong_is_wrong(answer: str, right: str) -> None:
    assert not is_right(answer, right)


def test_boxes_are_balanced() -> None:
    assert boxed(r"\boxed{1} and \boxed{\frac{1}{2}} end") == r"\frac{1}{2}"
    assert boxed(r"\boxed{never ends") is None
    assert boxed("none") is None


def test_the_known_formats_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"question": "2 + 3?", "answer": "5"},
        {"question": "GSM8K?", "answer": "He has 3 * 4 = <<3*4=12>>12.\n#### 12"},
        {"problem": "MATH?", "solution": r"We find $\boxed{\frac{1}{2}}$."},
        {"question": "A number?", "answer": 7},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert [question.expected for question in tasks.read(str(path))] == ["5", "12", r"\frac{1}{2}", "7"]
    path.write_text(json.dumps(rows))
    assert len(tasks.read(str(path))) == 4
    assert expected("plain") == "plain"


def test_sums_are_bundled() -> None:
    sums = tasks.read("sums")
    assert len(sums) == 500
    assert all(is_right(f"the answer is {one.expected}", one.expected) for one in sums)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no questions"),
        ('{"question": "x", "answer": "y"}\nnonsense', "line 2 is not JSON"),
        ('{"question": "x"}', "question 1 has no answer or result or solution"),
        ('{"question": "x", "answer": ["y"]}', "question 1 has no answer"),
        ("[1]", "question 1 has no question or problem"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "task.jsonl").write_text(text)
    with pytest.raises(TextError, match=problem):
        tasks.read(str(tmp_path / "task.jsonl"))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="or one of: sums"):
        tasks.read("summs")
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(TextError, match="not UTF-8"):
        tasks.read(str(tmp_path / "x"))


def test_a_checker_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "checker.py"
    path.write_text("def check(answer, expected):\n    return expected in answer\n")
    assert tasks.checker(path)("the cat sat", "cat")
    assert not tasks.checker(path)("the dog sat", "cat")
    path.write_text("check = 7")
    with pytest.raises(TextError, match="defines no function check"):
        tasks.checker(path)
    path.write_text("1 / 0")
    with pytest.raises(TextError, match="ZeroDivisionError"):
        tasks.checker(path)


def test_intervals_are_wilson_s() -> None:
    """All right is not certain either; the second one is Newcombe's example (Statistics in Medicine 17, 1998)."""
    low, high = Score("x", 100, 0, 0).interval
    assert [low, high] == pytest.approx([0.9630, 1.0], abs=1e-4)
    low, high = Score("x", 81, 182, 0).interval  # 81 of 263
    assert [low, high] == pytest.approx([0.2553, 0.3662], abs=1e-4)
