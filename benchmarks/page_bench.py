"""The chat page in a real browser: its weight, how soon one can type, and how busy 100 tokens a second keep it.

    .venv/bin/python -m benchmarks.page_bench            every bar, with what was measured
    .venv/bin/python -m benchmarks.page_bench --json     one JSON object

Needs Chromium and the dev extra. The tokens come from the tests' scripted server, in this process, so that their pace
is exact; the page, its files and its policy are the real ones.
"""

import argparse
import gzip
import itertools
import json
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from edge.serve import page as page_files
from tests.serve.web.scripted import Script, ScriptedServer

N_TOKENS, TOKENS_PER_SECOND = 4000, 100
BARS = {  # name -> (unit, limit)
    "first_load_bytes": ("bytes", 450_000),
    "with_math_and_code_bytes": ("bytes", 450_000),
    "typing_possible_s": ("s", 1.0),
    "dropped_characters": ("", 0),
    "main_thread_busy": ("of the time", 0.5),
    "input_latency_ms": ("ms", 100),
}
# The answer that is streamed: what R1 writes, again and again.
PARAGRAPH = r"""To solve \( x^2 - 5x + 6 = 0 \) we look for **two numbers** with sum $5$ and product $6$:

\[ x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a} = \frac{5 \pm 1}{2} \]

1. The first root is $x_1 = 2$, because `4 - 10 + 6 = 0`.
2. The second root is $x_2 = 3$, because `9 - 15 + 6 = 0`.

| root | check |
|---|---|
| $2$ | 0 |
| $3$ | 0 |

```python
def roots(a, b, c):
    d = (b * b - 4 * a * c) ** 0.5
    return (-b - d) / (2 * a), (-b + d) / (2 * a)
```

"""


def pieces(n: int) -> list[str]:
    """n pieces of text about as long as tokens."""
    found: Iterator[str] = (piece for _ in itertools.count() for piece in re.findall(r"\s*\S{1,5}|\s+", PARAGRAPH))
    return list(itertools.islice(found, n))


def gzipped(names: set[str]) -> int:
    """What these files weigh on the wire."""
    found = page_files.files()
    return sum(len(found[name].zipped or found[name].content) for name in names)


def new_page(browser: Browser, server: ScriptedServer) -> tuple[Page, set[str]]:
    """A page in a profile of its own, and the names of the files it asks for."""
    page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
    asked: set[str] = set()
    path = re.compile(re.escape(server.url) + r"/(?:web/)?([^?#]*)")

    def note(url: str) -> None:
        found = path.match(url)
        if found and not found[1].startswith("api/"):
            asked.add(found[1] or "index.html")

    page.on("request", lambda request: note(request.url))
    return page, asked


def typing_possible_s(browser: Browser, server: ScriptedServer) -> float:
    """From the address to a focused box that takes a letter, in a fresh profile: nothing is cached."""
    page, _ = new_page(browser, server)
    start = time.perf_counter()
    page.goto(server.url, wait_until="commit")
    page.wait_for_function(
        "() => document.activeElement?.id === 'question' && 'ready' in document.documentElement.dataset"
    )
    page.keyboard.type("x")
    page.wait_for_function("() => document.querySelector('#question').value === 'x'")
    elapsed_s = time.perf_counter() - start
    page.context.close()
    return elapsed_s


def task_s(session: CDPSession) -> float:
    """Seconds the main thread has worked since the session's Performance.enable."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


LATENCY = """() => {
  window.latencies = [];
  document.querySelector("#question").addEventListener("keydown", (event) => {
    requestAnimationFrame(() => setTimeout(() => window.latencies.push(performance.now() - event.timeStamp), 0));
  });
}"""


def measure(n_tokens: int) -> dict[str, Any]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        sys.exit("page_bench: Chromium is not there; install it with: apt-get install --no-install-recommends chromium")
    with ScriptedServer() as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        typing_s = [typing_possible_s(browser, server) for _ in range(5)]
        page, asked = new_page(browser, server)
        page.goto(server.url)
        page.wait_for_selector("[data-ready]", state="attached")
        page.wait_for_load_state("networkidle")
        first = set(asked)
        page.evaluate(LATENCY)
        text = pieces(n_tokens)
        server.script = Script(answer=text, pause_s=1 / TOKENS_PER_SECOND)
        page.fill("#question", "go")
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        busy_s, start = task_s(session), time.perf_counter()
        page.keyboard.press("Enter")
        while page.locator(".figures").count() == 0:
            page.keyboard.press("a")  # somebody types meanwhile
            page.wait_for_timeout(250)
        elapsed_s, busy_s = time.perf_counter() - start, task_s(session) - busy_s
        shown = page.evaluate("document.querySelector('.answer').textContent")
        latencies_ms = sorted(page.evaluate("window.latencies"))
        page.reload()  # the same text, rendered at once
        page.wait_for_selector(".figures")
        page.wait_for_function("() => document.querySelectorAll('.math-inline, .math-block').length === 0")
        whole = page.evaluate("document.querySelector('.answer').textContent")
        browser.close()
    return {
        "first_load_bytes": gzipped(first),
        "with_math_and_code_bytes": gzipped(asked),
        "everything_bytes": gzipped(set(page_files.files())),
        "typing_possible_s": statistics.median(typing_s),
        "dropped_characters": 0 if shown == whole else max(1, len(whole) - len(shown)),
        "main_thread_busy": busy_s / elapsed_s,
        "input_latency_ms": latencies_ms[int(0.95 * len(latencies_ms))],  # 95 of 100 keys
        "input_latency_max_ms": latencies_ms[-1],
        "n_tokens": n_tokens,
        "elapsed_s": elapsed_s,
        "own_code_bytes": sum(len(gzip.compress(file.content)) for name, file in page_files.files().items()
                              if not name.startswith("vendor/")),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the chat page in a real browser.")
    parser.add_argument("--tokens", type=int, default=N_TOKENS, help="length of the streamed answer")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args()
    found = measure(given.tokens)
    if given.json:
        click.echo(json.dumps(found))
        return
    for name, (unit, limit) in BARS.items():
        value = found[name]
        click.echo(f"{name:26} {value:>12,.3g} {unit:12} bar {limit:,}   {'ok' if value <= limit else 'MISSED'}")
    click.echo(f"slowest of the keys {found['input_latency_max_ms']:.0f} ms")
    click.echo(
        f"own code {found['own_code_bytes']:,} bytes; with every font and language {found['everything_bytes']:,} bytes"
    )


if __name__ == "__main__":
    main()
