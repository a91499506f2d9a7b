"""Take the pictures of the chat page that the documentation shows, into docs/images/.

    .venv/bin/python scripts/screenshots.py

The page is the real one; a scripted server (tests/serve/web/scripted.py) plays the states, so that the pictures change
only when the page does. Needs Chromium and, for the Chinese ones, a Chinese font (apt-get install fonts-noto-cjk).
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from tests.serve.web.scripted import Hold, Script, ScriptedServer  # noqa: E402

IMAGES = ROOT / "docs/images"
N_BYTES_MAX = 150_000
LAPTOP = {"viewport": {"width": 1100, "height": 720}}
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 1.5, "is_mobile": True, "has_touch": True}

QUESTION = "Solve x² − 5x + 6 = 0 and check the roots in Python."
THOUGHT = r"""I look for two numbers whose sum is $5$ and whose product is $6$. That is $2$ and $3$, so the polynomial
factors as $(x-2)(x-3)$. Let me check: $2^2 - 10 + 6 = 0$ and $3^2 - 15 + 6 = 0$. Both are right."""
ANSWER = r"""The polynomial factors:

\[ x^2 - 5x + 6 = (x - 2)(x - 3) \]

So **both roots** are whole numbers. The formula says the same:

\[ x = \frac{5 \pm \sqrt{25 - 24}}{2} = \frac{5 \pm 1}{2} \]

```python
for x in (2, 3):
    assert x * x - 5 * x + 6 == 0  # both roots are right
```

| root | value | check |
|:--|--:|:--|
| $x_1$ | 2 | $4 - 10 + 6 = 0$ |
| $x_2$ | 3 | $9 - 15 + 6 = 0$ |

\[ \boxed{x = 2 \text{ or } x = 3} \]
"""
CHINESE_QUESTION = "347 减 500 等于多少？"
CHINESE_THOUGHT = "347 比 500 小，结果是负数。\n先算 $500 - 347 = 153$。"
CHINESE_ANSWER = "因为 $347 < 500$，所以结果是负数：\n\n\\[ 347 - 500 = \\boxed{-153} \\]\n"


def words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


def fill(server: ScriptedServer) -> None:
    """A household's list."""
    server.add("Packing list for the lake", 1, age_s=3 * 86400)
    server.add("解方程 2x + 3 = 11", 1, age_s=2 * 86400)
    server.add("Why is the sky blue?", 1, age_s=86400)
    server.add("Fractions, exercise 7", 1, folder="School")
    server.add("Bread without a mixer", 1, pinned=True)


def picture(browser: Browser, name: str, options: Mapping[str, object], script: Script, question: str) -> None:
    """The page after a question, or before one when it is empty."""
    holds = [step for step in [*script.progress, *script.thought, *script.answer] if isinstance(step, Hold)]
    with ScriptedServer() as server:
        fill(server)
        server.script = script
        page = browser.new_context(**{"locale": "en-US", **options}).new_page()  # type: ignore[arg-type]
        page.goto(server.url)
        page.wait_for_selector("[data-ready]", state="attached")
        page.wait_for_selector(".preset")
        if question:
            page.fill("#question", question)
            page.click("#send")
            page.wait_for_selector(".katex, .reading progress")
            if not holds:
                page.wait_for_selector(".figures")
                page.wait_for_function("() => document.querySelectorAll('.math-inline, .math-block').length === 0")
                page.evaluate("document.querySelector('#scroller').scrollTop = 0")
        page.wait_for_timeout(700)  # fonts and colours
        page.mouse.move(0, 0)
        save(page, name)
        for hold in holds:
            hold.let_go()
        page.context.close()


def save(page: Page, name: str) -> None:
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    n_bytes = path.stat().st_size
    print(f"{path.relative_to(ROOT)}  {n_bytes:,} bytes")
    if n_bytes > N_BYTES_MAX:
        sys.exit(f"{path.name} has {n_bytes:,} bytes; make the window smaller")


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        sys.exit("screenshots.py: Chromium is not there; install it with: apt-get install chromium")
    whole = Script(thought=words(THOUGHT), answer=words(ANSWER), pause_s=0.004)
    reading = Script(progress=[(1312, 3480, 41.0), Hold()], answer=["done"])
    chinese = Script(thought=words(CHINESE_THOUGHT), answer=words(CHINESE_ANSWER), pause_s=0.02)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        picture(browser, "chat-welcome", LAPTOP, whole, "")
        picture(browser, "chat-answer", LAPTOP, whole, QUESTION)
        picture(browser, "chat-dark", {**LAPTOP, "color_scheme": "dark"}, whole, QUESTION)
        picture(browser, "chat-reading", LAPTOP, reading, "Summarise the attached minutes.")
        picture(browser, "chat-phone", PHONE, whole, QUESTION)
        picture(browser, "chat-phone-chinese", {**PHONE, "locale": "zh-CN"}, chinese, CHINESE_QUESTION)
        browser.close()


if __name__ == "__main__":
    main()
