"""What else went on while something was measured: sensors once a second, and the processor time of other programs.

Reads files under a root folder, so that recorded sensors do as well as real ones. Knows nothing of what is measured
but its process ids.
"""

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from benchmarks.record import Conditions, Moment

INTERVAL_S = 1.0  # one reading costs a millisecond of one core
PI_THROTTLED = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
PI_THROTTLED_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@dataclass(frozen=True)
class Sensors:
    """One reading. What the board has no sensor for is None."""

    temperature_c: float | None = None
    frequency_mhz: float | None = None  # of the slowest of the cores asked for
    throttled: tuple[str, ...] = ()
    n_throttle_events: int | None = None  # since boot
    power_w: float | None = None
    energy_j: float | None = None  # a counter
    n_swapped_pages: int | None = None  # since boot


def read_sensors(cpus: Sequence[int], root: Path = Path("/")) -> Sensors:
    """Everything this board can tell now."""
    folder = root / "sys/devices/system/cpu"
    temperatures = [n / 1000 for n in _numbers(root, "sys/class/thermal/thermal_zone*/temp")]
    frequencies = [n / 1000 for cpu in cpus for n in _numbers(folder, f"cpu{cpu}/cpufreq/scaling_cur_freq")]
    events = _numbers(folder, "cpu*/thermal_throttle/core_throttle_count")
    power = [n / 1e6 for n in _numbers(root, "sys/class/hwmon/hwmon*/power1_input")]
    energy = [n / 1e6 for n in _numbers(root, "sys/class/powercap/intel-rapl:[0-9]/energy_uj")]
    return Sensors(
        temperature_c=max((t for t in temperatures if 0 < t < 150), default=None),
        frequency_mhz=min(frequencies, default=None),
        throttled=tuple(_throttled(root)),
        n_throttle_events=sum(events) if events else None,
        power_w=sum(power) if power else None,
        energy_j=sum(energy) if energy else None,
        n_swapped_pages=_swapped(root),
    )


def _throttled(root: Path) -> Iterator[str]:
    with contextlib.suppress(OSError, ValueError):
        bits = int((root / PI_THROTTLED_FILE).read_text().strip(), 16)
        yield from (name for bit, name in PI_THROTTLED.items() if bits >> bit & 1)
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        with contextlib.suppress(OSError, ValueError):
            kind = (device / "type").read_text().strip()
            if "cpufreq" in kind and int((device / "cur_state").read_text()) > 0:
                yield f"capped by heat ({kind})"


def _swapped(root: Path) -> int | None:
    try:
        text = (root / "proc/vmstat").read_text()
    except OSError:
        memory = psutil.swap_memory()
        return int(memory.sin + memory.sout) // 4096
    lines = (line.split() for line in text.splitlines() if line.startswith(("pswpin ", "pswpout ")))
    return sum(int(words[1]) for words in lines)


def _numbers(folder: Path, pattern: str) -> list[int]:
    found = []
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return found


@dataclass
class _Clocks:
    """Counters at one moment."""

    at_s: float
    machine_s: float  # processor time of everything that ran
    ours_s: float  # of the measured processes and of this one
    measured_s: float  # of the measured processes alone
    waited_s: float | None  # that these were ready to run and did not
    sensors: Sensors


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
        first = read_sensors(self.cpus, self.root)
        if first.power_w is None and first.energy_j is None:
            return None
        time.sleep(seconds)
        last = read_sensors(self.cpus, self.root)
        if first.energy_j is not None and last.energy_j is not None:
            return (last.energy_j - first.energy_j) / seconds
        return last.power_w

    @contextlib.contextmanager
    def during(self, tally: Tally) -> Iterator[None]:
        """One repetition of the measurement that `tally` is of."""
        before = self._clocks(tally)
        tally.began_s = tally.began_s or before.at_s
        with self._lock:
            self._tally = tally
        try:
            yield
        finally:
            with self._lock:
                self._tally = None
            after = self._clocks(tally)
            self._add(tally, before, after)

    def _add(self, tally: Tally, before: _Clocks, after: _Clocks) -> None:
        tally.busy_s += after.at_s - before.at_s
        tally.measured_s += after.measured_s - before.measured_s
        tally.other_s += (after.machine_s - before.machine_s) - (after.ours_s - before.ours_s)
        tally.waited_s = _sum(tally.waited_s, before.waited_s, after.waited_s)
        tally.n_swapped_pages = _sum(
            tally.n_swapped_pages, before.sensors.n_swapped_pages, after.sensors.n_swapped_pages
        )
        tally.energy_j = _sum(tally.energy_j, before.sensors.energy_j, after.sensors.energy_j)
        sensors = after.sensors
        if (_sum(0, before.sensors.n_throttle_events, sensors.n_throttle_events) or 0) > 0:
            sensors = replace(sensors, throttled=(*sensors.throttled, "the processor slowed itself down"))
        tally.moments.append(self._moment(tally, sensors, after.at_s))

    def _look_around(self) -> None:
        while not self._done.wait(self.interval_s):
            with self._lock:
                if self._tally is not None:
                    sensors = read_sensors(self.cpus, self.root)
                    self._tally.moments.append(self._moment(self._tally, sensors, time.perf_counter()))

    def _moment(self, tally: Tally, sensors: Sensors, at_s: float) -> Moment:
        assert tally.began_s is not None
        return Moment(
            at_s=round(at_s - tally.began_s, 3),
            is_busy=True,
            temperature_c=sensors.temperature_c,
            frequency_mhz=sensors.frequency_mhz,
            throttled=sensors.throttled,
            power_w=sensors.power_w,
            rss_bytes=_total(tally.pids, lambda process: process.memory_info().rss),
        )

    def _clocks(self, tally: Tally) -> _Clocks:
        times = psutil.cpu_times()
        names = ("user", "nice", "system", "irq", "softirq", "steal")
        measured_s, waited_s = _scheduled(tally.pids)
        own = time.process_time()
        # children that ended meanwhile, such as a peer's tool
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        measured_s += ended.ru_utime + ended.ru_stime
        machine_s = sum(getattr(times, name, 0.0) for name in names)
        sensors = read_sensors(self.cpus, self.root)
        return _Clocks(time.perf_counter(), machine_s, measured_s + own, measured_s, waited_s, sensors)


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
