"""`edge plan`, `edge doctor` and `edge tune`: options in, tables or JSON out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.board.options import CTX, FORCE, GPU_LAYERS, THREADS

if TYPE_CHECKING:
    from edge.board.doctor import Examination
    from edge.board.plan import Plan
    from edge.board.tune import Outcome
    from edge.model.gguf import ModelInfo


@click.command()
@click.argument("model", required=False)
@CTX
@click.option("--slots", type=click.IntRange(1, 63), metavar="N", help="Streams that generate at the same time.  [1]")
@THREADS
@GPU_LAYERS
@FORCE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def plan(
    model: str | None,
    *,
    ctx: int | None,
    slots: int | None,
    threads: int | None,
    gpu_layers: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Say how MODEL would be run here and what memory it takes; reads its header only. No MODEL means the demo.

    \b
    edge plan model.gguf
    edge plan model.gguf --ctx 16384 --slots 4
    edge plan deepseek-r1:1.5b                        before it is fetched
    edge plan model.gguf --json | jq .predicted.total_bytes
    """
    from edge.board.plan import Wish, make_plan

    found = make_plan(model_info(model), Wish(ctx, slots, threads, gpu_layers, force))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        for name, value in plan_rows(found):
            click.echo(f"{name:<14}{value}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: all that was seen, and the findings.")
def doctor(*, as_json: bool) -> None:
    """Look for what makes models slow or fail on this machine, and say what mends it. Takes a few seconds.

    \b
    edge doctor
    edge doctor --json | jq .findings
    """
    from dataclasses import asdict

    from edge.board.build import build_target
    from edge.board.doctor import diagnose, examine

    seen = examine()
    findings = diagnose(seen)
    if as_json:
        target = build_target(seen.topology)
        found = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"findings": found, "build_target": target, "seen": seen.to_json()}, indent=1))
        return
    for name, value in doctor_rows(seen):
        click.echo(f"{name:<14}{value}")
    click.echo()
    for finding in findings:
        click.echo(f"{finding.severity}: {finding.what}\n  why   {finding.why}\n  mend  {finding.mend}")
    if not findings:
        click.echo("Nothing to mend.")


@click.command()
@click.argument("model", required=False)
@click.option("--seconds", type=click.IntRange(10, 600), metavar="N", default=55, help="Time for the search.  [55]")
@click.option("--forget", is_flag=True, help="Drop what was found earlier and use the defaults again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def tune(model: str | None, *, seconds: int, forget: bool, as_json: bool) -> None:
    """Measure which settings run MODEL fastest here; later runs use them. Takes a minute. No MODEL means the demo.

    \b
    edge tune model.gguf
    edge tune model.gguf --forget
    """
    from dataclasses import asdict

    from edge.board import tuned
    from edge.board.plan import Wish, make_plan
    from edge.board.tune import tune as search

    info = model_info(model, is_run=True)
    default = make_plan(info, Wish(), use_tuned=False)
    if forget:
        tuned.forget(info, default.board.topology)
        return
    outcome = search(info, default, report=lambda text: click.echo(text, err=True), budget_s=seconds)
    if as_json:
        click.echo(json.dumps(asdict(outcome), indent=1))
    else:
        click.echo(outcome_text(outcome))


def outcome_text(outcome: "Outcome") -> str:
    """What a search came to, in a sentence."""
    changes = outcome.tuned.changes()
    if not changes:
        return "Nothing was measurably better than the defaults; they stay."
    named = ", ".join(f"{name} {value}" for name, value in changes.items())
    prompt, generation = outcome.tuned.prefill_gain - 1, outcome.tuned.decode_gain - 1
    return f"Kept {named}: prompt {prompt:+.0%}, generation {generation:+.0%} tokens/s over the defaults."


def doctor_rows(seen: "Examination") -> list[tuple[str, str]]:
    """The board for people, as (name, value); what is unknown is left out."""
    topology, memory, sensors = seen.topology, seen.memory, seen.sensors
    rows = [("board", topology.name or "unknown")]
    for cluster in topology.clusters:
        frequency = f" to {cluster.max_khz / 1000:,.0f} MHz" if cluster.max_khz else ""
        rows.append(
            ("cores", f"{len(cluster.cores)} {cluster.name or 'cores'}{frequency}, CPUs {cpus_text(cluster.cpus)}")
        )
    rows.append(("CPU has", ", ".join(sorted(topology.features)) or "unknown"))
    rows.append(("llama.cpp has", ", ".join(sorted(seen.library.features)) or "unknown"))
    for device in seen.library.devices:
        free = f"{megabytes(device.free_bytes)} of {megabytes(device.total_bytes)} free"
        rows.append(("device", f"{device.description} ({device.kind}), {free}"))
    if memory is not None:
        rows.append(("memory", f"{megabytes(memory.total_bytes)}, {megabytes(memory.available_bytes)} available"))
    if seen.memory_bytes_per_s is not None:
        rate = seen.memory_bytes_per_s / 1e9
        rows.append(("memory speed", f"{rate:.1f} GB/s: a 1 GB model generates at most about {rate:.0f} tokens/s"))
    if seen.disk_bytes_per_s is not None:
        rows.append(("disk", f"reads {seen.disk_bytes_per_s / 1e6:,.0f} MB/s"))
    if sensors.governors:
        rows.append(("governor", ", ".join(sensors.governors)))
    if sensors.hottest is not None:
        rows.append(("hottest", f"{sensors.hottest.name} {sensors.hottest.text}"))
    if sensors.power is not None:
        rows.append(("power", f"{sensors.power.text}, {sensors.power.name} ({sensors.power.source})"))
    return [*rows, ("versions", ", ".join(f"{name} {value}" for name, value in seen.versions.items()))]


def model_info(model: str | None, *, is_run: bool = False) -> "ModelInfo":
    """The header of a MODEL argument; none means the demo. is_run: it has to be on this machine as a whole."""
    from edge.model.gguf import read_model_info

    if model is None:
        from edge.demo import demo_model

        return read_model_info(demo_model())
    from edge.model.names import is_name
    from edge.model.pull import local, read_info

    if is_run or not is_name(model) or Path(model).exists():
        return read_model_info(local(model))
    return read_info(model)


def plan_rows(found: "Plan") -> list[tuple[str, str]]:
    """A plan for people, as (name, value)."""
    settings, parts, memory, topology = found.settings, found.footprint, found.board.memory, found.board.topology
    modes = {"read": "read into memory", "map": "mapped from the file"}
    drivers = ", drivers" if found.board.driver_bytes else ""
    repacked = f", {megabytes(parts.repacked)} of it laid out for this CPU" if parts.repacked else ""
    rows = [
        ("board", topology.name or "unknown"),
        ("threads", f"{settings.n_threads} on {cpus_text(settings.cpus or topology.compute_cpus)}{cores_text(found)}"),
        ("context", f"{settings.n_ctx_tokens:,} tokens, shared by {settings.n_slots} slot(s), KV {settings.kv_type}"),
        ("micro-batch", f"{settings.n_ubatch_tokens} tokens"),
        ("weights", f"{megabytes(parts.weights)} {modes[settings.load_mode]}{repacked}"),
        ("KV cache", megabytes(parts.kv)),
        ("compute", megabytes(parts.compute)),
        ("logits", megabytes(parts.logits)),
        ("engine", f"{megabytes(parts.engine)} for Python, libraries{drivers} and the vocabulary"),
        ("total", f"{megabytes(parts.total)} at its peak"),
    ]
    if parts.device:
        place = ", in the same memory: part of the total" if parts.shares_memory else ", in its own memory"
        rows.append(("on the GPU", f"{megabytes(parts.device)}, {settings.n_gpu_layers} layers{place}"))
    if memory is not None:
        limit = "" if memory.cgroup_limit_bytes is None else f", limited to {megabytes(memory.cgroup_limit_bytes)}"
        usable = megabytes(found.board.usable_bytes or 0)
        rows.append(("memory", f"{megabytes(memory.total_bytes)}{limit}; {usable} can be used now"))
        rows.append(("remaining", megabytes(found.remaining_bytes or 0)))
    for device in found.board.devices:
        free = f"{megabytes(device.free_bytes)} of {megabytes(device.total_bytes)} free"
        rows.append(("device", f"{device.description} ({device.kind}), {free}"))
    return rows + [("note", note) for note in found.notes]


def cores_text(found: "Plan") -> str:
    """What kind of cores these are, and who gets the others."""
    topology = found.board.topology
    name = topology.clusters[0].name
    others = f"; CPUs {cpus_text(topology.front_cpus)} for the rest" if topology.front_cpus else ""
    return (f" ({name})" if name else "") + others


def cpus_text(cpus: tuple[int, ...]) -> str:
    """(4, 5, 6, 7) -> "4-7"."""
    spans: list[list[int]] = []
    for cpu in cpus:
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if abs(n_bytes) < 100e6 else f"{n_bytes / 1e6:,.0f} MB"
