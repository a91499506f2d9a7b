"""The main job on the bundled demo checkpoint, start to end: convert, ask, measure, compare.

python -m benchmarks.demo [--sums 500]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from benchmarks import harness, report
from benchmarks.accuracy import held_out_sums, wrong_answers
from benchmarks.record import Record
from benchmarks.runner import Job
from benchmarks.workload import Workload
from convert.pipeline import convert
from edge import terminal
from edge.chat import Conversation, chat_template
from edge.config import EngineSettings, Sampling
from edge.demo import CHECKPOINT, demo_model
from edge.engine.client import Engine
from edge.errors import EdgeError
from edge.model.gguf import read_model_info

TYPES = ("F16", "Q4_K_M", "Q4_0")
PROMPT, GENERATION = Workload(n_prompt_tokens=512), Workload(n_generated_tokens=128)
QUESTIONS = ("What is 347 + 85?", "347 减 500 等于多少？")

screen = Console(highlight=False)


@click.command()
@click.option("--sums", "n_sums", default=100, show_default=True, help="Sums to check each file with, of 500.")
def demo(n_sums: int) -> None:
    """Convert the demo checkpoint to three types, ask it two questions, measure each file."""
    folder = demo_model().parent

    step(f"1. Convert {display(CHECKPOINT)} to {', '.join(TYPES)}")
    made = convert(CHECKPOINT, TYPES, folder, overwrite=True)
    for result in made:
        screen.print(
            f"   {result.path.name:<18} {result.n_bytes / 1e6:5.1f} MB  {result.bits_per_weight:5.2f} bits a weight"
        )
    screen.print(f"   in one pass, {made[0].seconds:.2f} s", style="dim")
    paths = [folder / f"demo-{name}.gguf" for name in TYPES]

    step(f"2. Ask {paths[1].name} two questions (the thought is dimmed)")
    ask(paths[1])

    step("3. Measure each file in a fresh process, and check its answers")
    sums = held_out_sums()[:n_sums]
    records, right = [], []
    with report.Steps() as steps:
        for path in paths:
            groups = [[Job(PROMPT, path)], [Job(GENERATION, path)]]
            records.append(harness.run(groups, steps.show))
            steps.show(f"{path.name}: {len(sums)} sums")
            right.append(f"{1 - len(wrong_answers(path, sums)) / len(sums):.1%}")
    screen.print(table(records, {f"right of {len(sums)}": right}))
    for line in report.footer([record for pair in records for record in pair]):
        screen.print(line, style="dim")

    step("Try next")
    for command, purpose in (
        ("edge chat", "talk to the demo"),
        ("edge convert ./DeepSeek-R1-Distill-Qwen-1.5B", "your own checkpoint, to Q4_K_M and Q4_0"),
        (f"edge bench {display(paths[1])}", "measure any GGUF file"),
    ):
        screen.print(f"   [bold].venv/bin/{command}[/]\n      {purpose}", soft_wrap=True)


def table(pairs: Sequence[Sequence[Record]], more: dict[str, list[str]]) -> Table:
    """A row for each file: its prompt and its generation side by side. more: further columns."""
    made = Table(title=None, header_style="bold", pad_edge=False, box=None)
    made.add_column("model")
    for name in ("file", "load", "prompt tokens/s", "generation tokens/s", "peak memory", *more):
        made.add_column(name, justify="right")
    for i, (prompt, generation) in enumerate(pairs):
        assert prompt.loads is not None
        assert generation.memory is not None
        made.add_row(
            Path(prompt.model.name).stem,
            report.megabytes(prompt.model.n_bytes or 0),
            f"{prompt.loads.warm_s[0]:.2f} s",
            report.rate(prompt.tokens_per_s),
            report.rate(generation.tokens_per_s),
            report.megabytes(generation.memory.peak_rss_bytes),
            *(cells[i] for cells in more.values()),
        )
    return made


def step(title: str) -> None:
    screen.print()
    screen.print(Rule(title, align="left", style="dim"))


def ask(model: Path) -> None:
    info = read_model_info(model)
    with Engine(EngineSettings(str(model), n_slots=1)) as engine:
        engine.start()
        for question in QUESTIONS:
            screen.print(f"\n> {question}", style="bold")
            conversation = Conversation(chat_template(info), Sampling(temperature=0))
            terminal.reply(conversation, engine, question, show_thought=True)


def display(path: Path) -> str:
    """A path as short as the shell understands it."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + str(path.relative_to(base))
    return str(path)


if __name__ == "__main__":
    try:
        demo(prog_name="demo")
    except EdgeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
