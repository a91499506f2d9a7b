"""A real browser: Debian's Chromium, driven by Playwright. Every test ends with no console error, no violation of the
page's policy and no request to anywhere but the server."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

from tests.serve.web.scripted import ScriptedServer

WATCH = (
    "addEventListener('securitypolicyviolation', (e) => console.error(`policy: ${e.violatedDirective} ${e.sample}`))"
)
PATIENCE_MS = 15_000  # on a busy machine; nothing waits that long on an idle one
expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser stops for seconds on a busy machine: its tests get a second chance, and the summary names them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=2))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).exists():
        pytest.fail("Chromium is not there; install it with: apt-get install --no-install-recommends chromium")
    with sync_playwright() as playwright:
        # no sandbox: tests run as root in containers, and the page is our own
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


class Tab:
    """One tab of the page, and what a test does with it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.add_init_script(WATCH)
        self.errors: list[str] = []
        self.forgiven: list[str] = []  # parts of errors that this test causes on purpose
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))
        self.page.on("request", self._watch)
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))

    def _hear(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self.errors.append(said.text)

    def _watch(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.errors.append(f"request to {request.url}")

    def open(self, address: str = "/") -> "Tab":
        self.page.goto(self.url + address)
        self.page.wait_for_selector("[data-ready]", state="attached")
        return self

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def type(self, text: str) -> None:
        self.page.fill("#question", text)

    def ask(self, text: str) -> "Tab":
        self.type(text)
        self.page.click("#send")
        return self

    def until(self, expression: str, argument: Any = None) -> None:
        """Wait until JavaScript, which knows the argument as n and may await, says so."""
        # wait_for_function() would take the promise of an async function for a yes
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(f"async (n) => Boolean({expression})", argument):
            assert time.monotonic() < deadline, f"it did not come true in time: {expression}"
            self.page.wait_for_timeout(20)

    def answered(self, n: int = 1) -> Locator:
        """Wait for the n-th finished answer on the page; that answer."""
        self.until("document.querySelectorAll('.reply[data-state=done]').length >= n", n)
        return self.find(".reply").nth(n - 1).locator(".answer")

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.find(selector).all_inner_texts()]

    def check(self) -> None:
        errors = [error for error in self.errors if not any(part in error for part in self.forgiven)]
        assert not errors, "\n".join(["", *errors])


@pytest.fixture
def tabs(browser: Browser, server: ScriptedServer) -> Iterator[Callable[..., Tab]]:
    """tabs(**options of a browser context) -> Tab. The same options share a context, as tabs of one browser do."""
    yield from tabs_of(browser, server.url)


def tabs_of(browser: Browser, url: str) -> Iterator[Callable[..., Tab]]:
    contexts: dict[str, BrowserContext] = {}
    made: list[Tab] = []

    def tab(**options: Any) -> Tab:
        options = {"locale": "en-US", "viewport": {"width": 1200, "height": 800}, **options}
        if repr(options) not in contexts:
            contexts[repr(options)] = browser.new_context(**options)
        made.append(Tab(contexts[repr(options)], url))
        return made[-1]

    yield tab
    for each in made:
        each.check()
    for context in contexts.values():
        context.close()


@pytest.fixture
def tab(tabs: Callable[..., Tab]) -> Tab:
    return tabs()
