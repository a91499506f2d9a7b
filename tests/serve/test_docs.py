"""What docs/server.md and docs/clients.md show is what a real server does: every block of code in them is run."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import click
import httpx2
import ollama
import openai
import pytest

from edge.config import HOST, PORT
from edge.serve.ask import EFFORTS
from edge.serve.cli import serve
from edge.serve.metrics import STATES
from edge.serve.problems import TABLE
from tests.serve.conftest import QUESTION, Server, eventually, serving

ROOT = Path(__file__).parents[2]
SERVER = (ROOT / "docs/server.md").read_text(encoding="utf-8")
CLIENTS = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
ADDRESS = f"{HOST}:{PORT}"  # of the pages
ANSWER = "347 + 85 = 432"
# fields that change nothing
TAKEN: dict[str, Any] = {
    "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "x",
    "prompt_cache_key": "y",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`edge serve`, as the page has it: the bundled demo."""
    with serving(tmp_path_factory.mktemp("demo")) as found:
        eventually(lambda: found.get("/health").json() == {"status": "ok"}, 60)
        yield found


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def answered() -> list[tuple[str, Any]]:
    """(command, answer as the page quotes it) of each curl."""
    found = blocks(SERVER)
    return [(text, json.loads(found[i + 1][1])) for i, (_, text) in enumerate(found) if text.startswith("curl ")]


def is_like(quoted: Any, real: Any) -> bool:
    """Are these the same, but for what the quote leaves open with a …?"""
    if isinstance(quoted, str) and "…" in quoted:
        begin, _, end = quoted.partition("…")
        return quoted == "…" or (isinstance(real, str) and real.startswith(begin) and real.endswith(end))
    if isinstance(quoted, dict):
        if not isinstance(real, dict) or not ("…" in quoted or quoted.keys() == real.keys()):
            return False
        return all(name in real and is_like(value, real[name]) for name, value in quoted.items() if name != "…")
    if isinstance(quoted, list):
        return isinstance(real, list) and len(quoted) == len(real) and all(map(is_like, quoted, real))
    return type(quoted) is type(real) and bool(quoted == real)


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first`."""
    table = page[page.index(f"| {first} |" if first else "| |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ---- docs/server.md


def test_every_block_is_one_that_is_run_below() -> None:
    kinds = [language or text.split()[0] for language, text in blocks(SERVER)]
    assert [kind for kind in kinds if kind not in ("curl", "json")] == ["edge", "python", "edge", "ai.example.org"]
    assert kinds.count("curl") == kinds.count("json") == len(answered()) == 3


@pytest.mark.parametrize(("command", "quoted"), answered(), ids=["chat", "error", "health"])
def test_curl_gets_the_answer_that_the_page_shows(demo: Server, command: str, quoted: Any) -> None:
    assert ADDRESS in command
    line = command.replace(ADDRESS, f"{HOST}:{demo.port}").replace("curl ", "curl --silent --show-error ", 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    real = json.loads(done.stdout)
    assert is_like(quoted, real), real


def test_the_comparison_finds_differences() -> None:
    quoted = {"id": "chat-…", "n": 1, "rest": {"a": "…", "…": "…"}}
    assert is_like(quoted, {"id": "chat-77", "n": 1, "rest": {"a": 5, "b": 6}})
    for other in ({"id": "x", "n": 1}, {"id": "chat-7", "n": 2}, {"id": "chat-7", "n": 1.0}, {"id": "chat-7"}):
        assert not is_like(quoted, {"rest": {"a": 1}, **other})
    assert not is_like(quoted, {"id": "chat-7", "n": 1, "rest": {"b": 6}})
    assert not is_like(quoted, {"id": "chat-7", "n": 1, "rest": {"a": 6}, "more": 1})


def test_the_python_of_the_page_prints_what_its_comment_says(demo: Server, tmp_path: Path) -> None:
    (code,) = [text for language, text in blocks(SERVER) if language == "python"]
    assert f"# {ANSWER}\n" in code
    assert ADDRESS in code
    (tmp_path / "example.py").write_text(code.replace(ADDRESS, f"{HOST}:{demo.port}"), encoding="utf-8")
    done = subprocess.run([sys.executable, str(tmp_path / "example.py")], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{ANSWER}\n{ANSWER}", "")


def test_for_the_network_a_key_is_made_shown_once_kept_and_wanted(tmp_path: Path) -> None:
    """The command in the page's second block of it, and what the paragraph below it says."""
    command = [text.split() for _, text in blocks(SERVER) if text.startswith("edge ")][1]
    assert command[:3] == ["edge", "serve", "model.gguf"]
    start = partial(serving, EDGE_CONFIG="", XDG_CONFIG_HOME="", HOME=str(tmp_path))
    with start(tmp_path / "first", *command[3:]) as server:
        file = tmp_path / ".config/edge/api-key"
        assert "`~/.config/edge/api-key` (mode 0600)" in SERVER
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        key = file.read_text().strip()
        assert server.log.count(key) == 1
        assert server.get("/v1/models").status_code == 401
        assert server.get("/health").status_code == 200
        assert "as `Authorization: Bearer\nKEY` or `X-Api-Key: KEY`" in SERVER
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-Api-Key": key}):
            assert server.get("/v1/models", headers=headers).status_code == 200
    with start(tmp_path / "second", *command[3:]) as server:
        assert key not in server.log


def test_behind_the_proxy_of_the_page_its_name_is_let_in_with_a_key(tmp_path: Path) -> None:
    (caddy,) = [text for _, text in blocks(SERVER) if "reverse_proxy" in text]
    name = caddy.split()[0]
    assert f"reverse_proxy {ADDRESS}\n" in caddy
    (words,) = re.findall(r"`edge serve (--allow-host[^`]+)`", SERVER)
    assert name in words.split()
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("a-key-of-mine\nanother-key-of-mine\n")
    options = [str(keys) if word == "keys" else word for word in words.split()]
    forwarded = {"Host": name, "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": name}
    with serving(tmp_path / "server", *options) as server:
        assert server.get("/v1/models", headers=forwarded).status_code == 401
        for key in ("a-key-of-mine", "another-key-of-mine"):
            assert server.get("/v1/models", headers={**forwarded, "X-Api-Key": key}).status_code == 200
        other = {**forwarded, "Host": "other.example.org", "X-Api-Key": "a-key-of-mine"}
        assert server.get("/v1/models", headers=other).status_code == 403


def test_every_option_and_variable_of_the_page_is_the_servers() -> None:
    known = {name for param in serve.params for name in (*param.opts, *param.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", SERVER))
    assert named <= known, named - known
    variables = {
        name
        for param in serve.params
        for name in ([param.envvar] if isinstance(param.envvar, str) else param.envvar or [])
    }
    assert set(re.findall(r"\bEDGE_\w+", SERVER)) <= variables
    grace = next(param for param in serve.params if param.name == "grace")
    assert isinstance(grace, click.Option)
    assert (grace.default, "ten seconds (`--grace`)" in SERVER) == (10, True)


def test_the_fields_of_the_page_are_in_the_document_with_what_it_says_of_them(demo: Server) -> None:
    document = demo.get("/openapi.json").json()
    reference = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    body = document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]["properties"]
    for names, _ in rows(SERVER, "field"):
        assert all(name in body or name == "assistant" for name in ticked(names)), names
    (effort,) = [text for names, text in rows(SERVER, "field") if "reasoning_effort" in names]
    told = {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", effort)}
    assert told == {name: n for name, n in EFFORTS.items() if n is not None}
    taken = re.search(r"only ((?:`\w+`(?:, | and )?)+) are taken", SERVER)
    assert taken
    assert set(ticked(taken[1])) == set(TAKEN)
    plain, filled = demo.chat().json(), demo.chat(**TAKEN).json()
    assert plain["choices"] == filled["choices"]


def test_the_table_of_errors_is_that_of_the_code() -> None:
    told = {(int(status), code) for statuses, codes in rows(SERVER, "status")
            for status in re.findall(r"\d+", statuses) for code in ticked(codes)}  # fmt: skip
    real = {(status, code) for _, status, code in TABLE}
    assert {code for _, code in told} == {code for _, code in real}
    assert real <= told


def test_the_states_and_metrics_of_the_page_are_told(demo: Server) -> None:
    (said,) = re.findall(r"`/health` says ([^:.]+):", SERVER)
    assert re.split(r", | or ", said) == list(STATES)
    metrics = demo.get("/metrics").text
    for name in ("requests", "time_to_first_token", "per_output_token", "tokens", "kv_tokens", "restarts", "memory"):
        assert re.search(rf"^edge_\w*{name}", metrics, re.MULTILINE), name


def test_a_thought_can_be_ended_as_the_page_says(demo: Server) -> None:
    path, action = "/v1/chat/completions/control", "answer_now"
    assert f"POST {path}" in " ".join(SERVER.split())
    assert f"`{action}`" in SERVER
    body = {"messages": QUESTION, "temperature": 0, "stream": True}
    with httpx2.stream("POST", f"{demo.url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        first = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
        done = demo.post(path, {"id": first["id"], "action": action})
        rest = list(lines)
    assert done.status_code in (200, 404), "404 where the reply was over before"
    if done.status_code == 200:
        assert done.json() == {"id": first["id"], "action": action}
    assert "data: [DONE]" in rest


# ---- docs/clients.md


def by_openai(server: Server, given: dict[str, Any]) -> str:
    client = openai.OpenAI(**given, api_key="any", max_retries=0)
    messages: Any = QUESTION
    reply = client.chat.completions.create(model="default", messages=messages, temperature=0)
    return reply.choices[0].message.content or ""


def by_anthropic(server: Server, given: dict[str, Any]) -> str:
    client = anthropic.Anthropic(**given, api_key="any", max_retries=0)
    messages: Any = QUESTION
    reply = client.messages.create(model="default", max_tokens=500, messages=messages, extra_body={"temperature": 0})
    return "".join(block.text for block in reply.content if block.type == "text")


def by_ollama(server: Server, given: dict[str, Any]) -> str:
    model = server.get("/v1/models").json()["data"][0]["id"]  # "The model is the name that `/v1/models` tells"
    reply = ollama.Client(**given).chat(model, messages=QUESTION, options={"temperature": 0})
    return reply.message.content or ""


ASK: dict[str, Callable[[Server, dict[str, Any]], str]] = {
    "OpenAI": by_openai, "Anthropic": by_anthropic, "Ollama": by_ollama,
}  # fmt: skip


@pytest.mark.parametrize(("client", "address", "routes"), rows(CLIENTS, "client"), ids=list(ASK))
def test_a_client_set_up_as_the_table_says_is_answered(demo: Server, client: str, address: str, routes: str) -> None:
    (setting,) = re.findall(r'^`(\w+)="(http://[^"]+)"`$', address)
    name, url = setting
    assert ADDRESS in url
    assert ASK[client](demo, {name: url.replace(ADDRESS, f"{HOST}:{demo.port}")}) == ANSWER
    paths = demo.get("/openapi.json").json()["paths"]
    assert set(ticked(routes)) <= set(paths)


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat completions": ("/v1/chat/completions", {"messages": QUESTION}),
    "responses": ("/v1/responses", {"input": QUESTION[0]["content"]}),
    "messages": ("/v1/messages", {"messages": QUESTION, "max_tokens": 500}),
    "Ollama": ("/api/chat", {"messages": QUESTION, "stream": False, "options": {"temperature": 0}}),
}
# where each shows the thought: its own word for it, and what finds it in an answer
SHOWN: dict[str, Callable[[dict[str, Any]], object]] = {
    "chat completions": lambda answer: answer["choices"][0]["message"].get("reasoning_content"),
    "responses": lambda answer: [item for item in answer["output"] if item["type"] == "reasoning"],
    "messages": lambda answer: [block for block in answer["content"] if block["type"] == "thinking"],
    "Ollama": lambda answer: answer["message"].get("thinking"),
}
SHOWS: dict[str, dict[str, Any]] = {"messages": {"thinking": {"type": "adaptive"}}}  # it shows none unasked


@pytest.mark.parametrize(("api", "shown", "off", "bounds"), rows(CLIENTS, ""), ids=list(BODIES))
def test_the_thought_is_shown_turned_off_and_bounded_as_the_table_says(
    demo: Server, api: str, shown: str, off: str, bounds: str
) -> None:
    path, body = BODIES[api]
    body = {"model": "default", **body} | ({} if api == "Ollama" else {"temperature": 0})
    assert ticked(shown)[-1] in ("reasoning_content", "reasoning", "thinking")

    def ask(**fields: Any) -> dict[str, Any]:
        response = demo.post(path, {**body, **fields})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    assert SHOWN[api](ask(**SHOWS.get(api, {})))
    (setting,) = ticked(off)
    quoted = re.sub(r"[a-z_]+", lambda word: word[0] if word[0] == "false" else f'"{word[0]}"', setting)
    fields = json.loads(f"{{{quoted}}}")
    assert not SHOWN[api](ask(**fields)), fields
    document = demo.get("/openapi.json").json()
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    known = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    for name in ticked(bounds):
        assert re.split(r"[.:]", name)[0] in {*known, "medium", "high"}, name


def test_what_the_page_calls_refused_is_refused_and_what_it_calls_taken_is_taken(demo: Server) -> None:
    (names,) = re.findall(r"and change nothing: ((?:`\w+`[,\s]*)+)\(OpenAI\)", CLIENTS)
    assert set(ticked(names)) == set(TAKEN)
    for path in ("/v1/chat/completions", "/v1/responses"):
        fields = BODIES["responses" if "responses" in path else "chat completions"][1]
        response = demo.post(path, {**fields, "model": "default", **TAKEN})
        assert response.status_code == 200, response.text
    for name in ("previous_response_id", "conversation"):
        assert f"`{name}`" in CLIENTS
        response = demo.post("/v1/responses", {"input": "Hi", "model": "default", name: "resp_1"})
        assert response.status_code == 400, response.text
        assert name in response.text
    for name in ("num_thread", "num_gpu"):
        assert f"`{name}`" in CLIENTS
        body = {"model": "default", "messages": QUESTION, "options": {name: 1}}
        assert demo.post("/api/chat", body).status_code == 400


def test_the_versions_that_the_page_names_are_those_that_are_installed_for_the_tests() -> None:
    (names,) = re.findall(r"version by version: ([^.]+)\.", CLIENTS)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name in ticked(names):
        assert re.search(rf"^{re.escape(name)}==", pins, re.MULTILINE), name
