"""The command: a table or one JSON document on stdout, everything else on stderr, nothing heavy before it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert.cli import convert
from edge.errors import CheckpointError, UnsupportedTypeError
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


def test_dry_run_makes_nothing_and_is_right(checkpoint: Path) -> None:
    """Sizes to the byte: the plan's and the file's are the same number."""
    result = CliRunner().invoke(convert, ["Tiny", "-t", "Q4_0", "-t", "Q8_0", "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in Path().iterdir()] == ["Tiny"]
    planned = json.loads(result.stdout)
    assert planned["cpu_s"] > 0
    made = json.loads(CliRunner().invoke(convert, ["Tiny", "-t", "Q4_0", "-t", "Q8_0", "--json"]).stdout)
    assert [file["n_bytes"] for file in planned["files"]] == [file["n_bytes"] for file in made]
    assert [file["bits_per_weight"] for file in planned["files"]] == [file["bits_per_weight"] for file in made]
    tensors = {tensor["name"]: tensor for tensor in planned["files"][0]["tensors"]}
    assert tensors["output.weight"] == {
        "name": "output.weight",
        "shape": [288, 64],
        "type": "Q8_0",
        "n_bytes": 288 * 68,
        "weighted": False,
    }


def test_dry_run_prints_each_tensor(checkpoint: Path) -> None:
    result = CliRunner().invoke(convert, ["Tiny", "-t", "Q4_0", "-t", "F16", "--dry-run"])
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["tensor", "shape", "Q4_0", "F16"]
    row = next(line.split() for line in lines if line.startswith("blk.0.ffn_down.weight"))
    assert row == ["blk.0.ffn_down.weight", "64", "x", "96", "Q4_0", "0.0", "MB", "F16", "0.0", "MB"]
    assert "bits/weight" in lines[-3]
    assert lines[-1].startswith("about 0 s on ")


def test_wishes_reach_the_plan(checkpoint: Path) -> None:
    options = ["--tensor-type", "ffn_=q8_0", "--output-tensor-type", "f16", "--token-embedding-type", "Q5_1"]
    result = CliRunner().invoke(convert, ["Tiny", "-t", "Q4_0", *options, "--dry-run", "--json"])
    kinds = {tensor["name"]: tensor["type"] for tensor in json.loads(result.stdout)["files"][0]["tensors"]}
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["output.weight"] == "F16"
    assert kinds["token_embd.weight"] == "Q5_1"
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    pure = CliRunner().invoke(convert, ["Tiny", "-t", "Q4_0", "--pure", "--dry-run", "--json"])
    assert {tensor["type"] for tensor in json.loads(pure.stdout)["files"][0]["tensors"]} == {"F32", "Q4_0"}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("q4_0", "'q4_0' is not PATTERN=TYPE, like ffn_down=q6_k"),
        ("ffn[=q4_0", "'ffn[' is not a regular expression (unterminated character set at position 3)"),
    ],
)
def test_slips_in_patterns_are_misuse(checkpoint: Path, option: str, said: str) -> None:
    result = CliRunner().invoke(convert, ["Tiny", "--tensor-type", option])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_unknown_types_are_named(checkpoint: Path) -> None:
    for option in (["-t", "Q9"], ["--output-tensor-type", "Q9"], ["--tensor-type", "ffn=Q9"]):
        result = CliRunner().invoke(convert, ["Tiny", *option])
        assert isinstance(result.exception, UnsupportedTypeError)
        assert result.exception.name == "Q9"


def test_every_option_has_an_environment_twin(checkpoint: Path) -> None:
    environment = {"EDGE_CONVERT_TYPE": "Q8_0", "EDGE_CONVERT_JSON": "1"}
    result = CliRunner(env=environment).invoke(convert, ["Tiny"], auto_envvar_prefix="EDGE_CONVERT")
    assert result.exit_code == 0, result.output


def test_help_has_examples() -> None:
    result = CliRunner().invoke(convert, ["--help"])
    assert "edge convert DeepSeek-R1-Distill-Qwen-1.5B" in result.stdout
    assert "[default: Q4_K_M, Q4_0]" in " ".join(result.stdout.split())


def test_importing_the_command_is_light() -> None:
    script = "import sys, convert.cli; assert not {'numpy', 'gguf', 'rich', 'llama_cpp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
