"""What the server tells of the board is what edge.board reads there, faults planted in recorded boards included."""

import os
from pathlib import Path

import pytest

from edge.board.sensors import THROTTLED_FILE
from edge.serve.condition import is_throttled, memory_bytes, resident_bytes, temperature_celsius
from tests.board.trees import build


@pytest.mark.parametrize(
    ("board", "celsius", "throttled"),
    [
        ("raspberry-pi-3", 51.54, True),
        ("raspberry-pi-5", 84.15, True),
        ("rk3588", 47.153, None),
        ("intel-i7-1260p", 62.0, None),
        ("no-sys", None, None),
    ],
)
def test_a_recorded_board_is_told(tmp_path: Path, board: str, celsius: float | None, throttled: bool | None) -> None:
    root = build(board, tmp_path)
    assert temperature_celsius(root) == celsius
    assert is_throttled(root) is throttled


def test_a_flag_that_comes_and_goes_is_told(tmp_path: Path) -> None:
    root = build("raspberry-pi-5", tmp_path)
    for flags, throttled in (("0", False), ("50000", False), ("50005", True), ("8", True)):  # 0x50000: only since boot
        (root / THROTTLED_FILE).write_text(f"{flags}\n")
        assert is_throttled(root) is throttled


def test_memory_is_that_of_both_processes() -> None:
    own = resident_bytes(os.getpid())
    assert own is not None
    assert own > 10 << 20
    assert memory_bytes(None) == pytest.approx(own, rel=0.1)
    assert memory_bytes(os.getppid()) > own
    assert resident_bytes(None) is None
    assert resident_bytes(1 << 30) is None
