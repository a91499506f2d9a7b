"""`edge convert`: a checkpoint folder to GGUF files, with a bar on stderr and a table or JSON on stdout.

Nothing but click is imported until the command runs: `edge --help` must not wait for numpy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from edge.config import QUANT_TYPES

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint
    from convert.choose import Choice
    from convert.pipeline import Conversion, Progress
    from convert.plan import Plan, Reference
    from convert.recipes import Kind, Wishes


class Bytes(click.ParamType[int]):
    """4GB, 512MB, 1.5G or a plain number, in bytes."""

    name = "size"
    UNITS: ClassVar = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B?", str(value).upper())
        if not found:
            self.fail(f"{value!r} is no size like 4GB", param, ctx)
        return int(float(found[1]) * self.UNITS[found[2]])


EXAMPLES = """\b
Examples:
  edge convert DeepSeek-R1-Distill-Qwen-1.5B
  edge convert deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B -t Q4_K_M
  edge convert DeepSeek-R1-Distill-Qwen-1.5B -t Q4_K_M -t Q8_0 -o /models
  edge convert Qwen2.5-0.5B-Instruct -t Q4_K_M --dry-run
  edge convert Qwen2.5-0.5B-Instruct --auto --ram 4GB --min-top1 0.95
  edge convert Qwen2.5-0.5B-Instruct -t Q4_K_M --passport
  edge convert Qwen2.5-0.5B-Instruct -t Q4_0 --imatrix qwen.imatrix.gguf --tensor-type ffn_down=q4_0
"""


@click.command(epilog=EXAMPLES)
@click.argument("src", type=click.Path(path_type=Path))
@click.option(
    "-t", "--type", "types", multiple=True, default=QUANT_TYPES, show_default=True, metavar="TYPE",
    help="What to make: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q4_1, Q4_0, IQ4_NL or IQ4_XS. "
    "Give it several times for several files from one pass.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None,
    help="Folder for the results.  [default: the current one]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace results that exist.")
@click.option(
    "--imatrix", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="Importance matrix of this model, made by llama-imatrix (GGUF): spends the bits where they matter.",
)  # fmt: skip
@click.option(
    "--tensor-type", "patterns", multiple=True, metavar="PATTERN=TYPE",
    help="Tensors whose GGUF name contains the regular expression get this type. The first match counts.",
)  # fmt: skip
@click.option("--output-tensor-type", "output_kind", metavar="TYPE", help="Type of output.weight, the head.")
@click.option("--token-embedding-type", "embedding_kind", metavar="TYPE", help="Type of token_embd.weight.")
@click.option("--pure", is_flag=True, help="One type for all matrices, no more bits where llama.cpp gives more.")
@click.option(
    "--dry-run", is_flag=True, help="Print each tensor, its type and sizes, and the time expected; make nothing."
)
@click.option(
    "--passport", is_flag=True,
    help="Measure each result against the checkpoint's own precision; FILE.passport.md and .json tell what it lost.",
)  # fmt: skip
@click.option(
    "--auto", is_flag=True, help="Make the smallest type that fits --ram and keeps --min-top1, found by trying."
)
@click.option(
    "--ram", "n_ram_bytes", type=Bytes(), default="4GB", show_default=True, metavar="SIZE", help="The board's."
)
@click.option(
    "--min-top1", "min_same_top", type=click.FloatRange(0, 1), default=0.95, show_default=True, metavar="SHARE",
    help="How often the result has to think the same token the likeliest as the checkpoint does.",
)  # fmt: skip
@click.option(
    "--text", type=click.Path(path_type=Path), metavar="FILE",
    help="What --passport and --auto read.  [24 replies that the model writes itself]",
)  # fmt: skip
@click.option(
    "--tasks", multiple=True, metavar="TASK", help="Right answers for the passport: `sums`, or a file of JSON lines."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
def convert(
    src: Path,
    types: tuple[str, ...],
    out: Path | None,
    force: bool,
    imatrix: Path | None,
    patterns: tuple[str, ...],
    output_kind: str | None,
    embedding_kind: str | None,
    pure: bool,
    dry_run: bool,
    passport: bool,
    auto: bool,
    n_ram_bytes: int,
    min_same_top: float,
    text: Path | None,
    tasks: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert the Hugging Face checkpoint SRC, a folder or OWNER/REPO on the hub, to GGUF, named SRC-TYPE.gguf.

    Reads config.json, tokenizer.json and *.safetensors; runs nothing from the checkpoint. A result appears only when
    it is whole; what is stopped or fails leaves nothing behind. Beside each lies SRC-TYPE.gguf.json, which says what
    it was made of and its SHA-256. From the hub the weights come as a stream and never lie on this disk; stopped, the
    same command goes on with the tensors that are missing.
    """
    from convert import passport as passports
    from convert import pipeline
    from convert.bar import progress as bar
    from convert.plan import SMALL_REFERENCE

    if auto and (dry_run or pure or patterns or output_kind or embedding_kind):
        raise click.UsageError("--auto finds the type by making files; leave the other options on types away")
    if dry_run and passport:
        raise click.UsageError("--dry-run makes nothing that --passport could measure; leave one of them away")
    if (text and not (auto or passport)) or (tasks and not passport):
        raise click.UsageError("--text and --tasks are what --passport measures with; add it")
    wishes = _wishes(patterns, output_kind, embedding_kind, pure)
    source = _source(src)
    if dry_run:
        made = pipeline.dry_run(source, types, out, wishes=wishes, imatrix=imatrix)
        _print_json(_plan_document(made)) if as_json else _print_plan(made)
        return
    out = out or Path.cwd()
    with ExitStack() as stack:
        reference = None
        if auto or passport:
            passports.check(passports.models(source, () if auto else types, out), text, tasks, overwrite=force)
            reference = stack.enter_context(passports.reference_beside(source, out, writes=text is None))
        if auto:
            assert reference
            choice = _choose(
                source, out, reference, text, imatrix, n_ram_bytes=n_ram_bytes, min_same_top=min_same_top,
                force=force, as_json=as_json,
            )  # fmt: skip
            against, models = choice.against, [choice.path]
        else:
            with _bar() as progress:
                made_files = pipeline.convert(
                    source, types, out, progress=progress, overwrite=force, wishes=wishes, imatrix=imatrix,
                    reference=reference,
                )  # fmt: skip
            if reference:
                against = made_files.pop().path
            models = [file.path for file in made_files]
            for name in getattr(source, "unhashed", []):
                click.echo(f"{name} was read in several runs; its hash as a whole could not be checked", err=True)
            _print_json([asdict(file) for file in made_files]) if as_json else _print_table(made_files)
        if reference and against.name.endswith(f"-{SMALL_REFERENCE}.gguf"):
            click.echo(f"measured against {against.name}: there is no room for the checkpoint's own type", err=True)
        if passport:
            with bar() as report:
                written = passports.issue(
                    against, models, text=text, tasks=tasks, imatrix=imatrix, overwrite=force, report=report
                )
            for path in written:
                click.echo(path, err=True)


def _choose(
    source: Path | Checkpoint,
    out: Path,
    reference: Reference,
    text: Path | None,
    imatrix: Path | None,
    *,
    n_ram_bytes: int,
    min_same_top: float,
    force: bool,
    as_json: bool,
) -> Choice:
    from convert import choose
    from convert.bar import progress
    from edge.model.shards import hub_name

    with progress() as report:
        choice = choose.choose(
            source, out, reference, n_ram_bytes=n_ram_bytes, min_same_top=min_same_top, text=text, imatrix=imatrix,
            overwrite=force, report=report,
        )  # fmt: skip
    if not isinstance(source, Path):
        told = f"{source.n_bytes / 1e6:,.0f} MB of the checkpoint stay in the hub's cache"
        click.echo(f"{told}; remove them with: edge rm {hub_name(source.path)}", err=True)
    if as_json:
        click.echo(choose.document(choice))
        return choice
    click.echo(f"{'type':8}{'MB':>8}{'MB of RAM':>11}{'top 1':>8}  verdict")
    for trial in choice.trials:
        same = "" if trial.same_top is None else f"{trial.same_top:.3f}"
        sizes = f"{trial.n_bytes / 1e6:8,.0f}{trial.n_memory_bytes / 1e6:11,.0f}"
        click.echo(f"{trial.type:8}{sizes}{same:>8}  {trial.verdict}")
    click.echo(choice.path)
    return choice


def _source(src: Path) -> Path | Checkpoint:
    """A folder, or a checkpoint on the hub if no such folder is there and SRC has the form of a name."""
    from edge.model.names import parse

    name = None if src.exists() else parse(re.sub(r"^(hf|https?):/(?!/)", r"\1://", str(src)))
    if name is None:
        return src
    from convert.remote import RemoteCheckpoint
    from edge.model.hub import Hub

    if name.quant or name.file:
        raise click.BadParameter(f"name the repository alone, and the types with -t: {name.repo_id}", param_hint="SRC")
    hub = Hub.from_environment(notice=lambda text: click.echo(text, err=True))
    found = RemoteCheckpoint.look_up(hub, name.repo_id, name.revision)
    if found.is_remote:
        return found
    found.close()
    return found.path


def _wishes(patterns: tuple[str, ...], output: str | None, embedding: str | None, pure: bool) -> Wishes:
    from convert.recipes import Wishes, kind_named

    def kind(name: str | None) -> Kind | None:
        return kind_named(name) if name else None

    parsed = []
    for option in patterns:
        pattern, _, name = option.rpartition("=")
        if not pattern:
            raise click.BadParameter(f"{option!r} is not PATTERN=TYPE, like ffn_down=q6_k", param_hint="--tensor-type")
        try:
            parsed.append((re.compile(pattern), kind_named(name)))
        except re.error as error:
            problem = f"{pattern!r} is not a regular expression ({error})"
            raise click.BadParameter(problem, param_hint="--tensor-type") from error
    return Wishes(tuple(parsed), kind(output), kind(embedding), pure)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar with MB/s and the time left, on stderr, where a person looks at it."""
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.TextColumn("{task.description:>8}"), rich.BarColumn(), rich.DownloadColumn())
    speed = (rich.TransferSpeedColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, *speed, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, rich.TaskID] = {}

        def show(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bar.add_task(progress.phase, total=progress.n_bytes_total)
            bar.update(tasks[progress.phase], completed=progress.n_bytes_done)

        yield show


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, default=str, indent=1, ensure_ascii=False))


def _print_table(conversions: list[Conversion]) -> None:
    click.echo(f"{'type':8}{'MB':>8}{'bits/weight':>13}  {'SHA-256':14}file")
    for made in conversions:
        row = f"{made.type:8}{made.n_bytes / 1e6:8,.0f}{made.bits_per_weight:13.2f}  {made.sha256[:12]:14}{made.path}"
        click.echo(row)


def _print_plan(made: Plan) -> None:
    shapes = {weight.name: weight.shape for weight in made.model.weights}
    width = max(map(len, shapes))
    click.echo(f"{'tensor':{width}}  {'shape':>15}" + "".join(f"{file.type:>18}" for file in made.files))
    for name in made.files[0].kinds:
        shape = " x ".join(map(str, shapes[name]))
        cells = (f"{file.kinds[name].name:>8}{file.sizes[name] / 1e6:7,.1f} MB" for file in made.files)
        click.echo(f"{name:{width}}  {shape:>15}" + "".join(cells))
    click.echo()
    for file in made.files:
        click.echo(
            f"{file.type:8}{file.n_bytes / 1e6:8,.0f} MB {made.bits_per_weight(file):7.2f} bits/weight  {file.path}"
        )
    cpu_s, n_cores = made.cpu_s(), made.n_cores
    click.echo(f"about {cpu_s / n_cores:,.0f} s on {n_cores} cores, if the disk keeps up")


def _plan_document(made: Plan) -> dict[str, Any]:
    shapes = {weight.name: weight.shape for weight in made.model.weights}
    return {
        "source": made.name,
        "architecture": made.model.architecture,
        "n_parameters": made.model.n_parameters,
        "n_source_bytes": made.n_source_bytes,
        "cpu_s": made.cpu_s(),
        "n_cores": made.n_cores,
        "files": [
            {
                "path": file.path,
                "type": file.type,
                "n_bytes": file.n_bytes,
                "bits_per_weight": made.bits_per_weight(file),
                "tensors": [
                    {
                        "name": name,
                        "shape": shapes[name],
                        "type": kind.name,
                        "n_bytes": file.sizes[name],
                        "weighted": name in made.columns,
                    }
                    for name, kind in file.kinds.items()
                ],
            }
            for file in made.files
        ],
    }
