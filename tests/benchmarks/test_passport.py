"""The demo's passport in docs/ is about the demo as it is now, and its page says what its document says."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import passport
from benchmarks.passport import other_sums
from convert import tasks
from edge.cli import cli
from edge.demo import demo_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_it_is_about_this_demo() -> None:
    """F16 is the same bytes on every machine; the K types may round differently on another."""
    found = json.loads((DOCS / "demo-passport.json").read_text(encoding="utf-8"))
    sha256 = {file["type"]: file["sha256"] for file in found["files"] if not file["imatrix"]}
    assert sha256["F16"] == hashlib.sha256(demo_model("F16").read_bytes()).hexdigest(), "python -m benchmarks.passport"


def test_page_and_document_say_the_same() -> None:
    found = json.loads((DOCS / "demo-passport.json").read_text(encoding="utf-8"))
    page = (DOCS / "demo-passport.md").read_text(encoding="utf-8")
    names = [file["type"] + (" + imatrix" if file["imatrix"] else "") for file in found["files"]]
    assert sorted(names) == sorted(
        ["F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_K_M + imatrix", "Q4_0", "Q4_0 + imatrix"]
    )  # fmt: skip
    for name, file in zip(names, found["files"], strict=True):
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert f"{file['n_bytes'] / 1e6:,.1f}" in row
        assert f"{100 * file['quality']['same_top']['value']:.2f} %" in row
        (score,) = file["scores"]
        assert f"{100 * score['share']:.1f} %" in row
        assert file["sha256"] in page
    assert "demo-passport.svg" in page
    assert (DOCS / "demo-passport.svg").is_file()


def test_its_texts_are_here() -> None:
    found = json.loads((DOCS / "demo-passport.json").read_text(encoding="utf-8"))
    assert found["text"]["sha256"] == hashlib.sha256((ROOT / passport.TEXT).read_bytes()).hexdigest()
    assert {file["imatrix"] for file in found["files"]} == {None, passport.CALIBRATION.name}
    for text, n in ((passport.TEXT, passport.N_REPLIES), (passport.CALIBRATION, passport.N_CALIBRATION)):
        assert (ROOT / text).read_text(encoding="utf-8").count("<｜User｜>") == n


def test_its_commands_give_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digits are those of a machine's arithmetic."""
    monkeypatch.chdir(ROOT)
    found = json.loads((DOCS / "demo-passport.json").read_text(encoding="utf-8"))
    for file, command in zip(found["files"], found["commands"], strict=True):
        if file["type"] not in ("Q8_0", "Q4_0") or file["imatrix"]:
            continue
        words = command.replace(file["file"], str(demo_model(file["type"])))
        words = words.replace("demo-BF16.gguf", str(demo_model("BF16"))).replace("--tasks sums", "--json")
        result = CliRunner().invoke(cli, words.split()[1:])
        assert result.exit_code == 0, result.output
        again, quality = json.loads(result.stdout), file["quality"]
        assert (again["n_chunks"], again["n_tokens"]) == (quality["n_chunks"], quality["n_tokens"])
        lost = again["divergence"]
        assert lost["kld"]["value"] == pytest.approx(quality["kld"]["value"], rel=0.1)
        assert lost["perplexity"]["value"] == pytest.approx(quality["perplexity"]["value"], rel=0.01)
        assert lost["same_top"]["value"] == pytest.approx(quality["same_top"]["value"], abs=0.003)


def test_every_sum_was_asked() -> None:
    found = json.loads((DOCS / "demo-passport.json").read_text(encoding="utf-8"))
    scores = [score for file in found["files"] for score in file["scores"]]
    assert {score["n_right"] + score["n_wrong"] + score["n_cut"] for score in scores} == {len(tasks.read("sums"))}


def test_calibration_is_not_what_is_measured_on() -> None:
    held_out = {question.text for question in tasks.read("sums")}
    assert not held_out & set(other_sums())
    assert len(other_sums()) == 200
