"""Reports show what the records say, escape what others wrote, need nothing from outside, and name nobody."""

import io
import re
import socket
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import markdown, page, plots, report
from benchmarks import record as records
from benchmarks.cli import bench
from benchmarks.record import Conditions, Moment, Reason, Sample
from benchmarks.workload import Workload
from tests.benchmarks.records import GENERATION, MODEL, PI, PROMPT, record

HEAT = Conditions(tuple(Moment(10.0 * i, True, 50.0 + i, 2400.0) for i in range(12)), 120.0)
LONG = record(Workload(n_generated_tokens=32, duration_s=120), (3.0,) * 20 + (6.0,) * 10, conditions=HEAT)
ROCK = replace(PI, name="Rock 5B", ram_bytes=16 << 30, read_bytes_per_s=20e9)
MANY = [
    record(PROMPT),
    record(),
    *(record(replace(GENERATION, n_depth_tokens=d), (11.0,) * 5) for d in (1024, 3584)),
    *(record(replace(GENERATION, n_streams=n), (12.0,) * 5) for n in (2, 4)),
    record(replace(GENERATION, n_threads=2), (15.0,) * 5, n_threads=2),
    LONG,
    record(board=ROCK, elapsed_s=(6.0,) * 5, reasons=(Reason("throttled", "the board held itself back at 85 °C"),)),
    record(Workload(16, 32, view="end-to-end"), samples=(Sample(10**9, 2 * 10**8, (10**7,) * 31),)),
]


def test_every_row_and_every_doubt_is_in_the_markdown() -> None:
    text = markdown.report_text(MANY)
    assert text.count("| model-Q4_0 |") == len(MANY)
    assert "tg100: the board held itself back at 85 °C" in text
    assert text.index("## Raspberry Pi 5") < text.index("## Rock 5B")
    assert "50 to 61 °C while measuring" in text


def test_a_terminal_of_eighty_columns_shows_each_record_on_one_line() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table([record(PROMPT), record()]))
    lines = console.export_text().splitlines()
    assert len(lines) == 3
    assert "50.0" in lines[1]
    assert "valid" in lines[2]


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    text = page.page(MANY)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", text)
    assert "<script" not in text
    assert "url(http" not in text
    assert "@import" not in text
    Balanced().check(text)


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta", "br", "link", "img", "hr", "input", "!doctype")

    def check(self, text: str) -> None:
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("make", [page.page, markdown.report_text, markdown.sbc_reviews_text])
def test_names_from_other_machines_are_text(make: object) -> None:
    hostile = record(model=replace(MODEL, name="<script>alert(1)</script>|x.gguf"), board=replace(PI, name="<b>&"))
    assert callable(make)
    text = make([hostile, record()])
    assert "<script>" not in text
    assert "script>" not in text
    assert "<b>&" not in text
    assert make is page.page or "script&gt;\\|x" in text


def test_a_picture_for_each_question_that_the_records_answer() -> None:
    made = plots.svgs(MANY)
    assert [plot.name for plot in made] == list(plots.DRAWERS)
    for plot in made:
        assert ET.fromstring(plot.svg).tag.endswith("svg")
    assert [plot.name for plot in plots.svgs([record(PROMPT)])] == ["prompt", "memory"]


def test_pictures_are_the_same_every_time() -> None:
    assert plots.svgs(MANY[:4]) == plots.svgs(MANY[:4])


def test_windows_of_a_long_run_show_it_slow_down() -> None:
    found = plots.windows(LONG)
    assert [rate for _, rate in found[:3]] == [pytest.approx(32 / 3)] * 3
    assert found[-1][1] == pytest.approx(32 / 6)
    assert found[-1][0] <= 120


@pytest.mark.parametrize("ending", ["md", "html", "png", "svg", "csv", "jsonl", "sql"])
def test_the_command_writes_every_form(tmp_path: Path, ending: str) -> None:
    source, out = tmp_path / "records.jsonl", tmp_path / f"out.{ending}"
    for one in MANY[:2]:
        records.append(source, one)
    done = CliRunner().invoke(bench, ["report", str(source), "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    begins = {"html": b"<!doctype", "png": b"\x89PNG", "svg": b"<?xml", "md": b"# Benchmark", "csv": b"board,model"}
    assert out.read_bytes().startswith(begins.get(ending, b""))
    assert out.stat().st_size > 200


EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "reports" / "example.jsonl"


def test_the_example_is_what_its_records_give_and_names_nobody() -> None:
    made = records.read([EXAMPLE])
    assert {record.workload.view for record in made} == {"kernel", "end-to-end"}
    assert EXAMPLE.with_suffix(".md").read_text(encoding="utf-8") == markdown.report_text(made, "Example")
    for form in (".jsonl", ".md", ".html"):
        text = EXAMPLE.with_suffix(form).read_text(encoding="utf-8")
        assert not re.search(r"/(root|home|tmp|Users)/", text)
        assert socket.gethostname() not in re.split(r"[^\w.-]+", text)
    assert EXAMPLE.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_nothing_and_one_without_a_form_say_so(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "holds no records" in str(CliRunner().invoke(bench, ["report", str(empty)]).exception)
    records.append(empty, record())
    done = CliRunner().invoke(bench, ["report", str(empty), "--out", "report.docx"])
    assert (done.exit_code, "no known ending; use .md" in done.output) == (2, True)


def test_a_board_tells_where_its_threads_ran_and_what_its_memory_gives() -> None:
    board = replace(PI, read_bytes_per_s=16e9, read_by_all_bytes_per_s=22e9)
    records = [record(board=board, cpus=(4, 5, 6, 7)), record(PROMPT, board=board, cpus=(4, 5, 6, 7))]
    for text in (markdown.report_text(records), "\n".join(report.footer(records))):
        assert "4 thread(s) on CPUs 4-7" in text
        assert "memory read at 16.0 GB/s by the cores that compute, 22.0 by all" in text
    assert report.cpu_list((0, 1, 2, 6, 9, 8)) == "0-2,6,8-9"


def test_runs_that_measured_another_bandwidth_are_of_one_board() -> None:
    boards = [replace(PI, read_bytes_per_s=n * 1e9, read_by_all_bytes_per_s=n * 2e9) for n in (15, 17, 16)]
    ((board, of_board),) = report.by_board([record(board=board) for board in boards])
    assert (board.read_bytes_per_s, board.read_by_all_bytes_per_s) == (17e9, 34e9)
    assert len(of_board) == 3
