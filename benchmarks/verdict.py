"""Whether to believe a result: its samples and conditions in, reasons against it out. None is a valid result."""

from collections.abc import Iterator, Sequence

from benchmarks.record import Conditions, Gate, Reason
from benchmarks.stats import summarize

N_REPETITIONS_MIN = 5  # below that no interval holds the middle 19 times in 20
SPREAD_MAX = 0.05  # half the distance from fastest to slowest repetition, over the median
OTHER_CORES_MAX = 0.1  # a desktop that idles uses less
CLOCK_TICK_S = 0.03  # processor time is counted in ticks of 10 ms: what three of them may hide in a short run
WAITED_SHARE_MAX = 0.03
FREQUENCY_SHARE_MIN = 0.95
SWAPPED_PAGES_MAX = 16  # strays of other programs
AGREEMENT_MIN = 0.9  # rounding differs between builds, and a near tie may turn over


def reasons(elapsed_ns: Sequence[int], conditions: Conditions, gate: Gate | None) -> list[Reason]:
    """Everything that speaks against a result."""
    return [*_throttled(conditions), *_load(conditions), *_frequency(conditions), *_swap(conditions),
            *_spread(elapsed_ns), *_gate(gate)]  # fmt: skip


def _throttled(conditions: Conditions) -> Iterator[Reason]:
    flags = sorted({flag for moment in conditions.moments for flag in moment.throttled})
    if flags:
        hottest = max((m.temperature_c for m in conditions.moments if m.temperature_c is not None), default=None)
        heat = "" if hottest is None else f" at {hottest:.0f} °C"
        yield Reason("throttled", f"the board held itself back{heat}: {', '.join(flags)}")


def _load(conditions: Conditions) -> Iterator[Reason]:
    others = conditions.other_cores
    if others is not None and others > OTHER_CORES_MAX + CLOCK_TICK_S / max(conditions.busy_s, 0.01):
        yield Reason("background load", f"other programs used {others:.2f} cores")
    elif conditions.waited_share is not None and conditions.waited_share > WAITED_SHARE_MAX:
        yield Reason("background load", f"it waited for a core {conditions.waited_share:.0%} of its time")


def _frequency(conditions: Conditions) -> Iterator[Reason]:
    seen = [m.frequency_mhz for m in conditions.moments if m.is_busy and m.frequency_mhz is not None]
    if seen and min(seen) < FREQUENCY_SHARE_MIN * max(seen):
        yield Reason("frequency moved", f"the clock went between {min(seen):,.0f} and {max(seen):,.0f} MHz")


def _swap(conditions: Conditions) -> Iterator[Reason]:
    n_pages = conditions.n_swapped_pages
    if n_pages is not None and n_pages > SWAPPED_PAGES_MAX:
        yield Reason("swapping", f"{n_pages:,} pages went to or came from swap")


def _spread(elapsed_ns: Sequence[int]) -> Iterator[Reason]:
    if 0 < len(elapsed_ns) < N_REPETITIONS_MIN:
        yield Reason(
            "too few repetitions", f"{len(elapsed_ns)} repetition(s), {N_REPETITIONS_MIN} at least make a result"
        )
    if len(elapsed_ns) > 1 and (spread := summarize(elapsed_ns).spread) > SPREAD_MAX:
        yield Reason("spread too wide", f"repetitions lie ± {spread:.0%} around their median")


def _gate(gate: Gate | None) -> Iterator[Reason]:
    if gate is None:
        return
    n = len(gate.first_choices)
    if n and len(set(gate.first_choices)) == 1:
        yield Reason("correctness gate failed", f"the first choice after each of {n} different tokens is the same")
    if gate.n_paths_agree is not None and gate.n_paths_agree < 0.75 * gate.n_paths:
        differing = gate.n_paths - gate.n_paths_agree
        text = f"{differing} of {gate.n_paths} prompts read as a whole end in another token than read one by one"
        yield Reason("correctness gate failed", text)
    if gate.agreement is not None and gate.agreement < AGREEMENT_MIN:
        yield Reason("correctness gate failed", f"{gate.agreement:.0%} of its first choices are those of the reference")
