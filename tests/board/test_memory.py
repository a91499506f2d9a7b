"""Memory on recorded boards: cgroup limits and what others use are honoured, what is not told is None."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.board.memory import n_swapped_pages, process_memory, read_memory
from tests.board.trees import build

KB = 1024


def test_a_board_without_limits(tmp_path: Path) -> None:
    memory = read_memory(build("raspberry-pi-4", tmp_path))
    assert memory is not None
    assert (memory.total_bytes, memory.available_bytes) == (3884352 * KB, 3201884 * KB)
    assert memory.limit_bytes == memory.total_bytes
    assert memory.cgroup_limit_bytes is None
    assert memory.swap_total_bytes == 102396 * KB


def test_a_cgroup_of_version_2_limits_what_is_available(tmp_path: Path) -> None:
    memory = read_memory(build("lxc-cpuset", tmp_path))
    assert memory is not None
    assert memory.limit_bytes == memory.cgroup_limit_bytes == 2 << 30
    assert memory.available_bytes == (2 << 30) - (671088640 - 200000000)  # inactive file pages can be dropped


def test_a_cgroup_of_version_1_does_too(tmp_path: Path) -> None:
    memory = read_memory(build("docker-v1-quota", tmp_path))
    assert memory is not None
    assert memory.limit_bytes == 1 << 30
    assert memory.available_bytes == (1 << 30) - (104857600 - 4857600)


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    build("lxc-cpuset", tmp_path)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(str(1 << 40))
    memory = read_memory(tmp_path)
    assert memory is not None
    assert memory.cgroup_limit_bytes is None
    assert memory.limit_bytes == memory.total_bytes


@pytest.mark.parametrize("text", ["max", "9223372036854771712", "", "nonsense"])
def test_no_limit_is_no_limit(tmp_path: Path, text: str) -> None:
    build("lxc-cpuset", tmp_path)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(text)
    memory = read_memory(tmp_path)
    assert memory is not None
    assert memory.available_bytes == 28000000 * KB


def test_zram_is_told_from_swap(tmp_path: Path) -> None:
    memory = read_memory(build("orange-pi-5", tmp_path))
    assert memory is not None
    assert memory.zram_bytes == 4162076672


def test_nothing_known_is_none(tmp_path: Path) -> None:
    assert read_memory(build("no-sys", tmp_path)) is None
    (tmp_path / "proc/meminfo").write_text("MemTotal: what\n")
    assert read_memory(tmp_path) is None


def test_this_machine() -> None:
    memory = read_memory()
    assert memory is not None
    assert 0 < memory.available_bytes <= memory.limit_bytes <= memory.total_bytes
    assert memory.page_bytes == os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_touched_50_mb_shows_them() -> None:
    code = "b = bytearray(50 << 20); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        memory = process_memory(child.pid)
        child.communicate("\n")
    assert memory is not None
    assert 50 << 20 < memory.anonymous_bytes < 70 << 20
    assert memory.peak_bytes >= memory.anonymous_bytes
    assert memory.file_bytes > 0
    assert process_memory(child.pid) is None


def test_swapped_pages_are_those_in_and_out(tmp_path: Path) -> None:
    assert n_swapped_pages(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("pgpgin 5\npswpin 2100\npswpout 200\nzswpin 9\n")
    assert n_swapped_pages(tmp_path) == 2300
