"""The list of conversations, their settings, drafts, files, the key, and several tabs on the same one."""

import json

from playwright.sync_api import expect

from tests.serve.web.scripted import Hold, Script


def entries(tab):
    return tab.texts(".entry-title")


def menu(tab, title, item):
    """Choose from the menu of a conversation in the list."""
    row = tab.find("#list li").filter(has_text=title)
    row.hover()
    row.locator("button").click()
    tab.page.get_by_role("menuitem", name=item, exact=True).click()


def test_a_new_conversation_appears_in_the_list_with_the_servers_title(tab, server):
    tab.open().ask("What is 347 + 85?")
    tab.answered()
    expect(tab.find("#list a[aria-current]")).to_have_text("What is 347 + 85?")
    expect(tab.find("#title")).to_have_text("What is 347 + 85?")
    assert tab.page.url.endswith(f"#/c/{next(iter(server.conversations))}")
    tab.button("New chat").click()
    expect(tab.find("#welcome")).to_be_visible()
    tab.page.go_back()
    expect(tab.find(".question-text")).to_have_text("What is 347 + 85?")


def test_the_list_is_searched_on_the_server(tab, server):
    server.add("解方程 x² = 4", turns=1)
    server.add("Sums", turns=1)
    tab.open()
    assert set(entries(tab)) == {"解方程 x² = 4", "Sums"}
    tab.page.keyboard.press("Control+k")
    tab.page.keyboard.type("方程")
    expect(tab.find(".entry-title")).to_have_text(["解方程 x² = 4"])
    expect(tab.find("#list mark")).to_have_text("方程")
    tab.page.fill("#search", "nowhere")
    expect(tab.find("#list")).to_contain_text("Nothing found.")
    tab.page.keyboard.press("Escape")
    expect(tab.find(".entry-title")).to_have_count(2)


def test_rename_pin_and_folder(tab, server):
    cid = server.add("Old name", turns=1)
    server.add("Newer", turns=1)
    tab.open(f"/#/c/{cid}")
    menu(tab, "Old name", "Rename")
    tab.page.get_by_role("textbox", name="Rename").fill("Homework")
    tab.page.keyboard.press("Enter")
    expect(tab.find("#title")).to_have_text("Homework")
    menu(tab, "Homework", "Pin")
    expect(tab.find("#list h2").first).to_have_text("Pinned")
    menu(tab, "Homework", "Unpin")
    expect(tab.find("#list h2").first).to_have_text("Today")
    menu(tab, "Homework", "Folder")
    tab.page.get_by_role("menuitem", name="New folder…").click()
    tab.page.get_by_role("textbox", name="Name of the folder").fill("School")
    tab.page.keyboard.press("Enter")
    expect(tab.find("#list h2").first).to_have_text("School")
    assert server.conversations[cid]["title"] == "Homework"
    assert server.conversations[cid]["folder"] == "School"


def test_delete_can_be_undone(tab, server):
    cid = server.add("Keep me", turns=1)
    tab.open(f"/#/c/{cid}")
    menu(tab, "Keep me", "Delete")
    expect(tab.find("#list")).to_contain_text("Conversations appear here.")
    expect(tab.find("#welcome")).to_be_visible()
    tab.button("Undo").click()
    expect(tab.find("#list a[aria-current]")).to_have_text("Keep me")
    expect(tab.find(".answer")).to_have_text("answer 0")


def test_clear_empties_the_conversation_and_shows_the_memory_it_freed(tab, server):
    server.script = Script(answer=["x "] * 40)
    tab.open().ask("fill")
    tab.answered()
    tab.button("Conversation menu").click()
    tab.page.get_by_role("menuitem", name="Clear the conversation").click()
    tab.button("Clear").click()
    expect(tab.find(".toast")).to_have_text("Cleared. KV memory in use: 64 → 0 tokens.")
    expect(tab.find("#welcome")).to_be_visible()
    expect(tab.find("#context-text")).to_have_text("0 / 4,096")


def test_export_and_import(tab, server, tmp_path):
    cid = server.add("Travels: part 1", turns=1)
    tab.open(f"/#/c/{cid}")
    with tab.page.expect_download() as markdown:
        menu(tab, "Travels", "Export as Markdown")
    assert markdown.value.suggested_filename == "Travels part 1.md"
    with tab.page.expect_download() as download:
        menu(tab, "Travels", "Export as JSON")
    path = tmp_path / "travels.json"
    download.value.save_as(path)
    assert json.loads(path.read_text())["conversation"]["id"] == cid
    with tab.page.expect_file_chooser() as chooser:
        tab.button("Import a conversation").click()
    chooser.value.set_files(path)
    expect(tab.find(".entry-title")).to_have_count(2)
    with tab.page.expect_file_chooser() as chooser:
        tab.button("Import a conversation").click()
    (tmp_path / "bad.json").write_text("not json")
    chooser.value.set_files(tmp_path / "bad.json")
    expect(tab.find(".toast").last).to_contain_text("bad.json is not an exported conversation")


def test_settings_belong_to_the_conversation(tab, server):
    first, second = server.add("first", turns=1), server.add("second", turns=1)
    tab.open(f"/#/c/{first}")
    tab.button("Settings of this conversation").click()
    tab.page.get_by_label("Temperature").fill("0.2")
    tab.page.get_by_label("System prompt").fill("Be short.")
    tab.page.get_by_label("Thinking budget (tokens)").fill("128")
    tab.until("document.querySelector('[name=preset]').value === ''")
    wait_for(tab, lambda: server.conversations[first]["settings"]["thinking_budget_tokens"] == 128)
    assert server.conversations[first]["settings"]["temperature"] == 0.2
    assert server.conversations[first]["settings"]["system"] == "Be short."
    assert server.conversations[second]["settings"]["temperature"] is None
    tab.find(f"#list a[data-id='{second}']").click()
    expect(tab.page.get_by_label("Temperature")).to_have_value("")
    tab.page.get_by_label("Preset").select_option("Math tutor")
    wait_for(tab, lambda: server.conversations[second]["settings"]["system"] == "Explain each step.")
    expect(tab.page.get_by_label("System prompt")).to_have_value("Explain each step.")
    tab.page.get_by_label("Temperature").fill("9")
    expect(tab.page.get_by_label("Temperature")).to_have_value("9")
    tab.page.wait_for_timeout(600)
    assert server.conversations[second]["settings"]["temperature"] == 0.6  # out of range: not sent


def wait_for(tab, condition, patience_ms=15_000):
    while not condition():
        assert patience_ms > 0, "it did not happen"
        tab.page.wait_for_timeout(20)
        patience_ms -= 20


def test_a_preset_chosen_before_the_first_question_goes_with_it(tab, server):
    tab.open()
    tab.button("Code reviewer").click()
    expect(tab.button("Code reviewer")).to_have_attribute("aria-pressed", "true")
    tab.ask("x = 1")
    tab.answered()
    assert next(iter(server.conversations.values()))["settings"]["system"] == "Review the code."


# ---- drafts and files


def test_drafts_survive_a_reload_one_for_each_conversation(tab, server):
    cid = server.add("one", turns=1)
    tab.open()
    tab.type("for a new chat")
    tab.page.wait_for_timeout(300)
    tab.find(f"#list a[data-id='{cid}']").click()
    expect(tab.find("#question")).to_have_value("")
    tab.type("for the old one")
    tab.page.reload()
    expect(tab.find("#question")).to_have_value("for the old one")
    tab.button("New chat").click()
    expect(tab.find("#question")).to_have_value("for a new chat")
    tab.page.press("#question", "Enter")
    tab.answered()
    expect(tab.find("#question")).to_have_value("")


def test_without_storage_the_page_still_works(tab, server):
    tab.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    cid = server.add("one", turns=1)
    tab.open()
    tab.type("kept in memory")
    tab.find(f"#list a[data-id='{cid}']").click()
    tab.button("New chat").click()
    expect(tab.find("#question")).to_have_value("kept in memory")


def attach(tab, name, content):
    tab.page.set_input_files("#file", {"name": name, "mimeType": "text/plain", "buffer": content})


def test_a_file_shows_its_tokens_and_goes_with_the_question(tab, server):
    tab.open()
    attach(tab, "data.csv", b"a,b\n1,2\n")
    expect(tab.find(".chip")).to_contain_text("data.csv")
    expect(tab.find(".chip small")).to_have_text("3 tokens")
    tab.ask("sum the columns")
    tab.answered()
    assert server.asked[0]["attachments"] == [{"name": "data.csv", "text": "a,b\n1,2\n"}]
    expect(tab.find(".question .chip")).to_contain_text("data.csv")
    expect(tab.find("#attachments")).to_be_hidden()


def test_a_file_that_does_not_fit_is_said_before_sending(tab, server):
    tab.open()
    tab.type("summarise")
    attach(tab, "book.txt", b"x" * 40_000)
    hint = "book.txt has 10,001 tokens; the context holds 4,096. Attach a shorter file."
    expect(tab.find("#composer-hint")).to_have_text(hint)
    expect(tab.button("Send")).to_be_disabled()
    tab.page.press("#question", "Enter")
    assert not server.asked
    tab.button("Remove book.txt").click()
    expect(tab.button("Send")).to_be_enabled()
    for name in ("a.txt", "b.txt"):
        attach(tab, name, b"x" * 12_000)
    expect(tab.find("#composer-hint")).to_contain_text("together have 6,002 tokens")


# ---- key, saving, board


def test_the_key_is_asked_for_once(tab, server):
    server.key = "sesame"
    tab.forgiven = ["401"]
    tab.page.goto(tab.url)
    field = tab.page.get_by_label("Key")
    field.fill("wrong")
    tab.page.keyboard.press("Enter")
    expect(tab.find("dialog")).to_contain_text("That was not the key.")
    field.fill("sesame")
    tab.page.keyboard.press("Enter")
    expect(tab.find("#model")).to_have_text("scripted-1.5B-Q4_0")
    tab.page.reload()
    expect(tab.find("#model")).to_have_text("scripted-1.5B-Q4_0")
    expect(tab.find("dialog")).to_have_count(0)
    tab.ask("hello")
    assert tab.answered().inner_text() == "Hello."


def test_when_nothing_is_saved_the_page_says_so_and_chat_goes_on(tab, server):
    server.saving, server.problem = False, "the disk is full; free some space"
    tab.open().ask("hello")
    expect(tab.find(".banner")).to_have_text("Nothing is being saved: the disk is full; free some space")
    assert tab.answered().inner_text() == "Hello."
    server.saving = True
    tab.ask("again")
    expect(tab.find(".banner")).to_have_count(0)


def test_the_board_is_shown_on_demand(tab, server):
    server.status_extra = {"temperature_celsius": 84.5, "throttled": True}
    tab.open()
    asked = server.paths.count("/api/status")
    tab.button("Board").click()
    board = tab.page.get_by_role("dialog", name="Board")
    expect(board).to_contain_text("84.5 °C")
    expect(board).to_contain_text("Throttlingyes")
    expect(board).to_contain_text("1,287 MiB")
    assert server.paths.count("/api/status") == asked + 1
    tab.page.keyboard.press("Escape")
    expect(board).to_have_count(0)


# ---- several tabs


def test_two_tabs_see_the_same_and_corrupt_nothing(tabs, server):
    hold = Hold()
    server.script = Script(answer=["from ", hold, "one"])
    cid = server.add("shared", turns=1)
    one, two = tabs().open(f"/#/c/{cid}"), tabs().open(f"/#/c/{cid}")
    one.ask("first tab asks")
    expect(two.find(".question-text").last).to_have_text("first tab asks")
    expect(two.find(".answer").last).to_have_text("from")
    two.forgiven = ["409"]
    hold.let_go()
    for tab in (one, two):
        expect(tab.find(".answer").last).to_have_text("from one")
    server.script = Script(answer=["from two"])
    two.ask("second tab asks")
    for tab in (one, two):
        expect(tab.find(".answer").last).to_have_text("from two")
        expect(tab.find(".message")).to_have_count(6)
    assert len(server.messages[cid]) == 6


def test_a_conversation_deleted_in_another_tab(tabs, server):
    cid = server.add("shared", turns=1)
    one, two = tabs().open(f"/#/c/{cid}"), tabs().open(f"/#/c/{cid}")
    menu(one, "shared", "Delete")
    expect(two.find("#list")).to_contain_text("Conversations appear here.")
    two.forgiven = ["404"]
    two.ask("still there?")
    expect(two.find(".toast")).to_contain_text("no such conversation")
    expect(two.find("#question")).to_have_value("still there?")


def test_a_long_conversation_opens_with_its_end(tab, server):
    cid = server.add("long", turns=200)
    tab.open(f"/#/c/{cid}")
    expect(tab.find(".answer").last).to_be_in_viewport()
    expect(tab.find(".answer").last).to_have_text("answer 199")
    expect(tab.find(".message")).to_have_count(40)
    tab.button("Show 360 earlier messages").click()
    expect(tab.find(".message")).to_have_count(140)
