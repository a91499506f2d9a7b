"""The calls that Anthropic's documentation shows, through its own client, against a real server."""

import json
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from pydantic import BaseModel

from edge.serve.problems import TABLE
from tests.serve.conftest import KEY, Server, serving

QUESTION: Any = [{"role": "user", "content": "What is 347 + 85?"}]
ANSWER = "347 + 85 = 432"
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather at a place",
    "input_schema": {
        "type": "object",
        "properties": {"location": {"type": "string", "maxLength": 20}},
        "required": ["location"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)


def asked(**fields: Any) -> dict[str, Any]:
    """The fields of a request as the client takes them. It has no word for temperature any more, the wire has."""
    return {"model": "default", "max_tokens": 500, "messages": QUESTION, "extra_body": {"temperature": 0}, **fields}


def wire(**fields: Any) -> dict[str, Any]:
    """The body of a request."""
    body = {**asked(**fields), "temperature": 0}
    return {name: value for name, value in body.items() if value is not None and name != "extra_body"}


def test_a_message_is_answered_with_its_first_block(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**asked())
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    assert [(block.type, block.text) for block in message.content] == [("text", ANSWER)]
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 5
    details = message.usage.output_tokens_details
    assert details is not None
    assert message.usage.output_tokens > details.thinking_tokens > 20, "it thought, and did not show it"


def test_thinking_shows_the_thought_in_a_block_before_the_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**asked(thinking={"type": "enabled", "budget_tokens": 400}))
    thinking, text = message.content
    assert thinking.type == "thinking"
    assert "7 + 5 + 0 = 12, write 2, carry 1" in thinking.thinking
    assert thinking.signature
    assert text.type == "text"
    assert text.text == ANSWER


@pytest.mark.parametrize(
    ("thinking", "kinds", "is_silent"),
    [
        ({"type": "adaptive"}, ["thinking", "text"], False),
        ({"type": "adaptive", "display": "omitted"}, ["thinking", "text"], True),
        ({"type": "disabled"}, ["text"], True),
    ],
)
def test_the_ways_of_thinking(client: anthropic.Anthropic, thinking: Any, kinds: list[str], is_silent: bool) -> None:
    whole = client.messages.create(**asked(thinking=thinking))
    assert [block.type for block in whole.content] == kinds
    with client.messages.stream(**asked(thinking=thinking)) as stream:
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    if kinds[0] == "thinking":
        assert (getattr(whole.content[0], "thinking", None) == "") == is_silent


def test_a_budget_and_an_effort_bound_the_thought(client: anthropic.Anthropic) -> None:
    for fields in ({"thinking": {"type": "enabled", "budget_tokens": 10}}, {"output_config": {"effort": "low"}}):
        message = client.messages.create(**asked(**fields))
        details = message.usage.output_tokens_details
        assert details is not None
        assert details.thinking_tokens <= (20 if "thinking" in fields else 520)


def test_a_stream_tells_the_same_message_in_the_documented_order(client: anthropic.Anthropic) -> None:
    fields = asked(thinking={"type": "adaptive"})
    whole = client.messages.create(**fields)
    events = list(client.messages.create(**fields, stream=True))
    kinds = [event.type for event in events]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert list(dict.fromkeys(kinds)) == ["message_start", *block, "message_delta", "message_stop"]
    assert [kinds.count(kind) for kind in (block[0], block[2], "message_delta")] == [2, 2, 1]
    with client.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == ANSWER
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == (
        whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    )


def test_the_async_client_streams(server: Server) -> None:
    import asyncio

    async def main() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=server.url, api_key="any") as client,
            client.messages.stream(**asked()) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(main()) == ANSWER


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used_with_valid_input_whole_and_streamed(client: anthropic.Anthropic, choice: Any) -> None:
    fields = asked(tools=[WEATHER], tool_choice=choice)
    message = client.messages.create(**fields)
    use = message.content[-1]
    assert message.stop_reason == "tool_use"
    assert use.type == "tool_use"
    assert use.name == "get_weather"
    assert isinstance(use.input["location"], str)
    with client.messages.stream(**fields) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 2, "as they are written"
    assert final.stop_reason == "tool_use"
    assert final.content[-1].type == "tool_use"
    assert final.content[-1].input == use.input


def test_a_conversation_goes_on_behind_a_tool(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**asked(tools=[WEATHER], tool_choice={"type": "any"}))
    use = first.content[-1]
    assert use.type == "tool_use"
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "347 + 85 = ?"}
    messages: Any = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(**asked(messages=messages, tools=[WEATHER]))
    assert again.content
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the sum?"}]
    failed = {**result, "is_error": True, "content": [{"type": "text", "text": "no network"}]}
    messages[-1] = {"role": "user", "content": [failed, *parts]}
    assert client.messages.create(**asked(messages=messages, tools=[WEATHER])).content


def test_a_whole_reply_comes_back_as_it_was_given(client: anthropic.Anthropic) -> None:
    """Thinking blocks included: they are taken and never reach the model."""
    first = client.messages.create(**asked(thinking={"type": "adaptive"}))
    turn: Any = [{"role": "assistant", "content": first.content}, {"role": "user", "content": "What is 1 + 1?"}]
    with_thought = client.messages.count_tokens(model="default", messages=[*QUESTION, *turn])
    turn[0] = {"role": "assistant", "content": ANSWER}
    without = client.messages.count_tokens(model="default", messages=[*QUESTION, *turn])
    assert with_thought.input_tokens == without.input_tokens


def test_count_tokens_is_what_the_message_then_reads(client: anthropic.Anthropic) -> None:
    prompt: Any = {"model": "default", "messages": QUESTION, "system": [{"type": "text", "text": "You add."}]}
    count = client.messages.count_tokens(**prompt)
    usage = client.messages.create(**prompt, max_tokens=20).usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with_tools = client.messages.count_tokens(**prompt, tools=[WEATHER])
    assert with_tools.input_tokens > count.input_tokens


def test_a_system_prompt_and_what_is_cached_are_honoured(client: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "Be brief. " * 60, "cache_control": {"type": "ephemeral"}}]
    for _ in range(2):
        usage = client.messages.create(**asked(system=system, max_tokens=5)).usage
    assert usage.cache_read_input_tokens
    assert usage.cache_read_input_tokens > 100


def test_how_a_message_ends(client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(**asked(stop_sequences=[" = "]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " = ")
    assert stopped.content[0].type == "text"
    assert stopped.content[0].text == "347 + 85"
    cut = client.messages.create(**asked(max_tokens=3, thinking={"type": "disabled"}))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)


def test_a_last_message_of_the_assistant_is_gone_on_with(client: anthropic.Anthropic) -> None:
    messages: Any = [*QUESTION, {"role": "assistant", "content": "347 + 85 ="}]
    message = client.messages.create(**asked(messages=messages))
    assert message.content[0].type == "text"
    assert message.content[0].text.strip()


class Sum(BaseModel):
    result: int


def test_a_schema_binds_the_answer(client: anthropic.Anthropic) -> None:
    form = {"type": "json_schema", "schema": {**Sum.model_json_schema(), "additionalProperties": False}}
    message = client.messages.create(**asked(output_config={"format": form}))
    assert message.content[0].type == "text"
    assert isinstance(json.loads(message.content[0].text)["result"], int)
    parsed = client.messages.parse(**asked(), output_format=Sum)
    assert isinstance(parsed.parsed_output, Sum)


def test_the_beta_client_is_answered_too(client: anthropic.Anthropic) -> None:
    message = client.beta.messages.create(**asked(), betas=["prompt-caching-2024-07-31"])
    assert message.content[0].type == "text"
    assert message.content[0].text == ANSWER


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"container": "c"}, "container: this field is not supported; leave it out"),
        ({"max_tokens": None}, "max_tokens: this field is missing; send it"),
        ({"thinking": {"type": "enabled", "budget_tokens": 500}}, "thinking.budget_tokens: it leaves no room"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens: it goes with type enabled"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0: input tag 'image'",
        ),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages: they say nothing"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: there are no tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        (
            {"tools": [WEATHER], "output_config": {"format": {"type": "json_schema", "schema": {}}}},
            "output_config.format: it cannot be had together with tools",
        ),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(server: Server, fields: dict[str, Any], says: str) -> None:
    answer = server.post("/v1/messages", wire(**fields))
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert body["error"]["message"].startswith(says)
    assert body["error"]["code"] in {code for _, _, code in TABLE}


def test_errors_are_those_that_the_client_knows(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="the model claude is not here; use "):
        client.messages.create(**asked(model="claude"))
    with pytest.raises(anthropic.BadRequestError, match="the context holds"):
        client.messages.create(**asked(messages=[{"role": "user", "content": "word " * 5000}]))
    with pytest.raises(anthropic.BadRequestError, match="the context holds"):  # before the stream begins
        client.messages.create(**asked(messages=[{"role": "user", "content": "word " * 5000}]), stream=True)


def test_a_wrong_key_is_an_authentication_error(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--api-key", KEY, model=demo_model) as closed:
        anyone = anthropic.Anthropic(base_url=closed.url, api_key="wrong-key-of-somebody", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError) as caught:
            anyone.messages.create(**asked())
        assert caught.value.body == {
            "type": "error",
            "error": {
                "type": "authentication_error",
                "message": "this server wants a key; send the header Authorization: Bearer KEY",
                "code": "invalid_api_key",
            },
        }
        known = anthropic.Anthropic(base_url=closed.url, api_key=KEY)
        assert known.messages.create(**asked()).content


def test_a_client_that_goes_ends_its_reply(server: Server) -> None:
    body = {**wire(messages=[{"role": "user", "content": "Go on."}], max_tokens=4000), "temperature": 5}
    with httpx2.stream("POST", f"{server.url}/v1/messages", json={**body, "stream": True}, timeout=60) as response:
        for line in response.iter_lines():
            if line:
                break
    server.wait_until_idle()
