"""The held-out sums and how an answer to one is read."""

import pytest

from benchmarks.accuracy import held_out_sums, last_number


@pytest.mark.parametrize(
    ("answer", "number"),
    [("347 - 500 = -153", -153), ("347 减 500 等于 -153。", -153), ("7 + 5 = 12", 12), ("Sorry", None), ("", None)],
)
def test_the_last_number_of_an_answer_is_its_result(answer: str, number: int | None) -> None:
    assert last_number(answer) == number


def test_the_held_out_list_is_five_hundred_true_sums_in_two_languages() -> None:
    sums = held_out_sums()
    assert len({item.question for item in sums}) == 500
    assert sum(any(ord(c) > 0x2E80 for c in item.question) for item in sums) == 166
    assert sum(item.result < 0 for item in sums) > 50
