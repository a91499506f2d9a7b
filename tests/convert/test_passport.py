"""A passport tells the truth about the very file it lies beside, in the same numbers as the commands it names."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert import choose, tasks
from convert.choose import Trial
from edge.cli import cli
from edge.demo import CHECKPOINT, demo_model
from edge.errors import EngineError
from tests.convert import checkpoints


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, thoughts and answers as the demo gives them, without asking it."""
    path = tmp_path_factory.mktemp("text") / "sums.txt"
    sums = tasks.read("sums")[:80]
    template = "<｜begin▁of▁sentence｜><｜User｜>{}<｜Assistant｜><think>\n"
    path.write_text(
        "".join(f"{template.format(one.text)}So {one.expected}.\n</think>\n\n{one.expected}" for one in sums)
    )
    return path


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_lies_beside_the_file_and_is_about_it(tmp_path: Path, text: Path) -> None:
    words = ["convert", CHECKPOINT, "-t", "Q4_0", "-t", "Q8_0", "-o", tmp_path, "--passport", "--text", text]
    run(*words, "--json")
    names = sorted(path.name for path in tmp_path.iterdir())
    ends = ("gguf", "gguf.json", "passport.json", "passport.md")
    assert names == [f"demo-{kind}.{end}" for kind in ("Q4_0", "Q8_0") for end in ends], "the reference goes away"
    lost = {}
    for kind in ("Q4_0", "Q8_0"):
        found = json.loads((tmp_path / f"demo-{kind}.passport.json").read_text())
        (file,) = found["files"]
        content = (tmp_path / f"demo-{kind}.gguf").read_bytes()
        assert (file["n_bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert (found["reference"], file["type"]) == ("demo-BF16.gguf", kind)
        assert found["text"] == {"origin": text.name, "sha256": hashlib.sha256(text.read_bytes()).hexdigest()}
        lost[kind] = file["quality"]
        page = (tmp_path / f"demo-{kind}.passport.md").read_text()
        assert f"| {kind} |" in page
        assert file["sha256"] in page
    assert lost["Q8_0"]["kld"]["value"] < 0.2 * lost["Q4_0"]["kld"]["value"]
    # the command that it names gives its numbers
    command = found["commands"][0].replace("TEXT", str(text)).replace("demo-BF16.gguf", str(demo_model("BF16")))
    again = json.loads(run(*command.replace("demo-Q8_0.gguf", str(tmp_path / "demo-Q8_0.gguf")).split()[1:], "--json"))
    assert again["divergence"] == {name: lost["Q8_0"][name] for name in again["divergence"]}
    # and a passport that exists stays
    refused = CliRunner().invoke(cli, [str(word) for word in words])
    assert refused.exit_code == 1
    assert "add --force" in refused.stderr


def test_the_smallest_type_that_passes_is_made(tmp_path: Path, text: Path) -> None:
    words = ["convert", CHECKPOINT, "--auto", "--text", text, "--json"]
    loose = json.loads(run(*words, "--min-top1", 0.5, "-o", tmp_path / "loose"))
    assert loose["trials"][-1]["verdict"] == "the smallest that passes"
    assert len(loose["trials"]) == 1
    strict = json.loads(run(*words, "--min-top1", loose["trials"][0]["same_top"] + 0.005, "-o", tmp_path / "strict"))
    sizes = [trial["n_bytes"] for trial in strict["trials"]]
    assert sizes == sorted(sizes)
    assert len(sizes) > 1
    for choice in (loose, strict):
        path = Path(choice["path"])
        assert sorted(path.parent.iterdir()) == [path, path.with_name(f"{path.name}.json")]
        run("inspect", path, "--verify")


def test_what_does_not_fit_is_not_tried(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        cli, ["convert", str(CHECKPOINT), "--auto", "--ram", "700MB", "-o", str(tmp_path / "out")]
    )
    assert said.exit_code == 1
    assert "no type passes: IQ4_XS needs too much memory, " in said.stderr
    assert said.stderr.rstrip().endswith("lower --min-top1, or give it more --ram")
    assert not (tmp_path / "out").exists()


def test_auto_is_not_mixed_with_wishes(tmp_path: Path) -> None:
    for option in ("--pure", "--dry-run"):
        said = CliRunner().invoke(cli, ["convert", str(CHECKPOINT), "--auto", option, "-o", str(tmp_path)])
        assert said.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_template_needs_a_text(tmp_path: Path) -> None:
    source = checkpoints.write(tmp_path / "plain")
    checkpoints.change(source, "tokenizer_config.json", chat_template=None)
    said = CliRunner().invoke(cli, ["convert", str(source), "-t", "Q8_0", "--passport", "-o", str(tmp_path)])
    assert said.exit_code == 1
    assert "has no chat template" in said.stderr


@pytest.mark.parametrize(("text", "n"), [("4GB", 4 * 10**9), ("512 MB", 512 * 10**6), ("1.5g", 15 * 10**8), ("7", 7)])
def test_sizes_are_read(text: str, n: int) -> None:
    from convert.cli import Bytes

    assert Bytes().convert(text, None, None) == n


def test_every_trial_is_told() -> None:
    trials = [Trial("Q8_0", 1, 2, None, "needs too much memory"), Trial("Q4_0", 1, 2, 0.93, "below 0.950")]
    error = EngineError(f"no type passes: {choose.told(trials)}", "x")
    assert str(error) == "no type passes: Q8_0 needs too much memory, Q4_0 has 0.930; x"
