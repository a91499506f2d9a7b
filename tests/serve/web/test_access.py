"""For everybody: by keyboard, by screen reader, on a phone, in Chinese, in the dark."""

from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import expect

from tests.serve.web.scripted import Hold, Script

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
ANSWER = """So $x = 2$:

| a | b |
|--|--|
| 1 | 2 |

```python
def f():
    return "a long line that goes on and on and on and on and on and on and on and on and on and on and on"
```

\\[ \\boxed{\\frac{a_1 + a_2 + a_3 + a_4 + a_5 + a_6 + a_7 + a_8 + a_9}{b_1 + b_2 + b_3 + b_4 + b_5 + b_6 + b_7}} \\]
"""


def serious(tab):
    """What axe-core finds serious or worse, as lines."""
    tab.page.evaluate(AXE)
    found = tab.page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    return [
        f"{each['id']}: {each['help']}: {node['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def talked(tab, server):
    server.script = Script(thought=["Hm. "], answer=[ANSWER])
    tab.open().ask("Solve it.")
    tab.answered()
    tab.until("document.querySelector('.katex') && document.querySelector('.hljs-keyword')")
    tab.find(".thought summary").click()
    return tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(tabs, server, scheme):
    server.add("In a folder", turns=1, folder="School")
    tab = tabs(color_scheme=scheme)
    tab.open()
    assert not serious(tab)
    talked(tab, server)
    assert not serious(tab)
    tab.button("Settings of this conversation").click()
    tab.page.fill("#search", "a")
    expect(tab.find("#list mark").first).to_be_visible()
    assert not serious(tab)
    tab.button("Conversation menu").click()
    assert not serious(tab)
    tab.page.get_by_role("menuitem", name="Rename").click()
    assert not serious(tab)
    tab.page.keyboard.press("Escape")
    tab.button("Board").click()
    expect(tab.page.get_by_role("dialog", name="Board")).to_contain_text("°C")
    assert not serious(tab)


def test_axe_finds_nothing_serious_on_a_phone(tabs, server):
    tab = talked(tabs(**PHONE), server)
    assert not serious(tab)
    tab.button("Open the list of conversations").click()
    tab.page.wait_for_timeout(250)
    assert not serious(tab)


def test_a_reply_is_announced_once_not_word_by_word(tab, server):
    hold = Hold()
    server.script = Script(thought=["Hm. ", hold], answer=["Yes."])
    tab.open().ask("Is it?")
    expect(tab.find("#announcer")).to_have_text("Thinking")
    hold.let_go()
    expect(tab.find("#announcer")).to_have_text("The answer is ready.")
    live = tab.page.evaluate("[...document.querySelectorAll('[aria-live], [role=log]')].map((e) => e.id)")
    assert "messages" not in live


def focused(tab):
    return tab.page.evaluate(
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent.trim()"
    )


def test_everything_can_be_done_by_keyboard(tab, server):
    server.add("old one", turns=1)
    server.script = Script(answer=["one ", Hold()])
    keys = tab.page.keyboard
    tab.open()
    assert focused(tab) == "Write a message"
    keys.type("line one")
    keys.press("Shift+Enter")
    keys.type("line two")
    keys.press("Enter")
    expect(tab.find(".question-text")).to_have_text("line one\nline two")
    expect(tab.find(".answer")).to_have_text("one")
    keys.press("Escape")
    expect(tab.find(".notice")).to_have_text("Stopped.")
    # back from the box to the message's tools
    seen = []
    for _ in range(12):
        keys.press("Shift+Tab")
        seen.append(focused(tab))
    assert {"Continue", "Answer again", "Copy", "Edit", "Delete from here on"} <= set(seen)
    # the menu: arrows, Escape gives the focus back
    tab.button("Conversation menu").focus()
    keys.press("Enter")
    assert focused(tab) == "Clear the conversation"
    keys.press("ArrowDown")
    assert focused(tab) == "Rename"
    keys.press("Escape")
    assert focused(tab) == "Conversation menu"
    # the list
    keys.press("Control+k")
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    assert focused(tab) == "old one"
    keys.press("Enter")
    expect(tab.find(".answer")).to_have_text("answer 0")
    keys.press("Control+Shift+O")
    expect(tab.find("#welcome")).to_be_visible()
    assert focused(tab) == "Write a message"


def test_enter_that_chooses_a_chinese_word_does_not_send(tab, server):
    tab.open()
    tab.type("ni hao")
    tab.page.evaluate(
        """document.querySelector("#question").dispatchEvent(
             new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true }))"""
    )
    tab.page.wait_for_timeout(100)
    assert not server.asked


def test_the_page_speaks_chinese_to_a_chinese_browser(tabs, server):
    tab = tabs(locale="zh-CN").open()
    expect(tab.find("#question")).to_have_attribute("placeholder", "输入消息")
    assert tab.page.evaluate("document.documentElement.lang") == "zh-CN"
    server.script = Script(thought=["想。"], answer=["四。"])
    tab.ask("二加二？")
    tab.answered()
    expect(tab.find(".thought summary")).to_contain_text("思考了")
    tab.button("外观").click()
    tab.page.get_by_role("menuitem", name="English").click()
    expect(tab.find("#question")).to_have_attribute("placeholder", "Write a message")
    tab.page.reload()
    expect(tab.find("#question")).to_have_attribute("placeholder", "Write a message")


def test_every_text_is_there_in_both_languages(tab):
    tab.open()
    source = tab.page.evaluate("fetch('/web/i18n.js').then((response) => response.text())")
    used = tab.page.evaluate(
        """async () => {
          const names = "api app board code composer i18n messages notices settings sidebar".split(" ");
          const sources = await Promise.all(names.map((name) => fetch(`/web/${name}.js`).then((r) => r.text())));
          const html = await fetch("/").then((r) => r.text());
          const patterns = [/\\bt\\("(\\w+)"/g, /data-t(?:-\\w+)?="(\\w+)"/g];
          return patterns.flatMap((pattern) => [...[html, ...sources].join("\\n").matchAll(pattern)].map((m) => m[1]));
        }"""
    )
    table = source[source.index("const TEXTS") : source.index("};")]
    for name in set(used):
        assert f"  {name}: [" in table, name
    rows = [line for line in table.splitlines() if line.startswith("  ")]
    assert all(line.count('", "') == 1 for line in rows), [line for line in rows if line.count('", "') != 1]


def test_dark_follows_the_system_until_somebody_chooses(tabs, server):
    tab = tabs(color_scheme="dark").open()
    background = "getComputedStyle(document.body).backgroundColor"
    assert tab.page.evaluate(background) == "rgb(24, 27, 26)"
    tab.button("Appearance").click()
    tab.page.get_by_role("menuitem", name="Light").click()
    assert tab.page.evaluate(background) == "rgb(253, 253, 251)"
    tab.page.reload()
    assert tab.page.evaluate(background) == "rgb(253, 253, 251)"


def test_on_a_phone_nothing_is_wider_than_the_screen(tabs, server):
    tab = talked(tabs(**PHONE), server)
    wide = """[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1
      && !e.closest("pre, .table, .katex-display, .offscreen, #sidebar, .katex-mathml"))
      .map((e) => e.outerHTML.slice(0, 120))"""
    assert tab.page.evaluate(wide) == []
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360
    small = """[...document.querySelectorAll("#head button, #composer button, .actions button")]
      .filter((e) => e.offsetParent && (e.offsetWidth < 36 || e.offsetHeight < 36))
      .map((e) => e.outerHTML.slice(0, 120))"""
    assert tab.page.evaluate(small) == []
    server.add("another", turns=1)
    tab.button("Open the list of conversations").click()
    tab.page.evaluate("dispatchEvent(new Event('focus'))")
    tab.find("#list").get_by_text("another").click()
    expect(tab.find(".answer")).to_have_text("answer 0")
    expect(tab.find("#sidebar")).to_be_hidden()
    # on a touch keyboard Enter is a new line
    tab.type("one")
    tab.page.press("#question", "Enter")
    expect(tab.find("#question")).to_have_value("one\n")


AWAY = """(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)(
  document.querySelector("#scroller"))"""


@pytest.mark.parametrize("up_px", [30, 600])
@pytest.mark.parametrize("means", ["wheel", "script"])
def test_the_reader_who_scrolls_up_is_left_alone(tab, server, means, up_px):
    hold = Hold()
    server.script = Script(answer=["line\n\n"] * 60 + [hold] + ["more\n\n"] * 60)
    tab.open().ask("go")
    tab.until(f"document.querySelectorAll('.answer p').length === 60 && {AWAY} <= 1")
    expect(tab.button("Jump to the latest")).to_be_hidden()
    if means == "wheel":
        tab.page.mouse.move(700, 300)
        tab.page.mouse.wheel(0, -up_px)
    else:
        tab.page.evaluate("(n) => document.querySelector('#scroller').scrollBy(0, -n)", up_px)
    tab.until(f"Math.abs({AWAY} - n) <= 1", up_px)  # a wheel's way takes its time
    expect(tab.button("Jump to the latest")).to_be_visible()
    before = tab.page.evaluate("document.querySelector('#scroller').scrollTop")
    hold.let_go()
    tab.answered()
    expect(tab.find(".figures")).to_have_count(1)
    assert tab.page.evaluate("document.querySelector('#scroller').scrollTop") == pytest.approx(before, abs=2)
    tab.button("Jump to the latest").click()
    expect(tab.find(".figures")).to_be_in_viewport()
    expect(tab.button("Jump to the latest")).to_be_hidden()


def test_a_short_scroll_up_stops_the_following_of_a_fast_answer(tab, server):
    server.script = Script(answer=["line\n\n"] * 2000, pause_s=0.02)
    tab.open().ask("go")
    tab.until("document.querySelectorAll('.answer p').length > 60")
    before = tab.page.evaluate("document.querySelector('#scroller').scrollTop -= 40")
    n = tab.page.evaluate("document.querySelectorAll('.answer p').length")
    tab.until("document.querySelectorAll('.answer p').length > n + 20", n)
    assert tab.page.evaluate("document.querySelector('#scroller').scrollTop") == pytest.approx(before, abs=2)
    tab.button("Jump to the latest").click()
    n = tab.page.evaluate("document.querySelectorAll('.answer p').length")
    tab.until(f"document.querySelectorAll('.answer p').length > n + 20 && {AWAY} <= 1", n)
    expect(tab.button("Jump to the latest")).to_be_hidden()
    tab.button("Stop").click()
    tab.answered()
