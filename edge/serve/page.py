"""The chat page's files, read once into memory, and the policy that a browser holds them to. Knows nothing of chat.

`/` is index.html; the rest is at /web/. Nothing here is secret, so none of it asks for a key.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

FOLDER = Path(__file__).parent / "web"
# Nothing runs, loads or is sent anywhere but here; strings become markup through DOMPurify only.
CSP = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    ]
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # asked for every time, sent only when it changed
    "Vary": "Accept-Encoding",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True)
class File:
    """One file of the page. zipped is None where gzip gains nothing."""

    content_type: str
    content: bytes
    zipped: bytes | None
    etag: str


def files(folder: Path = FOLDER) -> dict[str, File]:
    """Path below `folder` -> File, for all that a browser may ask for; licences and lists of hashes stay behind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content_type = TYPES.get(path.suffix)
        if content_type is None or not path.is_file():
            continue
        content = path.read_bytes()
        zipped = None if path.suffix == ".woff2" else gzip.compress(content, 9, mtime=0)
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[path.relative_to(folder).as_posix()] = File(content_type, content, zipped, etag)
    return found


def paths(folder: Path = FOLDER) -> frozenset[str]:
    """Every path of the page: none of them asks for a key."""
    return frozenset({"/", *(f"/web/{name}" for name in files(folder))})


def router(folder: Path = FOLDER) -> APIRouter:
    """The routes of the page: GET / and GET /web/…"""
    routes = APIRouter(include_in_schema=False)
    found = files(folder)

    def answer(name: str, request: Request) -> Response:
        file = found.get(name)
        if file is None:
            return Response("not here\n", status_code=404, media_type="text/plain", headers=HEADERS)
        headers = {**HEADERS, "ETag": file.etag}
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if file.zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.zipped, headers={**headers, "Content-Encoding": "gzip"}, media_type=file.content_type)
        return Response(file.content, headers=headers, media_type=file.content_type)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return answer("index.html", request)

    @routes.api_route("/web/{name:path}", methods=["GET", "HEAD"])
    async def file(name: str, request: Request) -> Response:
        return answer(name, request)

    return routes
