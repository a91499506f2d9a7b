"""Records as a table for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.status import Status
from rich.table import Table

from benchmarks.record import Record
from benchmarks.stats import Summary


def table(records: Sequence[Record], **extra: Sequence[str]) -> Table:
    """One row a record. extra: further columns, a cell for each record."""
    columns = Table(title=None, header_style="bold", pad_edge=False, box=None)
    columns.add_column("model", overflow="fold")
    for name in ("file", "load", "prompt tokens/s", "generation tokens/s", "peak memory", *extra):
        columns.add_column(name, justify="right")
    for i, record in enumerate(records):
        columns.add_row(
            Path(record.workload.model).stem,
            megabytes(record.file_bytes),
            f"{record.samples.load_time_s:.2f} s",
            rate(record.prompt_tokens_per_s),
            rate(record.generation_tokens_per_s),
            megabytes(record.samples.peak_rss_bytes),
            *(cells[i] for cells in extra.values()),
        )
    return columns


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 100e6 else f"{n_bytes / 1e6:,.0f} MB"


def rate(summary: Summary) -> str:
    """Median and spread: 31.2 ± 2 %"""
    digits = 0 if summary.median >= 100 else 1
    return f"{summary.median:,.{digits}f} ±{summary.spread:3.0%}"


def show_step(status: Status, model: str, text: str) -> None:
    """What is measured now, in the line that is rewritten."""
    status.update(f"{model}: {text}")
