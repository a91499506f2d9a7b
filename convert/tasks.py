"""Questions with known answers, and what counts as right. Knows no models.

A task is a file of JSON lines, or one JSON list: {"question": "What is 2 + 3?", "answer": "5"}. The fields of GSM8K
("#### 5" at the end of an answer) and of MATH (problem, solution with \\boxed{5}) are understood too. An answer counts
by what stands in its last \\boxed{}, else by its last number, else by its last line. Who needs another rule names a
Python file with `check(answer, expected)`.
"""

import json
import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

from edge.errors import TextError

SUMS = Path(__file__).resolve().parents[1] / "edge" / "demo" / "sums.json"
BUNDLED = {"sums": SUMS}
# A mixture of what small reasoning models are asked: calculation, logic, words, code, everyday questions.
MIXTURE = (
    "A train leaves at 9:40 and arrives at 13:05. How long does it travel?",
    "Solve 3x + 7 = 31 and check the result.",
    "What is 17 % of 240?",
    "A rectangle has a perimeter of 36 cm and is twice as long as it is wide. How large is its area?",
    "How many ways are there to choose 3 of 8 books?",
    "Find the derivative of x^2 * sin(x).",
    "Three friends share a bill of 87.60 euros, one of them pays half. What do the others pay?",
    "Is 221 a prime number? Explain.",
    "The sum of five consecutive integers is 135. Which are they?",
    "A die is rolled twice. How likely is a sum of 9?",
    "Anna is older than Ben, Ben is older than Cleo, and Dan is younger than Cleo. Who is second oldest?",
    "All bloops are razzies and some razzies are lazzies. Must some bloops be lazzies?",
    "Write a Python function that says whether a string is a palindrome.",
    "What does this print? for i in range(3): print(i * i)",
    "Explain the difference between a list and a tuple in Python.",
    "Write a shell command that counts the lines of all .txt files in a folder.",
    "Summarise in two sentences why the sky is blue.",
    "How does a heat pump work?",
    "Translate into French: The library opens at eight in the morning.",
    "Write a short, polite mail that moves a meeting from Monday to Tuesday.",
    "What are the main causes of the seasons on Earth?",
    "小明有12个苹果,送给朋友5个,又买了8个。他现在有几个苹果?",
    "请用三句话介绍长城。",
    "Give me a plan for learning the basics of SQL in one week.",
)
N_TASK_BYTES_MAX = 64 << 20
Z_95 = 1.959964  # of a normal distribution, two-sided
_FIELDS = (("question", "problem"), ("answer", "result", "solution"))
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")

Check = Callable[[str, str], bool]  # what the model answered, and what is right


@dataclass(frozen=True)
class Question:
    text: str
    expected: str


@dataclass(frozen=True)
class Score:
    """Right, wrong and cut answers of one model. An answer that is right although it was cut is right."""

    task: str
    n_right: int
    n_wrong: int
    n_cut: int

    @property
    def n(self) -> int:
        return self.n_right + self.n_wrong + self.n_cut

    @property
    def share(self) -> float:
        return self.n_right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95 % confidence interval (Wilson)."""
        n, p, z2 = self.n, self.share, Z_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return asdict(self) | {"share": self.share, "low": low, "high": high}


def name(task: str) -> str:
    """What a bundled task or a file is called."""
    return task if task in BUNDLED else Path(task).stem


def read(task: str) -> list[Question]:
    """The questions of a bundled task or a file. Raises TextError that names the line."""
    path = BUNDLED.get(task, Path(task))
    try:
        with path.open("rb") as file:
            text = file.read(N_TASK_BYTES_MAX + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        known = f"name a file of JSON lines, or one of: {', '.join(BUNDLED)}"
        raise TextError(path, f"cannot be read ({reason})", known) from error
    if len(text) > N_TASK_BYTES_MAX:
        raise TextError(path, f"has more than {N_TASK_BYTES_MAX:,} characters", "name a smaller task")
    found = [_question(path, i, row) for i, row in enumerate(_rows(path, text), 1)]
    if not found:
        raise TextError(path, "holds no questions", 'write lines like {"question": "…", "answer": "…"}')
    return found


def _rows(path: Path, text: str) -> list[Any]:
    whole = text.lstrip().startswith("[")
    lines = [(1, text)] if whole else [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    rows = []
    for i, line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise TextError(path, f"line {i} is not JSON ({error})", "mend that line") from error
    return rows[0] if whole else rows


def _question(path: Path, i: int, row: Any) -> Question:
    values = []
    for names in _FIELDS:
        found = next((row[name] for name in names if name in row), None) if isinstance(row, dict) else None
        if not isinstance(found, str | int | float) or not str(found).strip():
            raise TextError(path, f"question {i} has no {' or '.join(names)}", "mend that question")
        values.append(str(found))
    return Question(values[0], expected(values[1]))


def expected(answer: str) -> str:
    """What is right, out of a worked answer."""
    if "####" in answer:  # GSM8K
        return answer.rpartition("####")[2].strip()
    return boxed(answer) or answer.strip()


def checker(path: Path | None) -> Check:
    """`check` of a user's own file; ours if there is none. Raises TextError."""
    if path is None:
        return is_right
    try:
        check = runpy.run_path(str(path)).get("check")
    except Exception as error:  # whatever the user's file does
        raise TextError(path, f"cannot be run ({type(error).__name__}: {error})", "mend the checker") from error
    if not callable(check):
        raise TextError(path, "defines no function check(answer, expected)", "add it")
    return lambda answer, right: bool(check(answer, right))


def is_right(answer: str, right: str) -> bool:
    """Whether an answer ends in what is right: as a number if that is one, else as text."""
    wanted = _number(right)
    inside = boxed(answer)
    if wanted is not None:
        numbers = _numbers(inside if inside is not None else answer)
        return bool(numbers) and numbers[-1] == wanted
    lines = answer.strip().splitlines()
    last = inside if inside is not None else lines[-1] if lines else ""
    return _plain(last) == _plain(right)


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{…}, braces inside it balanced; None if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for i, letter in enumerate(text[begin:], begin):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[begin:i].strip()
    return None


def _numbers(text: str) -> Sequence[Fraction]:
    flat = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text).replace("−", "-").replace("\\!", "")
    found = []
    for match in _NUMBER.findall(flat):
        try:
            found.append(Fraction(match.replace(",", "")))
        except (ValueError, ZeroDivisionError):
            continue
    return found


def _number(text: str) -> Fraction | None:
    """The number that a text is, and nothing else."""
    flat = re.sub(r"[\s$%€£]|\\[%$]", "", text).rstrip(".")
    numbers = _numbers(flat)
    return numbers[0] if len(numbers) == 1 and not re.sub(r"\\[dt]?frac\{-?\d+\}\{\d+\}|[-−\d,./]", "", flat) else None


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}|\\left|\\right|\\[,;! ]|\$", r"\1", text)
    return re.sub(r"\s+", "", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")).rstrip(".").casefold()
