"""The command line as a person uses it: real processes, the demo model, exit codes and one-sentence errors."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import split_words

EDGE = [sys.executable, "-m", "edge.cli"]


def edge(*words: str | Path, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EDGE, *map(str, words)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "EDGE_RUN_THREADS": "1", "EDGE_CHAT_THREADS": "1", **env},
    )


def refusal(*words: str | Path, code: int = 1) -> str:
    """The one sentence a command ends with."""
    done = edge(*words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from edge.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'llama_cpp', 'rich', 'jinja2', 'asyncio', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("run", "chat", "convert", "bench", "inspect"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["run", "chat", "convert", "bench", "inspect"])
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = edge(command, "--help")
    assert done.returncode == 0
    assert f"edge {command}" in done.stdout


def test_run_gives_the_answer_on_stdout_and_the_thought_on_stderr(demo_model: Path) -> None:
    done = edge("run", demo_model, "What is 347 + 85?", "--temp", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "347 + 85 = 432\n"
    assert "7 + 5 + 0 = 12, write 2, carry 1" in done.stderr
    assert "tokens/s" in done.stderr


def test_no_think_hides_the_thought(demo_model: Path) -> None:
    done = edge("run", demo_model, "What is 347 + 85?", "--temp", "0", "--no-think")
    assert done.stdout == "347 + 85 = 432\n"
    assert "carry" not in done.stderr


def test_run_without_a_model_uses_the_demo() -> None:
    done = edge("run", "347 减 500 等于多少？", "--temp", "0", "--json")
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["answer"] == "347 减 500 等于 -153。"
    assert reply["finish_reason"] == "stop"
    assert reply["n_thought_tokens"] > 20 > reply["n_answer_tokens"]
    assert reply["decode_tokens_per_s"] > 0


def test_the_same_seed_gives_the_same_reply(demo_model: Path) -> None:
    wild = ("--temp", "2", "--seed", "5", "--max-tokens", "60", "--json")
    first, second = (json.loads(edge("run", demo_model, "Tell me a story", *wild).stdout) for _ in range(2))
    assert (first["thought"], first["answer"]) == (second["thought"], second["answer"])


def test_a_pipe_is_the_prompt_or_joins_it(demo_model: Path) -> None:
    assert edge("run", demo_model, "--temp", "0", stdin="What is 347 + 85?\n").stdout == "347 + 85 = 432\n"
    assert split_words(("m.gguf",), "question\n") == ("m.gguf", "question")
    assert split_words(("m.gguf", "Review this."), "diff\n") == ("m.gguf", "Review this.\n\ndiff")
    assert split_words(("Review this.",), "diff\n") == (None, "Review this.\n\ndiff")


def test_max_tokens_is_kept(demo_model: Path) -> None:
    reply = json.loads(edge("run", demo_model, "What is 1 + 1?", "--max-tokens", "3", "--json").stdout)
    assert reply["n_thought_tokens"] + reply["n_answer_tokens"] <= 3
    assert reply["finish_reason"] == "length"


def test_chat_holds_several_turns(demo_model: Path) -> None:
    done = edge("chat", demo_model, "--temp", "0", stdin="What is 347 + 85?\nand minus 12?\n/clear\n/bye\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "347 + 85 = 432\n432 - 12 = 420\n"
    assert "forgotten" in done.stderr


def test_chat_goes_on_after_a_question_that_does_not_fit(demo_model: Path) -> None:
    done = edge("chat", demo_model, "--temp", "0", "--ctx", "256", stdin="why " * 400 + "\nWhat is 1 + 1?\n")
    assert done.returncode == 0
    assert "the context holds 256" in done.stderr
    assert done.stdout == "1 + 1 = 2\n"


def test_ctrl_c_stops_the_answer_and_says_so(demo_model: Path) -> None:
    wild = ("--temp", "5", "--top-k", "0", "--top-p", "1", "--seed", "3")
    command = [*EDGE, "run", str(demo_model), "Tell me a story", *wild, "--threads", "1"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stderr is not None
        run.stderr.read(1)  # the thought has begun
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 0
    assert b"; stopped" in stderr
    assert b"Traceback" not in stderr


def test_inspect_reads_what_the_file_says(demo_model: Path) -> None:
    plain = edge("inspect", demo_model)
    assert "qwen2" in plain.stdout
    assert "Q8_0" in plain.stdout
    assert json.loads(edge("inspect", demo_model, "--json").stdout)["architecture"] == "qwen2"


def test_a_reader_that_leaves_is_no_error(demo_model: Path) -> None:
    command = f"{shlex.join([*EDGE, 'inspect', str(demo_model)])} --json | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""


# ---------------------------------------------------------------- bad input


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    text = refusal("run", tmp_path / "no.gguf", "hello")
    assert text.startswith(f"{tmp_path}/no.gguf: ")
    assert "; " in text


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"GGUF", b"GGUF" + b"\xff" * 200])
@pytest.mark.parametrize("command", ["run", "chat", "inspect", "bench"])
def test_a_file_that_is_not_a_gguf(tmp_path: Path, command: str, content: bytes) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    words = (command, bad, "hello") if command == "run" else (command, bad)
    text = refusal(*words)
    assert text.startswith(f"{bad}: ")
    assert "; " in text


def test_a_prompt_longer_than_the_context(demo_model: Path) -> None:
    text = refusal("run", demo_model, "why " * 400, "--ctx", "256")
    assert "the context holds 256; shorten it or start with a larger --ctx" in text


def test_a_model_whose_tensors_are_cut_off(demo_model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(demo_model.read_bytes()[:-1000])
    assert refusal("run", cut, "hello").startswith(f"{cut}: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "no PROMPT"),
        (("run", "model.gguf"), "no PROMPT"),
        (("run", "m.gguf", "what", "is", "this"), "put the prompt in quotes"),
        (("run", "hi", "--temp", "-1"), "--temp"),
        (("run", "hi", "--ctx", "0"), "--ctx"),
        (("run", "hi", "--threads", "100000"), "--threads"),
        (("run", "hi", "--seed", "x"), "--seed"),
        (("bench", "-r", "0"), "--repeat"),
        (("nothing",), "nothing"),
    ],
)
def test_misuse_names_the_word_and_exits_2(words: tuple[str, ...], said: str) -> None:
    assert said in refusal(*words, code=2)


def test_every_option_has_an_environment_twin(demo_model: Path) -> None:
    done = edge("run", demo_model, "What is 1 + 1?", EDGE_RUN_TEMP="-1")
    assert done.returncode == 2
    assert "EDGE_RUN_TEMP" in done.stderr or "--temp" in done.stderr
