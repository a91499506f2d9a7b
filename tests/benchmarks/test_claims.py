"""Every command in docs/claims.md says what the page says it says; the numbers are those of the published table."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import roofline
from benchmarks.cli import bench
from benchmarks.devices import DEVICES, known_device
from benchmarks.shapes import SHAPES, known_shape, layout
from edge.errors import EngineError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"
R1 = SHAPES["deepseek-r1-distill-qwen-1.5b"]


def claims() -> list[tuple[str, str]]:
    return re.findall(r"```\n\$ edge bench (check .*)\n((?:.+\n)+)```", PAGE.read_text(encoding="utf-8"))


def test_the_page_judges_every_headline() -> None:
    answers = [said.splitlines()[-1] for _, said in claims()]
    assert answers == [
        *("impossible", "impossible", "impossible", "possible"),
        *("impossible", "possible", "false", "false", "unsupported"),
    ]


@pytest.mark.parametrize(("command", "said"), claims(), ids=[command for command, _ in claims()])
def test_a_command_of_the_page_says_what_stands_there(command: str, said: str) -> None:
    done = CliRunner().invoke(bench, command.split(), catch_exceptions=False)
    assert done.output == said


@pytest.mark.parametrize(
    ("device", "kind", "tokens_per_s"),
    [
        ("pi-4", "Q4_0", 13.8), ("pi-5", "Q4_0", 18.4), ("pi-5", "Q4_K_M", 17.4), ("rk3588-lpddr4x", "Q4_0", 36.7),
        ("rk3588", "Q8_0", 26.8), ("a17-pro", "Q4_K_M", 52.2), ("m4", "Q4_K_M", 122), ("rtx-3060", "F16", 117),
    ],
)  # fmt: skip
def test_limits_are_those_worked_out_by_hand(device: str, kind: str, tokens_per_s: float) -> None:
    found = roofline.tokens_per_s_max(layout(R1, kind), DEVICES[device].peak_gb_per_s)
    assert found == pytest.approx(tokens_per_s, rel=0.01)


@pytest.mark.parametrize(("kind", "read_gb"), [("Q4_0", 0.929), ("Q4_K_M", 0.980), ("Q8_0", 1.641), ("F16", 3.088)])
def test_bytes_a_token_reads_leave_the_embedding_table_out(kind: str, read_gb: float) -> None:
    assert layout(R1, kind).bytes_read_per_token / 1e9 == pytest.approx(read_gb, abs=0.0005)


def test_depth_lowers_the_limit() -> None:
    made = layout(R1, "Q4_0")
    assert roofline.bytes_per_token(made, 4096) - roofline.bytes_per_token(made, 0) == 4096 * 28672


def test_a_tied_table_is_read() -> None:
    tied = layout(known_shape("Qwen2.5-0.5B"), "Q8_0")
    assert tied.bytes_read_per_token == sum(tied.sizes.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "gpt-5"], "no shape gpt-5 is known; choose one of: deepseek-r1"),
        (["--model", R1.name, "--device", "abacus"], "no device abacus is known; choose one of: pi-4"),
        (["--model", R1.name, "--device", "pi-5", "-t", "Q9"], "type Q9 cannot be made; choose one of"),
    ],
)
def test_an_unknown_name_is_answered_with_those_there_are(words: list[str], said: str) -> None:
    done = CliRunner().invoke(bench, ["check", *words, "--claim", "1"])
    assert said in str(done.exception)


@pytest.mark.parametrize(
    "words", [[], ["--model", R1.name], ["--model", R1.name, "--device", "pi-5", "--as", "prompt"]]
)
def test_what_is_missing_is_named(words: list[str]) -> None:
    done = CliRunner().invoke(bench, ["check", *words])
    assert done.exit_code == 2
    assert "no --" in done.output or "give one" in done.output


def test_the_readme_predicts_what_the_table_gives() -> None:
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    for device in (DEVICES[name] for name in ("pi-4", "pi-5", "rk3588-lpddr4x", "rk3588")):
        assert device.share is not None
        cells = [device.title]
        for kind in ("Q4_0", "Q4_K_M"):
            limit = roofline.tokens_per_s_max(layout(R1, kind), device.peak_gb_per_s)
            low, high = (share * limit for share in device.share)
            cells += [f"{limit:.1f} tokens/s", f"{low:.1f} to {high:.1f} tokens/s"]
        assert f"| {' | '.join(cells)} |" in readme
    assert "**Predicted, not measured**" in readme


def test_every_device_tells_where_its_bandwidth_comes_from() -> None:
    for device in DEVICES.values():
        rate, width = re.search(r"([\d]+) MT/s x (\d+) B", device.memory).groups()  # type: ignore[union-attr]
        assert int(rate) * int(width) / 1000 == pytest.approx(device.peak_gb_per_s)
        assert bool(device.share) == bool(device.evidence)
    with pytest.raises(EngineError, match="--bandwidth"):
        known_device("no such")
