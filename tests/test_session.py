"""The terminal chat as a person uses it: a real pseudo-terminal, the demo model, real keys; its commands by pipe."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from edge.history import History
from tests.test_cli import EDGE, edge

WILD = ("--temp", "5", "--top-k", "0", "--top-p", "1", "--seed", "3", "--ctx", "65536")
PROMPT = "> |>\x08"  # drawn: the space by moving the cursor
THINKING, ANSWERING = "\x1b[2;3m", "\x1b[?25l"  # dim italic; the cursor hides while an answer is drawn
THOUGHT = """347 + 085
ones: 7 + 5 + 0 = 12, write 2, carry 1
tens: 4 + 8 + 1 = 13, write 3, carry 1
hundreds: 3 + 0 + 1 = 4, write 4, carry 0
So 432."""
Start = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("EDGE_CHAT_THREADS", "1")
    return tmp_path / "data"


@pytest.fixture
def start(data: Path, demo_model: Path) -> Iterator[Start]:
    """start(options…, TERM=…): `edge chat` on a terminal of 100 columns."""
    children = []

    def run(*options: str, **environment: str) -> "pexpect.spawn[str]":
        env = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        child = pexpect.spawn(
            EDGE[0], [*EDGE[1:], "chat", str(demo_model), *options], env=env, timeout=30, encoding="utf-8",
            codec_errors="replace", dimensions=(30, 100),
        )  # fmt: skip
        child.delaybeforesend = None
        children.append(child)
        child.expect("Ctrl-D leaves")
        child.expect(PROMPT)
        return child

    yield run
    for child in children:
        child.close(force=True)


def leaves(child: "pexpect.spawn[str]", code: int = 0) -> None:
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (code, None)


def answered(child: "pexpect.spawn[str]", text: str) -> None:
    """The answer is laid out, and the prompt is back."""
    child.expect_exact(text)
    child.expect("tokens/s")
    child.expect(PROMPT)


# ---------------------------------------------------------------- at a keyboard


def test_a_question_is_answered_and_ctrl_d_leaves(start: Start) -> None:
    child = start("--temp", "0")
    child.send("What is 347 + 85?\r")
    answered(child, "347 + 85 = 432")
    child.send("\x04")
    leaves(child)


def test_ctrl_c_stops_the_answer_and_again_leaves(start: Start, data: Path) -> None:
    child = start(*WILD)
    child.send("Tell me a story\r")
    child.expect_exact(THINKING)
    child.sendintr()
    child.expect("; stopped")
    child.expect(PROMPT)
    child.sendintr()
    leaves(child)
    with History(data / "history.db") as history:
        (talk,) = history.find()
        assert [message.finish_reason for message in history.messages(talk.id)] == [None, "cancelled"]


def test_ctrl_c_at_the_prompt_throws_the_text_away_and_an_empty_one_leaves(start: Start) -> None:
    child = start("--temp", "0")
    child.send("What is 1 + 1")
    child.expect_exact("What is 1 + 1")
    child.sendintr()
    child.send("What is 2 + 2?\r")
    answered(child, "2 + 2 = 4")
    child.sendintr()
    leaves(child)


def test_ctrl_backslash_ends_the_thought(start: Start) -> None:
    child = start(*WILD)
    child.send("Tell me a story\r")
    child.expect_exact(THINKING)
    child.sendcontrol("\\")
    child.expect_exact(ANSWERING)
    child.sendintr()
    child.expect("[0-9]+ thought \\+ [1-9][0-9]* answer tokens")
    child.expect(PROMPT)
    child.send("/exit\r")
    leaves(child)


@pytest.mark.parametrize("environment", [{"TERM": "dumb", "LANG": "C"}, {"TERM": "dumb", "LC_ALL": "C"}, {"LANG": "C"}])
def test_a_poor_terminal_works_in_chinese_too(start: Start, environment: dict[str, str]) -> None:
    child = start("--temp", "0", **environment)
    child.send("347 减 500 等于多少？\r")
    child.expect_exact("-153")
    child.expect("tokens/s")
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in child.before, "no escape sequences for a terminal that knows none"
    child.expect(PROMPT)
    child.send("/exit\r")
    leaves(child)


def test_tab_completes_commands_and_files(start: Start, tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("What is 347 + 85?")
    child = start("--temp", "0")
    child.send("/sta\t")
    child.expect_exact("ts")  # what was missing is drawn
    child.send("\r")
    child.expect_exact("KV memory")
    child.expect(PROMPT)
    child.send(f"/file {tmp_path}/numb\t")
    child.expect_exact("ers.txt")
    child.send("\r")
    child.expect("numbers.txt goes with the next question, [0-9]+ of 4096 tokens")
    child.expect(PROMPT)
    child.send("\x04")
    leaves(child)


def test_a_text_of_several_lines_is_one_question(start: Start, data: Path) -> None:
    child = start("--temp", "0")
    child.send("What is\x1b\r347 + 85?\r")  # Alt-Enter
    child.expect("tokens/s")
    child.expect(PROMPT)
    child.send('"""\rWhat is\r1 + 1?\r"""\r')
    child.expect("tokens/s")
    child.expect(PROMPT)
    child.send("\x1b[200~What is\n2 + 2?\x1b[201~\r")  # pasted
    child.expect("tokens/s")
    child.expect(PROMPT)
    child.send("\x04")
    leaves(child)
    with History(data / "history.db") as history:
        messages = history.messages(history.find()[0].id)
    assert [message.content for message in messages[::2]] == [
        "What is\n347 + 85?",
        "What is\n1 + 1?",
        "What is\n2 + 2?",
    ]


def test_typed_lines_are_there_the_next_time(start: Start) -> None:
    child = start("--temp", "0")
    child.send("What is 347 + 85?\r")
    answered(child, "347 + 85 = 432")
    child.send("\x04")
    leaves(child)
    child = start("--temp", "0")
    child.send("\x1b[A\r")  # arrow up
    answered(child, "347 + 85 = 432")


def test_edit_puts_the_last_question_at_the_prompt(start: Start, data: Path) -> None:
    child = start("--temp", "0")
    child.send("What is 347 + 85?\r")
    answered(child, "347 + 85 = 432")
    child.send("/edit\r")
    child.expect_exact("347 + 85?")
    child.send("\x7f\x7f\x7f86?\r")
    answered(child, "347 + 86 = 433")
    child.send("\x04")
    leaves(child)
    with History(data / "history.db") as history:
        (talk,) = history.find()
        assert [m.content for m in history.branch(talk.id, talk.leaf)] == ["What is 347 + 86?", "347 + 86 = 433"]
        assert talk.n_messages == 4, "the first one is another branch"


# ---------------------------------------------------------------- by pipe


def chat(*lines: str, options: tuple[str, ...] = ("--temp", "0", "--save", "--no-think")) -> tuple[str, str]:
    """What lines give on stdout and stderr, numbers left out."""
    done = edge("chat", *options, stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if "tokens/s" not in line]
    return done.stdout, "\n".join(said[1:]).strip()


def test_a_pipe_gets_answers_alone_and_leaves_no_trace(data: Path) -> None:
    assert chat("What is 347 + 85?", "and minus 12?", options=("--temp", "0"))[0] == "347 + 85 = 432\n432 - 12 = 420\n"
    assert not (data / "history.db").exists()


def test_retry_undo_and_open_walk_the_branches(data: Path) -> None:
    out, said = chat("What is 347 + 85?", "/retry", "and minus 12?", "/undo", "and minus 32?", "/list")
    assert out == "347 + 85 = 432\n347 + 85 = 432\n432 - 12 = 420\n432 - 32 = 400\n"
    assert "taken back" in said
    assert "  1* What is 347 + 85?, 7 messages" in said
    out, said = chat("/list", "/open 1", "and minus 100?", "/new", "What is 1 + 1?", "/search minus")
    assert out == "400 - 100 = 300\n1 + 1 = 2\n"
    assert "> and minus 32?" in said
    assert "  1  What is 347 + 85?, 9 messages" in said


def test_system_think_clear_and_stats(data: Path) -> None:
    out, said = chat("/system Be kind.", "What is 347 + 85?", "/think 5", "/stats", "/clear", "/stats", "/retry")
    assert out == "347 + 85 = 432\n"
    assert "a thought has at most 5 tokens" in said
    assert re.search(r"context +[0-9]{3} of 4096 tokens", said)
    assert re.findall(r"KV memory +([0-9]+) tokens", said)[0] != "0"
    assert said.endswith("nothing was asked yet; ask a question")
    with History(data / "history.db") as history:
        (talk,) = history.find()
        assert (talk.settings.system, talk.settings.thinking_budget_tokens) == ("Be kind.", 5)


def test_a_cut_reply_is_continued_and_a_stopped_thought_answers_now(data: Path) -> None:
    out, said = chat("What is 347 + 85?", "/continue", options=("--temp", "0", "--save", "--max-tokens", "20"))
    assert said.count("; stopped") == 0
    with History(data / "history.db") as history:
        (talk,) = history.find()
        reply = history.messages(talk.id)[1]
        assert reply.usage is not None
        assert reply.usage.completion_tokens > 20
        # a thought that was stopped, as Ctrl-C leaves it
        stopped = history.begin_reply(talk.id, history.messages(talk.id)[0].id)
        history.finish_reply(stopped.id, "", THOUGHT, "cancelled")
    out, said = chat("/list", "/open 1", "/now", "/now")
    assert out == "347 + 85 = 432\n"
    assert said.endswith("the last reply is whole; /retry makes another")


def test_files_go_into_the_question(data: Path, tmp_path: Path) -> None:
    (tmp_path / "sum.txt").write_text("What is 347 + 85?")
    (tmp_path / "bad.bin").write_bytes(b"\x7fELF\0")
    (tmp_path / "long.txt").write_text("12 34 56 78 " * 3000)
    _, said = chat(*(f"/file {tmp_path / name}" for name in ("sum.txt", "none", "bad.bin", "long.txt")), "Answer.")
    assert re.search("sum.txt goes with the next question, [0-9]+ of 4096 tokens", said)
    assert "none: no such file or directory; give the path of a file" in said
    assert "bad.bin: it is no text; attach text, code or PDF" in said
    assert re.search("long.txt: it has [0-9]+ tokens, the context holds 4096; shorten it", said)
    with History(data / "history.db") as history:
        (file,) = history.messages(history.find()[0].id)[0].attachments
    assert (file.name, file.text) == ("sum.txt", "What is 347 + 85?")


def test_save_writes_markdown_or_json_and_overwrites_nothing(data: Path, tmp_path: Path) -> None:
    names = [tmp_path / "a.md", tmp_path / "a.json", tmp_path / "a.md", Path("/proc/nowhere/a.md")]
    _, said = chat("What is 347 + 85?", *(f"/save {name}" for name in names))
    assert "347 + 85 = 432" in names[0].read_text()
    assert json.loads(names[1].read_text())["format"] == "edge conversation"
    assert f"{names[2]}: file exists; give another PATH" in said
    assert "/proc/nowhere/a.md: " in said


def test_commands_that_make_no_sense_say_what_would(data: Path) -> None:
    out, said = chat(
        "/retry", "/undo", "/edit", "/now", "/continue", "/save x", "/open 7", "/think x", "/nonsense", "/help"
    )
    assert out == ""
    assert said.count("nothing was asked yet; ask a question") == 6
    assert "that is no number of the last list, and no one id; see /list" in said
    assert "x is no number of tokens; try /think 200" in said
    assert "there is no command /nonsense; /help lists them" in said
    assert "/search    WORDS" in said


def test_a_history_that_cannot_be_written_is_told_and_chat_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DATA", "/proc/nowhere")
    out, said = chat("What is 347 + 85?", "/retry")
    assert out == "347 + 85 = 432\n347 + 85 = 432\n"
    assert said.count("nothing is being saved") == 1


# ---------------------------------------------------------------- edge history


def test_edge_history_lists_searches_shows_exports_and_deletes(data: Path, tmp_path: Path) -> None:
    chat("What is 347 + 85?", "/new", "347 减 500 等于多少？")
    listed = edge("history", "list").stdout.splitlines()
    assert len(listed) == 2
    found = edge("history", "search", "减").stdout.splitlines()
    assert len(found) == 2, "a line, and where it was found"
    which = found[0].split()[0]
    shown = edge("history", "show", which).stdout
    assert "347 减 500 等于 -153。" in shown
    assert json.loads(edge("history", "list", "--json").stdout)[0]["n_messages"] == 2
    file = tmp_path / "out.json"
    assert edge("history", "export", which, "-o", file).returncode == 0
    assert "exists" in edge("history", "export", which, "-o", file).stderr.lower()
    assert edge("history", "export", which, "--format", "markdown").stdout == shown
    removed = edge("history", "rm", which)
    assert len(edge("history", "list").stdout.splitlines()) == 1
    again = removed.stderr.split()[-1]
    assert edge("history", "restore", again).returncode == 0
    assert edge("history", "import", file).stdout.strip() != again
    assert len(edge("history", "list").stdout.splitlines()) == 3
    ambiguous = edge("history", "show", "")
    assert (ambiguous.returncode, "several" in ambiguous.stderr) == (1, True)
    assert "no conversation begins with 'zzz'" in edge("history", "show", "zzz").stderr
    assert "this is no exported conversation" in edge("history", "import", "-", stdin="{}").stderr


def test_help_of_the_chat_starts_quickly() -> None:
    code = "import sys, edge.history_cli, edge.cli; print({'sqlite3', 'prompt_toolkit', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
