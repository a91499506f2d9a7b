"""Records as rows of text: one row a record, and columns only where some record has something to say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from benchmarks.load import Level
from benchmarks.record import Board, Record
from benchmarks.stats import Summary

Cell = Callable[[Record], str]


@dataclass(frozen=True)
class Column:
    """name: short, with its unit; cell: a record's text, "" where it has none."""

    name: str
    cell: Cell
    is_number: bool = True


def columns(records: Sequence[Record], *, wide: bool = True) -> list[Column]:
    """The columns that these records fill. What is the same everywhere is left to `footer`; narrow: 80 characters."""
    all_columns = [
        Column("model", lambda r: Path(r.model.name).stem, is_number=False),
        Column("board", lambda r: r.board.name, is_number=False),
        Column("program", lambda r: r.program.name, is_number=False),
        Column("workload", lambda r: r.workload.name, is_number=False),
        Column("threads", lambda r: str(r.n_threads or "")),
        Column("GPU layers", lambda r: str(r.settings.n_gpu_layers or "") if r.settings else ""),
        Column("tokens/s", lambda r: rate(r.tokens_per_s)),
        Column("first token", lambda r: seconds(r.first_token_s)),
        Column("ms/token", _latency),
        Column("load", _load),
        Column("memory", lambda r: megabytes(r.memory.peak_rss_bytes) if r.memory else ""),
        Column("anonymous", lambda r: megabytes(r.memory.anon_bytes) if r.memory else ""),
        Column("mapped files", lambda r: megabytes(r.memory.file_bytes) if r.memory else ""),
        Column("KV cache", lambda r: megabytes(r.memory.kv_bytes) if r.memory and r.memory.kv_bytes else ""),
        Column("GB/s", lambda r: f"{r.bytes_per_s / 1e9:.1f}" if r.bytes_per_s else ""),
        Column("of limit", _share),
        Column("J/token", _energy),
        Column("verdict", verdict if wide else lambda r: "valid" if r.is_valid else "suspect", is_number=False),
    ]
    optional = {"model", "board", "program", "threads"}
    for_wide = {"ms/token", "load", "anonymous", "mapped files", "KV cache"}
    shown = []
    for column in all_columns:
        texts = {column.cell(record) for record in records}
        is_told = len(texts) > 1 or column.name not in optional
        if texts != {""} and is_told and (wide or column.name not in for_wide):
            shown.append(column)
    return shown


def table(records: Sequence[Record]) -> Table:
    """For a terminal; `footer` says the rest."""
    made = Table(title=None, header_style="bold", pad_edge=False, box=None)
    shown = columns(records, wide=False)
    for column in shown:
        made.add_column(column.name, justify="right" if column.is_number else "left", overflow="fold")
    for record in records:
        made.add_row(*(column.cell(record) for column in shown))
    return made


def footer(records: Sequence[Record]) -> list[str]:
    """What one must know of the rows: the machine, and why a result is suspect."""
    lines = []
    if len(models := {record.model for record in records}) == 1:
        model = models.pop()
        size = f", {megabytes(model.n_bytes)}" if model.n_bytes else ""
        lines.append(f"{model.name}{size}")
    for board, of_board in by_board(records):
        parts = [board.name, f"{board.ram_bytes / 2**30:.0f} GiB", board.kernel]
        parts += [f"governor {board.governor}"] if board.governor else []
        parts += [line for line in (threads(of_board), bandwidth(board)) if line]
        lines.append(", ".join(parts))
    if any(record.tokens_per_s for record in records):
        lines.append(
            "tokens/s: median ± half the range; memory: peak of the process; ms/token: 50th and 99th percentile"
        )
    if len({record.workload.view for record in records}) > 1:
        lines.append(
            "pp and tg decode and nothing else; chat is what a client sees, its tokens/s after the first token"
        )
    if any(record.model.weights == "synthetic" for record in records):
        lines.append("weights: synthetic, random blocks in the model's true shape")
    lines += [f"suspect: {name}: {text}" for name, text in dict(suspicions(records)).items()]
    return lines


def by_board(records: Sequence[Record]) -> list[tuple[Board, list[Record]]]:
    """The records of each machine, with the fastest of its bandwidths: those are measured anew for every run."""
    found: dict[Board, list[Record]] = {}
    for record in records:
        found.setdefault(_without_bandwidth(record.board), []).append(record)
    return [
        (
            replace(
                board,
                read_bytes_per_s=max(r.board.read_bytes_per_s or 0 for r in of) or None,
                read_by_all_bytes_per_s=max(r.board.read_by_all_bytes_per_s or 0 for r in of) or None,
            ),
            of,
        )
        for board, of in found.items()
    ]


def _without_bandwidth(board: Board) -> Board:
    return replace(board, read_bytes_per_s=None, read_by_all_bytes_per_s=None)


def threads(records: Sequence[Record]) -> str:
    """How many threads ran, and where: 4 thread(s) on CPUs 4-7."""
    numbers = sorted({record.n_threads for record in records if record.n_threads})
    places = dict.fromkeys(cpu_list(record.cpus) for record in records if record.cpus)
    where = f" on CPUs {' or '.join(places)}" if places else ""
    return f"{', '.join(map(str, numbers))} thread(s){where}" if numbers else ""


def bandwidth(board: Board) -> str:
    """What was measured of its memory."""
    if not board.read_bytes_per_s:
        return ""
    text = f"memory read at {board.read_bytes_per_s / 1e9:.1f} GB/s by the cores that compute"
    return text + (f", {board.read_by_all_bytes_per_s / 1e9:.1f} by all" if board.read_by_all_bytes_per_s else "")


def cpu_list(cpus: Sequence[int]) -> str:
    """As the kernel writes them: 0-3,6."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def suspicions(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(which record, why) for each suspect result."""
    return [
        (f"{Path(record.model.name).stem} {record.workload.name}", "; ".join(reason.text for reason in record.reasons))
        for record in records
        if record.reasons
    ]


def verdict(record: Record) -> str:
    """valid, or suspect and why in a word."""
    kinds = dict.fromkeys(reason.kind for reason in record.reasons)
    return f"suspect: {', '.join(kinds)}" if kinds else "valid"


def load_table(levels: Sequence[Level]) -> Table:
    """Levels of load, a row each."""
    made = Table(title=None, header_style="bold", pad_edge=False, box=None)
    for name in ("load", "asked", "answered", "tokens/s", "first token p50, p99", "ms/token p50, p99", "longest stall"):
        made.add_column(name, justify="left" if name == "load" else "right")
    for level in levels:
        first, gaps = level.first_token_s, level.token_s
        made.add_row(
            f"{level.n_clients} client(s)" if level.n_clients else f"{level.rate_per_s:g} requests/s",
            str(level.n_asked),
            f"{level.n_answered}" + (f", {level.n_failed} failed" if level.n_failed else ""),
            f"{level.tokens_per_s:.1f}",
            f"{first['p50']:.3g}, {first['p99']:.3g} s" if first else "",
            f"{gaps['p50'] * 1e3:.3g}, {gaps['p99'] * 1e3:.3g}" if gaps else "",
            "" if level.longest_stall_s is None else f"{level.longest_stall_s:.3g} s",
        )
    return made


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 100e6 else f"{n_bytes / 1e6:,.0f} MB"


def rate(summary: Summary | None) -> str:
    """Median and spread: 31.2 ± 2 %"""
    if summary is None:
        return ""
    digits = 0 if summary.median >= 100 else 1 if summary.median >= 10 else 2
    return f"{summary.median:,.{digits}f} ±{summary.spread:3.0%}"


def seconds(summary: Summary | None) -> str:
    return "" if summary is None else f"{summary.median:.3g} s"


def _latency(record: Record) -> str:
    found = record.token_ms
    return f"{found['p50']:.3g}, {found['p99']:.3g}" if found else ""


def _load(record: Record) -> str:
    loads = record.loads
    if loads is None or not loads.warm_s:
        return ""
    warm = f"{sorted(loads.warm_s)[len(loads.warm_s) // 2]:.2f} s"
    return warm if loads.cold_s is None else f"{loads.cold_s:.2f} s cold, {warm} warm"


def _share(record: Record) -> str:
    limit = record.board.read_bytes_per_s
    return f"{record.bytes_per_s / limit:.0%}" if record.bytes_per_s and limit else ""


def _energy(record: Record) -> str:
    found = record.energy_per_token_j
    if found is None:
        return ""
    return f"{found[0]:.2f}" if found[1] is None else f"{found[0]:.2f}, {found[1]:.2f} net"


class Steps:
    """What is measured now, in a line that is rewritten. Use as a context manager.

    Drawn when it changes and at no other time: whatever moves on the screen takes its time from what is measured.
    """

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> "Steps":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, text: str) -> None:
        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
