"""What a model, a file, another person or an address says is text: nothing runs, nothing is sent.

The policy, the requests and the dialogs are watched by every test here (conftest.Tab.check).
"""

import pytest
from playwright.sync_api import expect

from edge.serve import page
from tests.serve.web.scripted import Script

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<svg><script>alert(1)</script></svg><svg onload=alert(1)>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<iframe src='https://example.org'></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<form action='https://example.org'><input name=a><button>x</button></form>",
    "<style>*{background:url(https://example.org/a)}</style>",
    "<link rel=stylesheet href=https://example.org/a.css>",
    "<base href=https://example.org>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:msgbox(1))",
    "[x](//example.org)",
    "![x](https://example.org/pixel.png)",
    "![x](https://example.org/pixel.png 'a\"onerror=alert(1)')",
    "![x][1]\n\n[1]: https://example.org/pixel.png",
    "<https://example.org/\"onmouseover='alert(1)'>",
    '[x](https://example.org "\'><img src=x onerror=alert(1)>")',
    "```<img/src=x/onerror=alert(1)>\ncode\n```",
    "```html\n<img src=x onerror=alert(1)>\n```",
    "`<img src=x onerror=alert(1)>`",
    "$<img src=x onerror=alert(1)>$",
    r"$\href{javascript:alert(1)}{x}$ $\url{https://example.org}$",
    r"$\includegraphics{https://example.org/pixel.png}$",
    r"$\htmlData{a=1}{x} \htmlId{question}{x} \htmlClass{toast}{x}$",
    r"\[\def\a{\a\a}\a\]",
    r"$\rule{9999999em}{9999999em}$",
    "| <img src=x onerror=alert(1)> | $x$ |\n|--|--|\n| <script>alert(1)</script> | y |",
    "<div id=question name=body>clobber</div><input id=composer>",
    "\u202etxt.exe \u200b\u200d\ufeff \u0000 \ud83d",
    "https://example.org/<script>alert(1)</script>",
    "<template><script>alert(1)</script></template><object data=x><embed src=x>",
    "<video><source onerror=alert(1)></video><audio src=x onerror=alert(1)>",
    "<b onclick=alert(1) style='position:fixed;inset:0'>click</b>",
]
ALIVE = (
    "#messages :is(script, img, iframe, object, embed, form, input, style, link, base, meta, video, audio, template)"
)


def assert_dead(tab):
    assert tab.find(ALIVE).count() == 0
    on = "[...document.querySelectorAll('#messages *, #list *')].flatMap((e) => e.getAttributeNames())"
    assert not [name for name in tab.page.evaluate(on) if name.startswith("on")]
    for href in tab.page.evaluate("[...document.querySelectorAll('#messages a')].map((a) => a.getAttribute('href'))"):
        assert href.startswith(("http://", "https://", "mailto:"))


def test_hostile_answers_thoughts_questions_and_titles_are_text(tab, server):
    cid = server.add("<img src=x onerror=alert(1)>")
    parent = None
    for text in HOSTILE:
        text = text.encode("utf-8", "replace").decode()  # JSON has no lone surrogates
        files = [{"name": text, "n_tokens": 1}]
        parent = server.put(cid, "user", text, parent, attachments=files)["id"]
        answer = server.put(cid, "assistant", text, parent, finish_reason="stop", reasoning=text)
        parent = answer["id"]
    server.conversations[cid]["folder"] = "<script>alert(1)</script>"
    tab.open(f"/#/c/{cid}")
    tab.find(".earlier").click()
    expect(tab.find(".reply")).to_have_count(len(HOSTILE))
    tab.page.evaluate("document.querySelectorAll('.thought').forEach((thought) => (thought.open = true))")
    tab.until("document.querySelectorAll('.thought-text .katex').length > 0")
    assert_dead(tab)
    first = tab.find(".reply .answer").first
    assert first.inner_text() == HOSTILE[0]
    assert tab.find("#title").inner_text() == "<img src=x onerror=alert(1)>"


def test_hostile_text_is_text_while_it_streams(tab, server):
    server.script = Script(answer=list("\n\n".join(HOSTILE[:12])), pause_s=0.001)
    tab.open().ask("go")
    tab.answered()
    assert_dead(tab)


def test_snippets_and_file_names_are_text(tab, server):
    server.add("needle <img src=x onerror=alert(1)>", turns=1)
    tab.open()
    tab.page.fill("#search", "<img")
    expect(tab.find("#list small")).to_contain_text("<img src=x")
    name = "<img src=x onerror=alert(1)>.md"
    tab.page.set_input_files("#file", {"name": name, "mimeType": "text/markdown", "buffer": b"x"})
    expect(tab.find("#attachments .chip span")).to_have_text(name)
    assert tab.find("#list img, #attachments img").count() == 0


@pytest.mark.parametrize("address", ["/?q=hello", "/?prompt=hello&send=1", "/#hello", "/#/c/../../x", "/?q=hello#/new"])
def test_no_address_sends_or_writes_a_message(tab, server, address):
    tab.open(address)
    expect(tab.find("#model")).to_have_text("scripted-1.5B-Q4_0")
    assert tab.find("#question").input_value() == ""
    assert not server.asked
    assert not server.conversations


def test_links_leave_nothing_behind(tab, server):
    server.script = Script(answer=["[x](https://example.org/a) and https://example.org/b"])
    tab.open().ask("links")
    tab.answered()
    for link in tab.find(".answer a").all():
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert link.get_attribute("target") == "_blank"


def test_the_policy_lets_nothing_else_in(tab, server):
    """The policy itself, tried: inline code, inline style, strings as markup, other servers."""
    tab.forgiven = [
        "policy: ",
        "Content Security Policy",
        "violates the following",
        "Trusted",
        "ERR_BLOCKED",
        "request to",
    ]
    tab.open()
    tried = tab.page.evaluate(
        """async () => {
          const failed = async (action) => { try { await action(); return false; } catch { return true; } };
          const script = document.createElement("script");
          script.textContent;
          const made = document.createElement("div");
          document.body.append(made);
          made.setAttribute("style", "color: rgb(1, 2, 3)");
          return {
            html: await failed(() => { made.innerHTML = "<b>x</b>"; }),
            policy: await failed(() => trustedTypes.createPolicy("mine", { createHTML: (s) => s })),
            eval: await failed(() => setTimeout("1")),
            fetch: await failed(() => fetch("https://example.org")),
            style: getComputedStyle(made).color !== "rgb(1, 2, 3)",
          };
        }"""
    )
    assert tried == {"html": True, "policy": True, "eval": True, "fetch": True, "style": True}


def test_the_page_cannot_be_framed_and_has_no_inline_code():
    html = (page.FOLDER / "index.html").read_text(encoding="utf-8")
    assert "frame-ancestors 'none'" in page.CSP
    assert "unsafe" not in page.CSP
    assert " style=" not in html
    assert " on" not in html.replace(" on ", "")
