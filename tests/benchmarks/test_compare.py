"""Like is compared with like; unlike is refused by the field's name; equal things are called equal."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import record as records
from benchmarks.cli import bench
from benchmarks.compare import Comparison, compare
from benchmarks.record import RecordError, Sample
from benchmarks.workload import Workload
from tests.benchmarks.records import GENERATION, MODEL, PROMPT, record

TIMES = (10.0, 10.1, 9.9, 10.05, 9.95)


def only(found: list[Comparison]) -> Comparison:
    (one,) = found
    return one


def test_a_faster_run_is_called_faster_with_its_interval() -> None:
    found = only(compare([record(elapsed_s=TIMES)], [record(elapsed_s=tuple(t / 1.2 for t in TIMES))]))
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.2, rel=0.001)
    assert found.ratio.low < 1.2 < found.ratio.high
    assert str(found).startswith("tg100: B is 20.0% faster, 1.200 (1.1")


def test_no_difference_is_said() -> None:
    assert "no difference shown" in str(only(compare([record(elapsed_s=TIMES)], [record(elapsed_s=TIMES[::-1])])))


def test_a_suspect_side_is_not_passed_over() -> None:
    doubtful = record(elapsed_s=TIMES, reasons=(records.Reason("throttled", "hot"),))
    assert str(only(compare([record(elapsed_s=TIMES)], [doubtful]))).endswith("; suspect")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": replace(MODEL, sha256="cd" * 32)}, "model"),
        ({"n_threads": 2}, "threads"),
        ({"board": replace(record().board, governor="performance")}, "governor"),
        ({"board": replace(record().board, ram_bytes=4 << 30)}, "board"),
        ({"program": replace(record().program, library="llama-cpp-python 0.3.37")}, "library"),
        ({"workload": replace(GENERATION, n_ubatch_tokens=128)}, "ubatch"),
    ],
)
def test_what_differs_and_should_not_is_named(changes: dict[str, Any], field: str) -> None:
    found = only(compare([record()], [record(**changes)]))
    assert found.ratio is None
    assert found.differing == (field,)
    assert f"differ in {field}; allow it with --across" in str(found)
    assert only(compare([record()], [record(**changes)], [field])).ratio is not None


def test_only_the_same_workloads_meet() -> None:
    deep = replace(GENERATION, n_depth_tokens=1024)
    assert compare([record(PROMPT), record(deep)], [record(GENERATION)]) == []
    found = compare([record(PROMPT), record(deep)], [record(deep), record(PROMPT)])
    assert [one.a.workload for one in found] == [PROMPT, deep]
    assert [one.b.workload for one in found] == [PROMPT, deep]


def test_a_second_model_meets_its_own_kind() -> None:
    other = replace(MODEL, name="other.gguf", sha256="ef" * 32)
    found = compare([record(), record(model=other)], [record(model=other), record()])
    assert all(one.a.model == one.b.model for one in found)


def test_equal_pairs_drawn_from_recorded_samples_show_no_difference() -> None:
    """Ninety-five of a hundred at least: two draws of five from the samples of the example's records."""
    page = Path(__file__).resolve().parents[2] / "docs" / "reports" / "example.jsonl"
    recorded = [r for r in records.read([page]) if len(r.samples) >= 5 and r.rates]
    assert recorded
    draw = random.Random(1)
    n_shown = n_pairs = 0
    for _ in range(max(1, 400 // len(recorded))):
        for one in recorded:
            first, second = (replace(one, samples=tuple(draw.choices(one.samples, k=5))) for _ in range(2))
            found = only(compare([first], [second])).ratio
            assert found is not None
            n_pairs += 1
            n_shown += found.is_shown
    assert n_shown <= 0.05 * n_pairs


def test_the_command_tells_fields_apart(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    records.append(a, record(elapsed_s=TIMES))
    records.append(b, record(elapsed_s=TIMES, n_threads=2))
    say = CliRunner().invoke
    assert "differ in threads" in say(bench, ["compare", str(a), str(b)]).output
    assert "no difference shown" in say(bench, ["compare", str(a), str(b), "--across", "threads"]).output
    assert "is no field; choose of: view" in say(bench, ["compare", str(a), str(b), "--across", "colour"]).output


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("line", "said"), [("", "holds no records"), (record(samples=()).line(), "without samples")])
def test_a_file_with_nothing_to_compare_is_named(tmp_path: Path, is_first: bool, line: str, said: str) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    records.append(good, record())
    bad.write_text(line)
    files = (bad, good) if is_first else (good, bad)
    with pytest.raises(RecordError, match=said) as caught:
        CliRunner().invoke(bench, ["compare", *map(str, files)], catch_exceptions=False)
    assert caught.value.path == bad


def test_replies_that_came_at_once_are_compared_by_their_whole_time() -> None:
    chat = Workload(n_prompt_tokens=50, n_generated_tokens=101, view="end-to-end")
    at_once = record(chat, samples=tuple(Sample(10 * 10**9, first_token_ns=10 * 10**9) for _ in range(5)))
    streamed = record(chat, samples=tuple(Sample(10 * 10**9, first_token_ns=5 * 10**9) for _ in range(5)))
    (found,) = compare([at_once], [streamed])
    assert found.ratio is not None
    assert found.ratio.value == 1
