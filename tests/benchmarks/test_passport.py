"""The demo's passport in docs/ is about the demo as it is now, and its page says what its document says."""

import hashlib
import json
from pathlib import Path

from benchmarks.passport import other_sums
from convert import tasks
from edge.demo import demo_model

DOCS = Path(__file__).parents[2] / "docs"


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


def test_calibration_is_not_what_is_measured_on() -> None:
    held_out = {question.text for question in tasks.read("sums")}
    assert not held_out & set(other_sums())
    assert len(other_sums()) == 200
