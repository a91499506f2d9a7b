"""The command: a table or one JSON document on stdout, everything else on stderr, nothing heavy before it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert.cli import convert
from edge.errors import CheckpointError
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return checkpoints.write(tmp_path / "Tiny", Shape(embd=64, ff=96, head=2, head_kv=1, layer=1))


def test_default_types_land_here(checkpoint: Path) -> None:
    result = CliRunner().invoke(convert, ["Tiny"])
    assert result.exit_code == 0, result.output
    assert Path("Tiny-Q4_K_M.gguf").is_file()
    assert Path("Tiny-Q4_0.gguf").is_file()
    assert "Q4_K_M" in result.stdout
    assert "Tiny-Q4_0.gguf" in result.stdout


def test_json_is_one_document(checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(convert, ["Tiny", "-t", "q8_0", "-o", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    (made,) = json.loads(result.stdout)
    assert made["type"] == "Q8_0"
    assert Path(made["path"]).stat().st_size == made["n_bytes"]


def test_force_replaces(checkpoint: Path) -> None:
    CliRunner().invoke(convert, ["Tiny", "-t", "Q8_0"])
    again = CliRunner().invoke(convert, ["Tiny", "-t", "Q8_0"])
    assert "add --force" in str(again.exception)
    assert CliRunner().invoke(convert, ["Tiny", "-t", "Q8_0", "--force"]).exit_code == 0


def test_errors_go_up_to_the_group(tmp_path: Path) -> None:
    """Exit codes are made in one place, which is not here."""
    result = CliRunner().invoke(convert, [str(tmp_path / "nowhere")])
    assert isinstance(result.exception, CheckpointError)
    assert result.stdout == ""


def test_help_has_examples() -> None:
    result = CliRunner().invoke(convert, ["--help"])
    assert "edge convert DeepSeek-R1-Distill-Qwen-1.5B" in result.stdout
    assert "[default: Q4_K_M, Q4_0]" in " ".join(result.stdout.split())


def test_importing_the_command_is_light() -> None:
    script = "import sys, convert.cli; assert not {'numpy', 'gguf', 'rich', 'llama_cpp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
