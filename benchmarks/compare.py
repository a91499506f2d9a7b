"""Two sets of records, pair by pair: how many times faster, how sure, or that no difference is shown.

Refuses what is not comparable and names the field: only what one sets out to compare may differ.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import USUAL, Record, RecordError, read
from benchmarks.stats import Ratio, ratio

FIELDS: dict[str, Callable[[Record], object]] = {
    "view": lambda r: r.workload.view,
    "prompt": lambda r: r.workload.n_prompt_tokens,
    "gen": lambda r: r.workload.n_generated_tokens,
    "depth": lambda r: r.workload.n_depth_tokens,
    "streams": lambda r: r.workload.n_streams,
    "duration": lambda r: r.workload.duration_s,
    "ubatch": lambda r: r.workload.n_ubatch_tokens,
    "settings": lambda r: r.settings or USUAL,
    "threads": lambda r: r.n_threads,
    "model": lambda r: r.model.sha256 or r.model.name,
    "board": lambda r: (r.board.name, r.board.ram_bytes, len(r.board.cores)),
    "governor": lambda r: r.board.governor,
    "kernel": lambda r: r.board.kernel,
    "program": lambda r: r.program.name,
    "library": lambda r: (r.program.version, r.program.library, r.program.features),
}
# What makes a workload: records that differ in it have different names, and only pairs of one name are made.
WORKLOAD_FIELDS = ("view", "prompt", "gen", "depth", "streams", "duration")
IMPLIED = {"program": ("library",), "board": ("governor", "kernel", "library"), "threads": ()}


@dataclass(frozen=True)
class Comparison:
    """b against a: ratio of their tokens/s (of their loading speed, for a load), or why there is none."""

    a: Record
    b: Record
    differing: tuple[str, ...]  # fields that may not differ and do
    ratio: Ratio | None

    def __str__(self) -> str:
        name = f"{self.a.workload.name}"
        if self.ratio is None:
            return f"{name}: not comparable, they differ in {', '.join(self.differing)}; allow it with --across"
        span = f"{self.ratio.value:.3f} ({self.ratio.low:.3f} to {self.ratio.high:.3f})"
        doubt = "" if self.a.is_valid and self.b.is_valid else "; suspect"
        if not self.ratio.is_shown:
            few = "; too few repetitions" if self.ratio.low == 0 else ""
            return f"{name}: no difference shown, {span}{few}{doubt}"
        faster = "faster" if self.ratio.value > 1 else "slower"
        return f"{name}: B is {abs(self.ratio.value - 1):.1%} {faster}, {span}{doubt}"


def read_timed(path: Path) -> list[Record]:
    """The records of a file, at least one, each with samples. Raises RecordError."""
    found = read([path])
    if not found:
        raise RecordError(path, "holds no records", "measure first: edge bench --out FILE")
    for made in found:
        if not made.samples:
            problem = f"holds a record of {made.workload.name} without samples"
            raise RecordError(path, problem, "take its line out, and measure that again")
    return found


def compare(a: Sequence[Record], b: Sequence[Record], across: Sequence[str] = ()) -> list[Comparison]:
    """Every pair of records with the same workload. across: fields that are meant to differ."""
    allowed = {*across, *(implied for name in across for implied in IMPLIED.get(name, ()))}
    return [_pair(first, second, allowed) for first, second in pairs(a, b, allowed)]


def pairs(a: Sequence[Record], b: Sequence[Record], allowed: set[str]) -> Iterator[tuple[Record, Record]]:
    """Records whose workloads are alike; where there are several models or threads, those that are alike in them too,
    or else in their order."""
    keys = [name for name in WORKLOAD_FIELDS if name not in allowed]
    left = list(b)
    for first in a:
        alike = [second for second in left if all(FIELDS[key](first) == FIELDS[key](second) for key in keys)]
        if alike:
            best = min(alike, key=lambda second: len(differing(first, second, allowed)))
            left.remove(best)
            yield first, best


def differing(a: Record, b: Record, allowed: set[str]) -> tuple[str, ...]:
    """The fields in which two records differ and may not."""
    return tuple(name for name, of in FIELDS.items() if name not in allowed and of(a) != of(b))


def _pair(a: Record, b: Record, allowed: set[str]) -> Comparison:
    differs = differing(a, b, allowed)
    if differs:
        return Comparison(a, b, differs, None)
    speeds = [record.rates for record in (a, b)]
    if any(len(rates) < len(record.samples) for rates, record in zip(speeds, (a, b), strict=True)):
        # a load has none, nor has a reply that came all at once: then the same of both
        speeds = [tuple(1e9 / sample.elapsed_ns for sample in record.samples) for record in (a, b)]
    return Comparison(a, b, (), ratio(*speeds))


def label(record: Record) -> str:
    """What tells this record from others in a plot or a list."""
    return f"{Path(record.model.name).stem} {record.workload.name}"
