"""Has this program become slower? Its speed over llama-bench's, same file, same run, taking turns, against the ratios
that are kept in the repository. Never absolute times: they belong to a machine.

    python -m benchmarks.baseline              compare with benchmarks/baseline/ratios.json; exit 1 if slower
    python -m benchmarks.baseline --update     keep what this machine measures
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import harness
from benchmarks.record import Record
from benchmarks.runner import Job
from benchmarks.shapes import model_file
from benchmarks.stats import paired_ratio
from benchmarks.workload import Workload
from edge.errors import EdgeError

FILE = Path(__file__).parent / "baseline" / "ratios.json"
SHAPE, TYPE = "qwen2.5-0.5b", "Q4_0"  # small enough for a CI machine
N_PAIRS = 15
WORKLOADS = (
    Workload(n_prompt_tokens=256, n_repetitions=N_PAIRS),
    Workload(n_generated_tokens=64, n_repetitions=N_PAIRS),
)
TOLERANCE = 0.05


@dataclass(frozen=True)
class Result:
    """One workload's ratio of tokens/s, ours over theirs, with its interval and the one that is kept."""

    name: str
    value: float
    low: float
    high: float
    kept: float | None

    @property
    def is_slower(self) -> bool:
        """Surely below what is kept, by more than the tolerance."""
        return self.kept is not None and self.high < self.kept * (1 - TOLERANCE)

    def __str__(self) -> str:
        against = "not kept yet" if self.kept is None else f"kept {self.kept:.3f}"
        return f"{self.name}: {self.value:.3f} ({self.low:.3f} to {self.high:.3f}), {against}" + (
            ", slower" if self.is_slower else ""
        )


def results(pairs: Iterable[Sequence[Record]], kept: dict[str, float]) -> list[Result]:
    """One for each (ours, theirs)."""
    found = []
    for ours, theirs in pairs:
        name = f"{ours.model.name} {ours.workload.name}"
        value = paired_ratio(theirs.rates, ours.rates)
        found.append(Result(name, value.value, value.low, value.high, kept.get(name)))
    return found


@click.command(context_settings={"auto_envvar_prefix": "EDGE_BASELINE"})
@click.option("--update", is_flag=True, help="Keep what is measured now.")
def main(update: bool) -> None:
    """Measure ours and llama-bench in turns and compare their ratio with the one kept."""
    path = model_file(SHAPE, TYPE)
    kept: dict[str, float] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    groups = [[Job(work, path), Job(work, path, peer="llama-bench")] for work in WORKLOADS]
    records = harness.run(groups, lambda text: click.echo(text, err=True))
    found = results(zip(records[::2], records[1::2], strict=True), kept)
    for result in found:
        click.echo(str(result))
    if update:
        FILE.parent.mkdir(exist_ok=True)
        text = json.dumps(kept | {result.name: round(result.value, 3) for result in found}, indent=1)
        FILE.write_text(text + "\n", encoding="utf-8")
    elif any(result.is_slower for result in found):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except EdgeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
