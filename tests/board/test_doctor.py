"""Findings: each with a reason and a remedy, from what was seen and nothing else."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.board import build as builds
from edge.board import doctor
from edge.board.doctor import Examination, Finding, diagnose
from edge.board.library import Answer, Device, parse_features
from edge.board.memory import read_memory
from edge.board.sensors import read_sensors
from edge.board.topology import read_topology
from tests.board.trees import BOARDS, build

See = Callable[..., Examination]


@pytest.fixture
def see(tmp_path: Path) -> See:
    """A healthy examination of a recorded board: a library that has what the CPU has, room, an idle machine."""

    def make(board: str, **changes: object) -> Examination:
        root = build(board, tmp_path / board)
        topology = read_topology(root)
        seen = Examination(
            topology=topology,
            memory=read_memory(root),
            sensors=read_sensors(root),
            library=Answer(topology.features, ()),
            gpu_backends=(),
            memory_bytes_per_s=None,
            disk_bytes_per_s=None,
            disk_free_bytes=None,
            cache_folder="/home/pi/.cache/edge",
            load=0.1,
            memory_pressure=0.0,
            cgroup_controllers=frozenset({"cpu", "memory"}),
            clock_s=1.8e9,
            is_64_bit=True,
            versions={},
        )
        return replace(seen, **changes)  # type: ignore[arg-type]

    return make


def about(findings: list[Finding], word: str) -> Finding:
    (found,) = [finding for finding in findings if word in finding.what]
    return found


def test_a_healthy_board_has_nothing_to_mend(see: See) -> None:
    assert diagnose(see("jetson-orin-nano")) == []
    assert diagnose(see("amd-5800x")) == []


@pytest.mark.parametrize("board", BOARDS)
def test_every_finding_says_why_and_what_mends_it(board: str, see: See) -> None:
    bad = {"load": 99.0, "disk_bytes_per_s": 2e7, "disk_free_bytes": 1, "clock_s": 0.0, "memory_pressure": 0.5}
    broken = see(board, is_64_bit=False, library=Answer(frozenset(), (), "gone"), **bad)
    for seen in (see(board), broken):
        findings = diagnose(seen)
        assert all(finding.what and finding.why and finding.mend for finding in findings)
        order = [("broken", "slow", "note").index(finding.severity) for finding in findings]
        assert order == sorted(order)
    assert findings[0].severity == "broken"


def test_a_library_without_dotprod_is_told_on_a_pi_5_only(see: See) -> None:
    plain = Answer(frozenset({"NEON"}), ())
    found = about(diagnose(see("raspberry-pi-5", library=plain)), "built without")
    assert "DOTPROD" in found.what
    assert "2 to 4 times slower" in found.why
    assert not any("built without" in finding.what for finding in diagnose(see("raspberry-pi-4", library=plain)))


def test_a_library_for_another_cpu_is_broken(see: See) -> None:
    problem = "it uses instructions that this CPU does not have"
    found = diagnose(see("raspberry-pi-4", library=Answer(frozenset(), (), problem)))[0]
    assert found.severity == "broken"
    assert problem in found.what


def test_the_script_is_named_with_the_target_where_there_is_one(
    see: See, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = see("raspberry-pi-5", library=Answer(frozenset({"NEON"}), ()))
    assert about(diagnose(seen), "built without").mend == "bash scripts/build-llama.sh --target pi5 --install"
    monkeypatch.setattr(builds, "SCRIPT", tmp_path / "build-llama.sh")
    assert "pip install" in about(diagnose(seen), "built without").mend


def test_a_library_with_more_than_the_cpu_has_is_told_before_it_ends_a_process(see: See) -> None:
    library = Answer(frozenset({"NEON", "DOTPROD", "FP16_VA"}), ())
    found = diagnose(see("raspberry-pi-4", library=library))[0]
    assert found.severity == "broken"
    assert "with DOTPROD, FP16_VA, which this one does not have" in found.what
    assert "--target pi4 " in found.mend
    assert not any("another CPU" in finding.what for finding in diagnose(see("raspberry-pi-5", library=library)))


@pytest.mark.parametrize(
    ("board", "target"),
    [
        ("raspberry-pi-3", "armv8.0"), ("raspberry-pi-4", "pi4"), ("raspberry-pi-5", "pi5"), ("rk3588", "rk3588"),
        ("orange-pi-5", "rk3588"), ("rk3566", "armv8.2-dotprod"), ("jetson-orin-nano", "armv8.2-dotprod"),
        ("apple-m4", "metal"), ("amd-5800x", "native"),
    ],
)  # fmt: skip
def test_each_board_has_its_build(board: str, target: str, see: See) -> None:
    assert builds.build_target(see(board).topology) == target


def test_governor_cap_and_offline_cores_are_seen(see: See, tmp_path: Path) -> None:
    findings = diagnose(see("rk3588"))
    assert "scaling_governor" in about(findings, "governor is ondemand").mend
    assert not any("governor" in finding.what for finding in diagnose(see("raspberry-pi-5")))
    assert not any("governor" in finding.what for finding in diagnose(see("intel-i7-1260p")))  # dynamic there
    assert about(diagnose(see("offline-cores")), "offline").mend.startswith("echo 1")
    capped = replace(read_sensors(build("raspberry-pi-5", tmp_path / "x")), capped_cpus=(0, 1))
    assert "cpuinfo_max_freq" in about(diagnose(see("raspberry-pi-5", sensors=capped)), "is capped below").mend


def test_undervoltage_and_heat_are_seen(see: See) -> None:
    three = diagnose(see("raspberry-pi-3"))
    assert "power supply" in about(three, "undervoltage now").mend
    assert "throttled now" in about(three, "throttled").what
    five = diagnose(see("raspberry-pi-5"))
    assert about(five, "84 °C").severity == "slow"


def test_limits_of_containers_are_seen(see: See) -> None:
    assert "2,147 MB" in about(diagnose(see("lxc-cpuset")), "cgroup limits memory").what
    assert about(diagnose(see("docker-v1-quota")), "allows 1.5 CPUs of 4 cores").severity == "slow"


def test_the_memory_controller_of_a_raspberry_pi(see: See) -> None:
    off = frozenset({"cpu", "io"})
    assert "cgroup_enable=memory" in about(diagnose(see("raspberry-pi-4", cgroup_controllers=off)), "controller").mend
    assert not any("controller" in found.what for found in diagnose(see("raspberry-pi-4", cgroup_controllers=None)))


def test_swap_on_a_disk_is_bad_and_in_memory_is_not(see: See) -> None:
    for board, is_bad in (("raspberry-pi-5", True), ("orange-pi-5", False)):
        memory = see(board).memory
        assert memory is not None
        full = replace(memory, swap_total_bytes=4 << 30, swap_free_bytes=1 << 30)
        found = [finding for finding in diagnose(see(board, memory=full)) if "lie in swap" in finding.what]
        assert bool(found) is is_bad


def test_slow_memory_is_measured_against_the_board(see: See) -> None:
    slow = diagnose(see("raspberry-pi-5", memory_bytes_per_s=4e9))
    assert "41% of what is usual" in about(slow, "memory was read at 4.0 GB/s").why
    assert not any("memory was read" in found.what for found in diagnose(see("raspberry-pi-4", memory_bytes_per_s=4e9)))


def test_16_kb_pages_are_noted(see: See) -> None:
    memory = see("raspberry-pi-5").memory
    assert memory is not None
    assert about(diagnose(see("raspberry-pi-5", memory=replace(memory, page_bytes=16384))), "16384").severity == "note"


def test_devices_and_features_survive_json(see: See) -> None:
    gpu = Device("Vulkan0", "Mali", "igpu", 1, 2)
    seen = see("rk3588", library=Answer(frozenset({"NEON"}), (gpu,)))
    assert seen.to_json()["library"]["devices"][0]["description"] == "Mali"
    assert parse_features("CPU : NEON = 1 | SVE = 0 | SVE_CNT = 16 | ") == {"NEON", "SVE_CNT"}


def test_a_gpu_that_does_not_answer_is_told_with_its_likeliest_cause(see: See) -> None:
    answer = see("amd-5800x").library
    card = Device("Vulkan0", "Radeon", "gpu", 1, 2)
    assert not [
        f for f in diagnose(see("amd-5800x", gpu_backends=("vulkan",), library=replace(answer, devices=(card,))))
    ]
    found = about(diagnose(see("amd-5800x", gpu_backends=("vulkan",))), "GPU")
    assert "mesa-vulkan-drivers" in found.mend
    assert "nvidia-smi" in about(diagnose(see("amd-5800x", gpu_backends=("cuda",))), "GPU").mend
    closed = see("amd-5800x", gpu_backends=("vulkan",), closed_devices=("/dev/dri/renderD128",))
    mend = about(diagnose(closed), "GPU").mend
    assert mend.startswith("sudo usermod -aG render,video $USER")
    assert "/dev/dri/renderD128" in mend


def test_closed_device_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dev/dri/renderD128", "dev/dri/renderD129", "dev/dri/card0", "dev/nvidia0", "dev/nvidiactl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name not in ("renderD128", "card0", "nvidia0"))
    assert doctor._closed_devices(tmp_path) == ("/dev/dri/renderD128", "/dev/nvidia0")
