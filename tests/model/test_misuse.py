"""What a new user gets wrong with models ends in one sentence that says what to do next, and leaves nothing behind."""

import json
import os
import subprocess
import sys

import pytest

from edge.demo import CHECKPOINT
from tests.hostile.gguf_files import sound_file
from tests.hub_server import HubServer

# {model} is a sound GGUF file, {words} a short text, {folder} an empty folder, {none} nothing.
WRONG = (
    ("pull {none}", "is no name of a model on the hub; name it as OWNER/REPO:TYPE"),
    ("pull owner/none", "does not exist on the hub; check the name"),
    ("pull owner/repo:Q9_9", "has no Q9_9; choose one of: Q4_K_M"),
    ("pull owner/page", "is a web page, not a GGUF file"),
    ("pull https://example.org/a/b", "is no address of a model on the hub"),
    ("pull owner/weights", "holds no GGUF file; convert it: edge convert owner/weights"),
    ("ls {model}", "unexpected extra argument"),
    ("rm owner/none --yes", "is not in the cache; edge ls shows what is"),
    ("rm {model} --yes", "is no name of a fetched model; edge ls shows them; delete other files yourself"),
    ("show {none}.gguf", "does not exist; check the path"),
    ("show {words}", "is not a GGUF file"),
    ("show {folder}", "is a folder, not a GGUF file"),
    ("show owner/none", "does not exist on the hub"),
    ("push {none} me/repo", "does not exist"),
    ("push {folder} me/repo", "holds no GGUF file; make some with edge convert --out"),
    ("push {folder} repo", "is no name of a repository; name it as OWNER/REPO"),
    ("push {models} me/repo", "has no manifest; make m.gguf with edge convert"),
    ("bundle {none}.gguf -o {folder}", "does not exist; check the path"),
    ("bundle {words} -o {folder}", "is not a GGUF file"),
    ("bundle {model} -o {words}", "cannot be written (Not a directory); choose another folder with --out"),
    ("bundle {model} -o {folder} --target riscv", "is not one of 'aarch64', 'x86_64'"),
    ("install-bundle {none}", "holds no bundle.json; name a folder made by edge bundle"),
    ("install-bundle {words}", "check the stick"),
    ("convert {none}", "cannot be read (No such file or directory); name the folder"),
    ("convert {model}", "is a file, not a checkpoint folder"),
    ("convert {folder}", "is an empty folder"),
    ("convert owner/none", "does not exist on the hub"),
    ("convert owner/repo", "holds no checkpoint; pull it: edge pull owner/repo"),
    ("convert owner/repo:Q8_0", "name the repository alone, and the types with -t"),
    ("convert {demo} -t Q9", "type Q9 cannot be made; choose one of: F32"),
    ("convert {demo} --imatrix {words} -o {folder}", "is not a GGUF file"),
    ("convert {demo} --imatrix {model} -o {folder}", "but no importance matrix; name one made by `edge imatrix`"),
    ("convert {demo} --tensor-type ffn( -o {folder}", "is not PATTERN=TYPE, like ffn_down=q6_k"),
    ("convert {demo} --tasks sums -o {folder}", "--text and --tasks are what --passport measures with; add it"),
    ("convert {demo} --passport --text {none} -o {folder}", "cannot be read (No such file or directory)"),
    ("convert {demo} --passport --tasks {none} -o {folder}", "name a file of JSON lines, or one of: sums"),
    ("convert {demo} --auto --ram lots -o {folder}", "is no size like 4GB"),
    ("convert {demo} -o {words}", "is not a folder; choose another one with --out"),
    ("quality {none}.gguf --text {words}", "does not exist; check the path"),
    ("quality {model} --text {none}", "cannot be read (No such file or directory)"),
    ("quality {model} --text {words}", "two chunks of 512 are the least; name a longer text"),
    ("quality {model} --against {words} --text {words}", "is not a GGUF file"),
    ("quality {model} --tasks {none}", "name a file of JSON lines, or one of: sums"),
    ("quality {model} --tasks {words}", "line 1 is not JSON"),
    ("quality {model} --tasks sums --checker {words}", "cannot be run (NameError"),
    ("quality {model} --text {words} --first 3", "--first and --checker are for --tasks"),
    ("imatrix {model}", "name a --text FILE, or let it write one with --self N"),
    ("imatrix {none}.gguf --text {words}", "does not exist; check the path"),
    ("imatrix {model} --text {folder}", "cannot be read (Is a directory); name a text file"),
    ("imatrix {model} --text {words} -o {none}/x.gguf", "is not a folder; choose another one with --out"),
    ("imatrix {model} --text {words} -o {model}", "exists; add --force to replace it"),
    ("imatrix owner/none --text {words}", "does not exist on the hub"),
)
RUN = """
import json, sys
from click.testing import CliRunner
from edge.cli import cli
for words in json.load(sys.stdin):
    done = CliRunner().invoke(cli, words)
    print(json.dumps([done.exit_code, done.stdout, done.stderr, repr(done.exception)]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, stdout and stderr of every command, all of them in one process; and what then lies in {folder}."""
    home = tmp_path_factory.mktemp("misuse")
    places = {name: home / name for name in ("folder", "models", "words", "none")} | {"demo": CHECKPOINT}
    places["folder"].mkdir()
    places["models"].mkdir()
    places["model"] = places["models"] / "m.gguf"
    places["model"].write_bytes(sound_file())
    places["words"].write_text("hello, world")
    lines = [[word.format(**places) for word in line.split()] for line, _ in WRONG]
    with HubServer() as server:
        server.add("owner/repo", {"m-Q4_K_M.gguf": sound_file()})
        server.add("owner/page", {"m-Q4_K_M.gguf": b"<html>" + bytes(5000)})
        server.add("owner/weights", {"config.json": b"{}", "model.safetensors": bytes(100)})
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
        environment |= {"HF_ENDPOINT": server.url(), "HF_TOKEN": server.token, "HF_HOME": str(home / "hf")}
        environment |= {"HOME": str(home)}
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps(lines),
            capture_output=True,
            text=True,
            env=environment,
            cwd=home,
        )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(path.name for path in home.iterdir()) == ["folder", "models", "words"], "nothing is left"
    assert list(places["folder"].iterdir()) == []
    assert places["model"].read_bytes() == sound_file()
    return {line: outcome for (line, _), outcome in zip(WRONG, found, strict=True)}


@pytest.mark.parametrize(("line", "says"), WRONG)
def test_it_ends_in_a_sentence_with_the_next_step(outcomes, line: str, says: str) -> None:
    code, stdout, stderr, exception = outcomes[line]
    assert code in (1, 2), exception
    assert exception == f"SystemExit({code})"
    assert stdout == ""
    *before, last = stderr.strip().splitlines()
    assert says in last
    assert last.startswith("Error: ")
    assert all(line.startswith(("Usage: ", "Try ")) or not line for line in before), "a misuse shows its usage"
