"""The measuring parent: fresh children, warm-up, turns, sensors, and a verdict on each result. Never loads libllama.

Jobs in one group take turns, repetition by repetition, first forward and then backward, so that what changes slowly on
the machine changes both alike.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import bandwidth, fingerprint, runner, verdict
from benchmarks.conditions import Tally, Watch
from benchmarks.record import Board, Gate, Record, Sample
from benchmarks.runner import Job, Runner
from edge.board.plan import this_board
from edge.board.topology import allowed_cpus, compute_cpus
from edge.config import cache_dir
from edge.errors import EngineError

WARM_SHARE = 0.01

Report = Callable[[str], None]
Keep = Callable[[Record], None]


@dataclass
class _Run:
    """One job of a group while it is measured."""

    job: Job
    runner: Runner
    tally: Tally
    gate: Gate | None = None
    warmups: list[Sample] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def is_warm(self) -> bool:
        if len(self.warmups) >= self.runner.n_warmups_max:
            return True
        times = [sample.elapsed_ns for sample in self.warmups[-2:]]
        return len(times) == 2 and abs(times[1] - times[0]) < WARM_SHARE * times[0]

    @property
    def is_done(self) -> bool:
        work = self.job.workload
        if work.duration_s:
            return sum(sample.elapsed_ns for sample in self.samples) >= work.duration_s * 1e9
        return len(self.samples) >= work.n_repetitions


def run(
    groups: Iterable[Sequence[Job]],
    report: Report = lambda _: None,
    keep: Keep = lambda _: None,
    *,
    root: Path = Path("/"),
    probe: bool = False,
) -> list[Record]:
    """Measure group after group; keep gets each record when it is there, report a line for each step.

    root: where sensors and the machine's description are read. probe: measure the memory bandwidth first. Raises
    EdgeError; what was kept before it stays kept.
    """
    board = fingerprint.board(root)
    if probe:
        report("memory bandwidth")
        board = _probed(board)
    found = []
    for group in groups:
        for record in run_group(group, board, report, root):
            keep(record)
            found.append(record)
    return found


def _probed(board: Board) -> Board:
    """With what its memory gives: to the cores that compute, and to all of them where that is more cores."""
    some, every = compute_cpus(), allowed_cpus()
    board = replace(board, read_bytes_per_s=bandwidth.measure(some) or None)
    return (
        board if set(some) == set(every) else replace(board, read_by_all_bytes_per_s=bandwidth.measure(every) or None)
    )


def run_group(jobs: Sequence[Job], board: Board, report: Report, root: Path) -> list[Record]:
    """Measure jobs that take turns."""
    _check_room(jobs)
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch(compute_cpus(), root))
        idle_power_w = watch.idle_power_w()
        runs = []
        for job in jobs:
            report(f"{job.name}: load")
            made = runner.start(job, beside_peer=any(other.peer for other in jobs))
            stack.callback(made.close)
            runs.append(_Run(job, made, Tally(list(made.ready.pids), idle_power_w=idle_power_w)))
        for one in runs:
            report(f"{one.job.name}: check")
            one.gate = _compared(one.runner.gate(), one, runs)
        for one in runs:
            while not one.is_warm:
                report(f"{one.job.name}: warm-up {len(one.warmups) + 1}")
                one.warmups.append(one.runner.repeat())
        turn = list(runs)
        while waiting := [one for one in turn if not one.is_done]:
            for one in waiting:
                report(f"{one.job.name}: {_progress(one)}")
                one.runner.prepare()
                one.tally.pids = list(one.runner.ready.pids)
                with watch.during(one.tally):
                    one.samples.append(one.runner.repeat())
            turn.reverse()
        return [_record(one, board, started_at) for one in runs]


def _progress(one: _Run) -> str:
    work = one.job.workload
    if work.duration_s:
        done_s = sum(sample.elapsed_ns for sample in one.samples) / 1e9
        return f"{done_s:.0f} of {work.duration_s:.0f} s"
    return f"{len(one.samples) + 1} of {work.n_repetitions}"


def _record(one: _Run, board: Board, started_at: str) -> Record:
    ended = one.runner.end()
    conditions = one.tally.conditions()
    if one.job.url is not None:  # its processes are not ours to count: they look like other programs
        conditions = replace(conditions, other_cores=None, waited_share=None)
    record = Record(
        workload=one.job.workload,
        model=one.runner.model(),
        program=one.runner.program(),
        board=board,
        n_threads=one.runner.ready.n_threads,
        settings=None if one.job.url is not None else one.job.settings,
        started_at=started_at,
        samples=tuple(one.samples),
        warmups=tuple(one.warmups),
        conditions=conditions,
        memory=ended.memory,
        loads=ended.loads,
        gate=one.gate,
        cpus=one.runner.ready.cpus,
    )
    # a sustained run is there to show how its speed falls
    times = [] if one.job.workload.duration_s else [sample.elapsed_ns for sample in one.samples]
    record = replace(record, reasons=tuple(verdict.reasons(times, conditions, one.gate)))
    if record.is_valid:
        _keep_reference(record)
    return record


# ---- the correctness gate


def _compared(gate: Gate | None, one: _Run, runs: Sequence[_Run]) -> Gate | None:
    """The gate with its share of agreement: with an earlier job of the group on the same file, else with what this
    file answered on this machine before."""
    if gate is None or not gate.first_choices:
        return gate
    sha256 = one.runner.model().sha256
    earlier = [
        other.gate.first_choices
        for other in runs[: runs.index(one)]
        if other.gate is not None and other.gate.first_choices and other.runner.model().sha256 == sha256
    ]
    reference = earlier[0] if earlier else _references().get(sha256 or "")
    if reference is None or len(reference) != len(gate.first_choices):
        return gate
    n_same = sum(a == b for a, b in zip(reference, gate.first_choices, strict=True))
    return replace(gate, agreement=n_same / len(reference))


def _references_path() -> Path:
    return cache_dir() / "bench" / "first-choices.json"


def _references() -> dict[str, list[int]]:
    """What model files answered before, by their SHA-256."""
    try:
        found = json.loads(_references_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep_reference(record: Record) -> None:
    if record.gate is None or not record.gate.first_choices or record.model.sha256 is None:
        return
    known = _references()
    if record.model.sha256 not in known:
        path = _references_path()
        with contextlib.suppress(OSError):  # a cache
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            new.write_text(json.dumps(known | {record.model.sha256: record.gate.first_choices}), encoding="utf-8")
            new.replace(path)


def _check_room(jobs: Sequence[Job]) -> None:
    """Raise if the models of a group do not fit into memory together."""
    if len(jobs) < 2:
        return
    board = this_board()
    plans = [
        runner.plan_of(job.path, job.workload, job.settings.n_gpu_layers, force=True, board=board)
        for job in jobs
        if job.path is not None
    ]
    n_needed, n_free = sum(plan.footprint.total for plan in plans), board.usable_bytes
    if n_free is not None and n_needed > n_free:
        raise EngineError(
            f"taking turns needs {n_needed / 1e9:.1f} GB of memory, {n_free / 1e9:.1f} GB are free",
            "measure them one after the other: leave out --interleave",
        )
