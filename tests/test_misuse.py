"""What a new user types wrong at first: each ends in one sentence with the next step, nothing is measured or made."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.cli import cli

NOT_A_MODEL = Path(__file__)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("service start", "No such command 'start'"),
        ("service install nosuch.gguf --user", "nosuch.gguf: does not exist; check the path"),
        ("service install {folder} --user", "is a folder, not a GGUF file; name the .gguf file in it"),
        ("service install nobody/nothing-GGUF:Q4_0 --user", "is not on this machine; fetch it with: edge pull nobody/"),
        ("service install --user --port 99999", "99999 is not in the range 1<=x<=65535"),
        ("service install --user --ctx 1", "1 is not in the range 64<=x<=1048576"),
        ("service install --user --host not.an/address", "is no address; give --host one of this machine's"),
        ("service install --user -- --threads 0", "0 is not in the range 1<=x<=512"),
        ("service install --user -- --prot 1", "No such option '--prot'"),
        ("service install {demo} second.gguf --user", "unexpected extra argument (second.gguf)"),
        (
            "service install {demo} --user",
            "this machine has no systemctl, so no systemd; start `edge serve` from what starts",
        ),
        ("service status --user", "no service is installed; install one with: edge service install MODEL"),
        ("service logs --lines 0", "0 is not in the range x>=1"),
        ("service uninstall --user", "no service is installed"),
        ("plan nosuch.gguf", "nosuch.gguf: does not exist; check the path"),
        ("plan {text}", "is not a GGUF file"),
        ("plan --slots 0", "0 is not in the range 1<=x<=63"),
        ("plan --gpu-layers -1", "'-1' is neither auto, all nor a number of layers"),
        ("plan --gpu-layers ²", "'²' is neither auto, all nor a number of layers"),
        ("plan a b", "unexpected extra argument (b)"),
        ("doctor model.gguf", "unexpected extra argument (model.gguf)"),
        ("doctor --fix", "No such option '--fix'"),
        ("tune --seconds 1", "1 is not in the range 10<=x<=600"),
        ("tune {text}", "is not a GGUF file"),
        ("tune nobody/nothing-GGUF:Q4_0", "is not on this machine; fetch it with: edge pull nobody/nothing-GGUF:Q4_0"),
        ("bench nosuch.gguf", "nosuch.gguf: does not exist; check the path"),
        ("bench {folder}", "is a folder, not a GGUF file"),
        ("bench --preset fast", "'fast' is not one of 'quick', 'standard', 'sustained'"),
        ("bench --gpu-layers most", "'most' is neither auto, all nor a number of layers"),
        ("bench {demo} --out {folder}/no/such/folder.jsonl", "cannot be written (No such file or directory); choose"),
        ("bench {demo} --out {folder}", "cannot be written (Is a directory); choose another file with --out"),
        ("bench -n 99999999", "99999999 is not in the range 0<=x<=1048576"),
        ("bench report {text}", "line 1 is no record (not JSON); name a file of `edge bench --out`"),
        ("bench compare {text}", "Missing argument 'B'"),
        ("bench check --device pi-9 --model deepseek-r1-distill-qwen-1.5b", "no device pi-9 is known; choose one of"),
        ("bench load {demo} --url http://127.0.0.1:9/v1", "give a MODEL or a --url, not both"),
    ],
)
def test_a_wrong_word_ends_in_one_sentence(
    words: str, said: str, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no systemctl
    places = {"demo": demo_model, "folder": tmp_path, "text": NOT_A_MODEL}
    ended = CliRunner().invoke(cli, [word.format(**places) for word in words.split()], prog_name="edge")
    assert isinstance(ended.exception, SystemExit), repr(ended.exception)
    sentences = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, ended.stderr
    assert said in sentences[0]
    assert ended.stderr.rstrip().endswith(sentences[0]), "nothing after it"
    assert ended.exit_code == (2 if ended.stderr.startswith("Usage: ") else 1)
    assert not list(tmp_path.iterdir()), "nothing is left behind"
