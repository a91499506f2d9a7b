"""Predicted against measured peak memory of the engine process: a table, model by model.

    python -m benchmarks.plan_bench MODEL.gguf … [--ctx 1024 --ctx 4096 --ctx 16384] [--slots 1 --slots 4]

Each row is a fresh engine that reads a prompt and answers; then its peak is read from /proc. The KV cache is touched
as a whole when it is made. A full prompt costs time, so a longer one than --prompt is cut: what then stays untouched is
the part of the attention mask behind it, two bytes a token and row of a micro-batch.
"""

import json
import random
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import click

from edge.board.footprint import footprint
from edge.board.memory import process_memory
from edge.board.plan import Wish, make_plan
from edge.board.topology import read_topology
from edge.config import EngineSettings, LoadMode, Sampling
from edge.engine.client import Engine
from edge.engine.protocol import Done, Generate
from edge.errors import ContextOverflowError
from edge.model.gguf import read_model_info

BAR_ABOVE, BAR_BELOW = 0.08, 0.03
WORDS = tuple("the of and to in is it for was on are as with his they at".split())  # noqa: SIM905


def measure(settings: EngineSettings, n_prompt_tokens: int) -> tuple[int, int]:
    """Peak resident bytes of an engine that read a prompt of about n_prompt_tokens; and the prompt's tokens."""
    with Engine(settings) as engine:
        engine.start()
        n_words = n_prompt_tokens
        while True:
            draw = random.Random(0)
            text = " ".join(draw.choice(WORDS) for _ in range(n_words))
            request = Generate("1", ((text, False),), Sampling(temperature=0), 4, thinks=False, ignore_end=True)
            try:
                done = [event for event in engine.generate(request) if isinstance(event, Done)][-1]
                break
            except ContextOverflowError:
                n_words = n_words * 9 // 10
        assert engine.pid is not None
        memory = process_memory(engine.pid)
    assert memory is not None
    return memory.peak_bytes, done.n_prompt_tokens


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--ctx", "contexts", multiple=True, type=click.IntRange(64), default=(1024, 4096, 16384))
@click.option("--slots", "slot_counts", multiple=True, type=click.IntRange(1, 63), default=(1, 4))
@click.option("--mode", "modes", multiple=True, type=click.Choice(["read", "map"]), default=("read", "map"))
@click.option("--prompt", default=1000, show_default=True, help="Longest prompt, in tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(
    models: tuple[Path, ...],
    contexts: tuple[int, ...],
    slot_counts: tuple[int, ...],
    modes: tuple[LoadMode, ...],
    prompt: int,
    as_json: bool,
) -> None:
    """Measure the peak memory of the engine against what `edge plan` predicts."""
    features = read_topology().features
    rows = []
    n_missed = 0
    if not as_json:
        click.echo(
            "| model | context | slots | load | prompt | predicted MB | measured MB | off |\n" + "|---" * 8 + "|"
        )
    for model, n_ctx, n_slots, mode in product(models, contexts, slot_counts, modes):
        info = read_model_info(model)
        plan = make_plan(info, Wish(n_ctx, n_slots, force=True), use_tuned=False)
        settings = replace(
            plan.settings, load_mode=mode, kv_type="f16", hang_timeout_s=3600
        )  # a busy machine is no error
        predicted = footprint(info, settings, features).total
        measured, n_prompt_tokens = measure(settings, min(prompt, n_ctx - 16))
        off = predicted / measured - 1
        is_good = -BAR_BELOW <= off <= BAR_ABOVE
        n_missed += not is_good
        facts = {"model": model.name, "n_ctx_tokens": n_ctx, "n_slots": n_slots, "load_mode": mode}
        counts = {"n_prompt_tokens": n_prompt_tokens, "predicted_bytes": predicted, "measured_bytes": measured}
        rows.append({**facts, **counts})
        if not as_json:
            numbers = f"{n_prompt_tokens:,} | {predicted / 1e6:,.1f} | {measured / 1e6:,.1f} | {off:+.1%}"
            click.echo(f"| {model.stem} | {n_ctx:,} | {n_slots} | {mode} | {numbers}{'' if is_good else ' (!)'} |")
            sys.stdout.flush()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        click.echo(f"\n{len(rows)} rows, {n_missed} outside of +{BAR_ABOVE:.0%} … -{BAR_BELOW:.0%}")


if __name__ == "__main__":
    main()
