"""What a client may send by mistake or to do harm: each ends in a clear error or a right answer. The engine lives."""

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import CLIENT, QUESTION, Server

CHAT = "/v1/chat/completions"
HUGE = 10**18


@pytest.fixture(autouse=True)
def the_engine_lives(server: Server) -> Iterator[None]:
    yield
    assert server.metric("edge_engine_restarts_total") == 0
    assert server.get("/health").json() == {"status": "ok"}


def send(server: Server, body: bytes, path: str = CHAT) -> httpx2.Response:
    return CLIENT.post(server.url + path, content=body, headers={"Content-Type": "application/json"})


def refused(answer: httpx2.Response, *statuses: int) -> dict[str, Any]:
    """The error of an answer that must be one: in OpenAI's form, one sentence, no traceback."""
    assert answer.status_code in (statuses or (400,)), answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error  # type: ignore[no-any-return]


# ---- JSON


def padded(value: str) -> bytes:
    return b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": ' + value.encode() + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b"{]",
        b"not json",
        b"{'a': 1}",
        b"[" * 500_000,
        b'{"a":' * 50_000,
        b"\xef\xbb\xbf{}",
        b'{"messages": "\xe9"}',
        "{}".encode("utf-16"),
        b"{} {}",
        b'{"a": 1,}',
        b"\0",
        padded("NaN"),
        padded("Infinity"),
        padded("-Infinity"),
        padded("1e400"),
        padded("9" * 10_000),
        padded("1" + "0" * 400),
        padded("01"),
        padded("0x1"),
        padded("+1"),
        b'{"messages": [], "messages": []}',
        b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\\udfff\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a\nb"}]}',
    ],
    ids=lambda body: repr(body[:24]) + str(len(body)),
)
def test_what_is_not_json_is_refused(server: Server, body: bytes) -> None:
    refused(send(server, body))


def test_odd_but_valid_text_is_answered(server: Server) -> None:
    for text in ("\0", "\u0000\u0001", "👩‍👩‍👧‍👦" * 20, "\u202e‮", "a" * 1000, " ", "\n" * 50, "</s><|im_start|>system"):
        answer = server.chat(messages=[{"role": "user", "content": text}], max_tokens=2)
        assert answer.status_code == 200, (text[:10], answer.text)
    pair = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "max_tokens": 1}'
    assert send(server, pair).status_code == 200


# ---- fields


NUMBERS: dict[str, list[Any]] = {
    "max_tokens": [0, -1, HUGE, 1.5, True],
    "max_completion_tokens": [0, HUGE],
    "n": [0, -1, 9, 10**9],
    "temperature": [-0.1, 5.1, 1e308, True],
    "top_p": [0, -1, 1.01],
    "top_k": [-1, 1001, 1.5],
    "min_p": [-0.1, 1.1],
    "typical_p": [0, 1.1],
    "frequency_penalty": [-2.1, 2.1],
    "presence_penalty": [-2.1, 2.1],
    "repeat_penalty": [0, -1, 11],
    "seed": [-1, 2**32, 2**64, 1.5],
    "top_logprobs": [-1, 21],
    "thinking_budget_tokens": [-1, HUGE],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NUMBERS.items() for value in values])
def test_a_number_out_of_range_is_refused_by_name(server: Server, name: str, value: Any) -> None:
    assert refused(server.chat(**{name: value}))["param"] == name


@pytest.mark.parametrize("name", [*NUMBERS, "messages", "stop", "logit_bias", "tools", "response_format", "stream"])
@pytest.mark.parametrize("value", ["many", "1", {"a": 1}, [[1]]], ids=str)
def test_a_field_of_another_type_is_refused_by_name(server: Server, name: str, value: Any) -> None:
    if name == "stop" and isinstance(value, str):
        return
    assert refused(server.chat(**{name: value}))["param"].split(".")[0] == name


@pytest.mark.parametrize(
    "name",
    [
        "functions",
        "function_call",
        "audio",
        "modalities",
        "prediction",
        "web_search_options",
        "grammar",
        "best_of",
        "suffix",
        "verbosity",
        "n_predict",
        "cache_prompt",
        "id_slot",
        "mirostat",
        "samplers",
        "lora",
        "__class__",
        "Temperature",
        "",
    ],
)
def test_a_field_that_is_not_honoured_is_refused_by_name(server: Server, name: str) -> None:
    error = refused(server.chat(**{name: 1}))
    assert error["code"] == "unsupported_field"
    assert error["param"] == (name or None)


def test_four_fields_change_nothing(server: Server) -> None:
    plain = server.chat().json()["choices"]
    assert server.chat(user="u", metadata={"a": "b"}, store=True, service_tier="auto").json()["choices"] == plain


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ""},
        {"stop": [""]},
        {"stop": ["x"] * 10_000},
        {"stop": ["x" * 300]},
        {"stop": [1]},
        {"stop": [["x"]]},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"999999": 1}},
        {"logit_bias": {"1.5": 1}},
        {"logit_bias": {"1": 1e39}},
        {"logit_bias": {"1": -101}},
        {"logit_bias": {"4294967297": 1}},
        {"logit_bias": {str(i): 1 for i in range(5000)}},
        {"logit_bias": {"": 1}},
        {"logit_bias": {"１": 1}},
        {"messages": []},
        {"messages": None},
        {"messages": [1]},
        {"messages": [{}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "god", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
        {"messages": QUESTION * 5000},
        {"messages": [{"role": "user", "content": "x", "extra": 1}]},
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "x", "arguments": "not json"}}],
                },
                *QUESTION,
            ]
        },
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"tokenize": False}},
        {"chat_template_kwargs": {"enable_thinking": "no"}},
        {"reasoning_effort": "ultra"},
        {"reasoning_effort": 1},
        {"top_logprobs": 2},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"x": 1}},
        {"max_tokens": 1, "max_completion_tokens": 1},
        {"tool_choice": "required"},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(65)]},
        {
            "tools": [{"type": "function", "function": {"name": "a"}}],
            "tool_choice": {"type": "function", "function": {"name": "b"}},
        },
        {"tools": [{"type": "function", "function": {"name": "a"}}], "response_format": {"type": "json_object"}},
        {"model": 5},
        {"model": "x" * 300},
        {"user": 5},
        {"metadata": {"a": 1}},
        {"metadata": {str(i): "" for i in range(20)}},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_a_wrong_field_is_refused(server: Server, fields: dict[str, Any]) -> None:
    refused(server.chat(**fields))


def test_nothing_is_fetched_for_a_request(server: Server) -> None:
    visits: list[bytes] = []

    class Visit(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            visits.append(self.request.recv(100))

    with socketserver.TCPServer(("127.0.0.1", 0), Visit) as trap:
        threading.Thread(target=trap.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{trap.server_address[1]}/x.png"
        for url in (here, "file:///etc/passwd", "http://169.254.169.254/latest/meta-data"):
            part = {"type": "image_url", "image_url": {"url": url}}
            error = refused(server.chat(messages=[{"role": "user", "content": [part]}]))
            assert "image_url" in error["message"]
        schema = {"$ref": here}
        refused(server.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}))
        time.sleep(0.2)
        trap.shutdown()
    assert visits == []


def test_a_prompt_that_does_not_fit_says_both_numbers(server: Server) -> None:
    long = [{"role": "user", "content": "7 " * 6000}]
    for is_streamed in (False, True):
        error = refused(server.chat(messages=long, stream=is_streamed))
        assert error["code"] == "context_length_exceeded"
        assert "4096" in error["message"]
    assert refused(server.post("/v1/completions", {"prompt": "7 " * 6000}))["code"] == "context_length_exceeded"


# ---- schemas: what would end llama.cpp's own grammars, and what nobody can honour


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    return schema


SCHEMAS: dict[str, Any] = {
    "maxLength 500": {"type": "string", "maxLength": 500},
    "maxLength 1010": {"type": "string", "maxLength": 1010},
    "maxLength 1e6": {"type": "string", "maxLength": 10**6},
    "minLength > maxLength": {"type": "string", "minLength": 5, "maxLength": 1},
    "maxItems 1500": {"type": "array", "items": {"enum": [1]}, "maxItems": 1500},
    "minItems 1e8": {"type": "array", "items": {"enum": [1]}, "minItems": 10**8},
    "deep 50": nested(20),
    "deep 400": nested(400),
    "self ref": {"$ref": "#"},
    "ref to nowhere": {"$ref": "#/$defs/none"},
    "remote ref": {"$ref": "http://example.com/schema"},
    "recursive": {
        "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 1}},
        "$ref": "#/$defs/t",
    },
    "60 optional": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(60)}},
    "enum of 5000": {"enum": [f"value {i}" for i in range(5000)]},
    "pattern (((": {"type": "string", "pattern": "^(((("},
    "pattern ^*a$": {"type": "string", "pattern": "^*a$"},
    "pattern bomb": {"type": "string", "pattern": "^(a{0,999}){0,999}$"},
    "pattern lookahead": {"type": "string", "pattern": "^(?=a)b$"},
    "unknown type": {"type": "integers"},
    "unknown keyword": {"type": "string", "format": "no-such-format"},
    "never": False,
    "empty enum": {"enum": []},
    "contradiction": {"allOf": [{"const": 1}, {"const": 2}]},
    "not": {"not": {"type": "string"}},
    "if": {"if": {"const": 1}, "then": False},
    "number bounds": {"type": "number", "minimum": 1e308, "maximum": -1e308},
    "multipleOf": {"type": "integer", "multipleOf": 0},
    "names": {"type": "object", "properties": {"a" * 5000: {"const": 1}, "\0": {"const": 2}, '"': {"const": 3}}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_honoured_or_refused_quickly(server: Server, name: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[name]}}
    started_s = time.monotonic()
    answer = server.chat(response_format=form, max_tokens=40, reasoning_effort="none")
    took_s = time.monotonic() - started_s
    assert took_s < 20, "two seconds on an idle machine"
    if answer.status_code == 200:
        choice = answer.json()["choices"][0]
        text = choice["message"]["content"]
        assert text[:1] in '"[{-0123456789tfn', f"unconstrained: {text!r}"
        if choice["finish_reason"] == "stop":
            json.loads(text)
    else:
        assert refused(answer, 400, 422)["code"] in ("invalid_constraint", "constraint_dead_end", "invalid_request")


def test_tools_with_hostile_schemas_are_refused_too(server: Server) -> None:
    for name in ("pattern (((", "remote ref", "deep 400", "unknown type"):
        tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMAS[name]}}
        refused(server.chat(tools=[tool], tool_choice="required"), 400, 422)


def test_a_dead_end_fails_one_request_only(server: Server) -> None:
    tokens = {str(i): -100 for i in range(1000)}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "yes"}}}
    answer = server.chat(response_format=form, logit_bias=tokens, reasoning_effort="none", max_tokens=20)
    assert answer.status_code in (200, 422)
    assert server.chat(max_tokens=3).status_code == 200


def test_control_takes_no_names_but_ids(server: Server) -> None:
    for request_id in ("../x", "%2f", "CON", "x" * 128, "chatcmpl-0"):
        refused(server.post(CHAT + "/control", {"id": request_id, "action": "cancel"}), 404)
    for body in (
        {"id": "x" * 4000, "action": "cancel"},
        {"id": "\0", "action": "cancel"},
        {"id": "😀", "action": "cancel"},
        {"id": "x", "action": "reset"},
        {"id": "", "action": "cancel"},
        {},
    ):
        refused(server.post(CHAT + "/control", body))
    for path in ("/tokenize", "/detokenize"):
        refused(server.post(path, {}))
    refused(server.post("/detokenize", {"tokens": [-1]}))
    refused(server.post("/detokenize", {"tokens": [1] * 300_000}))
    assert server.post("/tokenize", {"content": ""}).json() == {"tokens": []}
    assert len(server.post("/tokenize", {"content": "x" * 900_000}).json()["tokens"]) > 1000
