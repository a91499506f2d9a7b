"""Conversations in their file: trees, search in two scripts, undo, two programs at once, and export that comes back."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import OutOfRangeError, ReplyRunningError, RevisionError, TransferError, UnknownConversationError
from edge.history import UNDO_S, History
from edge.messages import Attachment, Settings, Usage, snippet, to_json
from edge.transfer import export_json, export_markdown, import_json, settings_from


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(tmp_path: Path, clock: Clock) -> Iterator[History]:
    with History(tmp_path / "history.db", clock) as history:
        yield history


def exchange(history: History, talk: str, question: str, answer: str, parent: str | None = None) -> str:
    """One question with its answer; returns the answer's id."""
    asked = history.add_question(talk, question, parent=parent)
    reply = history.begin_reply(talk, asked.id)
    history.finish_reply(reply.id, answer, "a thought", "stop", Usage(10, 2, 5, 3, 0.1, 20.0))
    return reply.id


def test_a_conversation_comes_back_as_it_was_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    with History(tmp_path / "h.db", clock) as history:
        talk = history.create(settings=Settings(system="Be kind.", temperature=0.5, seed=7))
        file = Attachment("a.csv", "1,2", 3)
        question = history.add_question(talk.id, "What is\n347 + 85?", parent=None, attachments=[file])
        reply = history.begin_reply(talk.id, question.id)
        history.grow_reply(reply.id, "43", "7 + 5")
        done = history.finish_reply(reply.id, "432", "7 + 5 = 12", "stop", Usage(10, 2, 5, 3, 0.1, 20.0))
        before = history.get(talk.id), history.messages(talk.id)
    with History(tmp_path / "h.db", clock) as history:
        assert (history.get(talk.id), history.messages(talk.id)) == before
        assert history.messages(talk.id) == [question, done]
        assert history.get(talk.id).title == "What is 347 + 85?"
        assert history.get(talk.id).settings == Settings(system="Be kind.", temperature=0.5, seed=7)
        assert question.attachments == (file,)


def test_an_edit_is_a_branch_and_the_leaf_names_the_shown_one(history: History) -> None:
    talk = history.create().id
    first = exchange(history, talk, "one", "1")
    second = exchange(history, talk, "two", "2", parent=first)
    edited = exchange(history, talk, "zwei", "zwei!", parent=first)
    assert history.get(talk).leaf == edited
    assert [m.content for m in history.branch(talk, edited)] == ["one", "1", "zwei", "zwei!"]
    assert [m.content for m in history.branch(talk, second)] == ["one", "1", "two", "2"]
    assert history.update(talk, {"leaf": second}).leaf == second
    with pytest.raises(UnknownConversationError):
        history.update(talk, {"leaf": "0" * 32})


def test_a_removed_message_takes_what_follows_and_the_leaf_moves_beside_it(history: History) -> None:
    talk = history.create().id
    first = exchange(history, talk, "one", "1")
    second = exchange(history, talk, "two", "2", parent=first)
    edited = exchange(history, talk, "zwei", "zwei!", parent=first)
    question = history.branch(talk, edited)[2].id
    after = history.remove_message(talk, question)
    assert after.leaf == second, "the other branch is what is left"
    assert after.n_messages == 4
    assert [m.content for m in history.messages(talk)] == ["one", "1", "two", "2"]
    assert history.remove_message(talk, history.messages(talk)[0].id).leaf is None
    assert history.find("zwei") == history.find("two") == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("方程", True), ("解方程", True), ("程", True), ("方程式", False), ("QUADRATIC", True), ("adrat", True),
        ("x formula", True), ("formula banana", False), ("100%", True), ("1%", False), ("a_b", True), ("axb", False),
        ('"quoted"', True), ("NOT", False), ("(", True), ("\\", True), ("equation title", True), ("qu", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indexed", [True, False])
def test_search_finds_parts_of_words_in_every_script(history: History, query: str, found: bool, indexed: bool) -> None:
    talk = history.create("An equation title").id
    exchange(history, talk, "请解方程 x² - 1 = 0", 'The quadratic formula gives x; 100% a_b "quoted" (é \\')
    exchange(history, history.create().id, "something else", "of no interest")
    if not indexed:  # a SQLite without full-text search
        triggers = [f"DROP TRIGGER search_{verb}" for verb in ("comes", "goes", "leaves", "joins")]
        history._database.write(lambda db: [db.execute(drop) for drop in (*triggers, "DROP TABLE search")])
    assert (talk in [hit.id for hit in history.find(query)]) is found


def test_a_hit_shows_its_surroundings(history: History) -> None:
    talk = history.create().id
    exchange(history, talk, "Was?", "lorem ipsum " * 50 + "请解方程 now " + "dolor " * 50)
    (hit,) = history.find("解方程")
    assert hit.snippet is not None
    assert "请解方程 now" in hit.snippet
    assert len(hit.snippet) < 130
    assert snippet("short", ["nothing"]) == "short"


def test_search_sees_the_text_as_it_is_now(history: History) -> None:
    talk = history.create().id
    question = history.add_question(talk, "tell me", parent=None)
    reply = history.begin_reply(talk, question.id)
    history.grow_reply(reply.id, "elephants everywhere", None)
    history.finish_reply(reply.id, "giraffes everywhere", None, "stop")
    assert [hit.id for hit in history.find("giraffes")] == [talk]
    assert history.find("elephants") == []
    history.clear(talk)
    assert history.find("giraffes") == []
    assert history.get(talk).n_messages == 0


def test_the_list_begins_with_the_pinned_and_goes_on_page_by_page(history: History) -> None:
    ids = [history.create(f"talk {i}").id for i in range(7)]
    history.update(ids[0], {"pinned": True})
    history.update(ids[3], {"folder": "school"})
    first = history.find(limit=3)
    assert [talk.title for talk in first] == ["talk 0", "talk 6", "talk 5", "talk 4"]
    second = history.find(limit=3, before=first[-1].updated)
    assert [talk.title for talk in second] == ["talk 3", "talk 2", "talk 1"]
    assert [talk.id for talk in history.find(folder="school")] == [ids[3]]
    assert history.folders() == ["school"]


def test_a_deleted_conversation_comes_back_until_its_time_is_over(history: History, clock: Clock) -> None:
    talk = history.create("one").id
    exchange(history, talk, "question", "answer")
    until = history.delete(talk)
    assert until == pytest.approx(clock.now_s + UNDO_S, abs=2)
    assert history.find() == history.find("answer") == []
    with pytest.raises(UnknownConversationError):
        history.get(talk)
    assert history.restore(talk).n_messages == 2
    assert [hit.id for hit in history.find("answer")] == [talk]
    history.delete(talk)
    clock.now_s += UNDO_S + 1
    history.create()
    with pytest.raises(UnknownConversationError):
        history.restore(talk)


def test_a_stale_revision_is_refused_and_none_always_wins(history: History) -> None:
    talk = history.create("one")
    changed = history.update(talk.id, {"title": "two"}, revision=talk.revision)
    with pytest.raises(RevisionError) as caught:
        history.update(talk.id, {"title": "three"}, revision=talk.revision)
    assert caught.value.revision == changed.revision
    assert history.update(talk.id, {"title": "three"}).title == "three"


def test_a_reply_that_is_being_written_is_nobody_elses(history: History) -> None:
    talk = history.create().id
    question = history.add_question(talk, "one", parent=None)
    reply = history.begin_reply(talk, question.id)
    with pytest.raises(ReplyRunningError):
        history.resume_reply(talk, reply.id)
    with pytest.raises(ReplyRunningError):
        history.add_question(talk, "two", parent=reply.id)
    history.finish_reply(reply.id, "cut", None, "length")
    assert history.resume_reply(talk, reply.id).content == "cut"


def test_a_reply_of_a_dead_program_ends_as_an_error_and_of_a_living_one_does_not(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edge.history import History\n"
        "history = History(Path(sys.argv[1])); talk = history.create('t').id\n"
        "reply = history.begin_reply(talk, history.add_question(talk, 'q', parent=None).id)\n"
        "history.grow_reply(reply.id, 'half an ans', None); print(talk, reply.id, flush=True); sys.stdin.read()\n"
    )
    path = tmp_path / "h.db"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        talk, reply = writer.stdout.readline().split()
        with History(path) as history:
            assert history.message(talk, reply).finish_reason is None, "it is still being written"
        writer.kill()
    with History(path) as history:
        message = history.message(talk, reply)
        assert (message.finish_reason, message.content) == ("error", "half an ans")
        assert history.find("half an")[0].id == talk
    assert not list(tmp_path.glob("*.writing"))


def test_two_programs_build_one_tree(tmp_path: Path) -> None:
    """The page and the terminal on one conversation: each adds to it, nothing is lost."""
    with History(tmp_path / "h.db") as one, History(tmp_path / "h.db") as other:
        talk = one.create().id
        root = exchange(one, talk, "start", "ok")
        for i in range(10):
            exchange(one, talk, f"one {i}", "1", parent=root)
            exchange(other, talk, f"other {i}", "2", parent=root)
        assert one.messages(talk) == other.messages(talk)
        assert one.get(talk).n_messages == 42


def test_without_a_place_to_save_everything_works_and_says_so() -> None:
    with History(Path("/proc/nowhere/h.db")) as history:
        talk = history.create().id
        exchange(history, talk, "question", "answer")
        assert [hit.id for hit in history.find("answer")] == [talk]
        assert not history.saving
        assert history.problem is not None


def test_export_comes_back_whole_under_new_ids(history: History) -> None:
    talk = history.create("Sums", folder="school", settings=Settings(system="Be kind."))
    first = exchange(history, talk.id, "one", "1")
    history.add_question(talk.id, "two", parent=first, attachments=[Attachment("a.txt", "text 文", 2)])
    exchange(history, talk.id, "zwei", "2", parent=first)
    text = export_json(history.get(talk.id), history.messages(talk.id))
    copy = history.insert(*import_json(text))
    again = export_json(history.get(copy.id), history.messages(copy.id))
    assert copy.id != talk.id
    ids = {old.id: new.id for old, new in zip(history.messages(talk.id), history.messages(copy.id), strict=True)}
    for old, new in ids.items():
        text = text.replace(old, new)
    was, now = json.loads(text), json.loads(again)
    for key in ("id", "revision"):
        del was["conversation"][key], now["conversation"][key]
    assert was == now
    assert len(history.find("文")) == 0, "attached files are not searched"


def test_markdown_shows_the_branch_with_its_thoughts_folded(history: History) -> None:
    talk = history.create("Sums", settings=Settings(system="Be kind.")).id
    leaf = exchange(history, talk, "one", "**1**")
    text = export_markdown(history.get(talk), history.branch(talk, leaf))
    assert text == (
        "# Sums\n\n> Be kind.\n\n## Question\n\none\n\n## Answer\n\n<details><summary>thought</summary>\n\n"
        "a thought\n\n</details>\n\n**1**\n"
    )


GOOD = {
    "format": "edge conversation",
    "version": 1,
    "conversation": {"title": "t", "created": 1, "updated": 2, "settings": {}},
    "messages": [
        {"id": "a", "parent": None, "role": "user", "content": "q", "created": 1},
        {"id": "b", "parent": "a", "role": "assistant", "content": "r", "created": 2, "finish_reason": "stop"},
    ],
}


def test_a_file_by_hand_is_imported(history: History) -> None:
    talk = history.insert(*import_json(json.dumps(GOOD)))
    assert [message.content for message in history.messages(talk.id)] == ["q", "r"]


@pytest.mark.parametrize(
    "breakage",
    [
        {"format": "chatgpt"}, {"version": 2}, {"conversation": None}, {"messages": None}, {"messages": [1]},
        {"conversation": {"title": 5, "created": 1, "updated": 2, "settings": {}}},
        {"conversation": {"title": "t", "created": "now", "updated": 2, "settings": {}}},
        {"conversation": {"title": "t", "created": 1e300, "updated": 2, "settings": {}}},
        {"conversation": {"title": "t", "created": 1, "updated": 2, "settings": {"api_key": "x"}}},
        {"messages": [{"id": "a", "parent": "a", "role": "user", "content": "q", "created": 1}]},
        {"messages": [{"id": "a", "parent": "z", "role": "user", "content": "q", "created": 1}]},
        {"messages": [GOOD["messages"][0], GOOD["messages"][0]]},  # type: ignore[index]
        {"messages": [GOOD["messages"][1]]},  # type: ignore[index]
        {"messages": [{"id": "a", "parent": None, "role": "system", "content": "q", "created": 1}]},
        {"messages": [{"id": "a", "parent": None, "role": "user", "content": None, "created": 1}]},
        {"messages": [{**GOOD["messages"][0], "attachments": [{"name": "x"}]}]},  # type: ignore[index]
        {"messages": [{**GOOD["messages"][0], "usage": {"prompt_tokens": True}}]},  # type: ignore[index]
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused_with_one_sentence(breakage: dict[str, object]) -> None:
    with pytest.raises(TransferError) as caught:
        import_json(json.dumps({**GOOD, **breakage}))
    assert str(caught.value).endswith("; export it again as JSON")


@pytest.mark.parametrize("text", ["", "nonsense", "[" * 100_000, "[]", "null", '"x"', "\ud800", b"\xff\xfe\x00"])
def test_what_is_not_even_an_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(TransferError):
        import_json(text)


def test_settings_are_kept_within_their_ranges() -> None:
    assert settings_from({"seed": 5.0, "temperature": 1, "system": None}) == Settings(seed=5, temperature=1)
    for bad in ({"temperature": 9}, {"top_p": 0}, {"seed": -1}, {"max_tokens": 0}, {"max_tokens": 1 << 40}):
        with pytest.raises(OutOfRangeError):
            settings_from(bad)
    for odd in ({"seed": 1.5}, {"seed": "1"}, {"temperature": True}, {"system": 5}, {"temperature": float("nan")}):
        with pytest.raises(TransferError):
            settings_from(odd)


def test_json_leaves_the_text_of_files_out_unless_asked(history: History) -> None:
    talk = history.create().id
    message = history.add_question(talk, "one", parent=None, attachments=[Attachment("a.txt", "text", 2)])
    assert to_json(message)["attachments"] == [{"name": "a.txt", "n_tokens": 2}]
    assert to_json(message, texts=True)["attachments"][0]["text"] == "text"
    assert "snippet" not in to_json(history.get(talk))
    assert to_json(replace(history.get(talk), snippet="x"))["snippet"] == "x"
