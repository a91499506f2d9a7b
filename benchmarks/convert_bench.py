"""The converter against upstream's two steps on one checkpoint, interleaved in one run: a table of ratios.

    scripts/build-peers.sh llama-quantize
    python -m benchmarks.convert_bench CHECKPOINT --upstream LLAMA_CPP --python VENV/bin/python [--half CHECKPOINT]

LLAMA_CPP is a source tree with convert_hf_to_gguf.py in it, VENV an environment with what that imports (torch). Needs a
quiet machine and room for the checkpoint twice. Each run is a process of its own; its CPU time and the bytes it sends
to the disk are the kernel's count. The checkpoint is in the page cache for all of them alike.
"""

import os
import sys
import tempfile
from pathlib import Path

import click

from benchmarks import peers
from benchmarks.process import Run, measure
from edge.errors import EdgeError

_CONVERT = (
    "import sys; from pathlib import Path; from convert.pipeline import convert\n"
    "convert(Path(sys.argv[1]), sys.argv[3:], Path(sys.argv[2]), overwrite=True)"
)
PARTS = ("Q4_0", "Q4_K_M", "both", "half")
BARS = {"Q4_K_M": "≤ 0.66", "Q4_0": "≤ 0.20", "both": "≤ 1.15"}


class Bench:
    """One checkpoint, its results in a scratch folder, and the rows of the table."""

    def __init__(self, checkpoint: Path, scratch: Path, upstream: Path | None, python: Path) -> None:
        self.checkpoint, self.scratch, self.upstream, self.python = checkpoint, scratch, upstream, python
        self.n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def ours(self, *types: str, checkpoint: Path | None = None) -> Run:
        self._clear()
        run = measure(sys.executable, "-c", _CONVERT, checkpoint or self.checkpoint, self.scratch, *types)
        click.echo(f"ours, {' and '.join(types)}: {_told(run)}", err=True)
        return run

    def n_output_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.scratch.iterdir())

    def theirs(self, *types: str) -> dict[str, Run]:
        """For each type: the converter's BF16 file, which all share, and the quantiser on it."""
        assert self.upstream
        self._clear()
        whole = self.scratch / "upstream.gguf"
        script = self.upstream / "convert_hf_to_gguf.py"
        first = measure(
            self.python, script, self.checkpoint, "--outtype", "bf16", "--outfile", whole, folder=self.upstream
        )
        click.echo(f"convert_hf_to_gguf.py: {_told(first)}", err=True)
        found = {}
        for name in types:
            second = measure(peers.tool("llama-quantize"), whole, self.scratch / "theirs.gguf", name, self.n_threads)
            click.echo(f"llama-quantize {name}: {_told(second)}", err=True)
            found[name] = first + second
        return found

    def _clear(self) -> None:
        for path in self.scratch.iterdir():
            path.unlink()


def _told(run: Run) -> str:
    return (
        f"{run.wall_s:.1f} s, {run.cpu_s:.1f} s of CPU, {run.n_anonymous_bytes / 1e6:,.0f} MB anonymous at most, "
        f"{run.n_written_bytes / 1e6:,.0f} MB written"
    )


def row(what: str, ours: float, other: float, bar: str) -> None:
    click.echo(f"| {what} | {ours:,.1f} | {other:,.1f} | {ours / other:.3f} | {bar} |")


def warm(*checkpoints: Path | None) -> None:
    """Read the weights once, so that nobody gets them from the disk."""
    for checkpoint in filter(None, checkpoints):
        for path in checkpoint.glob("*.safetensors"):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


@click.command(context_settings={"auto_envvar_prefix": "EDGE_CONVERT_BENCH"})
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--upstream", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="llama.cpp's source, with convert_hf_to_gguf.py.  [not compared]",
)  # fmt: skip
@click.option(
    "--python", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=sys.executable,
    help="The Python that runs convert_hf_to_gguf.py.",
)  # fmt: skip
@click.option(
    "--half", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="The same shape with half the layers: what a model twice the size costs.",
)  # fmt: skip
@click.option(
    "--scratch", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Where results go for a while.  [a temporary folder]",
)  # fmt: skip
@click.option(
    "--only", multiple=True, type=click.Choice(PARTS), help="These rows; each is a run of some minutes.  [all]"
)
def main(
    checkpoint: Path,
    upstream: Path | None,
    python: Path,
    half: Path | None,
    scratch: Path | None,
    only: tuple[str, ...],
) -> None:
    """Measure the converter on CHECKPOINT."""
    warm(checkpoint, half)
    asked = only or PARTS
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        bench = Bench(checkpoint.absolute(), Path(folder), upstream and upstream.absolute(), python.absolute())
        click.echo(f"{checkpoint.name}, {n_weight_bytes(checkpoint) / 1e9:.2f} GB, {bench.n_threads} cores\n")
        click.echo("| what | ours | other | ratio | bar |\n|---|---|---|---|---|")
        runs = {"Q4_0": bench.ours("Q4_0")} if "Q4_0" in asked else {}
        if {"Q4_K_M", "both", "half"} & set(asked):
            runs["Q4_K_M"] = alone = bench.ours("Q4_K_M")
            memory_rows(alone, bench.n_output_bytes())
        if upstream and {"Q4_K_M", "Q4_0"} & set(asked):
            types = [name for name in ("Q4_K_M", "Q4_0") if name in asked]
            for name, theirs in bench.theirs(*types).items():
                row(f"{name}, upstream's two steps, s", runs[name].wall_s, theirs.wall_s, BARS[name])
        if "both" in asked:
            row("both types, Q4_K_M alone, s", bench.ours("Q4_K_M", "Q4_0").wall_s, alone.wall_s, BARS["both"])
        if half and "half" in asked:
            smaller = bench.ours("Q4_K_M", checkpoint=half.absolute())
            grown = n_weight_bytes(checkpoint) / n_weight_bytes(half)
            row(f"layers x 2, bytes x {grown:.3f}: time, s", alone.wall_s, smaller.wall_s, f"{grown:.3f} ± 10 %")
            sizes = alone.n_anonymous_bytes / 1e6, smaller.n_anonymous_bytes / 1e6
            row("layers x 2: anonymous memory, MB", *sizes, "1")


def memory_rows(run: Run, n_output_bytes: int) -> None:
    row("anonymous memory at most, 300 MB", run.n_anonymous_bytes / 1e6, 300, "≤ 1")
    row("written, output, MB", run.n_written_bytes / 1e6, n_output_bytes / 1e6, "≤ 1.01")


def n_weight_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


if __name__ == "__main__":
    try:
        main(prog_name="convert_bench")
    except EdgeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
