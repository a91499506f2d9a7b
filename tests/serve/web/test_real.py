"""The whole way: browser, server, history, engine, the demo model. What the scripted server cannot vouch for."""

import os
import re
import signal
from collections.abc import Iterator

import httpx2
import psutil
import pytest
from playwright.sync_api import expect

from tests.serve.conftest import Server, eventually, serving
from tests.serve.web.conftest import tabs_of


@pytest.fixture(scope="module")
def real(demo_model, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("real"), model=demo_model) as server:
        yield server


@pytest.fixture
def tabs(browser, real):
    yield from tabs_of(browser, real.url)


@pytest.fixture
def tab(tabs):
    return tabs()


def api(server, method, path, **options):
    answer = httpx2.request(method, server.url + "/api" + path, timeout=30, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def greedy(tab):
    """Settings that make the demo's answer the same every time."""
    tab.button("Settings of this conversation").click()
    tab.page.get_by_label("Temperature").fill("0")
    tab.page.wait_for_timeout(500)
    tab.button("Close").click()


def test_the_demo_conversation(tab, real):
    """A sum with its thought, a follow-up, an edit on a branch, a reload, the search, export, clear."""
    tab.open()
    greedy(tab)
    tab.ask("What is 347 + 85?")
    answer = tab.answered()
    expect(answer).to_have_text("347 + 85 = 432")
    summary = tab.find(".thought summary")
    expect(summary).to_have_text(re.compile(r"Thought for [\d.]+ s\s*\d+ tokens"))
    summary.click()
    expect(tab.find(".thought-text")).to_contain_text("ones: 7 + 5 + 0 = 12, write 2, carry 1")
    assert "carry" not in answer.inner_text()
    expect(tab.find(".figures")).to_contain_text("tokens/s")
    expect(tab.find("#list a[aria-current]")).to_have_text("What is 347 + 85?")
    used = int(tab.find("#context").get_attribute("aria-valuenow"))
    assert 50 < used < 400
    tab.find(".question").hover()
    tab.button("Edit").click()
    tab.find(".edit textarea").fill("347 减 500 等于多少？")
    tab.button("Send as a new version").click()
    expect(tab.find(".answer")).to_have_text("347 减 500 等于 -153。")
    tab.button("Version 2 of 2 ←").first.click()
    expect(tab.find(".answer")).to_have_text("347 + 85 = 432")
    tab.page.reload()
    expect(tab.find(".answer")).to_have_text("347 + 85 = 432")
    tab.page.fill("#search", "等于多少")
    expect(tab.find(".entry-title")).to_have_text(["What is 347 + 85?"])
    tab.page.fill("#search", "")
    with tab.page.expect_download() as download:
        tab.button("Conversation menu").click()
        tab.page.get_by_role("menuitem", name="Export as Markdown").click()
    assert "432" in download.value.path().read_text()
    before = api(real, "GET", "/status")["kv_used_tokens"]
    assert before > 50
    tab.button("Conversation menu").click()
    tab.page.get_by_role("menuitem", name="Clear the conversation").click()
    tab.button("Clear").click()
    expect(tab.find(".toast")).to_contain_text("Cleared. KV memory in use:")
    expect(tab.find("#welcome")).to_be_visible()
    assert api(real, "GET", "/status")["kv_used_tokens"] < before


def test_stop_ends_the_reply_in_the_engine(tab, real):
    tab.open()
    endless(tab)
    tab.ask("What is 999 + 999?")
    tab.button("Stop").click()
    expect(tab.find(".notice")).to_have_text("Stopped.")
    eventually(lambda: real.n_running() == 0)
    tab.button("Answer again").last.click()
    tab.button("Stop").click()
    expect(tab.find(".reply .branches")).to_contain_text("2/2")


def test_a_file_is_counted_by_the_models_own_tokenizer(tab, real):
    tab.open()
    text = b"347 + 85 = 432\n" * 4
    tab.page.set_input_files("#file", {"name": "sums.txt", "mimeType": "text/plain", "buffer": text})
    n = len(api_tokens(real, text.decode()))
    expect(tab.find(".chip small")).to_have_text(re.compile(rf"^({n - 1}|{n}|{n + 1}) tokens$"))
    tab.page.set_input_files("#file", {"name": "bad.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-not"})
    tab.forgiven = ["422"]
    expect(tab.find(".chip.is-error")).to_contain_text("bad.pdf")
    expect(tab.find("#composer-hint")).to_contain_text("bad.pdf")


def api_tokens(server, text):
    return server.post("/tokenize", {"content": text}).json()["tokens"]


def test_the_engine_killed_in_mid_answer(tab, real):
    tab.open().ask("What is 1 + 1?")
    tab.answered()
    endless(tab)
    tab.ask("What is 123 + 456?")
    tab.until("document.querySelectorAll('.thought').length === 2 && !document.querySelectorAll('.thought')[1].hidden")
    engine = next(
        child for child in psutil.Process(real.process.pid).children(True) if "worker" in " ".join(child.cmdline())
    )
    os.kill(engine.pid, signal.SIGKILL)
    expect(tab.find(".notice.is-error")).to_be_visible()
    eventually(lambda: api(real, "GET", "/status")["state"] == "ok")
    tab.button("Answer again").last.click()
    tab.until("document.querySelectorAll('.reply[data-state=done]').length === 2")


def endless(tab):
    """Hot and without a stop in sight: long enough to do something in the middle."""
    tab.button("Settings of this conversation").click()
    tab.page.get_by_label("Temperature").fill("5")
    tab.page.wait_for_timeout(500)
    tab.button("Close").click()


def test_a_restarted_server_has_the_conversation(browser, demo_model, tmp_path):
    with serving(tmp_path, model=demo_model) as first:
        port = first.port
        pages = tabs_of(browser, first.url)
        tab = next(pages)()
        tab.forgiven = ["Failed to load", "ERR_"]
        tab.open().ask("What is 2 + 2?")
        tab.answered()
        tab.type("a draft")
        tab.page.wait_for_timeout(300)
    tab.page.evaluate("dispatchEvent(new Event('focus'))")
    expect(tab.find(".banner-away")).to_contain_text("The server does not answer")
    with serving(tmp_path, "--port", str(port), model=demo_model):
        tab.find(".banner-away").get_by_role("button", name="Try again").click()
        expect(tab.find(".banner-away")).to_have_count(0)
        tab.page.reload()
        expect(tab.find(".question-text")).to_have_text("What is 2 + 2?")
        expect(tab.find("#question")).to_have_value("a draft")
        tab.page.press("#question", "Enter")
        tab.answered(2)
    list(pages)


def test_a_server_with_a_key_asks_for_it(browser, demo_model, tmp_path):
    with serving(tmp_path, "--api-key", "a-key-of-the-tests", model=demo_model) as server:
        pages = tabs_of(browser, server.url)
        tab = next(pages)()
        tab.forgiven = ["401"]
        tab.page.goto(server.url)
        tab.page.get_by_label("Key").fill("a-key-of-the-tests")
        tab.page.keyboard.press("Enter")
        expect(tab.find("#model")).not_to_be_empty()
        tab.ask("What is 2 + 2?")
        tab.answered()
        list(pages)
