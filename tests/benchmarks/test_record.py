"""Records keep raw samples, say what they measured, are checked when read, and never lose their readers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from benchmarks import record as records
from benchmarks.record import Conditions, Moment, Reason, RecordError, Sample
from benchmarks.schema import ShapeError
from benchmarks.workload import STREAMS, Workload, preset
from tests.benchmarks.records import GENERATION, PROMPT, record

FIRST_VERSION = {
    "schema": 1,
    "workload": {"model": "/home/someone/m.gguf", "n_prompt_tokens": 512, "n_generated_tokens": 128,
                 "n_repetitions": 2, "n_warmups": 1, "n_threads": None, "n_ubatch_tokens": 512, "seed": 0},
    "samples": {"load_time_s": 0.5, "prompt_ns": [10**9, 2 * 10**9], "generation_ns": [4 * 10**9] * 2,
                "peak_rss_bytes": 300, "rss_anon_bytes": 200, "rss_file_bytes": 100, "n_threads": 2, "system": "CPU"},
    "file_bytes": 1000, "file_type": "Q4_0", "bytes_read_per_token": 900, "cpu": "a board",
    "started_at": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


def test_rates_are_tokens_over_the_median_time() -> None:
    prompt, generation = record(PROMPT, (1.0, 1.0, 2.0)), record(GENERATION, (0.5,) * 3)
    assert prompt.tokens_per_s is not None
    assert prompt.tokens_per_s.median == 500
    assert generation.tokens_per_s is not None
    assert generation.tokens_per_s.median == 200
    assert generation.bytes_per_s == pytest.approx(200 * (900 + 50 * 32))


def test_streams_share_one_reading_of_the_weights() -> None:
    alone, four = record(GENERATION), record(replace(GENERATION, n_streams=4))
    assert alone.bytes_per_token == 900 + 50 * 32
    assert four.bytes_per_token == 900 / 4 + 50 * 32


def test_an_end_to_end_rate_counts_from_the_first_token() -> None:
    chat = Workload(n_prompt_tokens=50, n_generated_tokens=101, view="end-to-end")
    made = record(chat, samples=(Sample(12 * 10**9, first_token_ns=2 * 10**9),))
    assert made.rates == (10.0,)
    assert made.first_token_s is not None
    assert made.first_token_s.median == 2


def test_energy_is_told_gross_and_without_what_an_idle_board_draws() -> None:
    conditions = Conditions(busy_s=50.0, energy_j=300.0, idle_power_w=2.0)
    assert record(conditions=conditions).energy_per_token_j == (300 / 500, 200 / 500)
    assert record().energy_per_token_j is None


def test_a_line_holds_everything_and_reads_back_the_same(tmp_path: Path) -> None:
    moments = (Moment(0.5, True, 61.5, 2400.0, ("undervoltage",), 5.5, 1000),)
    made = record(conditions=Conditions(moments, 50.0, 0.01), reasons=(Reason("throttled", "hot"),))
    path = tmp_path / "records.jsonl"
    for one in (made, record(PROMPT)):
        records.append(path, one)
    assert records.read([path]) == [made, record(PROMPT)]
    assert json.loads(path.read_text().splitlines()[0])["verdict"] == "suspect"


def test_the_schema_in_the_repository_is_that_of_the_code_and_of_a_line() -> None:
    assert records.SCHEMA_FILE.read_text(encoding="utf-8") == records.schema_text()
    check = fastjsonschema.compile(json.loads(records.schema_text()))
    check(json.loads(record().line()))
    wrong = json.loads(record().line())
    wrong["board"]["ram_bytes"] = "8 GB"
    with pytest.raises(fastjsonschema.JsonSchemaValueException, match="ram_bytes"):
        check(wrong)


def test_records_of_the_first_version_are_still_read() -> None:
    prompt, generation = records.parse(json.loads(json.dumps(FIRST_VERSION)))
    assert prompt.workload.name == "pp512"
    assert [sample.elapsed_ns for sample in prompt.samples] == [10**9, 2 * 10**9]
    assert generation.tokens_per_s is not None
    assert generation.tokens_per_s.median == 32
    assert prompt.model.name == "m.gguf"
    assert not prompt.is_valid


@pytest.mark.parametrize(
    ("field", "value"),
    [("load_time_s", float("nan")), ("load_time_s", 0), ("prompt_ns", [float("inf")]), ("generation_ns", [10**9, -1])],
)
def test_impossible_times_of_the_first_version_are_refused(field: str, value: Any) -> None:
    body = {**FIRST_VERSION, "samples": {**FIRST_VERSION["samples"], field: value}}  # type: ignore[dict-item]
    with pytest.raises(ShapeError, match="times must be above 0"):
        records.parse(body)


def changed(path: str, value: Any) -> str:
    body = json.loads(record().line())
    *folders, name = path.split(".")
    place = body
    for folder in folders:
        place = place[int(folder) if folder.isdigit() else folder]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return json.dumps(body)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "[]"),
        ("{", "not JSON"),
        ("[]", "record.schema is None"),
        ("[" * 5000, "not JSON"),
        (json.dumps({"schema": 1}), "version 1 lacks 'workload'"),
        (changed("schema", 99), "record.schema is 99, this program reads 1 to 2"),
        (changed("model.name", 7), "record.model.name is 7, not string"),
        (changed("board.cores.0.n", True), "record.board.cores[0].n is True, not integer"),
        (changed("samples.0.elapsed_ns", None), "record.samples[0].elapsed_ns is missing"),
        (changed("samples.0.elapsed_ns", 0), "elapsed_ns must be above 0"),
        (changed("workload.n_streams", 0), "out of range"),
        (changed("workload.view", "guess"), "record.workload.view is 'guess', not one of: kernel, end-to-end"),
        (changed("samples", {}), "record.samples is {}, not a list"),
        (changed("board.read_bytes_per_s", float("nan")), "record.board.read_bytes_per_s is nan, not a finite number"),
        (changed("conditions.energy_j", float("-inf")), "record.conditions.energy_j is -inf, not a finite number"),
        (changed("conditions.busy_s", 10**400), "record.conditions.busy_s is inf, not a finite number"),
        (changed("workload.n_prompt_tokens", 10**400), "not an integer of 64 bits"),
    ],
)
def test_a_line_that_is_no_record_is_refused_by_name_of_file_line_and_field(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record().line() + "\n" + line + "\n")
    if not line:
        assert len(records.read([path])) == 1
        return
    with pytest.raises(RecordError) as error:
        records.read([path])
    assert error.value.path == path
    assert "line 2" in error.value.problem
    assert said in error.value.problem


def test_unknown_fields_of_a_newer_program_are_passed_over() -> None:
    assert records.parse(json.loads(changed("board.colour", "green"))) == [record()]


def test_presets_hold_what_they_promise() -> None:
    standard = preset("standard")
    assert {work.n_depth_tokens for work in standard} == {0, 1024, 3584}
    assert {work.n_streams for work in standard} == set(STREAMS)
    assert {work.view for work in standard} == {"kernel", "end-to-end"}
    assert {work.kind for work in standard} == {"load", "pp", "tg", "pp+tg"}
    assert all(work.n_repetitions >= 5 and work.n_ctx_tokens <= 4096 for work in standard)
    (sustained,) = preset("sustained")
    assert sustained.duration_s == 600
    assert len({work.name for work in standard}) == len(standard)
