"""Core choice on recorded boards: fast clusters only, one thread a core, within every limit, never nothing."""

import dataclasses
import os
from pathlib import Path

import pytest

from edge.board import topology
from edge.board.topology import compute_cpus, n_compute_threads, pin, read_topology
from tests.board.trees import BOARDS, build

A76 = {"NEON", "DOTPROD", "FP16_VA"}
RANGE = {n: list(range(n)) for n in (1, 2, 4, 6, 8, 80)}
# board: the cores to compute on, the CPUs left to others, what told them apart, features that must be seen
RIGHT: dict[str, tuple[list[int], list[int], str, set[str]]] = {
    "raspberry-pi-3": (RANGE[4], [], "", {"NEON"}),
    "raspberry-pi-4": (RANGE[4], [], "", {"NEON"}),
    "raspberry-pi-5": (RANGE[4], [], "", A76),
    "rk3588": ([4, 5, 6, 7], [0, 1, 2, 3], "cpu_capacity", A76),
    "orange-pi-5": ([4, 5, 6, 7], [0, 1, 2, 3], "cpu_capacity", A76),
    "rk3588-unrated": ([4, 5, 6, 7], [0, 1, 2, 3], "part", A76),
    "rk3566": (RANGE[4], [], "", A76),
    "rk3399": ([4, 5], [0, 1, 2, 3], "cpu_capacity", {"NEON"}),
    "jetson-orin-nano": (RANGE[6], [], "", A76),
    "ampere-altra": (RANGE[80], [], "", A76),
    "apple-m1": (RANGE[4], [4, 5, 6, 7], "perflevel", A76),
    "apple-m4": (RANGE[4], [4, 5, 6, 7, 8, 9], "perflevel", {*A76, "MATMUL_INT8", "SME"}),
    "intel-i7-1260p": ([0, 2, 4, 6], list(range(8, 16)), "cpu_core", {"AVX2", "AVX_VNNI"}),
    "intel-285k": (RANGE[8], list(range(8, 24)), "cpu_core", {"AVX2", "AVX_VNNI"}),
    "amd-5800x": (RANGE[8], [], "", {"AVX2"}),
    "vm-2-cores": (RANGE[2], [], "", {"AVX512", "AVX512_VNNI"}),
    "lxc-cpuset": ([2, 3], [], "", {"AVX2"}),
    "docker-v1-quota": (RANGE[4], [], "", {"AVX"}),
    "one-core": (RANGE[1], [], "", {"AVX512"}),
    "offline-cores": ([0, 3], [], "", {"NEON"}),
    "no-sys": (RANGE[6], [], "", set()),
}


def test_every_recorded_board_has_a_right_answer() -> None:
    assert set(BOARDS) == set(RIGHT)
    assert len(BOARDS) >= 14


@pytest.mark.parametrize("board", BOARDS)
def test_the_right_cores_are_chosen(board: str, tmp_path: Path) -> None:
    found = read_topology(build(board, tmp_path))
    cpus, others, told_by, features = RIGHT[board]
    assert list(found.compute_cpus) == cpus
    assert list(found.front_cpus) == others
    assert found.told_by == told_by
    assert features <= found.features
    assert found.clusters[0].speed == 1


def test_features_that_a_core_lacks_are_not_claimed(tmp_path: Path) -> None:
    assert "DOTPROD" not in read_topology(build("raspberry-pi-4", tmp_path / "4")).features
    assert "MATMUL_INT8" not in read_topology(build("raspberry-pi-5", tmp_path / "5")).features
    assert "MATMUL_INT8" not in read_topology(build("apple-m1", tmp_path / "m1")).features


def test_cores_and_board_are_named(tmp_path: Path) -> None:
    rk3588 = read_topology(build("rk3588", tmp_path))
    assert [(cluster.name, cluster.max_khz) for cluster in rk3588.clusters] == [
        ("Cortex-A76", 2256000),
        ("Cortex-A55", 1800000),
    ]
    assert rk3588.name == "Radxa ROCK 5B"


def test_a_cpu_quota_bounds_the_threads_not_the_cores(tmp_path: Path) -> None:
    found = read_topology(build("docker-v1-quota", tmp_path))
    assert found.quota_cpus == 1.5
    assert found.n_threads_max == 1
    free = read_topology(build("vm-2-cores", tmp_path / "vm"))
    assert (free.quota_cpus, free.n_threads_max) == (None, 2)


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    build("vm-2-cores", tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("0::/a.slice/b.service\n")
    for folder, quota in (("a.slice", "100000 100000"), ("a.slice/b.service", "200000 100000")):
        (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup" / folder / "cpu.max").write_text(quota)
    assert read_topology(tmp_path).quota_cpus == 1.0


def test_offline_cores_are_told(tmp_path: Path) -> None:
    found = read_topology(build("offline-cores", tmp_path))
    assert (found.n_cpus_present, found.offline) == (4, (1, 2))


def test_a_limit_to_slow_cores_leaves_those(tmp_path: Path) -> None:
    assert compute_cpus([1, 2], build("rk3588", tmp_path)) == [1, 2]


def test_favoured_cores_of_one_cluster_stay_together(tmp_path: Path) -> None:
    for cpu, khz in enumerate((4700000, 4700000, 5000000, 5000000)):
        path = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq"
        path.parent.mkdir(parents=True)
        path.write_text(f"{khz}\n")
    assert compute_cpus([0, 1, 2, 3], tmp_path) == [0, 1, 2, 3]


def test_nothing_known_means_every_allowed_cpu(tmp_path: Path) -> None:
    assert compute_cpus([0, 3], tmp_path) == [0, 3]


def test_garbage_in_sys_is_not_believed(tmp_path: Path) -> None:
    build("rk3588", tmp_path)
    for cpu in range(8):
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity").write_text("-1\0x")
    (tmp_path / "proc/self/cgroup").write_text("nonsense\n0:\n")
    (tmp_path / "sys/devices/system/cpu/present").write_text("a-b,,7-")
    assert compute_cpus(root=tmp_path) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("n_cpus", "n_bytes", "n_threads"), [(4, 10**9, 4), (4, 2 * 10**6, 1), (1, 10**9, 1), (4, 0, 1)]
)
def test_a_tiny_model_gets_few_threads(n_cpus: int, n_bytes: int, n_threads: int) -> None:
    assert n_compute_threads(n_cpus, n_bytes) == n_threads


def test_planned_cores_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: bound.append(set(cpus)), raising=False)
    assert pin(3, 0, (4, 5, 6)) == 3
    assert pin(2, 0, ()) == 2
    assert bound == [{4, 5, 6}]


def test_a_core_that_went_offline_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    assert pin(1, 0, (99,)) == 1


def test_the_front_moves_to_the_slow_cores_only_if_there_are_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bound: list[list[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: bound.append(list(cpus)), raising=False)
    for board in ("raspberry-pi-5", "rk3588"):
        found = dataclasses.replace(read_topology(build(board, tmp_path / board)), is_pinnable=True)
        topology.bind_front(found)
    assert bound == [[0, 1, 2, 3]]
