"""Records as Markdown: a report, and the short form that sbc-reviews collects board by board."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from benchmarks import report
from benchmarks.record import Board, Record

NOTES = """\
pp: reading a prompt, tg: generating, d: tokens already in the cache, x: streams at the same time. These decode and do
nothing else. chat: what a client sees, through tokeniser, scheduler and sampler; its tokens/s count from the first
token. tokens/s are medians ± half the range, ms/token the 50th and 99th percentile, GB/s the bytes the model's weights
and cache stand for, the limit what a read probe of the same cores reached.
"""


def report_text(records: Sequence[Record], title: str = "Benchmark") -> str:
    """All records, board by board and model by model, with what one must know to believe them."""
    parts = [f"# {title}\n"]
    for board, of_board in report.by_board(records):
        parts.append(
            f"## {escaped(board.name)}\n\n"
            + "\n".join(f"- {escaped(line)}" for line in describe(board, of_board))
            + "\n"
        )
        parts.append(_table(of_board))
        if doubts := report.suspicions(of_board):
            lines = [f"- {escaped(name)}: {escaped(text)}" for name, text in doubts]
            parts.append("Suspect results, and why:\n\n" + "\n".join(lines) + "\n")
    return "\n".join([*parts, NOTES])


def describe(board: Board, records: Iterable[Record]) -> list[str]:
    """The board and the conditions, a line each."""
    of_board = list(records)
    kinds = [
        f"{kind.n} cores" + (f" up to {kind.frequency_max_mhz:,.0f} MHz" if kind.frequency_max_mhz else "")
        for kind in board.cores
    ]
    lines = [f"{board.soc or board.name}, {board.architecture}" + (f", {' + '.join(kinds)}" if kinds else "")]
    lines[0] += ", virtual" if board.is_virtual else ""
    if board.ram_bytes:
        lines.append(f"{board.ram_bytes / 2**30:.1f} GiB RAM")
    lines += [line for line in (report.threads(of_board), report.bandwidth(board)) if line]
    lines.append(board.kernel + (f", governor {board.governor}" if board.governor else ""))
    lines += sorted({program_line(record) for record in of_board})
    heat = [m.temperature_c for record in of_board for m in record.conditions.moments if m.temperature_c is not None]
    if heat:
        lines.append(f"{min(heat):.0f} to {max(heat):.0f} °C while measuring")
    if any(record.model.weights == "synthetic" for record in of_board):
        lines.append("weights: synthetic, random blocks in the model's true shape")
    return lines


def escaped(text: str) -> str:
    """Text of others, that it stays text: in a cell, a heading or a list."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def program_line(record: Record) -> str:
    program = record.program
    parts = [program.name, program.version, program.library]
    features = f" ({program.features.strip(' |')})" if program.features else ""
    return " ".join(filter(None, parts)).strip() + features


def _table(records: Sequence[Record]) -> str:
    shown = columns(records)
    rows = [[column.name for column in shown], ["---:" if column.is_number else "---" for column in shown]]
    rows += [[escaped(column.cell(record)) for column in shown] for record in records]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def columns(records: Sequence[Record]) -> list[report.Column]:
    """The columns of one board's table."""
    found = report.columns(records)
    if not any(column.name == "model" for column in found):
        found = [report.Column("model", lambda r: Path(r.model.name).stem, is_number=False), *found]
    return [column for column in found if column.name != "board"]


def sbc_reviews_text(records: Sequence[Record]) -> str:
    """A board's section as the sbc-reviews issues have it: a checklist of models and their speeds."""
    parts = []
    for board, found in report.by_board(records):
        of_board = [record for record in found if record.tokens_per_s]
        parts.append(f"### {escaped(board.name)}\n\n#### LLM performance\n")
        parts.append(
            "| Model | Test | Speed | Peak memory | Energy | Conditions |\n| :--- | :--- | ---: | ---: | ---: | --- |"
        )
        for record in of_board:
            energy = record.energy_per_token_j
            cells = [
                Path(record.model.name).stem,
                record.workload.name,
                f"{report.rate(record.tokens_per_s)} tokens/s",
                report.megabytes(record.memory.peak_rss_bytes) if record.memory else "",
                f"{energy[0]:.2f} J/token" if energy else "",
                report.verdict(record),
            ]
            parts.append(f"| {' | '.join(map(escaped, cells))} |")
        parts.append("")
        parts += [f"- {escaped(line)}" for line in describe(board, of_board)]
        parts.append("")
    return "\n".join(parts)
