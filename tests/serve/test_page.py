"""The files of the chat page: what is served and how, and that the vendored libraries are what was fetched."""

import gzip
import hashlib
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from edge.serve import page

VENDOR = page.FOLDER / "vendor"


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(page.router())
    return TestClient(app)


def test_every_vendored_file_is_the_one_that_was_fetched():
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    listed = {name.removeprefix("./"): digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    found = {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }
    assert found == listed, "run: bash scripts/vendor-web.sh"


def test_every_library_comes_with_its_licence():
    folders = [path for path in VENDOR.iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        assert (folder / "LICENSE").stat().st_size > 500
        assert f"| {folder.name} |" in (VENDOR / "README.md").read_text()


def test_nothing_names_another_server():
    """No address in our own files that a browser would load."""
    for path in page.FOLDER.glob("*.*"):
        for address in re.findall(r"https?://[^\s\"'`)]+", path.read_text(encoding="utf-8")):
            assert address == "http://www.w3.org/2000/svg", f"{path.name}: {address}"


def test_files_are_served_with_type_policy_and_gzip(client):
    answer = client.get("/", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == page.CSP
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text == (page.FOLDER / "index.html").read_text(encoding="utf-8")
    plain = client.get("/web/app.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["content-type"].startswith("text/javascript")
    assert client.get("/web/vendor/katex/fonts/KaTeX_Main-Regular.woff2").headers["content-type"] == "font/woff2"


def test_an_unchanged_file_is_not_sent_again(client):
    etag = client.get("/web/style.css").headers["etag"]
    again = client.get("/web/style.css", headers={"if-none-match": etag})
    assert again.status_code == 304
    assert not again.content


@pytest.mark.parametrize("name", ["../page.py", "..%2f..%2fcli.py", "vendor/SHA256SUMS", "none.js", "", "%00"])
def test_nothing_else_is_served(client, name):
    assert client.get(f"/web/{name}").status_code == 404


def test_every_path_of_the_page_is_known_before_it_is_asked_for():
    assert {"/", "/web/app.js", "/web/vendor/katex/katex.min.js"} <= page.paths()


def test_the_page_is_light():
    """Cold and gzipped: what every visit loads, and that plus mathematics with the fonts most formulas need."""
    html = (page.FOLDER / "index.html").read_text(encoding="utf-8")
    first = set(re.findall(r'"web/([^"]+)"', html)) | {path.name for path in page.FOLDER.glob("*.js")} | {"index.html"}
    found = page.files()
    fonts = [f"vendor/katex/fonts/KaTeX_{name}.woff2" for name in ("Main-Regular", "Math-Italic", "Size1-Regular")]
    math = ["vendor/katex/katex.min.js", "vendor/katex/katex.min.css", *fonts]
    code = ["vendor/highlight/core.min.js", "vendor/highlight/languages/python.min.js"]
    weight = {name: len(found[name].zipped or found[name].content) for name in {*first, *math, *code}}
    assert sum(weight[name] for name in first) < 120_000
    assert sum(weight.values()) < 450_000
    assert len(gzip.decompress(found["index.html"].zipped or b"")) == len(found["index.html"].content)
