"""One reply on the page: thought and answer, waiting, stopping, branches, and lines that break."""

import re

import pytest
from playwright.sync_api import expect

from tests.serve.web.scripted import Hold, Script

WORDS = [f"word{i} " for i in range(40)]


def test_the_thought_is_folded_and_never_mixed_into_the_answer(tab, server):
    hold = Hold()
    server.script = Script(thought=["I add ", "the ones. ", hold], answer=["It is ", "**432**."])
    tab.open().ask("What is 347 + 85?")
    thought = tab.find(".thought")
    expect(thought.locator("summary")).to_contain_text("Thinking")
    expect(thought.locator("summary")).to_contain_text("2 tokens")
    expect(tab.find(".thought-text")).to_be_hidden()
    thought.locator("summary").click()
    expect(tab.find(".thought-text")).to_have_text("I add the ones.")
    assert tab.find(".answer").inner_text() == ""
    hold.let_go()
    assert tab.answered().inner_html().startswith("<p>It is <strong>432</strong>.</p>")
    expect(thought.locator("summary")).to_have_text(re.compile(r"Thought for [\d.]+ s\s*2 tokens"))
    expect(tab.find(".thought-text")).to_have_text("I add the ones.")
    expect(tab.find(".figures")).to_contain_text("4 tokens")


def test_while_the_prompt_is_read_the_page_says_how_far_and_how_long(tab, server):
    hold = Hold()
    server.script = Script(progress=[(0, 2048, None), (812, 2048, 74), hold], answer=["done"])
    tab.open().ask("long prompt")
    expect(tab.find(".reading")).to_contain_text("812 of 2,048 tokens · 1 min 14 s left")
    assert tab.find(".reading progress").evaluate("bar => bar.position") == pytest.approx(812 / 2048, abs=0.001)
    hold.let_go()
    tab.answered()
    expect(tab.find(".reading")).to_be_hidden()


def test_tokens_a_second_and_the_context_are_shown(tab, server):
    hold = Hold()
    server.script = Script(answer=[*WORDS, hold], pause_s=0.02)
    tab.open().ask("count")
    expect(tab.find("#speed")).to_have_text(re.compile(r"\d+(\.\d)? tokens/s"))
    hold.let_go()
    tab.answered()
    expect(tab.find("#speed")).to_have_text("")
    expect(tab.find("#context")).to_have_attribute("aria-valuetext", "64 of 4,096 tokens of context used")


def test_stop_keeps_what_was_written_and_continue_goes_on(tab, server):
    server.script = Script(answer=["one two ", Hold()])
    tab.open().ask("count")
    expect(tab.find(".answer")).to_have_text("one two")
    tab.button("Stop").click()
    assert tab.answered().inner_text() == "one two"
    expect(tab.find(".notice")).to_have_text("Stopped.")
    server.script = Script(answer=["three."])
    tab.button("Continue").click()
    expect(tab.find(".answer")).to_have_text("one two three.")
    expect(tab.find(".notice")).to_be_hidden()
    assert list(server.asked[-1]) == ["continue"]


def test_answer_now_ends_the_thought(tab, server):
    server.script = Script(thought=["Hmm. ", Hold(), "never said"], answer=["Yes."])
    tab.open().ask("Is it?")
    tab.button("Answer now").click()
    assert tab.answered().inner_text() == "Yes."
    expect(tab.button("Answer now")).to_be_hidden()
    tab.find(".thought summary").click()
    expect(tab.find(".thought-text")).to_have_text("Hmm.")


def test_another_answer_is_a_branch_and_the_first_is_kept(tab, server):
    server.script = Script(answer=["first"])
    tab.open().ask("say")
    tab.answered()
    server.script = Script(answer=["second"])
    tab.button("Answer again").last.click()
    expect(tab.find(".answer")).to_have_text("second")
    expect(tab.find(".reply .branches")).to_contain_text("2/2")
    tab.button("Version 2 of 2 ←").click()
    expect(tab.find(".answer")).to_have_text("first")
    tab.page.reload()
    expect(tab.find(".answer")).to_have_text("first")


def test_an_edited_question_branches_and_keeps_its_files(tab, server):
    server.script = Script(answer=["4"])
    tab.open()
    tab.page.set_input_files("#file", {"name": "notes.md", "mimeType": "text/markdown", "buffer": b"# Notes"})
    tab.ask("2 + 2?")
    tab.answered()
    server.script = Script(answer=["6"])
    tab.find(".question").hover()
    tab.button("Edit").click()
    tab.find(".edit textarea").fill("3 + 3?")
    tab.button("Send as a new version").click()
    expect(tab.find(".answer")).to_have_text("6")
    expect(tab.find(".question .branches")).to_contain_text("2/2")
    assert server.asked[-1]["content"] == "3 + 3?"
    assert [set(file) for file in server.asked[-1]["attachments"]] == [{"name", "from"}]
    tab.button("Version 2 of 2 ←").click()
    expect(tab.find(".question-text")).to_have_text("2 + 2?")
    expect(tab.find(".answer")).to_have_text("4")


def test_the_answer_and_its_code_can_be_copied(tabs, server):
    tab = tabs(permissions=["clipboard-read", "clipboard-write"])
    server.script = Script(answer=["Run:\n\n```python\nprint(1)\n```\n"])
    tab.open().ask("code")
    tab.answered()
    tab.button("Copy the code").click()
    expect(tab.find(".code .is-done")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()") == "print(1)\n"
    tab.find(".reply .actions").get_by_role("button", name="Copy").click()
    tab.until("(await navigator.clipboard.readText()).startsWith('Run:')")


def test_deleting_a_message_asks_first_and_takes_what_follows(tab, server):
    cid = server.add("old", turns=2)
    tab.open(f"/#/c/{cid}")
    tab.find(".question").nth(1).hover()
    tab.find(".question").nth(1).get_by_role("button", name="Delete from here on").click()
    tab.button("Cancel").click()
    assert len(tab.texts(".message")) == 4
    tab.find(".question").nth(1).get_by_role("button", name="Delete from here on").click()
    tab.button("Delete").click()
    expect(tab.find(".message")).to_have_count(2)
    assert len(server.messages[cid]) == 2


def test_an_engine_that_dies_is_said_and_the_text_stays(tab, server):
    server.script = Script(answer=["half an "], error=("the engine stopped and was started again", "engine_restarted"))
    tab.open().ask("hello")
    expect(tab.find(".notice")).to_have_text("The answer broke off: the engine stopped and was started again")
    assert tab.answered().inner_text() == "half an"
    server.script = Script(answer=["answer"])
    tab.button("Continue").click()
    expect(tab.find(".answer")).to_have_text("half an answer")


def test_left_out_turns_are_said(tab, server):
    server.script = Script(n_dropped=3)
    tab.open().ask("more")
    expect(tab.find(".toast")).to_contain_text("the oldest 3 turns were left out")


# ---- lines that break


def test_a_cut_connection_is_shown_and_the_answer_resumes_whole(tab, server):
    hold = Hold()
    pieces = ["𝒙² is ", "😀 fine, ", "方程 too. "]
    server.script = Script(answer=[*pieces, hold, *pieces, "End."])
    tab.forgiven = ["Failed to load resource", "ERR_"]
    tab.open().ask("go")
    expect(tab.find(".answer")).to_have_text("".join(pieces).strip())
    server.is_cut = True
    expect(tab.find(".banner-lost")).to_contain_text("Connection lost")
    expect(tab.find(".answer")).to_have_text("".join(pieces).strip())
    hold.let_go()
    server.is_cut = False
    tab.find(".banner-lost").get_by_role("button", name="Try again").click()
    assert tab.answered().inner_text() == "".join([*pieces, *pieces, "End."])
    expect(tab.find(".banner-lost")).to_have_count(0)


def test_a_reload_in_mid_answer_goes_on_with_it(tab, server):
    hold = Hold()
    server.script = Script(thought=["Hm. "], answer=["before ", hold, "after"])
    tab.open().ask("go")
    expect(tab.find(".answer")).to_have_text("before")
    tab.page.reload()
    expect(tab.find(".answer")).to_have_text("before")
    expect(tab.button("Stop")).to_be_visible()
    hold.let_go()
    assert tab.answered().inner_text() == "before after"


def test_leaving_and_coming_back_in_mid_answer(tab, server):
    hold = Hold()
    other = server.add("other", turns=1)
    server.script = Script(answer=["before ", hold, "after"])
    tab.open().ask("go")
    expect(tab.find(".answer")).to_have_text("before")
    tab.find(f"#list a[data-id='{other}']").click()
    expect(tab.find(".answer")).to_have_text("answer 0")
    expect(tab.button("Send")).to_be_visible()
    tab.page.go_back()
    expect(tab.find(".answer")).to_have_text("before")
    hold.let_go()
    assert tab.answered().inner_text() == "before after"


def test_a_question_whose_line_breaks_at_once_is_found_and_not_asked_twice(tab, server):
    server.is_mute = True
    server.script = Script(answer=["found"])
    tab.open().ask("are you there?")
    expect(tab.find(".answer")).to_have_text("found")
    expect(tab.find("#question")).to_have_value("")
    assert len(server.asked) == 1


def test_a_refused_question_stays_in_the_box(tab, server):
    cid = server.add("busy", turns=1)
    server.script = Script(answer=["a ", Hold()])
    tab.open(f"/#/c/{cid}")
    tab.page.route("**/reply", lambda route: route.fulfill(status=503, json={"error": {"message": "64 wait already"}}))
    tab.forgiven = ["503"]
    tab.ask("please")
    expect(tab.find(".toast")).to_have_text("The server refused: 64 wait already")
    expect(tab.find("#question")).to_have_value("please")
    expect(tab.button("Send")).to_be_enabled()


def test_a_server_that_is_away_is_said_and_nothing_is_lost(tab, server):
    cid = server.add("c", turns=1)
    tab.open(f"/#/c/{cid}")
    tab.forgiven = ["Failed to load resource"]
    tab.page.context.set_offline(True)
    tab.ask("are you there?")
    expect(tab.find(".toast")).to_contain_text("The server does not answer")
    expect(tab.find("#question")).to_have_value("are you there?")
    tab.page.context.set_offline(False)
    tab.page.press("#question", "Enter")
    expect(tab.find(".answer").nth(1)).to_have_text("Hello.")


def test_nothing_of_a_fast_long_answer_is_dropped(tab, server):
    pieces = [f"w{i}{' ' if i % 12 else chr(10) * 2}" for i in range(2000)]
    server.script = Script(answer=pieces)
    tab.open().ask("go")
    assert tab.answered().inner_text().split() == "".join(pieces).split()
