"""`edge quality` and `edge imatrix` against llama.cpp's own tools, on the same files, in turns: a table of ratios.

    scripts/build-peers.sh llama-perplexity llama-imatrix
    python -m benchmarks.quality_bench --chunks 200                        # the demo
    python -m benchmarks.quality_bench MODEL.gguf --against REF.gguf --text FILE --chunks 2

Needs a quiet machine. A measurement of quality is both passes: the reference reads the text and its predictions are
written to the disk, the model reads it and is compared. Ours begins with an empty cache each time. The files are in the
page cache for all of them alike, and each has the same threads.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import peers
from benchmarks.process import Run, measure
from edge.errors import EdgeError

TEXT = Path(__file__).resolve().parents[1] / "tests" / "data" / "demo_replies.txt"
N_REPEATS = 20  # of that text for the demo: as much as a measurement that takes some time
PARTS = ("quality", "imatrix")
BARS = {"quality": "≤ 1.1", "imatrix": "≤ 1.3"}
N_BESIDE_BYTES_MAX = 600e6
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Bench:
    """Two files of one model and a text."""

    def __init__(self, model: Path, against: Path, text: Path, scratch: Path, n_threads: int) -> None:
        self.model, self.against, self.text = model.absolute(), against.absolute(), text.absolute()
        self.scratch, self.n_threads = scratch, n_threads

    def ours(self, part: str, n_ctx: int, n_chunks: int) -> Run:
        words = [sys.executable, "-m", "edge.cli", part, self.model, "--text", self.text]
        words += ["--ctx", n_ctx, "--chunks", n_chunks, "--threads", self.n_threads]
        words += ["--against", self.against] if part == "quality" else ["--out", self.scratch / "ours.gguf", "--force"]
        with tempfile.TemporaryDirectory(dir=self.scratch) as cache:
            root = Path(__file__).resolve().parents[1]
            models = (self.model, self.against)
            return measure(*words, folder=root, environment={"EDGE_CACHE": cache}, models=models)

    def theirs(self, part: str, n_ctx: int, n_chunks: int) -> Run:
        tool = peers.tool("llama-imatrix" if part == "imatrix" else "llama-perplexity")
        options = ["-f", self.text, "-c", n_ctx, "--chunks", n_chunks, "-t", self.n_threads]
        if part == "imatrix":
            return measure(tool, "-m", self.model, *options, "--no-ppl", "-o", "theirs.gguf", folder=self.scratch)
        options += ["--kl-divergence-base", "base.dat"]
        first = measure(tool, "-m", self.against, *options, folder=self.scratch)
        second = measure(tool, "-m", self.model, *options, "--kl-divergence", folder=self.scratch)
        (self.scratch / "base.dat").unlink()
        return first + second


def told(run: Run) -> str:
    memory = f"{run.n_anonymous_bytes / 1e6:,.0f} MB anonymous at most"
    return f"{run.wall_s:.2f} s, {run.cpu_s:.1f} s of CPU, {memory}, {run.n_written_bytes / 1e6:,.0f} MB written"


def compare(part: str, ours: Callable[[], Run], theirs: Callable[[], Run], n_rounds: int) -> None:
    """The rows of one part. Who begins changes from round to round."""
    pairs = []
    for i in range(n_rounds):
        runs = {}
        for name, run in (("ours", ours), ("theirs", theirs))[:: -1 if i % 2 else 1]:
            runs[name] = run()
            click.echo(f"{part}, {name}: {told(runs[name])}", err=True)
        pairs.append((runs["ours"], runs["theirs"]))
    walls = [statistics.median(run.wall_s for run in side) for side in zip(*pairs, strict=True)]
    ratio = statistics.median(one.wall_s / other.wall_s for one, other in pairs)
    click.echo(f"| {part}, s | {walls[0]:,.2f} | {walls[1]:,.2f} | {ratio:.3f} | {BARS[part]} |")
    most = max(one.n_beside_bytes for one, _ in pairs)
    click.echo(
        f"| {part}, MB beside the model, 600 | {most / 1e6:,.0f} | 600 | {most / N_BESIDE_BYTES_MAX:.3f} | ≤ 1 |"
    )


def warm(*paths: Path) -> None:
    """Read files once, so that nobody gets them from the disk."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


@click.command(context_settings={"auto_envvar_prefix": "EDGE_QUALITY_BENCH"})
@click.argument("model", type=FILE, required=False)
@click.option("--against", type=FILE, metavar="REF", help="The model it was made from.  [the demo in F16]")
@click.option("--text", type=FILE, metavar="FILE", help="What both read.  [replies of the demo]")
@click.option("--ctx", "n_ctx", type=click.IntRange(32), default=512, show_default=True, metavar="N")
@click.option("--chunks", "n_chunks", type=click.IntRange(2), default=20, show_default=True, metavar="N")
@click.option("--rounds", "n_rounds", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option("--threads", "n_threads", type=click.IntRange(1), metavar="N", help="[all cores]")
@click.option("--only", type=click.Choice(PARTS), help="This part.  [both]")
@click.option(
    "--scratch", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Where predictions go for a while.  [a temporary folder]",
)  # fmt: skip
def main(
    model: Path | None,
    against: Path | None,
    text: Path | None,
    n_ctx: int,
    n_chunks: int,
    n_rounds: int,
    n_threads: int | None,
    only: str | None,
    scratch: Path | None,
) -> None:
    """Measure on MODEL, or on the demo."""
    from edge.demo import demo_model

    if (model is None) != (against is None):
        raise click.UsageError("name MODEL and --against, or neither")
    model, against = model or demo_model("Q4_0"), against or demo_model("F16")
    n_threads = n_threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    warm(model, against)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if text is None:
            text = Path(folder, "text.txt")
            text.write_text(N_REPEATS * TEXT.read_text(encoding="utf-8"), encoding="utf-8")
        bench = Bench(model, against, text, Path(folder), n_threads)
        click.echo(f"{model.name} against {against.name}, {n_chunks} chunks of {n_ctx} tokens, {n_threads} threads\n")
        click.echo("| what | ours | other | ratio | bar |\n|---|---|---|---|---|")
        for part in [only] if only else PARTS:
            compare(
                part,
                lambda part=part: bench.ours(part, n_ctx, n_chunks),  # type: ignore[misc]
                lambda part=part: bench.theirs(part, n_ctx, n_chunks),  # type: ignore[misc]
                n_rounds,
            )


if __name__ == "__main__":
    try:
        main(prog_name="quality_bench")
    except EdgeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
