"""Core choice on recorded /sys trees: fast clusters only, one thread a core, never nothing."""

from pathlib import Path

import pytest

from edge.board.topology import compute_cpus, n_compute_threads


def tree(root: Path, **files: dict[int, str | int]) -> Path:
    """A /sys with one small file per CPU: tree(tmp, cpu_capacity={0: 1024, …})."""
    paths = {"siblings": "topology/thread_siblings_list", "max_freq": "cpufreq/cpuinfo_max_freq"}
    for name, values in files.items():
        for cpu, value in values.items():
            path = root / "sys/devices/system/cpu" / f"cpu{cpu}" / paths.get(name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
    return root


def test_rk3588_computes_on_its_four_big_cores(tmp_path: Path) -> None:
    root = tree(tmp_path, cpu_capacity={**dict.fromkeys(range(4), 530), **dict.fromkeys(range(4, 8), 1024)})
    assert compute_cpus(list(range(8)), root) == [4, 5, 6, 7]


def test_raspberry_pi_computes_on_all_four(tmp_path: Path) -> None:
    root = tree(tmp_path, max_freq=dict.fromkeys(range(4), 2400000))
    assert compute_cpus(list(range(4)), root) == [0, 1, 2, 3]


def test_favoured_cores_of_one_cluster_stay_together(tmp_path: Path) -> None:
    root = tree(tmp_path, max_freq={0: 4700000, 1: 4700000, 2: 5000000, 3: 5000000})
    assert compute_cpus(list(range(4)), root) == [0, 1, 2, 3]


def test_one_thread_of_each_core_with_smt(tmp_path: Path) -> None:
    root = tree(tmp_path, siblings={0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"})
    assert compute_cpus(list(range(8)), root) == [0, 1, 2, 3]


def test_a_limit_to_slow_cores_leaves_those(tmp_path: Path) -> None:
    root = tree(tmp_path, cpu_capacity={**dict.fromkeys(range(4), 530), **dict.fromkeys(range(4, 8), 1024)})
    assert compute_cpus([1, 2], root) == [1, 2]


def test_no_sys_at_all_means_every_allowed_cpu(tmp_path: Path) -> None:
    assert compute_cpus([0, 3], tmp_path) == [0, 3]


@pytest.mark.parametrize(
    ("n_cpus", "n_bytes", "n_threads"), [(4, 10**9, 4), (4, 2 * 10**6, 1), (1, 10**9, 1), (4, 0, 1)]
)
def test_a_tiny_model_gets_few_threads(n_cpus: int, n_bytes: int, n_threads: int) -> None:
    assert n_compute_threads(n_cpus, n_bytes) == n_threads
