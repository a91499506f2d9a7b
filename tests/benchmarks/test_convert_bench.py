"""The converter's table on a checkpoint of some kilobytes: every row that needs no upstream is there, a number."""

from pathlib import Path

from click.testing import CliRunner

from benchmarks.convert_bench import main
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape


def test_the_table_has_its_rows(tmp_path: Path) -> None:
    whole = checkpoints.write(tmp_path / "whole", Shape(embd=64, ff=96, head=2, head_kv=1, layer=4))
    half = checkpoints.write(tmp_path / "half", Shape(embd=64, ff=96, head=2, head_kv=1, layer=2))
    result = CliRunner().invoke(main, [str(whole), "--half", str(half), "--scratch", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if line[:1] == "|"]
    assert [row[0].split(",")[0] for row in rows[2:]] == [
        *("anonymous memory at most", "written", "both types", "layers x 2", "layers x 2: anonymous memory")
    ]
    assert all(float(row[3].replace(",", "")) >= 0 for row in rows[2:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "whole"], "results go away"
