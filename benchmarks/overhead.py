"""What the harness costs: generation with its sensors watching and without, turn by turn in one child.

    python -m benchmarks.overhead MODEL.gguf [--turns N]

Prints the ratio of the two speeds with its interval, and the processor time that watching takes, which tells more on a
machine that is not quiet.
"""

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import click

from benchmarks import runner
from benchmarks.conditions import Tally, Watch
from benchmarks.runner import Job
from benchmarks.stats import paired_ratio
from benchmarks.workload import Workload
from edge.board.topology import compute_cpus
from edge.errors import EdgeError

N_TURNS = 60  # a difference of half a percent hides in a dozen


def times_ns(path: Path, workload: Workload, n_turns: int = N_TURNS) -> tuple[list[int], list[int]]:
    """(unwatched, watched): nanoseconds of each repetition."""
    unwatched: list[int] = []
    watched: list[int] = []
    child = runner.start(Job(workload, path))
    try:
        for _ in range(2):
            child.repeat()
        for i in range(n_turns):
            for is_watched in (True, False) if i % 2 else (False, True):
                watch = Watch(compute_cpus())
                with watch if is_watched else nullcontext():
                    during = watch.during(Tally(list(child.ready.pids))) if is_watched else nullcontext()
                    with during:
                        (watched if is_watched else unwatched).append(child.repeat().elapsed_ns)
    finally:
        child.close()
    return unwatched, watched


def share_of_a_core(seconds: float = 10.0) -> float:
    """Processor time that watching takes, over the time that goes by."""
    began_s = time.process_time()
    with Watch(compute_cpus()) as watch, watch.during(Tally([os.getpid()])):
        time.sleep(seconds)
    return (time.process_time() - began_s) / seconds


@click.command(context_settings={"auto_envvar_prefix": "EDGE_OVERHEAD"})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--turns", "n_turns", type=click.IntRange(1, 10000), default=N_TURNS, show_default=True, metavar="N")
def main(model: Path, n_turns: int) -> None:
    """Generate with MODEL, watched and unwatched in turns, and compare."""
    found = paired_ratio(*times_ns(model, Workload(n_generated_tokens=32), n_turns))
    text = (
        f"a watched repetition takes {found.value:.4f} of an unwatched one's time ({found.low:.4f} to {found.high:.4f})"
    )
    click.echo(f"{text}; watching takes {share_of_a_core():.3%} of one core")


if __name__ == "__main__":
    try:
        main()
    except EdgeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
