"""The clients that people use, against a real server: the calls that their own documentation shows."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, Field

from tests.serve.conftest import Server

MODEL = "demo-Q8_0"
ASKED = "What is 347 + 85?"
SUM: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 999}, "b": {"enum": [1, 2]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Sum(BaseModel):
    result: int
    is_even: bool


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none needed", max_retries=0)


# ---- openai


def test_openai_chat(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": ASKED}], temperature=0, user="me", store=False, seed=1
    )
    message = completion.choices[0].message
    assert message.content == "347 + 85 = 432"
    assert message.reasoning_content.endswith("So 432.")  # type: ignore[attr-defined]
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens
    # the next turn, with the reply as it came
    again = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": ASKED}, message, {"role": "user", "content": "What is 1 + 1?"}],  # type: ignore[list-item]
        temperature=0,
    )
    assert again.choices[0].message.content


def test_openai_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": ASKED}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "347 + 85 = 432"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens


def test_openai_async_in_parallel(server: Server) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x") as asynchronous:

            async def ask(i: int) -> str:
                text = ""
                async for chunk in await asynchronous.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": f"What is {i} + 1?"}],
                    temperature=0,
                    stream=True,
                ):
                    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                return text

            return await asyncio.gather(*(ask(i) for i in range(6)))

    assert asyncio.run(main()) == [f"{i} + 1 = {i + 1}" for i in range(6)]


def test_openai_structured_output(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": ASKED}], response_format=Sum, temperature=0
    )
    assert isinstance(completion.choices[0].message.parsed, Sum)
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": ASKED}], response_format=Sum, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        assert "content.delta" in kinds
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Sum)


def test_openai_tools(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": ASKED}]
    completion = client.chat.completions.create(
        model=MODEL,
        messages=asked,
        tools=[SUM],
        tool_choice={"type": "function", "function": {"name": "add"}},
        temperature=0,
    )
    message = completion.choices[0].message
    assert completion.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls
    call = message.tool_calls[0]
    assert call.type == "function"
    assert json.loads(call.function.arguments)["b"] in (1, 2)
    asked += [message, {"role": "tool", "tool_call_id": call.id, "content": "432"}]
    assert client.chat.completions.create(model=MODEL, messages=asked, tools=[SUM], max_tokens=40).choices
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": ASKED}],
        tools=[SUM],
        tool_choice="required",
        temperature=0,
    ) as stream:
        pieces = [e.arguments_delta for e in stream if e.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls
    assert final.message.tool_calls[0].function.name == "add"
    assert len(pieces) > 2, "as they are written"
    assert "".join(pieces) == final.message.tool_calls[0].function.arguments
    parsed: Any = final.message.tool_calls[0].function.parsed_arguments
    assert parsed["b"] in (1, 2)


def test_openai_completions_models_and_errors(client: openai.OpenAI) -> None:
    assert client.completions.create(model=MODEL, prompt="1 + 1 =", max_tokens=3, temperature=0).choices[0].text
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "edge"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], modalities=["text", "audio"]
        )
    assert refused.value.param == "modalities"
    assert refused.value.code == "unsupported_field"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "7 " * 9000}], stream=True)
    assert long.value.code == "context_length_exceeded"


# ---- langchain, llm


def test_langchain(server: Server) -> None:
    @tool
    def add(a: Literal[347, 12], b: Annotated[int, Field(ge=0, le=99)]) -> int:
        """Adds two numbers."""
        return a + b

    chat = ChatOpenAI(model=MODEL, base_url=server.url + "/v1", api_key="x", temperature=0, max_retries=0)  # type: ignore[arg-type]
    assert chat.invoke([HumanMessage(ASKED)]).content == "347 + 85 = 432"
    assert "".join(str(chunk.content) for chunk in chat.stream(ASKED)) == "347 + 85 = 432"
    assert asyncio.run(chat.ainvoke([SystemMessage("Add."), HumanMessage(ASKED)])).content
    structured = chat.with_structured_output(Sum, method="json_schema").invoke(ASKED)
    assert isinstance(structured, Sum)
    called = chat.bind_tools([add], tool_choice="add", strict=True).invoke(ASKED)
    assert called.tool_calls[0]["name"] == "add"
    assert isinstance(called.tool_calls[0]["args"]["a"], int)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="llm has no release for it")
def test_llm_the_command(server: Server, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: edge\n  model_name: {MODEL}\n  api_base: {server.url}/v1\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none needed"}
    for option in ([], ["--no-stream"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "edge", "-o", "temperature", "0", *option, ASKED],
            capture_output=True, text=True, timeout=120, env=env, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("347 + 85 = 432")


# ---- prometheus


def test_prometheus_reads_the_metrics(server: Server) -> None:
    server.chat(max_tokens=20)
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics").text)}
    kinds = {name: family.type for name, family in families.items()}
    assert kinds["edge_requests"] == "counter"
    assert kinds["edge_time_to_first_token_seconds"] == "histogram"
    assert kinds["edge_time_per_output_token_seconds"] == "histogram"
    tokens = {s.labels["kind"]: s.value for s in families["edge_tokens"].samples if s.name.endswith("_total")}
    assert set(tokens) == {"prompt", "cached", "thought", "answer"}
    assert tokens["prompt"] > 0
    memory = {s.labels["process"]: s.value for s in families["edge_memory_bytes"].samples}
    assert memory["front"] < 90e6
    states = {s.labels["state"]: s.value for s in families["edge_state"].samples}
    assert states["ok"] == 1
    assert sum(states.values()) == 1
    routes = {s.labels["route"] for s in families["edge_requests"].samples}
    server.get("/no-such-path-as-this")
    assert "/no-such-path-as-this" not in server.get("/metrics").text, "nothing a client sends becomes a label"
    assert "/v1/chat/completions" in routes
