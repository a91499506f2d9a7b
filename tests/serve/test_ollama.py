"""The calls that Ollama's documentation shows, through its own client, against a real server."""

import asyncio
import json
from typing import Any

import httpx2
import ollama
import pytest
from pydantic import BaseModel

from edge.serve.desk import ToolCall, Whole
from edge.serve.ollama import _ChatForm
from tests.serve.conftest import Server

QUESTION = [{"role": "user", "content": "What is 347 + 85?"}]
ANSWER = "347 + 85 = 432"
GREEDY = {"temperature": 0}


@pytest.fixture
def client(server: Server) -> ollama.Client:
    return ollama.Client(host=server.url)


@pytest.fixture
def model(client: ollama.Client) -> str:
    (found,) = client.list().models
    assert found.model is not None
    return found.model


def test_list_and_show_tell_of_the_model(client: ollama.Client, model: str, server: Server) -> None:
    (listed,) = client.list().models
    assert listed.details is not None
    assert listed.details.family == "qwen2"
    assert listed.size is not None
    assert listed.size > 1_000_000
    assert listed.digest is not None
    assert len(listed.digest) == 64
    shown = client.show(model)
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.details == listed.details
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "qwen2"
    assert shown.template is not None
    assert "<｜Assistant｜>" in shown.template
    (running,) = client.ps().models
    assert running.model == model
    assert running.context_length == 4096
    assert server.get("/api/version").json()["version"].count(".") == 2


def test_chat_gives_the_thought_beside_the_answer(client: ollama.Client, model: str) -> None:
    response = client.chat(model=model, messages=QUESTION, options=GREEDY)
    assert response.message.content == ANSWER
    assert response.message.thinking is not None
    assert "7 + 5 + 0 = 12, write 2, carry 1" in response.message.thinking
    assert (response.done, response.done_reason) == (True, "stop")
    assert response.prompt_eval_count is not None
    assert response.prompt_eval_count > 5
    assert response.eval_count is not None
    assert response.eval_count > 50
    assert response.eval_duration is not None
    assert response.total_duration is not None
    assert 0 < response.eval_duration <= response.total_duration < 60e9


def test_a_streamed_chat_is_the_whole_one(client: ollama.Client, model: str) -> None:
    whole = client.chat(model=model, messages=QUESTION, options=GREEDY)
    parts = list(client.chat(model=model, messages=QUESTION, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 20
    assert parts[-1].eval_count == whole.eval_count


def test_without_a_word_on_it_a_reply_is_streamed_as_lines(server: Server, model: str) -> None:
    answer = server.post("/api/chat", {"model": model, "messages": QUESTION, "options": GREEDY})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == ANSWER


def test_the_async_client_is_answered(server: Server, model: str) -> None:
    async def main() -> tuple[str | None, str]:
        client = ollama.AsyncClient(host=server.url)
        whole = await client.chat(model=model, messages=QUESTION, options=GREEDY)
        parts = await client.chat(model=model, messages=QUESTION, options=GREEDY, stream=True)
        return whole.message.content, "".join([part.message.content or "" async for part in parts])

    assert asyncio.run(main()) == (ANSWER, ANSWER)


def test_think_says_whether_and_how_long(client: ollama.Client, model: str) -> None:
    without = client.chat(model=model, messages=QUESTION, think=False, options=GREEDY)
    assert without.message.thinking is None
    assert without.message.content
    shown = client.chat(model=model, messages=QUESTION, think=True, options=GREEDY)
    low = client.chat(model=model, messages=QUESTION, think="low", options=GREEDY)
    assert shown.message.thinking == low.message.thinking
    assert shown.message.content == ANSWER


def get_weather(location: str) -> str:
    """The weather at a place.

    Args:
      location: The name of the place
    """
    return f"347 + 85 = ? at {location}"


def test_a_python_function_is_a_tool(client: ollama.Client, model: str) -> None:
    response = client.chat(model=model, messages=QUESTION, tools=[get_weather], options={**GREEDY, "num_predict": 200})
    assert response.message.content or response.message.tool_calls, "whether it calls one is the model's choice"
    call = {"function": {"name": "get_weather", "arguments": {"location": "Oslo"}}}
    messages: list[Any] = [
        *QUESTION,
        {"role": "assistant", "content": "", "thinking": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": get_weather("Oslo")},
    ]
    again = client.chat(model=model, messages=messages, tools=[get_weather], options=GREEDY)
    assert again.message.content


def test_a_call_is_told_with_its_arguments_as_an_object(server: Server) -> None:
    """The demo never calls a tool by itself; what a call looks like is asked of the writer."""
    call = ToolCall("call_1", "get_weather", '{"location":"Oslo"}')
    for told in (_ChatForm(server.url).call(call), _ChatForm(server.url).whole(Whole(calls=[call]))):
        message = ollama.Message(**told["message"])
        assert message.tool_calls
        assert message.tool_calls[0].function.name == "get_weather"
        assert message.tool_calls[0].function.arguments == {"location": "Oslo"}


class Sum(BaseModel):
    result: int


def test_format_binds_the_answer_to_a_schema(client: ollama.Client, model: str) -> None:
    schema = Sum.model_json_schema()
    response = client.chat(model=model, messages=QUESTION, format=schema, options={**GREEDY, "num_predict": 400})
    assert response.message.content is not None
    assert isinstance(Sum.model_validate_json(response.message.content), Sum)
    assert json.loads(response.message.content).keys() == {"result"}
    text = client.chat(model=model, messages=QUESTION, format="json", options={**GREEDY, "num_predict": 200})
    assert text.done_reason == "length" or json.loads(text.message.content or "")


def test_generate_replies_to_a_prompt(client: ollama.Client, model: str) -> None:
    prompt = QUESTION[0]["content"]
    whole = client.generate(model=model, prompt=prompt, options=GREEDY)
    assert whole.response == ANSWER
    assert whole.thinking
    parts = list(client.generate(model=model, prompt=prompt, options=GREEDY, stream=True))
    assert "".join(part.response or "" for part in parts) == ANSWER
    assert "".join(part.thinking or "" for part in parts) == whole.thinking
    with_system = client.generate(model=model, prompt=prompt, system="You add.", options=GREEDY)
    assert with_system.prompt_eval_count is not None
    assert whole.prompt_eval_count is not None
    assert with_system.prompt_eval_count > whole.prompt_eval_count


def test_a_raw_prompt_gets_no_template(client: ollama.Client, model: str) -> None:
    raw = f"<｜User｜>{QUESTION[0]['content']}<｜Assistant｜><think>\n"
    response = client.generate(model=model, prompt=raw, raw=True, options={**GREEDY, "stop": ["</think>"]})
    assert response.response is not None
    assert "7 + 5 + 0 = 12" in response.response
    assert response.thinking is None


def test_no_prompt_asks_only_whether_the_model_is_loaded(client: ollama.Client, model: str, server: Server) -> None:
    loaded = client.generate(model=model, keep_alive="5m")
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    assert server.post("/api/chat", {"model": model, "keep_alive": 0}).json()["done_reason"] == "load"


def test_options_are_kept(client: ollama.Client, model: str) -> None:
    cut = client.chat(model=model, messages=QUESTION, options={**GREEDY, "num_predict": 4, "num_ctx": 2048})
    assert (cut.done_reason, cut.eval_count) == ("length", 4)
    free = client.chat(model=model, messages=QUESTION, options={**GREEDY, "num_predict": -1, "repeat_last_n": -1})
    assert free.message.content == ANSWER
    stopped = client.chat(model=model, messages=QUESTION, options={**GREEDY, "stop": [" = "]})
    assert stopped.message.content == "347 + 85"
    same = [
        client.chat(model=model, messages=QUESTION, options={"seed": 7, "temperature": 2, "num_predict": 30})
        for _ in range(2)
    ]
    assert same[0].message == same[1].message


def test_logprobs_come_when_asked_for(client: ollama.Client, model: str) -> None:
    fields: dict[str, Any] = {"model": model, "messages": QUESTION, "think": False, "options": GREEDY}
    whole = client.chat(**fields, logprobs=True, top_logprobs=2)
    assert whole.logprobs
    assert "".join(told.token for told in whole.logprobs).startswith(whole.message.content or "nothing")
    assert all(len(told.top_logprobs or ()) == 2 for told in whole.logprobs)
    parts = list(client.chat(**fields, logprobs=True, top_logprobs=2, stream=True))
    assert [told.token for part in parts for told in part.logprobs or ()] == [told.token for told in whole.logprobs]


def test_the_name_may_have_the_tag_that_clients_add(client: ollama.Client, model: str) -> None:
    assert client.show(f"{model}:latest").details == client.show(model).details


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("chat", {"options": {"num_thread": 4}}, "options.num_thread: this field is not supported; leave it out"),
        ("chat", {"options": {"num_ctx": 65536}}, "options.num_ctx is 65536; give a number from 1 to 4096"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages.0.images: this field"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0: this is the result of no call"),
        ("chat", {"messages": [{"role": "user"}]}, "messages.0.content: this message says nothing"),
        ("chat", {"top_logprobs": 3}, "top_logprobs: it needs logprobs: true"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix: this field is not supported; leave it out"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "system: a raw prompt has no place for it"),
        ("show", {"verbose": True}, "verbose: input should be False"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    server: Server, model: str, path: str, fields: dict[str, Any], says: str
) -> None:
    answer = server.post(f"/api/{path}", {"model": model, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(says)


def test_errors_are_those_that_the_client_knows(client: ollama.Client, model: str, server: Server) -> None:
    with pytest.raises(ollama.ResponseError, match="the model llama3 is not here; use ") as caught:
        client.chat(model="llama3", messages=QUESTION)
    assert caught.value.status_code == 404
    long = [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(ollama.ResponseError, match="the context holds"):
        client.chat(model=model, messages=long)
    with pytest.raises(ollama.ResponseError, match="the context holds"):
        list(client.chat(model=model, messages=long, stream=True))
    assert server.post("/api/show", {}).json()["error"] == "model: this field is missing; send it"


def test_the_routes_of_the_page_do_not_speak_ollamas_form(server: Server) -> None:
    assert set(server.get("/api/nothing").json()["error"]) == {"message", "type", "param", "code"}


def test_a_client_that_goes_ends_its_reply(server: Server, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Go on."}], "options": {"temperature": 5}}
    with httpx2.stream("POST", f"{server.url}/api/chat", json=body, timeout=60) as response:
        next(response.iter_lines())
    server.wait_until_idle()
