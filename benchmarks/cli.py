"""`edge bench`: options in, table or JSON out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.workload import Workload

if TYPE_CHECKING:
    from rich.status import Status

DEFAULTS = Workload(model="")


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="[MODEL]...")
@click.option(
    "-p",
    "--prompt",
    default=DEFAULTS.n_prompt_tokens,
    show_default=True,
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Prompt tokens.",
)
@click.option(
    "-n",
    "--gen",
    default=DEFAULTS.n_generated_tokens,
    show_default=True,
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Generated tokens.",
)
@click.option(
    "-r",
    "--repeat",
    default=DEFAULTS.n_repetitions,
    show_default=True,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Repetitions, after one warm-up.",
)
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="[one per fast core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with the raw samples.")
def bench(models: tuple[Path, ...], prompt: int, gen: int, repeat: int, threads: int | None, as_json: bool) -> None:
    """Measure tokens/s, load time and memory, each MODEL in a fresh process. No MODEL means the bundled demo.

    \b
    edge bench model.gguf
    edge bench *.gguf --json > results.json
    edge bench model.gguf -p 2048 -n 64 --threads 4
    """
    import json
    from functools import partial

    from rich.console import Console

    from benchmarks import harness, report
    from edge.demo import demo_model

    records = []
    with Console(stderr=True).status("") as status:
        for model in [_local(model, status) for model in models] or [demo_model()]:
            workload = Workload(str(model), prompt, gen, repeat, n_threads=threads)
            records.append(harness.run(workload, partial(report.show_step, status, model.name)))
    if as_json:
        click.echo(json.dumps([record.to_json() for record in records], indent=1))
        return
    Console().print(report.table(records))
    click.echo(
        f"{records[0].cpu}, {records[0].samples.n_threads} threads; prompt {prompt}, generation {gen} tokens, "
        f"median of {repeat} ± half the range"
    )


def _local(model: Path, status: "Status") -> Path:
    """The file itself, or the one that goes by this name, fetched if it is not here."""
    from edge.model.names import is_name
    from edge.model.pull import resolve

    if model.exists() or not is_name(str(model)):
        return model
    return resolve(
        str(model),
        progress=lambda at: status.update(f"{at.phase} {at.file}, {at.n_bytes_done / max(1, at.n_bytes_total):.0%}"),
    )
