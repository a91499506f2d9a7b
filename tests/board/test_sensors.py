"""Sensors on recorded boards: every value has a source, what is absent is absent."""

from pathlib import Path

import pytest

from edge.board.sensors import mac_power, pi5_power, read_sensors
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
