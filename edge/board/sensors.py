"""What the board feels: temperatures, frequencies, throttling, power; each value with its source and uncertainty.

Read below a root folder, so a recorded board can stand in for this one. A sensor that is not there, or reads nonsense,
is not in the list: absent is never 0. No other file reads a sensor.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Quantity = Literal["temperature", "frequency", "power"]
UNITS: dict[Quantity, str] = {"temperature": "°C", "frequency": "MHz", "power": "W"}
COOLEST_C, HOTTEST_C = -40.0, 150.0  # outside of this a sensor is broken or not connected
# Raspberry Pi firmware, get_throttled: bit -> (what, is it so now)
THROTTLE_BITS = {
    0: ("undervoltage", True), 1: ("frequency capped", True), 2: ("throttled", True),
    3: ("soft temperature limit", True), 16: ("undervoltage", False), 17: ("frequency capped", False),
    18: ("throttled", False), 19: ("soft temperature limit", False),
}  # fmt: skip
THROTTLED_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"
ELSEWHERE = ("nvme", "drivetemp", "iwlwifi", "mt79", "ath1")  # drives and radios: their heat slows no processor
POWER_SENSORS = ("ina", "rpi_power", "fts", "ltc", "max", "pmbus")  # hwmon drivers that measure a board's supply
# A Pi 5 has no sensor for its supply: a published fit of the sum of its regulators' outputs to a meter at the plug.
PI5_FACTOR, PI5_OFFSET_W, PI5_UNCERTAINTY = 1.1451, 0.5879, 0.1


@dataclass(frozen=True)
class Reading:
    """One value. uncertainty is a share of the value, None where nobody states one."""

    name: str
    quantity: Quantity
    value: float
    source: str
    uncertainty: float | None = None

    @property
    def text(self) -> str:
        return f"{self.value:,.1f} {UNITS[self.quantity]}"


@dataclass(frozen=True)
class Throttling:
    """Limits the firmware or kernel put on the board."""

    now: tuple[str, ...]
    since_boot: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Sensors:
    readings: tuple[Reading, ...]
    throttling: Throttling | None  # None: nothing tells
    governors: tuple[str, ...]  # of all CPUs, without doubles
    capped_cpus: tuple[int, ...]  # CPUs that may not run at their top frequency
    n_throttle_events: int | None = None  # since boot, of all cores (x86)
    energy_j: float | None = None  # a counter of the processor's (x86)

    @property
    def hottest(self) -> Reading | None:
        """Of the processor and the board; drives and radios are left out."""
        found = [reading for reading in self.readings if reading.quantity == "temperature"]
        found = [reading for reading in found if not reading.name.startswith(ELSEWHERE)]
        return max(found, key=lambda reading: reading.value, default=None)

    def frequency_mhz(self, cpus: Collection[int]) -> float | None:
        """Of the slowest of these CPUs; None where none of them tells."""
        names = {f"cpu{cpu}" for cpu in cpus}
        found = (reading for reading in self.readings if reading.quantity == "frequency" and reading.name in names)
        return min((reading.value for reading in found), default=None)

    @property
    def power(self) -> Reading | None:
        """The whole board's power where that is measured, else a part's."""
        found = [reading for reading in self.readings if reading.quantity == "power"]
        whole = [reading for reading in found if reading.name in ("VDD_IN", "supply", "system")]
        return next(iter([*whole, *found]), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_sensors(root: Path = Path("/"), power_interval_s: float = 0.0) -> Sensors:
    """Everything that can be read without root rights. Energy counters (RAPL) need an interval to become power."""
    readings = [*_thermal_zones(root), *_hwmon(root), *_frequencies(root)]
    if power_interval_s > 0:
        readings += _rapl(root, power_interval_s)
    if root == Path("/"):
        readings += _pi5_power()
    events = [_number(cpu / "thermal_throttle/core_throttle_count") for cpu in _cpus(root)]
    known = [count for count in events if count is not None]
    return Sensors(
        readings=tuple(readings),
        throttling=_throttling(root),
        governors=_governors(root),
        capped_cpus=_capped(root),
        n_throttle_events=sum(known) if known else None,
        energy_j=_energy_j(root),
    )


def read_heat(root: Path = Path("/")) -> Sensors:
    """Temperatures and throttling alone: files only, so that a server may look while it answers."""
    return Sensors((*_thermal_zones(root), *_hwmon(root)), _throttling(root), (), ())


def pi5_power(text: str) -> Reading | None:
    """Power of a Raspberry Pi 5 from the lines of `vcgencmd pmic_read_adc`: each rail's volts times its amperes."""
    amperes = {name: float(value) for name, value in re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", text)}
    volts = {name: float(value) for name, value in re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", text)}
    rails = amperes.keys() & volts.keys()
    if not rails:
        return None
    watts = PI5_FACTOR * sum(amperes[rail] * volts[rail] for rail in rails) + PI5_OFFSET_W
    return Reading("supply", "power", watts, "vcgencmd pmic_read_adc, fitted", PI5_UNCERTAINTY)


def mac_power(text: str) -> Reading | None:
    """CPU power from the text of `powermetrics --samplers cpu_power`, which needs root rights."""
    found = re.search(r"^(?:Combined|Package|CPU) Power.*?: (\d+) mW", text, re.MULTILINE)
    return None if found is None else Reading("CPU", "power", int(found[1]) / 1000, "powermetrics, an estimate", None)


# ---- one source each


def _thermal_zones(root: Path) -> Iterator[Reading]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if (celsius := _celsius(zone / "temp")) is not None:
            yield Reading(_text(zone / "type") or zone.name, "temperature", celsius, f"thermal/{zone.name}", None)


def _hwmon(root: Path) -> Iterator[Reading]:
    """Temperatures, and the power of supplies: measured as such, or as volts and amperes of one channel."""
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        driver = _text(chip / "name") or chip.name
        for file in sorted(chip.glob("temp*_input")):
            if (celsius := _celsius(file)) is not None:
                label = _text(chip / file.name.replace("_input", "_label")) or file.name.removesuffix("_input")
                yield Reading(f"{driver} {label}", "temperature", celsius, f"hwmon/{driver}", None)
        if not driver.startswith(POWER_SENSORS):
            continue
        for file in sorted(chip.glob("power*_input")):
            if (microwatts := _number(file)) is not None and microwatts > 0:
                label = _text(chip / file.name.replace("_input", "_label")) or "supply"
                yield Reading(label, "power", microwatts / 1e6, f"hwmon/{driver}", 0.02)
        for file in sorted(chip.glob("curr*_input")):
            channel = file.name.removeprefix("curr").removesuffix("_input")
            milliamperes, millivolts = _number(file), _number(chip / f"in{channel}_input")
            if milliamperes is not None and millivolts is not None and millivolts > 0:
                label = _text(chip / f"in{channel}_label") or f"channel {channel}"
                yield Reading(label, "power", milliamperes * millivolts / 1e6, f"hwmon/{driver}", 0.02)


def _frequencies(root: Path) -> Iterator[Reading]:
    for cpu in _cpus(root):
        if (khz := _number(cpu / "cpufreq/scaling_cur_freq")) is not None and khz > 0:
            yield Reading(cpu.name, "frequency", khz / 1000, "cpufreq", None)


def _rapl(root: Path, interval_s: float) -> list[Reading]:
    """x86: packages' energy counters, read twice. Newer kernels let only root read them."""
    packages = _packages(root)
    before = [(folder, _number(folder / "energy_uj"), time.perf_counter()) for folder in packages]
    if not any(energy is not None for _, energy, _ in before):
        return []
    time.sleep(interval_s)
    found = []
    for folder, start, started_s in before:
        end = _number(folder / "energy_uj")
        if start is None or end is None:
            continue
        if end < start:  # the counter began again
            end += _number(folder / "max_energy_range_uj") or 0
        watts = (end - start) / 1e6 / (time.perf_counter() - started_s)
        if watts > 0:
            found.append(Reading(_text(folder / "name") or folder.name, "power", watts, "RAPL, an estimate", 0.1))
    return found


def _packages(root: Path) -> list[Path]:
    return sorted((root / "sys/class/powercap").glob("intel-rapl:?"))


def _energy_j(root: Path) -> float | None:
    """All packages' energy counters together."""
    counts = [_number(folder / "energy_uj") for folder in _packages(root)]
    known = [count for count in counts if count is not None]
    return sum(known) / 1e6 if known else None


def _pi5_power() -> list[Reading]:
    if sys.platform != "linux" or (program := shutil.which("vcgencmd")) is None:
        return []
    try:
        done = subprocess.run([program, "pmic_read_adc"], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    reading = pi5_power(done.stdout)
    return [] if reading is None else [reading]


def _throttling(root: Path) -> Throttling | None:
    """Raspberry Pi: the firmware's flags. Everywhere: thermal cooling devices of the CPU that are at work."""
    now, since_boot, sources = [], [], []
    flags = _number(root / THROTTLED_FILE, base=16)
    if flags is not None:
        found = [THROTTLE_BITS[bit] for bit in THROTTLE_BITS if flags >> bit & 1]
        now += [what for what, is_now in found if is_now]
        since_boot += [what for what, is_now in found if not is_now]
        sources.append("firmware")
    states = []
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        if (_text(device / "type") or "").startswith(("cpufreq", "thermal-cpufreq", "Processor")):
            states.append(_number(device / "cur_state"))
    if any(state is not None for state in states):
        now += ["throttled"] if any(states) and "throttled" not in now else []
        sources.append("cooling devices")
    return Throttling(tuple(now), tuple(since_boot), ", ".join(sources)) if sources else None


def _governors(root: Path) -> tuple[str, ...]:
    found = (_text(cpu / "cpufreq/scaling_governor") for cpu in _cpus(root))
    return tuple(sorted({governor for governor in found if governor}))


def _capped(root: Path) -> tuple[int, ...]:
    capped = []
    for cpu in _cpus(root):
        top, allowed = _number(cpu / "cpufreq/cpuinfo_max_freq"), _number(cpu / "cpufreq/scaling_max_freq")
        if top and allowed and allowed < 0.98 * top:
            capped.append(int(cpu.name.removeprefix("cpu")))
    return tuple(capped)


def _cpus(root: Path) -> list[Path]:
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("cpu")))


def _celsius(path: Path) -> float | None:
    millidegrees = _number(path)
    if millidegrees is None or not COOLEST_C < millidegrees / 1000 < HOTTEST_C or millidegrees == 0:
        return None
    return millidegrees / 1000


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(_text(path) or "", base)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """A small file's text; None if it cannot be read (sensors answer with I/O errors of all kinds)."""
    try:
        return path.read_text(errors="replace").strip("\0 \n") or None
    except OSError:
        return None
