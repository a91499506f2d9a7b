"""Text that grows: at every moment right, and at the end the same as if it had come at once."""

import pytest

from edge.serve import page
from tests.serve.web.conftest import tabs_of
from tests.serve.web.scripted import ScriptedServer

# Renders `source` in an element of its own; pieces: how many characters more each time, 0 for all at once.
RENDER = """async ([source, step]) => {
  const { Renderer } = await import("/web/render.js");
  const { loadMath } = await import("/web/markdown.js");
  await loadMath();
  const box = document.createElement("div");
  document.querySelector("#messages").replaceChildren(box);
  const renderer = new Renderer(box);
  const seen = [];
  for (let n = step; step && n < source.length; n += step) {
    renderer.set(source.slice(0, n), false);
    await new Promise((resolve) => setTimeout(resolve, 0));
    renderer.flush();
    const shown = box.cloneNode(true);
    for (const drawn of shown.querySelectorAll(".katex, .math-pending, code")) drawn.remove();
    seen.push(shown.textContent);
  }
  renderer.set(source, true);
  await new Promise((resolve) => setTimeout(resolve, 0));
  const plain = box.cloneNode(true); // colours come when their grammar does
  for (const code of plain.querySelectorAll("code")) code.textContent = code.textContent;
  return { html: plain.innerHTML, seen };
}"""

R1 = r"""To solve \( x^2 - 5x + 6 = 0 \), we **factor** it:

\[
x^2 - 5x + 6 =

(x - 2)(x - 3)
\]

So $x = 2$ or $x=3$; that costs $5, not $6. And *so* on:

1. **One:** the sum is $a_1 + a_2$,
2. **Two:** `a * b` is

   $$\frac{-b \pm \sqrt{b^2 - 4ac}}{2a}$$

- [ ] a list
- of [links](https://example.org/a_b_c)

| x | f(x) |
|--:|:-:|
| 1 | $\frac12$ |
| 2 | **4** |

```python
print("$x$ **not** \( math \)")
```

## Heading

\begin{align}
a &= b + c \\
  &= d
\end{align}

**Final Answer**: \boxed{x = 2 \text{ or } \{3\}}

---

The end is \[ \boxed{432} \]."""


@pytest.fixture(scope="module")
def tab(browser):
    """One page for all of them, on a conversation: where nothing is said yet, the page hides its messages."""
    with ScriptedServer() as server:
        conversation = server.add("shown", turns=1)
        for made in tabs_of(browser, server.url):
            yield made().open(f"/#/c/{conversation}")


@pytest.fixture
def render(tab):
    yield lambda source, step=0: tab.page.evaluate(RENDER, [source, step])
    tab.check()


@pytest.mark.parametrize("step", [1, 7, 40])
def test_a_grown_text_looks_like_one_that_came_at_once(render, step):
    assert render(R1, step)["html"] == render(R1)["html"]


def test_while_it_grows_no_formula_shows_its_source_among_the_words(render):
    for text in render(R1, 1)["seen"]:
        assert "\\" not in text, text
        assert not any(command in text for command in ("frac", "boxed", "begin")), text


def test_while_it_grows_no_emphasis_flickers(render):
    for text in render("This is **very bold** and *so* on.\n\n- a\n- b\n\nText\n- c\n", 1)["seen"]:
        assert "*" not in text, text


@pytest.mark.parametrize(
    ("source", "n_formulas"),
    [
        ("$x$", 1),
        ("$x^2$ and $y$", 2),
        ("It costs $5 and not $6.", 0),
        ("Between $5 and $6, a $x$ stands.", 1),
        ("A $ alone", 0),
        (r"\$x\$", 0),
        ("$$x$$", 1),
        ("$$\nx\n$$", 1),
        (r"\(x\) \[y\]", 2),
        ("\\[\nx\n\n+ y\n\\]", 1),
        (r"so **\boxed{432}**", 1),
        (r"\boxed{a_{1}}", 1),
        (r"\boxed{432", 0),
        (r"\( open", 0),
        ("`$x$`", 0),
        ("```\n$x$\n```", 0),
        (r"- \[ x \]", 1),
        (r"| $a$ | \(b\) |" "\n|--|--|\n|1|2|", 2),
        (r"\begin{cases} 1 \\ 2 \end{cases}", 1),
        ("所以答案是$x=2$。", 1),
        ("所以\n\\[\nx=2。\n\\]\n对吗？", 1),
        (r"$\href{javascript:alert(1)}{x}$", 1),
        (r"$\htmlStyle{color:red}{x}$", 1),
        (r"$\includegraphics{http://example.org/a.png}$", 1),
        (r"$\pmb{x} \fcolorbox{red}{blue}{x}$", 1),
    ],
)
def test_formulas_are_found_where_they_are_meant(render, tab, source, n_formulas):
    render(source)
    assert tab.find("#messages .katex").count() == n_formulas
    assert tab.find("#messages a, #messages img").count() == 0


def test_a_formula_that_is_none_is_shown_as_written(render, tab):
    render(r"$\frac{1$ and $\unknowncommand{x}$")
    assert "frac{1" in tab.find("#messages").inner_text()


def test_a_formula_can_be_read_aloud(render, tab):
    render(r"$\frac{1}{2}$")
    assert tab.find("#messages math mfrac").count() == 1


def test_an_open_fence_is_code_at_once(render, tab):
    html = render("Look:\n\n```js\nlet a = '**';\n")["html"]
    assert "<strong>" not in html
    assert tab.find("#messages pre code").inner_text() == "let a = '**';\n"


def test_code_gets_its_colours(render, tab):
    render("```python\ndef f():\n    return 1\n```")
    tab.page.wait_for_selector("#messages .hljs-keyword")
    assert tab.find("#messages code").inner_text() == "def f():\n    return 1\n"


def test_the_page_knows_the_languages_that_are_vendored(tab):
    folder = page.FOLDER / "vendor/highlight/languages"
    source = tab.page.evaluate("fetch('/web/code.js').then((r) => r.text())")
    known = source[source.index("LANGUAGES") : source.index("const ALSO")].replace('"', " ").split()
    assert {path.name.removesuffix(".min.js") for path in folder.iterdir()} <= set(known)


@pytest.mark.parametrize("name", ["long line", "big table", "deep quotes", "deep lists", "many stars", "many brackets"])
def test_monstrous_text_does_not_hang_the_page(render, tab, name):
    source = {
        "long line": "word " * 200_000,
        "big table": "|a|b|c|\n|-|-|-|\n" + "|1|2|3|\n" * 3000,
        "deep quotes": ">" * 5000 + " x",
        "deep lists": "".join("  " * i + "- x\n" for i in range(400)),
        "many stars": "*" * 20_000 + "a" + "**a " * 5000,
        "many brackets": "[" * 20_000 + "$" * 5000 + "\\(" * 5000,
    }[name]
    start = tab.page.evaluate("performance.now()")
    render(source)
    assert tab.page.evaluate("performance.now()") - start < 8000  # on a busy machine; idle, none takes one
