"""`edge bench`: options in, tables, records and reports out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.options import PATH, numbers, pair, rates
from benchmarks.workload import PRESETS
from edge.board.options import FORCE, GPU_LAYERS, THREADS
from edge.errors import EdgeError, OutputError

if TYPE_CHECKING:
    from benchmarks.choice import Choice
    from benchmarks.endpoint import EngineEndpoint, UrlEndpoint
    from benchmarks.load import Mix
    from benchmarks.record import Record
    from benchmarks.shapes import Layout

MEASURE = "run"  # the command that words which name no command belong to


class BenchGroup(click.Group):
    """`edge bench MODEL` is `edge bench run MODEL`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [MEASURE, *args]
        return super().parse_args(ctx, args)


@click.group(cls=BenchGroup, invoke_without_command=False)
def bench() -> None:
    """Measure tokens/s and memory, with proof of the conditions. `edge bench run --help` has the options.

    \b
    edge bench                                        the bundled demo, the quick preset
    edge bench model.gguf --preset standard
    edge bench --shape deepseek-r1-distill-qwen-1.5b -t Q4_0      no download needed
    edge bench model.gguf --url http://127.0.0.1:8080/v1          side by side, taking turns
    edge bench check --device pi-5 --model deepseek-r1-distill-qwen-1.5b -t Q4_K_M --claim 25
    """


@bench.command(MEASURE)
@click.argument("models", nargs=-1, type=PATH, metavar="[MODEL]...")
@click.option("--preset", "preset_name", type=click.Choice(PRESETS), help="What to measure.  [quick]")
@click.option("-p", "--prompt", type=numbers(0, 1 << 20), metavar="N,N…", help="Prompts of N tokens.")
@click.option("-n", "--gen", type=numbers(0, 1 << 20), metavar="N,N…", help="Generations of N tokens.")
@click.option("--pg", "both", multiple=True, type=pair(1, 1 << 20), metavar="P,N", help="P read, then N generated.")
@click.option(
    "-d", "--depth", type=numbers(0, 1 << 20), default="0", metavar="N,N…", help="Tokens already in the cache."
)
@click.option("--streams", type=numbers(1, 64), default="1", metavar="N,N…", help="Generations at the same time.")
@click.option("--threads", type=numbers(1, 512), metavar="N,N…", help="[one per fast core]")
@click.option("-r", "--repeat", type=click.IntRange(1, 1000), metavar="N", help="Repetitions, after warming up.  [5]")
@click.option("--chat", is_flag=True, help="End to end through the engine, as a chat sees it, not the kernel alone.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME", help="A known model's shape with random weights.")
@click.option("-t", "--type", "types", multiple=True, metavar="TYPE", help="Quantised types of --shape.  [Q4_0]")
@click.option("--url", "urls", multiple=True, metavar="URL", help="A server that speaks OpenAI's API, up to /v1.")
@click.option("--model", "served", metavar="NAME", help="Model at that server.  [its first]")
@click.option("--key", metavar="KEY", help="API key of that server.")
@click.option("--peer", type=click.Choice(["llama-bench"]), help="Measure this too, taking turns.")
@click.option("--interleave", is_flag=True, help="Let the models take turns, repetition by repetition.")
@click.option("--out", type=PATH, metavar="FILE", help="Add the records to FILE.  [in the cache folder]")
@GPU_LAYERS
@FORCE
@click.option("--json", "as_json", is_flag=True, help="Print the records as one JSON document.")
def run(models: tuple[Path, ...], as_json: bool, out: Path | None, **options: Any) -> None:
    """Measure each MODEL in a fresh process. No MODEL means the bundled demo.

    \b
    edge bench model.gguf
    edge bench *.gguf --out results.jsonl
    edge bench model.gguf -p 512 -n 128 -d 0,1024 --threads 2,4
    edge bench model.gguf --pg 512,128
    edge bench model.gguf --peer llama-bench
    edge bench model.gguf --gpu-layers 0             without the GPU
    """
    import json

    from rich.console import Console

    from benchmarks import harness, record, report
    from benchmarks.choice import Choice

    choice = Choice(**options)
    choice.check()
    out = out or usual_records()
    record.check_writable(out)
    records: list[Record] = []

    def keep(made: "Record") -> None:
        records.append(made)  # first: who interrupts the writing is told of the file
        record.append(out, made)

    with report.Steps() as steps:
        groups = choice.jobs(files(models, choice, steps.show))
        generates = any(job.path and job.workload.kind == "tg" for group in groups for job in group)
        try:
            harness.run(groups, steps.show, keep, probe=generates)
        except (EdgeError, KeyboardInterrupt):
            if records:
                click.echo(f"records so far: {out}", err=True)
            raise
    if as_json:
        click.echo(json.dumps([json.loads(made.line()) for made in records], ensure_ascii=False, indent=1))
        return
    Console().print(report.table(records))
    for line in report.footer(records):
        click.echo(line)
    click.echo(f"records: {out}", err=True)


def files(models: tuple[Path, ...], choice: "Choice", step: Callable[[str], None]) -> list[Path]:
    """The model files to measure, fetched or made where they are not there. Raises EdgeError."""
    from edge.cli import model_path

    paths = [model_path(str(model)) for model in models]
    if choice.shapes:
        from benchmarks.shapes import model_file

        for name in choice.shapes:
            for kind in choice.types or ("Q4_0",):
                step(f"{name} {kind}: random blocks")
                paths.append(model_file(name, kind))
    return paths if paths or choice.urls else [model_path(None)]


def usual_records() -> Path:
    """Where records go that nobody named a file for. Raises OutputError."""
    from edge.config import cache_dir

    folder = cache_dir() / "bench"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "set EDGE_CACHE to another folder, or give --out FILE"
        raise OutputError(folder, f"cannot be made ({error.strerror})", remedy) from error
    return folder / "records.jsonl"


@bench.command()
@click.option("--device", "device_name", metavar="NAME", help="A device of the table; `--device list` shows it.")
@click.option("--bandwidth", type=click.FloatRange(0.1, 1e5), metavar="GB/S", help="Instead of --device.")
@click.option("--model", "shape_name", metavar="NAME", help="A known model; `--model list` shows them.")
@click.option("-t", "--type", "type_name", default="Q4_K_M", show_default=True, metavar="TYPE", help="Quantised type.")
@click.option("--claim", type=click.FloatRange(0, min_open=True), metavar="N", help="Tokens/s that somebody claims.")
@click.option("--as", "kind", type=click.Choice(["generation", "prompt"]), default="generation", show_default=True)
@click.option("--depth", type=click.IntRange(0, 1 << 20), default=0, metavar="N", help="Tokens in the cache.  [0]")
@click.option("--size", "size_gb", type=click.FloatRange(0, min_open=True), metavar="GB", help="File size claimed.")
@click.option("--loss", "loss_percent", type=click.FloatRange(0, 100), metavar="PERCENT", help="Loss of score claimed.")
def check(shape_name: str | None, type_name: str, **options: Any) -> None:
    """Judge a published number by what memory and arithmetic allow. Without a claim: the limit itself.

    \b
    edge bench check --device a17-pro --model deepseek-r1-distill-qwen-1.5b -t Q4_K_M --claim 120
    edge bench check --device pi-5 --model deepseek-r1-distill-qwen-1.5b -t Q4_0
    edge bench check --model deepseek-r1-distill-qwen-1.5b -t Q4_K_M --size 0.8
    edge bench check --device list
    """
    from benchmarks import roofline
    from benchmarks.devices import DEVICES
    from benchmarks.shapes import SHAPES, known_shape, layout

    claims = {"--claim": options["claim"], "--size": options["size_gb"], "--loss": options["loss_percent"]}
    given = [name for name, value in claims.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} are different claims; judge them one by one")
    if options["device_name"] == "list":
        for device in DEVICES.values():
            click.echo(f"{device.name:<16} {device.peak_gb_per_s:6.1f} GB/s  {device.title} ({device.memory})")
            if device.share:
                low, high = device.share
                click.echo(f"{'':<29} {low:.0%} to {high:.0%} of it reached: {device.evidence}")
    elif shape_name == "list":
        click.echo("\n".join(SHAPES))
    elif options["loss_percent"] is not None:
        click.echo(str(roofline.judge_loss(options["loss_percent"])))
    elif shape_name is None:
        raise click.UsageError("no --model; `edge bench check --model list` shows those there are")
    elif options["size_gb"] is not None:
        click.echo(str(roofline.judge_size(layout(known_shape(shape_name), type_name), options["size_gb"])))
    else:
        click.echo(judged_speed(layout(known_shape(shape_name), type_name), **options))


def judged_speed(made: "Layout", **options: Any) -> str:
    """What is to say of a speed on a device, claimed or not."""
    from benchmarks import roofline
    from benchmarks.devices import Device, known_device

    if options["bandwidth"] is not None and options["device_name"] is not None:
        raise click.UsageError("--bandwidth stands in place of a --device; give one of them")
    if options["bandwidth"] is not None:
        device = Device("given", "a device", options["bandwidth"], "as given")
    elif options["device_name"] is not None:
        device = known_device(options["device_name"])
    else:
        raise click.UsageError("no --device; `edge bench check --device list` shows those there are")
    if options["claim"] is None:
        if options["kind"] == "prompt":
            raise click.UsageError("--as prompt judges a --claim; give one")
        return "\n".join(roofline.limits(made, device, options["depth"]))
    if options["kind"] == "prompt":
        if options["depth"]:
            raise click.UsageError("--as prompt is judged from an empty cache; leave out --depth")
        return str(roofline.judge_prompt(made, device, options["claim"]))
    return str(roofline.judge_generation(made, device, options["claim"], options["depth"]))


@bench.command()
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@click.option("--title", default="Benchmark", show_default=True, metavar="TEXT")
@click.option("--out", type=PATH, metavar="FILE", help="Write FILE.md, .html, .png, .svg, .csv, .jsonl or .sql.")
@click.option("--as", "form", type=click.Choice(["markdown", "sbc-reviews"]), default="markdown", show_default=True)
def report(files: tuple[Path, ...], title: str, out: Path | None, form: str) -> None:
    """Make a report of the records in FILES, of one board or of several.

    .jsonl and .sql are as llama-bench writes them; without --out, Markdown goes to stdout.

    \b
    edge bench report results.jsonl
    edge bench report pi5.jsonl rock5.jsonl --out report.html
    edge bench report results.jsonl --as sbc-reviews
    """
    from benchmarks import exchange, markdown, page, plots, record

    records = record.read(files)
    if not records:
        raise record.RecordError(files[0], "holds no records", "measure first: edge bench --out FILE")
    writers = {
        ".md": lambda: (
            markdown.sbc_reviews_text(records) if form == "sbc-reviews" else markdown.report_text(records, title)
        ),
        ".html": lambda: page.page(records, title),
        ".csv": lambda: exchange.to_csv(records),
        ".jsonl": lambda: exchange.to_llama_bench_jsonl(records),
        ".sql": lambda: exchange.to_sql(records),
    }
    if out is None:
        click.echo(writers[".md"](), nl=False)
        return
    if out.suffix not in (*writers, ".png", ".svg"):
        raise click.UsageError(f"--out {out.name} has no known ending; use {', '.join((*writers, '.png', '.svg'))}")
    if form != "markdown" and out.suffix != ".md":
        raise click.UsageError(f"--as {form} is a form of .md; {out.suffix} has its own")
    if out.suffix in (".jsonl", ".sql"):
        n_left = len(records) - len(exchange.llama_bench_rows(records))
        what = "llama-bench knows one stream of the kernel view, and no loading"
        if n_left == len(records):
            raise record.RecordError(files[0], f"holds nothing for {out.suffix} ({what})", "write a .csv or .html")
        if n_left:
            click.echo(f"{n_left} of {len(records)} records left out: {what}", err=True)
    try:
        if out.suffix in writers:
            out.write_text(writers[out.suffix](), encoding="utf-8")
        else:
            plots.save(records, out)
    except OSError as error:
        raise record.RecordError(out, f"cannot be written ({error.strerror})", "choose another --out") from error


@bench.command()
@click.argument("first", type=PATH, metavar="A")
@click.argument("second", type=PATH, metavar="B")
@click.option("--across", multiple=True, metavar="FIELD", help="A field that is meant to differ; may be given again.")
def compare(first: Path, second: Path, across: tuple[str, ...]) -> None:
    """How many times faster the records in B are than those in A, with the interval that holds it 95 times in 100.

    \b
    edge bench compare before.jsonl after.jsonl
    edge bench compare pi4.jsonl pi5.jsonl --across board
    edge bench compare q4_0.jsonl q4_k_m.jsonl --across model
    """
    from benchmarks import record
    from benchmarks.compare import FIELDS, read_timed
    from benchmarks.compare import compare as compare_records

    for name in across:
        if name not in FIELDS:
            raise click.UsageError(f"--across {name} is no field; choose of: {', '.join(FIELDS)}")
    found = compare_records(read_timed(first), read_timed(second), across)
    if not found:
        raise record.RecordError(second, "has no workload of the other file", "measure the same workloads for both")
    for one in found:
        click.echo(str(one))


@bench.command("import")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@click.option("--out", type=PATH, required=True, metavar="FILE", help="Add the records to FILE.")
def import_(files: tuple[Path, ...], out: Path) -> None:
    """Turn the output of `llama-bench -o json` or `-o jsonl` into records. Suspect: it keeps no conditions.

    \b
    llama-bench -m model.gguf -o jsonl > theirs.jsonl
    edge bench import theirs.jsonl --out records.jsonl
    """
    from benchmarks import exchange, record

    found = [made for path in files for made in exchange.from_llama_bench(path)]  # all or none
    for made in found:
        record.append(out, made)
    click.echo(f"{len(found)} record(s): {out}", err=True)


@bench.command()
@click.argument("model", required=False, type=PATH)
@click.option("--url", metavar="URL", help="A server that speaks OpenAI's API, up to /v1.")
@click.option("--model", "served", metavar="NAME", help="Model at that server.  [its first]")
@click.option("--key", metavar="KEY", help="API key of that server.")
@click.option("--clients", type=numbers(1, 64), default=None, metavar="N,N…", help="Closed loop.  [1,2,4,8]")
@click.option("--rate", "rates", type=rates(0.001, 1000), metavar="R,R…", help="Open loop: R requests a second arrive.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="Of each level.")
@click.option("-p", "--prompt", type=numbers(1, 1 << 20), default="32,256,1024", show_default=True, metavar="N,N…")
@click.option("-n", "--gen", type=click.IntRange(1, 1 << 20), default=64, show_default=True, metavar="N")
@THREADS
@GPU_LAYERS
@FORCE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def load(model: Path | None, url: str | None, as_json: bool, **options: Any) -> None:
    """Ask a MODEL's engine, or a server, many things at once: percentiles, the longest stall, where it is full.

    \b
    edge bench load model.gguf
    edge bench load --url http://127.0.0.1:8080/v1 --rate 0.2,0.5,1
    edge bench load model.gguf --clients 1,4 -p 64,512 -n 128 --seconds 60
    """
    import asyncio
    import json

    from rich.console import Console

    from benchmarks import report as tables
    from benchmarks.load import Mix, saturation
    from benchmarks.load import run as run_load
    from benchmarks.schema import to_json

    clients = options["clients"] or (() if options["rates"] else (1, 2, 4, 8))
    mix = Mix(options["prompt"], options["gen"])
    endpoint = endpoint_for(model, url, mix, n_slots=max(clients, default=8), **options)

    async def measured(step: Callable[[str], None]) -> Any:
        await endpoint.start()
        try:
            return await run_load(endpoint, mix, options["seconds"], clients, options["rates"] or (), step)
        finally:
            await endpoint.close()

    with tables.Steps() as steps:
        levels = asyncio.run(measured(steps.show))
    if as_json:
        click.echo(json.dumps(to_json(levels), indent=1))
        return
    Console().print(tables.load_table(levels))
    click.echo(saturation(levels))


def endpoint_for(
    model: Path | None, url: str | None, mix: "Mix", *, n_slots: int, **options: Any
) -> "EngineEndpoint | UrlEndpoint":
    """What is asked: a server by its address, or the engine of a model file."""
    from benchmarks.endpoint import EngineEndpoint, UrlEndpoint
    from edge.board.plan import Wish, make_plan
    from edge.config import N_CTX_TOKENS
    from edge.model.gguf import read_model_info

    if url is not None:
        if model is not None:
            raise click.UsageError("give a MODEL or a --url, not both")
        return UrlEndpoint(url, options["served"], options["key"])
    if options["served"]:
        raise click.UsageError("--model is a server's model; give its --url, or a file without --model")
    if model is None:
        from edge.demo import demo_model

        model = demo_model()
    n_each = max(mix.n_prompt_tokens) + mix.n_generated_tokens + 64
    n_ctx = max(N_CTX_TOKENS, n_slots * n_each)
    wish = Wish(n_ctx, n_slots, options["threads"], options["gpu_layers"], options["force"])
    return EngineEndpoint(replace(make_plan(read_model_info(model), wish).settings, n_queue=4096))
