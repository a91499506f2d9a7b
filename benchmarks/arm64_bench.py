"""Emulated processor time for a token, by build of llama.cpp: a stand-in for counting instructions, not for a board.

    eval "$(bash scripts/test-arm64.sh --prepare)"
    python -m benchmarks.arm64_bench [--cpu cortex-a76] [--repeat 5]

The emulator turns each instruction of the guest into a few of this machine's, so a build that does the same with fewer
of them takes less of its time. It knows no caches, no memory bus and no pipelines: a board's own ratios differ, and for
generation, which waits for memory, they are nearer to 1. It is the processor time of one thread, so other programs
matter little.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import click

from benchmarks.emulator import write_launcher
from benchmarks.kernel import Kernel
from benchmarks.record import USUAL
from benchmarks.shapes import known_shape, layout, write
from benchmarks.workload import Workload
from edge.demo import demo_model

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("armv8.0", "armv8.2-dotprod")
TYPES = ("Q4_0", "Q4_K_M")
WHOLE = known_shape("deepseek-r1-distill-qwen-1.5b")
# 2 of 28 layers with as small a part of the vocabulary: a fourteenth of the work of a token, in the same mixture
SLICE = replace(WHOLE, name="r1-1.5b-slice", n_layers=2, n_vocab=WHOLE.n_vocab // 14 // 64 * 64)
N_PROMPT_TOKENS, N_GENERATED_TOKENS = 64, 16


@dataclass(frozen=True)
class Times:
    """Processor seconds, sample by sample: for a prompt token, for a generated one."""

    prompt_s: list[float]
    token_s: list[float]


@dataclass(frozen=True)
class Row:
    model: str
    before: Times  # with the first of TARGETS
    after: Times  # with the second


def measure(path: Path, n_repetitions: int) -> Times:
    """Of this process, one thread."""
    found = []
    for n_prompt, n_generated in ((N_PROMPT_TOKENS, 0), (0, N_GENERATED_TOKENS)):
        kernel = Kernel(path, Workload(n_prompt_tokens=n_prompt, n_generated_tokens=n_generated, n_threads=1), USUAL)
        kernel.repeat()  # the emulator translates code when it is first run
        samples = []
        for _ in range(n_repetitions):
            began_s = time.process_time()
            kernel.repeat()
            samples.append((time.process_time() - began_s) / (n_prompt or n_generated))
        kernel.close()
        found.append(samples)
    return Times(*found)


@click.command()
@click.option("--cpu", default="cortex-a76", show_default=True, help="The core to emulate.")
@click.option("--repeat", "n_repetitions", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with every sample.")
@click.option("--inside", type=click.Path(path_type=Path), hidden=True)
def main(cpu: str, n_repetitions: int, as_json: bool, inside: Path | None) -> None:
    """Emulated processor time for a prompt token and a generated one, for each build, model and type."""
    if inside:  # the emulated side
        click.echo(json.dumps(asdict(measure(inside, n_repetitions))))
        return
    machine = Path(os.environ.get("EDGE_ARM64", ""))
    if not (machine / "root").is_dir():
        raise click.UsageError('there is no machine to emulate; run: eval "$(bash scripts/test-arm64.sh --prepare)"')
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for target in TARGETS:
            write_launcher(folder / target, machine, cpu, target)
        for kind in TYPES:
            sliced = folder / f"slice-{kind}.gguf"
            write(layout(SLICE, kind), sliced)
            for model, path in (("demo", demo_model(kind)), ("2 layers of R1 1.5B", sliced)):
                times = [emulated(folder / target, path, n_repetitions) for target in TARGETS]
                rows.append(Row(f"{model}, {kind}", *times))
    if as_json:
        click.echo(json.dumps({"cpu": cpu, "targets": TARGETS, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        click.echo(table(rows, cpu))


def emulated(launcher: Path, model: Path, n_repetitions: int) -> Times:
    """What `measure` finds there. Raises ClickException with the last words of what went wrong."""
    words = ["-m", "benchmarks.arm64_bench", "--inside", str(model), "--repeat", str(n_repetitions)]
    done = subprocess.run([str(launcher), *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{launcher.name} ended with {done.returncode}: {done.stderr[-300:]}")
    return Times(**json.loads(done.stdout))


def table(rows: list[Row], cpu: str) -> str:
    """A line for each model: both builds, and how many times less the second takes."""
    before, after = TARGETS
    heads = " | ".join(f"{what}: {before} | {after} | ratio" for what in ("prompt", "generated"))
    lines = [f"| ms a token, emulated {cpu} | {heads} |", "|---|" + "---:|" * 6]
    for row in rows:
        cells = []
        for slow_s, fast_s in ((row.before.prompt_s, row.after.prompt_s), (row.before.token_s, row.after.token_s)):
            slow, fast = median(slow_s) * 1e3, median(fast_s) * 1e3
            cells.append(f"{slow:.2f} | {fast:.2f} | {slow / fast:.2f}")
        lines.append(f"| {row.model} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(prog_name=f"{Path(sys.executable).name} -m benchmarks.arm64_bench")
