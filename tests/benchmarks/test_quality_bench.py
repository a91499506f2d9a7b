"""The table of `edge quality` and `edge imatrix` against llama.cpp's tools has its rows, on the demo."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.quality_bench import main
from convert import tasks
from tests import peers


def test_the_table_has_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.tool", peers.tool)  # those of the user, who may have built them
    for name in ("llama-perplexity", "llama-imatrix"):
        peers.tool(name)
    text, scratch = tmp_path / "sums.txt", tmp_path / "scratch"
    text.write_text("\n".join(one.text for one in tasks.read("sums")), encoding="utf-8")
    scratch.mkdir()
    words = ["--text", text, "--ctx", 64, "--chunks", 3, "--rounds", 1, "--threads", 1, "--scratch", scratch]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if line[:1] == "|"]
    assert [row[0].split(",")[0] for row in rows[2:]] == ["quality", "quality", "imatrix", "imatrix"]
    assert all(float(row[3]) > 0 for row in rows[2:])
    assert 20 < float(rows[3][1]) < 600, "MB of two Python processes"
    assert list(scratch.iterdir()) == [], "results go away"


def test_half_a_pair_is_misuse(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    assert CliRunner().invoke(main, [str(model)]).exit_code == 2
