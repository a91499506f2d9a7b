"""A server that speaks as much of OpenAI's API as a client of it needs, with the manners that are asked for."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Manners:
    """What the server does, and what it was asked."""

    def __init__(self) -> None:
        self.completions = True  # has /completions beside /chat/completions
        self.unknown: tuple[str, ...] = ()  # fields it refuses
        self.key: str | None = None
        self.says = "data"  # "data", "error" within the stream, "noise" that is no JSON
        self.asked: list[dict[str, Any]] = []


@contextmanager
def openai_server(manners: Manners) -> Iterator[str]:
    """The address of a running one, up to /v1."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(200, json.dumps({"data": [{"id": "tiny"}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_chat = self.path == "/v1/chat/completions"
            refused = [name for name in manners.unknown if name in body]
            if manners.key and self.headers.get("Authorization") != f"Bearer {manners.key}":
                self.answer(401, '{"error": {"message": "no key"}}')
            elif not is_chat and not (manners.completions and self.path == "/v1/completions"):
                self.answer(404, "not here")
            elif refused:
                self.answer(400, f"unknown field {refused[0]}")
            else:
                manners.asked.append(body)
                self.answer(200, "".join(self.events(body, is_chat)))

        def events(self, body: dict[str, Any], is_chat: bool) -> Iterator[str]:
            if manners.says == "noise":
                yield "data: <html>\n\n"
            if manners.says == "error":
                yield 'data: {"error": "out of memory"}\n\n'
            n = body["max_tokens"]
            for _ in range(n):
                part = {"delta": {"reasoning_content": "word "}} if is_chat else {"text": "word "}
                yield f"data: {json.dumps({'choices': [part]})}\n\n"
            text = body["messages"][0]["content"] if is_chat else body["prompt"]
            if "stream_options" in body:
                usage = {"prompt_tokens": 2 * len(text.split()), "completion_tokens": n}
                yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
