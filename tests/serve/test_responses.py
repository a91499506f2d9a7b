"""The calls that OpenAI's documentation shows for Responses, through its own client, against a real server."""

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.serve.conftest import Server

QUESTION = "What is 347 + 85?"
ANSWER = "347 + 85 = 432"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather at a place",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string", "maxLength": 20}},
        "required": ["location"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "default", "input": QUESTION, "temperature": 0, **fields}


def test_a_response_is_the_thought_and_the_answer(client: openai.OpenAI) -> None:
    response = client.responses.create(**asked())
    assert response.output_text == ANSWER
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.content
    assert "7 + 5 + 0 = 12, write 2, carry 1" in reasoning.content[0].text
    assert message.type == "message"
    assert (message.role, message.status) == ("assistant", "completed")
    usage = response.usage
    assert usage is not None
    assert usage.output_tokens > usage.output_tokens_details.reasoning_tokens > 20
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_stream_tells_the_same_in_the_documented_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**asked(), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.completed",
    ]
    whole = client.responses.create(**asked())
    last = events[-1]
    assert last.type == "response.completed"
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert len(texts) > 3, "in pieces"
    assert "".join(texts) == last.response.output_text == whole.output_text
    assert whole.output[0].type == "reasoning"
    assert whole.output[0].content
    assert "".join(thoughts) == whole.output[0].content[0].text
    added = [event.item.model_dump() for event in events if event.type == "response.output_item.added"]
    assert [item["content"] for item in added] == [[], []], "an item begins empty"


def test_the_stream_helper_builds_the_response(client: openai.OpenAI) -> None:
    with client.responses.stream(**asked()) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == ANSWER


def test_the_async_client_is_answered(server: Server) -> None:
    async def main() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            response = await client.responses.create(**asked())
            return str(response.output_text)

    assert asyncio.run(main()) == ANSWER


class Sum(BaseModel):
    result: int


def test_structured_output_is_parsed(client: openai.OpenAI) -> None:
    response = client.responses.parse(**asked(), text_format=Sum)
    assert isinstance(response.output_parsed, Sum)
    with client.responses.stream(**asked(), text_format=Sum) as stream:
        assert stream.get_final_response().output_parsed == response.output_parsed
    as_json = client.responses.create(**asked(text={"format": {"type": "json_object"}}, max_output_tokens=300))
    assert as_json.status == "incomplete" or json.loads(as_json.output_text) is not None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_function_is_called_with_valid_arguments(client: openai.OpenAI, choice: Any) -> None:
    fields = asked(tools=[WEATHER], tool_choice=choice)
    call = client.responses.create(**fields).output[-1]
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert isinstance(json.loads(call.arguments)["location"], str)
    events = list(client.responses.create(**fields, stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert len(deltas) > 2, "as they are written"
    assert "".join(deltas) == done.arguments == call.arguments
    with client.responses.stream(**fields) as stream:
        final = stream.get_final_response().output[-1]
    assert final.type == "function_call"
    assert final.arguments == call.arguments


def test_the_documented_loop_around_a_function(client: openai.OpenAI) -> None:
    """input += response.output, then the function's output: items go back as they came."""
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.responses.create(**asked(input=items, tools=[WEATHER], tool_choice="required"))
    items += first.output
    call = items[-1]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": json.dumps({"sum": "?"})})
    assert client.responses.create(**asked(input=items, tools=[WEATHER])).output_text


def test_a_conversation_comes_whole_as_input(client: openai.OpenAI) -> None:
    first = client.responses.create(**asked())
    turn: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}, *first.output]
    second = client.responses.create(**asked(input=[*turn, {"role": "user", "content": "What is 1 + 1?"}]))
    assert second.output_text
    assert second.usage is not None
    assert first.usage is not None
    plain: list[Any] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    again = client.responses.create(**asked(input=[*plain, {"role": "user", "content": "What is 1 + 1?"}]))
    assert again.usage is not None
    assert second.usage.input_tokens == again.usage.input_tokens, "the thought did not come back"


def test_instructions_are_the_system_prompt(client: openai.OpenAI) -> None:
    told = client.responses.create(**asked(instructions="You add numbers."))
    item = client.responses.create(**asked(input=[{"role": "developer", "content": "You add numbers."},
                                                  {"role": "user", "content": QUESTION}]))  # fmt: skip
    assert told.usage is not None
    assert item.usage is not None
    assert told.usage.input_tokens == item.usage.input_tokens
    assert told.instructions == "You add numbers."
    assert told.output_text == item.output_text


def test_reasoning_effort_none_leaves_the_thought_out(client: openai.OpenAI) -> None:
    response = client.responses.create(**asked(reasoning={"effort": "none"}))
    assert [item.type for item in response.output] == ["message"]
    assert response.reasoning is not None
    assert response.reasoning.effort == "none"


def test_a_limit_leaves_the_response_incomplete(client: openai.OpenAI) -> None:
    whole = client.responses.create(**asked(max_output_tokens=5))
    *_, last = client.responses.create(**asked(max_output_tokens=5), stream=True)
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output[-1].status == "incomplete"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 5


def test_logprobs_come_when_included(client: openai.OpenAI) -> None:
    fields = asked(include=["message.output_text.logprobs"], top_logprobs=2, reasoning={"effort": "none"})
    message = client.responses.create(**fields).output[-1]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs
    assert "".join(told.token for told in part.logprobs).startswith(part.text)
    assert all(len(told.top_logprobs) == 2 for told in part.logprobs)
    events = list(client.responses.create(**fields, stream=True))
    streamed = [told for e in events if e.type == "response.output_text.delta" for told in e.logprobs]
    assert [told.token for told in streamed] == [told.token for told in part.logprobs]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "this server keeps no responses; send the whole"),
        ({"background": True}, "background", "input should be False"),
        ({"max_tool_calls": 3}, "max_tool_calls", "this field is not supported; leave it out"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0", "input should be 'message.output_text.logprobs'"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "input should be 'function'"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools to choose from; send tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "items of this type are not supported"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.message.content.0",
            "input_image",
        ),
        ({"input": []}, "input", "should have at least 1 item"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "it needs stream: true"),
        (
            {"tools": [WEATHER], "text": {"format": {"type": "json_object"}}},
            "text.format",
            "it cannot be had together with tools; send one of both",
        ),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**asked(**fields))
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)
    assert says in caught.value.message


def test_what_clients_send_unasked_changes_nothing(client: openai.OpenAI) -> None:
    response = client.responses.create(
        **asked(store=True, user="u", metadata={"a": "b"}, service_tier="auto", truncation="disabled"),
        prompt_cache_key="k",
        safety_identifier="s",
        parallel_tool_calls=True,
    )
    assert response.output_text == ANSWER
    assert response.metadata == {"a": "b"}


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model gpt is not here; use "):
        client.responses.create(**asked(model="gpt"))
    for is_streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match="the context holds"):
            client.responses.create(**asked(input="word " * 5000), stream=is_streamed)
