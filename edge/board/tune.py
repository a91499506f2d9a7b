"""A short, measured search for the settings that run a model fastest here. Never keeps what is not shown to be better.

Every candidate is measured against the best so far, the two in turns, so that heat and other programs hit both alike;
it wins only if it wins nearly every pair. What won is measured once more against the default, with new samples, before
it is kept. What needs a process of its own (cores, load mode, environment) is tried where two engines fit into memory.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from edge.board import library, tuned
from edge.board.build import wrong_build
from edge.board.plan import Plan
from edge.board.tuned import Tuned
from edge.config import LoadMode
from edge.errors import EngineError
from edge.model.gguf import ModelInfo

BUDGET_S = 55.0  # of the search; starting and the last comparison of a slow board fit into a minute with it
FINAL_SHARE = 0.3  # of the budget, kept for the comparison with the default
N_PAIRS, N_PAIRS_FINAL = 5, 8
LEAST_GAIN = 0.98  # a candidate's time over the other's: less than 2 % is not worth a setting
SIGNIFICANCE = 0.05
REPLY = (256, 128)  # prompt and generated tokens of a usual turn: what a candidate's time is counted in
SAMPLE_S = 0.5  # a sample's prompt, and its generation, take about this long
SMALL_PAGES = (("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0"),)  # the client asks for huge ones
WAITING = (("OMP_WAIT_POLICY", "active"),)


@dataclass(frozen=True)
class Candidate:
    """Settings to try. The first line may change in a running process, the second needs a new one."""

    n_threads: int
    flash_attention: bool | None
    n_ubatch_tokens: int
    load_mode: LoadMode
    cpus: tuple[int, ...]
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def process(self) -> tuple[Any, ...]:
        return (self.load_mode, self.cpus, self.environment)


@dataclass(frozen=True)
class Sample:
    prompt_s_per_token: float
    generation_s_per_token: float

    @property
    def reply_s(self) -> float:
        """Time of a usual turn."""
        return REPLY[0] * self.prompt_s_per_token + REPLY[1] * self.generation_s_per_token


@dataclass(frozen=True)
class Comparison:
    """Two candidates measured in turns: ratio below 1 is a gain of the second."""

    name: str
    ratio: float  # of reply times, median of pairs
    n_wins: int
    n_pairs: int
    prompt_gain: float
    generation_gain: float

    @property
    def is_better(self) -> bool:
        return self.n_pairs > 0 and self.ratio < LEAST_GAIN and chance(self.n_wins, self.n_pairs) <= SIGNIFICANCE


@dataclass
class Outcome:
    tuned: Tuned
    default: Candidate
    best: Candidate
    final: Comparison | None  # None: nothing was better than the default
    comparisons: list[Comparison] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class Bench(Protocol):
    """Something that measures a candidate; raises EngineError where it cannot."""

    def sample(self, candidate: Candidate) -> Sample: ...
    def close(self) -> None: ...


def chance(n_wins: int, n_pairs: int) -> float:
    """The chance of so many wins or more if the two were equal (sign test)."""
    return sum(comb(n_pairs, k) for k in range(n_wins, n_pairs + 1)) / float(2**n_pairs)


def tune(
    info: ModelInfo,
    plan: Plan,
    report: Callable[[str], None] = lambda _: None,
    bench: Bench | None = None,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Search, compare with the default, keep the record. plan: the default's, without an older record."""
    started_s = clock()
    settings = plan.settings
    assert settings.n_threads is not None
    default = Candidate(
        settings.n_threads, settings.flash_attention, settings.n_ubatch_tokens, settings.load_mode, settings.cpus or ()
    )
    outcome = Outcome(Tuned(), default, default, None)
    own = bench or Trials(Path(info.path), settings.n_gpu_layers)
    try:
        for name, candidate in candidates(plan, default):
            left_s = (1 - FINAL_SHARE) * budget_s - (clock() - started_s)
            merged = _with_change(outcome.best, default, candidate)
            if left_s <= 0:
                outcome.skipped.append(name)
                continue
            report(f"{name} …")
            deadline_s = clock() + left_s
            try:
                compared = compare(own, name, outcome.best, merged, N_PAIRS, deadline_s, clock)
            except EngineError as error:
                outcome.skipped.append(f"{name} ({error.problem})")
                continue
            outcome.comparisons.append(compared)
            report(f"{name}: {_percent(compared.ratio)}{', kept' if compared.is_better else ''}")
            if compared.is_better:
                outcome.best = merged
        if outcome.best != default:
            report("the best against the default, measured again …")
            deadline_s = started_s + budget_s
            final = compare(own, "best", default, outcome.best, N_PAIRS_FINAL, deadline_s, clock)
            outcome.final = final
            if final.is_better:
                outcome.tuned = _record(default, outcome.best, final)
            else:
                outcome.best = default
    finally:
        own.close()
    tuned.save(outcome.tuned, info, plan.board.topology)
    return outcome


def candidates(plan: Plan, default: Candidate) -> Iterator[tuple[str, Candidate]]:
    """What may be better than the default on this board, the likeliest first. Each differs in one thing."""
    topology, settings = plan.board.topology, plan.settings
    n_fast = topology.n_threads_max
    for is_on in (False, True):
        if default.flash_attention is not is_on and not (is_on and default.flash_attention is None):
            yield f"flash attention {'on' if is_on else 'off'}", replace(default, flash_attention=is_on)
    for n_threads in dict.fromkeys((n_fast, n_fast - 1, n_fast // 2)):
        if n_threads >= 1 and n_threads != default.n_threads:
            yield f"{n_threads} threads", replace(default, n_threads=n_threads)
    for n_ubatch in (128, 512):
        if n_ubatch != default.n_ubatch_tokens:
            yield f"micro-batch {n_ubatch}", replace(default, n_ubatch_tokens=n_ubatch)
    if (plan.remaining_bytes or 0) < plan.footprint.total or settings.n_gpu_layers:
        return  # no room for two engines
    if topology.front_cpus and topology.quota_cpus is None and topology.is_pinnable:
        everything = tuple(sorted({*topology.compute_cpus, *topology.front_cpus}))
        yield "all clusters", replace(default, n_threads=len(everything), cpus=everything)
    if default.n_threads > 1:
        yield "threads that never sleep", replace(default, environment=WAITING)
    if sys.platform == "linux" and "madvise" in _huge_pages():
        yield "small pages", replace(default, environment=SMALL_PAGES)
    if default.load_mode == "read":
        yield "weights mapped", replace(default, load_mode="map")


def compare(
    bench: Bench,
    name: str,
    first: Candidate,
    second: Candidate,
    n_pairs: int,
    deadline_s: float,
    clock: Callable[[], float],
) -> Comparison:
    """Measure two candidates in turns; the order changes each time. Ends early when the case is clear or time is up."""
    ratios, prompts, generations = [], [], []
    n_wins = 0
    for i in range(n_pairs):
        pair = {}
        for candidate in (first, second) if i % 2 == 0 else (second, first):
            pair[candidate] = bench.sample(candidate)
        a, b = pair[first], pair[second]
        ratios.append(b.reply_s / a.reply_s)
        prompts.append(a.prompt_s_per_token / b.prompt_s_per_token)
        generations.append(a.generation_s_per_token / b.generation_s_per_token)
        n_wins += ratios[-1] < 1
        if chance(n_wins + n_pairs - len(ratios), n_pairs) > SIGNIFICANCE or clock() >= deadline_s:
            break
    return Comparison(name, median(ratios), n_wins, len(ratios), median(prompts), median(generations))


def _with_change(best: Candidate, default: Candidate, candidate: Candidate) -> Candidate:
    """best, with what candidate does otherwise than the default."""
    changes = {name: value for name, value in vars(candidate).items() if value != getattr(default, name)}
    if "environment" in changes:
        changes["environment"] = tuple(sorted({*best.environment, *candidate.environment}))
    return replace(best, **changes)


def _record(default: Candidate, best: Candidate, final: Comparison) -> Tuned:
    changes = {name: value for name, value in vars(best).items() if value != getattr(default, name)}
    return Tuned(**changes, prefill_gain=final.prompt_gain, decode_gain=final.generation_gain)


def _percent(ratio: float) -> str:
    return f"{1 / ratio - 1:+.0%} speed"


def _huge_pages() -> str:
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        return ""


class Trials:
    """Measuring children, one for each set of what only a new process can change. The two newest are kept."""

    def __init__(self, path: Path, n_gpu_layers: int = 0) -> None:
        self._path = path.absolute()
        self._n_gpu_layers = n_gpu_layers
        self._children: dict[tuple[Any, ...], subprocess.Popen[str]] = {}
        self._n_prompt_tokens, self._n_generated_tokens = 32, 4
        self._is_calibrated = False

    def sample(self, candidate: Candidate) -> Sample:
        child = self._child(candidate)
        if not self._is_calibrated:  # as many tokens as take SAMPLE_S on this machine
            rough = self._ask(child, candidate)
            self._n_prompt_tokens = max(32, min(512, int(SAMPLE_S / rough.prompt_s_per_token) // 32 * 32))
            self._n_generated_tokens = max(4, min(128, int(SAMPLE_S / rough.generation_s_per_token)))
            self._is_calibrated = True
        return self._ask(child, candidate)

    def close(self) -> None:
        while self._children:
            self._stop(next(iter(self._children)))

    def _ask(self, child: "subprocess.Popen[str]", candidate: Candidate) -> Sample:
        said = self._exchange(
            child,
            {
                "n_threads": candidate.n_threads,
                "flash_attention": candidate.flash_attention,
                "n_ubatch_tokens": candidate.n_ubatch_tokens,
                "n_prompt_tokens": self._n_prompt_tokens,
                "n_generated_tokens": self._n_generated_tokens,
            },
        )
        return Sample(said["prompt_s"] / self._n_prompt_tokens, said["generation_s"] / self._n_generated_tokens)

    def _child(self, candidate: Candidate) -> "subprocess.Popen[str]":
        if (child := self._children.get(candidate.process)) is not None:
            return child
        while len(self._children) > 1:  # the default's is the first and stays
            self._stop(list(self._children)[1])
        cpus = ",".join(map(str, candidate.cpus))
        words = (str(self._path), candidate.load_mode, str(self._n_gpu_layers), cpus)
        command = [sys.executable, "-m", "edge.engine.trial", *words]
        child = subprocess.Popen(
            command,
            cwd=library.PACKAGE_ROOT,
            env={**os.environ, "GGML_NO_BACKTRACE": "1", **dict(candidate.environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._children[candidate.process] = child
        self._exchange(child, None)
        return child

    def _exchange(self, child: "subprocess.Popen[str]", message: dict[str, Any] | None) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if message is not None:
                child.stdin.write(json.dumps(message) + "\n")
                child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], 300)
            line = child.stdout.readline() if ready else ""
            if ready and not line:
                child.wait()  # nobody else writes there: it is gone, or about to be
        except OSError:
            line = ""
        if not line and child.poll() == -signal.SIGILL:
            raise wrong_build()
        said: dict[str, Any] = (
            json.loads(line) if line else {"problem": f"the measuring process ended ({child.poll()})"}
        )
        if "problem" in said:
            raise EngineError(said["problem"], "see edge doctor")
        return said

    def _stop(self, process: tuple[Any, ...]) -> None:
        child = self._children.pop(process)
        child.kill()
        child.communicate()
