"""Faults planted into real measurements of the demo model: each is found and named. No time is asserted.

Sensors are files under a root folder, written while the measurement runs; processes that disturb are real ones.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks import harness
from benchmarks.record import Record
from benchmarks.runner import Job
from benchmarks.workload import Workload
from edge.board.sensors import THROTTLED_FILE
from edge.config import cache_dir
from edge.model.gguf import read_model_info

SHORT = Workload(n_generated_tokens=16, n_threads=1, n_repetitions=5, n_warmups_max=1)
CPUS = range(os.cpu_count() or 1)


def measure(path: Path, workload: Workload = SHORT, root: Path = Path("/"), *, during: Callable[[int], None]) -> Record:
    """One record; during(i) is called before the i-th repetition, 1 …"""

    def report(text: str) -> None:
        words = text.split()
        if words[-2] == "of":
            during(int(words[-3]))

    (record,) = harness.run([[Job(workload, path)]], report, root=root)
    return record


def kinds(record: Record) -> set[str]:
    return {reason.kind for reason in record.reasons}


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A board at rest: cool, at its full clock, nothing swapped."""
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", 52300)
    write(tmp_path, THROTTLED_FILE, "0x0")
    write(tmp_path, "proc/vmstat", "pgpgin 5\npswpin 100\npswpout 200\n")
    for cpu in CPUS:
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", 2400000)
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "ondemand")
    return tmp_path


def write(root: Path, path: str, value: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{value}\n")


def test_a_board_at_rest_is_not_blamed_for_its_sensors(demo_model: Path, board: Path) -> None:
    record = measure(demo_model, root=board, during=lambda i: None)
    assert not kinds(record) & {"throttled", "frequency moved", "swapping", "correctness gate failed"}
    assert record.board.governor == "ondemand"
    assert {moment.temperature_c for moment in record.conditions.moments} == {52.3}
    assert {moment.frequency_mhz for moment in record.conditions.moments} == {2400}


def test_a_throttle_flag_is_named(demo_model: Path, board: Path) -> None:
    record = measure(demo_model, root=board, during=lambda i: write(board, THROTTLED_FILE, "0x50005"))
    assert "throttled" in kinds(record)
    (reason,) = [reason for reason in record.reasons if reason.kind == "throttled"]
    assert "undervoltage" in reason.text
    assert "52 °C" in reason.text


def test_flags_from_before_the_run_are_no_fault_of_it(demo_model: Path, board: Path) -> None:
    write(board, THROTTLED_FILE, "0x50000")  # since boot, not now
    assert "throttled" not in kinds(measure(demo_model, root=board, during=lambda i: None))


def test_a_counter_that_moves_is_throttling(demo_model: Path, board: Path) -> None:
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    write(board, counter, 7)
    assert "throttled" not in kinds(measure(demo_model, root=board, during=lambda i: None))
    during = rewritten_inside(lambda: write(board, counter, 9))
    assert "throttled" in kinds(measure(demo_model, LONG, root=board, during=during))


def test_a_clock_that_drops_is_named(demo_model: Path, board: Path) -> None:
    def drop(i: int) -> None:
        if i == 3:
            write(board, f"sys/devices/system/cpu/cpu{CPUS[0]}/cpufreq/scaling_cur_freq", 1500000)

    record = measure(demo_model, root=board, during=drop)
    assert "frequency moved" in kinds(record)


def test_swapping_is_named(demo_model: Path, board: Path) -> None:
    def swap() -> None:
        write(board, "proc/vmstat", "pgpgin 5\npswpin 2100\npswpout 200\n")

    record = measure(demo_model, LONG, root=board, during=rewritten_inside(swap))
    (reason,) = [reason for reason in record.reasons if reason.kind == "swapping"]
    assert "2,000 pages" in reason.text


LONG = Workload(n_generated_tokens=500, n_threads=1, n_repetitions=5, n_warmups_max=1)


def rewritten_inside(act: Callable[[], None]) -> Callable[[int], None]:
    """Do something while the second repetition of LONG runs."""

    def during(i: int) -> None:
        if i == 2:
            threading.Timer(0.05, act).start()

    return during


def test_a_busy_loop_beside_is_background_load(demo_model: Path) -> None:
    with busy_loops(len(CPUS)):
        record = measure(demo_model, LONG, during=lambda i: None)
    assert "background load" in kinds(record)


@contextmanager
def busy_loops(n: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_a_pause_in_one_repetition_is_a_wide_spread(demo_model: Path) -> None:
    def pause() -> None:
        (child,) = psutil.Process().children()
        child.send_signal(signal.SIGSTOP)
        threading.Timer(0.5, lambda: child.send_signal(signal.SIGCONT)).start()

    record = measure(demo_model, LONG, during=rewritten_inside(pause))
    assert "spread too wide" in kinds(record)
    assert len(record.samples) == 5


def test_a_build_that_skips_work_does_not_pass_the_gate(demo_model: Path, tmp_path: Path) -> None:
    """The same file read by a build that leaves out its feed-forward: what it answered before is on record."""
    info = read_model_info(demo_model)
    whole = measure(demo_model, during=lambda i: None)
    assert whole.gate is not None
    crippled = tmp_path / "crippled.gguf"
    shutil.copy(demo_model, crippled)
    with crippled.open("r+b") as file:
        for tensor in info.tensors:
            if "ffn_down" in tensor.name:
                file.seek(tensor.offset)
                file.write(bytes(tensor.n_bytes))
    first = measure(crippled, during=lambda i: None)
    references = cache_dir() / "bench" / "first-choices.json"
    references.parent.mkdir(parents=True, exist_ok=True)
    text = f'{{"{first.model.sha256}": {list(whole.gate.first_choices)}}}'
    references.write_text(text)
    record = measure(crippled, during=lambda i: None)
    assert "correctness gate failed" in kinds(record)
    assert record.gate is not None
    assert record.gate.agreement is not None
    assert record.gate.agreement < 0.9


def test_jobs_of_a_group_take_turns_forward_and_back(demo_model: Path) -> None:
    steps: list[str] = []
    other = Workload(n_prompt_tokens=8, n_threads=1, n_repetitions=5, n_warmups_max=1)
    records = harness.run([[Job(SHORT, demo_model), Job(other, demo_model)]], steps.append)
    turns = ["pp" if "pp8" in step else "tg" for step in steps if " of 5" in step]
    assert turns == ["tg", "pp", "pp", "tg", "tg", "pp", "pp", "tg", "tg", "pp"]
    assert [len(record.samples) for record in records] == [5, 5]
    assert records[1].gate is not None
    assert records[1].gate.agreement == 1  # with the first job, on the same file
