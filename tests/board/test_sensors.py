"""Sensors on recorded boards: every value has a source, what is absent is absent."""

from pathlib import Path

import pytest

from edge.board.sensors import THROTTLED_FILE, Throttling, mac_power, pi5_power, read_sensors
from tests.board.trees import BOARDS, build

PMIC = """\
      3V7_WL_SW_A current(0)=0.08783062A
       VDD_CORE_A current(7)=1.50000000A
      3V7_WL_SW_V volt(8)=3.70000000V
       VDD_CORE_V volt(15)=0.80000000V
          EXT5V_V volt(24)=5.13800000V
"""


def test_a_raspberry_pi_tells_its_throttling(tmp_path: Path) -> None:
    three = read_sensors(build("raspberry-pi-3", tmp_path / "3")).throttling  # 0x50005
    assert three is not None
    assert three.now == ("undervoltage", "throttled")
    assert three.since_boot == ("undervoltage", "throttled")
    four = read_sensors(build("raspberry-pi-4", tmp_path / "4")).throttling
    assert four is not None
    assert (four.now, four.since_boot) == ((), ())
    five = read_sensors(build("raspberry-pi-5", tmp_path / "5")).throttling  # 0xe0008
    assert five is not None
    assert five.now == ("soft temperature limit",)
    assert five.since_boot == ("frequency capped", "throttled", "soft temperature limit")


def test_the_hottest_zone_is_found(tmp_path: Path) -> None:
    hottest = read_sensors(build("rk3588", tmp_path)).hottest
    assert hottest is not None
    assert (hottest.name, hottest.value, hottest.source) == ("bigcore0-thermal", 47.153, "thermal/thermal_zone1")


def test_a_jetson_tells_the_power_of_the_whole_board(tmp_path: Path) -> None:
    power = read_sensors(build("jetson-orin-nano", tmp_path)).power
    assert power is not None
    assert power.name == "VDD_IN"
    assert power.value == pytest.approx(5.064 * 1.240)
    assert power.uncertainty == 0.02
    assert power.source == "hwmon/ina3221"


def test_rapl_is_power_over_an_interval(tmp_path: Path) -> None:
    root = build("intel-i7-1260p", tmp_path)
    assert read_sensors(root).power is None
    assert read_sensors(root, power_interval_s=0.001).power is None  # a counter that stands still is no power
    assert [reading.name for reading in read_sensors(root).readings if reading.quantity == "temperature"] == [
        "coretemp Package id 0"
    ]


def test_a_pi_5_sums_its_rails() -> None:
    power = pi5_power(PMIC)
    assert power is not None
    assert power.value == pytest.approx(1.1451 * (0.08783062 * 3.7 + 1.5 * 0.8) + 0.5879)
    assert power.uncertainty == 0.1
    assert pi5_power("VCHI initialization failed") is None


def test_a_mac_tells_its_cpu() -> None:
    power = mac_power("CPU Power: 3412 mW\nGPU Power: 20 mW\nCombined Power (CPU + GPU + ANE): 3432 mW\n")
    assert power is not None
    assert power.value == 3.412
    assert mac_power("powermetrics must be invoked as the superuser") is None


def test_governors_and_caps_are_told(tmp_path: Path) -> None:
    root = build("rk3588", tmp_path)
    sensors = read_sensors(root)
    assert (sensors.governors, sensors.capped_cpus) == (("ondemand",), ())
    (root / "sys/devices/system/cpu/cpu4/cpufreq/scaling_max_freq").write_text("1200000")
    assert read_sensors(root).capped_cpus == (4,)


def test_the_slowest_of_the_cores_asked_for_is_told(tmp_path: Path) -> None:
    root = build("intel-i7-1260p", tmp_path)
    (root / "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq").write_text("2100000")
    sensors = read_sensors(root)
    assert sensors.frequency_mhz((0, 2, 4)) == 2100
    assert sensors.frequency_mhz((0, 4)) == 4700
    assert sensors.frequency_mhz((8, 10)) == 3400
    assert sensors.frequency_mhz((99,)) is None


def test_a_cooling_device_at_work_throttles_beside_firmware_too(tmp_path: Path) -> None:
    root = build("raspberry-pi-4", tmp_path)
    device = root / "sys/class/thermal/cooling_device3"
    device.mkdir(parents=True)
    (device / "type").write_text("cpufreq-cpu0\n")
    (device / "cur_state").write_text("0\n")
    assert read_sensors(root).throttling == Throttling((), (), "firmware, cooling devices")
    (device / "cur_state").write_text("2\n")
    assert read_sensors(root).throttling == Throttling(("throttled",), (), "firmware, cooling devices")
    (root / THROTTLED_FILE).write_text("4\n")
    now = read_sensors(root).throttling
    assert now is not None
    assert now.now == ("throttled",), "said once"


def test_counters_of_a_processor_are_told_and_absent_elsewhere(tmp_path: Path) -> None:
    root = build("intel-i7-1260p", tmp_path)
    for cpu in (0, 1):
        counter = root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count"
        counter.parent.mkdir()
        counter.write_text("7\n")
    sensors = read_sensors(root)
    assert (sensors.n_throttle_events, sensors.energy_j) == (14, 123.456789)
    pi = read_sensors(build("raspberry-pi-5", tmp_path / "pi"))
    assert (pi.n_throttle_events, pi.energy_j) == (None, None)


def test_the_heat_of_a_drive_is_not_the_boards(tmp_path: Path) -> None:
    root = build("raspberry-pi-4", tmp_path)
    drive = root / "sys/class/hwmon/hwmon9"
    drive.mkdir(parents=True)
    (drive / "name").write_text("nvme\n")
    (drive / "temp1_input").write_text("91000\n")
    sensors = read_sensors(root)
    assert 91.0 in {reading.value for reading in sensors.readings}
    assert sensors.hottest is not None
    assert sensors.hottest.value < 91


def test_no_other_file_reads_a_sensor() -> None:
    """Two readers of one sensor would in time tell two stories."""
    paths = ("class/thermal", "class/hwmon", "get_throttled", "scaling_cur_freq", "intel-rapl", "sensors_temperatures")
    root = Path(__file__).parents[2]
    files = [file for package in ("edge", "benchmarks", "convert") for file in (root / package).rglob("*.py")]
    readers = {file for file in files if any(path in file.read_text(encoding="utf-8") for path in paths)}
    assert readers == {root / "edge/board/sensors.py"}


@pytest.mark.parametrize("text", ["0", "-274000", "200000", "garbage", ""])
def test_a_broken_sensor_is_absent_not_zero(tmp_path: Path, text: str) -> None:
    root = build("raspberry-pi-4", tmp_path)
    (root / "sys/class/thermal/thermal_zone0/temp").write_text(text)
    assert read_sensors(root).hottest is None


@pytest.mark.parametrize("board", BOARDS)
def test_no_value_is_zero_or_without_a_source(board: str, tmp_path: Path) -> None:
    for reading in read_sensors(build(board, tmp_path)).readings:
        assert reading.value > 0
        assert reading.source


def test_nothing_known_is_nothing_said(tmp_path: Path) -> None:
    sensors = read_sensors(build("no-sys", tmp_path))
    assert (sensors.readings, sensors.throttling, sensors.governors, sensors.power) == ((), None, (), None)
