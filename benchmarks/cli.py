"""`edge bench`: options in, table or JSON out."""

from pathlib import Path

import click

from benchmarks.workload import Workload
from edge.board.options import FORCE, GPU_LAYERS, THREADS

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
@THREADS
@GPU_LAYERS
@FORCE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with the raw samples.")
def bench(
    models: tuple[Path, ...],
    prompt: int,
    gen: int,
    repeat: int,
    threads: int | None,
    gpu_layers: int | None,
    force: bool,
    as_json: bool,
) -> None:
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
    from edge.board.plan import Wish, make_plan
    from edge.demo import demo_model
    from edge.model.gguf import read_model_info

    records = []
    with Console(stderr=True).status("") as status:
        for model in models or [demo_model()]:
            wish = Wish(max(prompt, gen, 64), 1, threads, gpu_layers, force)
            settings = make_plan(read_model_info(model), wish).settings
            workload = Workload(
                str(model),
                prompt,
                gen,
                repeat,
                n_threads=settings.n_threads,
                load_mode=settings.load_mode,
                kv_type=settings.kv_type,
                flash_attention=settings.flash_attention,
                n_gpu_layers=settings.n_gpu_layers,
            )
            records.append(harness.run(workload, partial(report.show_step, status, model.name)))
    if as_json:
        click.echo(json.dumps([record.to_json() for record in records], indent=1))
        return
    Console().print(report.table(records))
    click.echo(
        f"{records[0].cpu}, {records[0].samples.n_threads} threads; prompt {prompt}, generation {gen} tokens, "
        f"median of {repeat} ± half the range"
    )
