"""What else went on while something was measured: sensors once a second, and the processor time of other programs.

What the sensors say is edge.board.sensors', below a root folder, so that recorded boards do as well as real ones. Knows
nothing of what is measured but its process ids.
"""

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.record import Conditions, Moment
from edge.board.memory import n_swapped_pages
from edge.board.sensors import Sensors, read_sensors

INTERVAL_S = 1.0  # one reading costs a few milliseconds of one core
SLOWED = "the processor slowed itself down"


@dataclass
class _Clocks:
    """Counters at one moment."""

    at_s: float
    machine_s: float  # processor time of everything that ran
    ours_s: float  # of the measured processes and of this one
    measured_s: float  # of the measured processes alone
    waited_s: float | None  # that these were ready to run and did not


@dataclass
class Tally:
    """The conditions of one measurement as they add up. pids: its processes."""

    pids: list[int] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    busy_s: float = 0.0
    other_s: float = 0.0
    measured_s: float = 0.0
    waited_s: float | None = 0.0
    n_swapped_pages: float | None = 0
    energy_j: float | None = 0.0
    idle_power_w: float | None = None
    began_s: float | None = None

    def conditions(self) -> Conditions:
        power = [moment.power_w for moment in self.moments if moment.is_busy and moment.power_w is not None]
        energy_j = self.energy_j if self.energy_j else sum(power) / len(power) * self.busy_s if power else None
        waited = None if self.waited_s is None or not self.measured_s else self.waited_s / self.measured_s
        return Conditions(
            moments=tuple(self.moments),
            busy_s=self.busy_s,
            other_cores=max(0.0, self.other_s) / self.busy_s if self.busy_s else None,
            waited_share=waited,
            n_swapped_pages=None if self.n_swapped_pages is None else int(self.n_swapped_pages),
            energy_j=energy_j,
            idle_power_w=self.idle_power_w,
        )


class Watch:
    """Looks around while repetitions run. Use as a context manager; `during` wraps each repetition."""

    def __init__(self, cpus: Sequence[int], root: Path = Path("/"), interval_s: float = INTERVAL_S) -> None:
        self.cpus, self.root, self.interval_s = cpus, root, interval_s
        self._tally: Tally | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look_around, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def idle_power_w(self, seconds: float = 2.0) -> float | None:
        """Power of the board while nothing is measured; None, at once, without a sensor."""
        first = read_sensors(self.root)
        if first.power is None and first.energy_j is None:
            return None
        time.sleep(seconds)
        last = read_sensors(self.root)
        if first.energy_j is not None and last.energy_j is not None:
            return (last.energy_j - first.energy_j) / seconds
        return None if last.power is None else last.power.value

    @contextlib.contextmanager
    def during(self, tally: Tally) -> Iterator[None]:
        """One repetition of the measurement that `tally` is of."""
        # sensors outside of the clocks: reading them takes time on some boards
        sensors, n_swapped = read_sensors(self.root), n_swapped_pages(self.root)
        before = _clocks(tally)
        tally.began_s = tally.began_s or before.at_s
        with self._lock:
            self._tally = tally
        try:
            yield
        finally:
            with self._lock:
                self._tally = None
            after = _clocks(tally)
            tally.n_swapped_pages = _sum(tally.n_swapped_pages, n_swapped, n_swapped_pages(self.root))
            self._add(tally, before, after)
            self._feel(tally, sensors, read_sensors(self.root), after.at_s)

    def _add(self, tally: Tally, before: _Clocks, after: _Clocks) -> None:
        tally.busy_s += after.at_s - before.at_s
        tally.measured_s += after.measured_s - before.measured_s
        tally.other_s += (after.machine_s - before.machine_s) - (after.ours_s - before.ours_s)
        tally.waited_s = _sum(tally.waited_s, before.waited_s, after.waited_s)

    def _feel(self, tally: Tally, before: Sensors, after: Sensors, at_s: float) -> None:
        """What the sensors say at the end of a repetition, and what their counters moved since its beginning."""
        tally.energy_j = _sum(tally.energy_j, before.energy_j, after.energy_j)
        was_slowed = (_sum(0, before.n_throttle_events, after.n_throttle_events) or 0) > 0
        tally.moments.append(self._moment(tally, after, at_s, *([SLOWED] if was_slowed else [])))

    def _look_around(self) -> None:
        while not self._done.wait(self.interval_s):
            with self._lock:
                if self._tally is not None:
                    sensors = read_sensors(self.root)
                    self._tally.moments.append(self._moment(self._tally, sensors, time.perf_counter()))

    def _moment(self, tally: Tally, sensors: Sensors, at_s: float, *also: str) -> Moment:
        assert tally.began_s is not None
        hottest, power, throttling = sensors.hottest, sensors.power, sensors.throttling
        return Moment(
            at_s=round(at_s - tally.began_s, 3),
            is_busy=True,
            temperature_c=None if hottest is None else hottest.value,
            frequency_mhz=sensors.frequency_mhz(self.cpus),
            throttled=(*(() if throttling is None else throttling.now), *also),
            power_w=None if power is None else power.value,
            rss_bytes=_total(tally.pids, lambda process: process.memory_info().rss),
        )


def _clocks(tally: Tally) -> _Clocks:
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    measured_s, waited_s = _scheduled(tally.pids)
    own = time.process_time()
    # children that ended meanwhile, such as a peer's tool
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured_s += ended.ru_utime + ended.ru_stime
    machine_s = sum(getattr(times, name, 0.0) for name in names)
    return _Clocks(time.perf_counter(), machine_s, measured_s + own, measured_s, waited_s)


def _sum(total: float | None, before: float | None, after: float | None) -> float | None:
    """total and what a counter moved; None if it cannot be read."""
    return None if total is None or before is None or after is None else total + after - before


def _scheduled(pids: Sequence[int]) -> tuple[float, float | None]:
    """Seconds that some processes ran on a core, and that they waited for one (None where the kernel does not say)."""
    ran_ns = waited_ns = 0
    found = False
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = path.read_text().split()
                ran_ns, waited_ns, found = ran_ns + int(words[0]), waited_ns + int(words[1]), True
    if found:
        return ran_ns / 1e9, waited_ns / 1e9
    return _total(pids, lambda process: sum(process.cpu_times()[:2])) or 0.0, None


def _total(pids: Sequence[int], ask: Callable[[psutil.Process], float]) -> int | None:
    found = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found += ask(psutil.Process(pid))
    return int(found) or None
