"""The emulated benchmark's table and its launcher, with a stand-in for the emulator. tests/arm64 runs the real one."""

import os
import subprocess
from pathlib import Path

from click.testing import CliRunner

from benchmarks import arm64_bench
from benchmarks.arm64_bench import SLICE, WHOLE, Row, Times, table
from benchmarks.emulator import write_launcher
from benchmarks.shapes import Shape


def test_the_table_has_medians_in_milliseconds_and_their_ratio() -> None:
    row = Row("demo", Times([0.004, 0.1, 0.003], [0.02]), Times([0.002], [0.01, 0.01]))
    assert table([row], "cortex-a76").splitlines()[-1] == "| demo | 4.00 | 2.00 | 2.00 | 20.00 | 10.00 | 2.00 |"


def test_the_slice_is_a_fourteenth_of_a_token_s_work() -> None:
    def n_read(shape: Shape) -> int:
        sizes = {name: n for name, n in shape.tensors().items() if len(n) == 2 and name != "token_embd.weight"}
        return sum(n_rows * n_columns for n_rows, n_columns in sizes.values())

    assert 13.9 < n_read(WHOLE) / n_read(SLICE) < 14.1


def test_without_a_machine_the_line_that_makes_one_is_named() -> None:
    done = CliRunner(env={"EDGE_ARM64": ""}).invoke(arm64_bench.main, [])
    assert done.exit_code == 2
    assert "scripts/test-arm64.sh --prepare" in done.output


def test_a_launcher_is_the_emulated_python_wherever_it_lies(tmp_path: Path) -> None:
    """Its own path is what sys.executable says there: argument zero."""
    emulator = tmp_path / "bin/qemu-aarch64-static"
    emulator.parent.mkdir()
    emulator.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$PYTHONHOME" "$PYTHONPATH"\n')
    emulator.chmod(0o755)
    machine, launcher = tmp_path / "my machine", tmp_path / "a python"
    write_launcher(launcher, machine, "cortex-a72", "armv8.0")
    env = {"PATH": f"{emulator.parent}:{os.environ['PATH']}", "PYTHONPATH": "/elsewhere"}
    said = subprocess.run([launcher, "-c", "print(1)"], env=env, capture_output=True, text=True, check=True).stdout
    root = machine / "root"
    assert said.splitlines() == [
        *("-cpu", "cortex-a72", "-L", str(root), "-0", str(launcher), f"{root}/usr/bin/python3", "-c", "print(1)"),
        *(f"{root}/usr", f"{machine}/armv8.0:{machine}/site"),
    ]
