"""Our measures are llama-perplexity's, to three digits; what was stopped goes on; nothing is loaded in this process."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert import child, quality, tasks
from convert.child import Report
from convert.quality import Reading, measure
from convert.records import Records
from edge.cli import cli
from edge.demo import demo_model
from edge.errors import EngineError, ModelFileError, NoSpaceError, TextError
from tests import peers
from tests.convert import checkpoints


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo knows to go on with: sums and their results."""
    path = tmp_path_factory.mktemp("text") / "sums.txt"
    sums = tasks.read("sums")
    path.write_text("\n".join(f"{one.text} The answer is {one.expected}." for one in sums) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own; the demo models stay where they are."""
    demo_model("F16"), demo_model("Q4_0")
    monkeypatch.setattr(quality, "cache_dir", lambda: tmp_path)
    return tmp_path / "quality"


def numbers(said: str, name: str) -> list[float]:
    """The numbers behind a name in what llama-perplexity prints; percentages as shares."""
    line = next(line for line in said.splitlines() if line.strip().startswith(name))
    scale = 0.01 if line.rstrip().endswith("%") else 1
    return [scale * float(number) for number in re.findall(r"-?[\d.]+(?:e[+-]\d+)?", line[line.index(":") :])]


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_the_measures_are_llama_perplexity_s(tmp_path: Path, text: Path, kind: str) -> None:
    reference, model = demo_model("F16"), demo_model(kind)
    options: tuple[object, ...] = ("-f", text, "--chunks", 4, "-t", 1, "--kl-divergence-base", "base.dat")
    plain = peers.run("llama-perplexity", "-m", reference, *options, folder=tmp_path, until="PPL =")
    options += ("-m", model, "--kl-divergence")
    said = peers.run("llama-perplexity", *options, folder=tmp_path, until="Same top p:")
    ours = measure(model, reference, Reading(text, n_chunks=4))
    lost = ours.divergence
    assert lost
    assert (ours.n_chunks, lost.n_tokens) == (4, 4 * 255)
    pairs = {
        "Mean PPL(Q) ": lost.perplexity,
        "Mean PPL(base)": lost.perplexity_base,
        "Mean ln(PPL(Q)/PPL(base))": lost.ln_perplexity_ratio,
        "Mean    KLD": lost.kld,
        "RMS Δp": lost.p_diff_rms,
        "Same top p": lost.same_top,
    }
    for name, estimate in pairs.items():
        value, error = numbers(said, name)
        assert estimate.value == pytest.approx(value, rel=1e-3, abs=6e-6), name
        assert estimate.error == pytest.approx(error, rel=2e-2, abs=6e-6), name
    for name, value in (("Maximum KLD", lost.kld_max), ("99.0%   KLD", lost.kld_99), ("Median  KLD", lost.kld_median)):
        assert value == pytest.approx(numbers(said, name)[0], rel=1e-3, abs=2e-6), name
    alone = measure(reference, None, Reading(text, n_chunks=4)).perplexity
    final = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", plain)
    assert final
    assert [alone.value, alone.error] == [pytest.approx(float(number), rel=1e-3) for number in final.groups()]


def test_what_was_stopped_goes_on(own_cache: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after each of several chunks of both models: the result is that of one go, and nothing was made twice."""
    reading = Reading(text, n_ctx=128, n_chunks=5)
    whole = measure(demo_model("Q4_0"), demo_model("F16"), reading)
    for path in own_cache.iterdir():
        path.unlink()

    def stop_at(n: int) -> Report:
        def report(phase: str, n_done: int, n_total: int) -> None:
            if phase.startswith("read") and n_done == n:
                raise KeyboardInterrupt

        return report

    for n in (1, 2, 4):
        with pytest.raises(KeyboardInterrupt):
            measure(demo_model("Q4_0"), demo_model("F16"), reading, stop_at(n))
    base = next(own_cache.glob("*.logits"))
    with Records(base) as records:
        assert 3 <= len(records) <= 5, "a chunk may have been done when the stop came"
    seen: list[tuple[str, int]] = []
    again = measure(demo_model("Q4_0"), demo_model("F16"), reading, lambda phase, n, of: seen.append((phase, n)))
    assert again == whole
    assert ("read demo-F16.gguf", 0) not in seen
    seen.clear()
    assert (
        measure(demo_model("Q4_0"), demo_model("F16"), reading, lambda phase, n, of: seen.append((phase, n))) == whole
    )
    assert [n for phase, n in seen if phase.startswith("read")] == [5, 5]


def test_a_longer_reading_goes_on_from_a_shorter_one(own_cache: Path, text: Path) -> None:
    short = measure(demo_model("Q4_0"), demo_model("F16"), Reading(text, 128, 2))
    longer = measure(demo_model("Q4_0"), demo_model("F16"), Reading(text, 128, 4))
    assert (short.n_tokens, longer.n_tokens) == (2 * 63, 4 * 63)
    assert measure(demo_model("Q4_0"), demo_model("F16"), Reading(text, 128, 2)) == short


def test_old_references_make_room(own_cache: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache.mkdir()
    (own_cache / "old.logits").write_bytes(b"x" * 1000)
    monkeypatch.setattr(quality, "N_KEPT_BYTES_MAX", 100)
    measure(demo_model("Q4_0"), demo_model("F16"), Reading(text, 128, 2))
    assert not (own_cache / "old.logits").exists()
    assert len(list(own_cache.glob("*.logits"))) == 1


def test_what_cannot_be_measured_is_said(tmp_path: Path, text: Path) -> None:
    model = demo_model("Q4_0")
    short = tmp_path / "short.txt"
    short.write_text("1 + 1 = 2")
    with pytest.raises(TextError, match="two chunks of 512 are the least; name a longer text"):
        measure(model, None, Reading(short))
    short.write_bytes(b"\xff\xfe")
    with pytest.raises(TextError, match="is not UTF-8 text"):
        measure(model, None, Reading(short))
    with pytest.raises(ModelFileError, match="cannot be read"):
        measure(model, None, Reading(tmp_path / "nowhere.txt"))
    with pytest.raises(ModelFileError):
        measure(text, None, Reading(text))
    folder = checkpoints.write(tmp_path / "Other")
    made = CliRunner().invoke(cli, ["convert", str(folder), "-t", "Q8_0", "-o", str(tmp_path)])
    assert made.exit_code == 0, made.output
    with pytest.raises(ModelFileError, match="compare it with one like it"):
        measure(tmp_path / "Other-Q8_0.gguf", model, Reading(text))


def test_a_full_disk_is_seen_before_the_reading(own_cache: Path, text: Path) -> None:
    script = (
        "import os, sys, convert.evaluate as e\n"
        "real = os.statvfs\n"
        "os.statvfs = lambda path: type('F', (), {'f_bavail': 1, 'f_frsize': 4096})\n"
        "e.serve(e.work)"
    )
    job = {"kind": "reference", "model": str(demo_model("F16")), "n_vocab": 1024, "text": str(text)}
    job |= {"n_ctx": 512, "n_chunks": 4}
    own_cache.mkdir()
    arguments = [sys.executable, "-c", script, json.dumps(job | {"records": str(own_cache / "x.logits")})]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=child.PACKAGE_ROOT)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["error"] == NoSpaceError.__name__
    assert last["facts"]["n_bytes_needed"] > 2_000_000


def test_a_child_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"the work on x\.gguf ended early \(.*No module named"):
        child.run("convert.nothing", {"model": "x.gguf"})


def test_the_command_prints_a_table_or_a_document(text: Path) -> None:
    words = ["quality", str(demo_model("Q4_0")), "--against", str(demo_model("F16")), "--text", str(text)]
    words += ["--chunks", "2", "--tasks", "sums", "--first", "8"]
    table = CliRunner().invoke(cli, words)
    assert table.exit_code == 0, table.output
    assert "KL divergence, mean" in table.stdout
    assert re.search(r"sums +\d+\.\d % right of 8 \(95 %: ", table.stdout)
    document = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert document["n_tokens"] == 2 * 255
    assert 0.5 < document["divergence"]["same_top"]["value"] <= 1
    assert document["tasks"][0]["n_right"] >= 6


def test_a_text_of_the_model_s_own(own_cache: Path) -> None:
    words = ["quality", str(demo_model("Q4_0")), "--replies", "16", "--questions", "sums", "--ctx", "128", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["perplexity"]["value"] < 100, "it expects what it says itself"
    assert Path(found["text"]).read_text(encoding="utf-8").count("So ") >= 8
    misuse = CliRunner().invoke(cli, [*words, "--text", "x"])
    assert misuse.exit_code == 2


def test_libllama_stays_out_of_this_process() -> None:
    script = "import sys, convert.prove, convert.replies, convert.imatrix; assert 'llama_cpp' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=child.PACKAGE_ROOT)
