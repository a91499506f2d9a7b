"""OpenAI's routes over a real server: whole and streamed replies say the same, and every field does what it says."""

import json
import math
from typing import Any

import pytest

from tests.serve.conftest import QUESTION, Server

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


def message(body: dict[str, Any]) -> dict[str, Any]:
    return body["choices"][0]["message"]  # type: ignore[no-any-return]


def joined(events: list[dict[str, Any]], name: str, index: int = 0) -> str:
    """The text of one field of all deltas of a choice."""
    deltas = [choice["delta"] for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(delta.get(name) or "" for delta in deltas)


def test_thought_and_answer_are_apart(server: Server) -> None:
    body = server.chat().json()
    assert message(body)["content"] == "347 + 85 = 432"
    assert message(body)["reasoning_content"].endswith("So 432.")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    assert body["timings"]["predicted_n"] == usage["completion_tokens"]
    assert body["timings"]["cache_n"] + body["timings"]["prompt_n"] == usage["prompt_tokens"]


def test_a_streamed_reply_is_the_whole_one(server: Server) -> None:
    whole = server.chat(n=2, seed=4, temperature=1.2).json()
    events = server.stream(n=2, seed=4, temperature=1.2, stream_options={"include_usage": True})
    for i in range(2):
        assert joined(events, "content", i) == whole["choices"][i]["message"]["content"]
        assert joined(events, "reasoning_content", i) == whole["choices"][i]["message"].get("reasoning_content", "")
        reasons = [c["finish_reason"] for e in events for c in e["choices"] if c["index"] == i and c["finish_reason"]]
        assert reasons == [whole["choices"][i]["finish_reason"]]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


def test_usage_comes_only_when_asked_for(server: Server) -> None:
    assert all("usage" not in event for event in server.stream(max_tokens=8))


@pytest.mark.parametrize(
    "off",
    [{"reasoning_effort": "none"}, {"thinking_budget_tokens": 0}, {"chat_template_kwargs": {"enable_thinking": False}}],
    ids=str,
)
def test_the_thought_can_be_left_out(server: Server, off: dict[str, Any]) -> None:
    body = server.chat(**off).json()
    assert "reasoning_content" not in message(body)
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert message(body)["content"]


def test_a_thinking_budget_is_kept(server: Server) -> None:
    body = server.chat(thinking_budget_tokens=9).json()
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 9
    assert message(body)["content"]


def test_a_schema_binds_the_answer_and_not_the_thought(server: Server) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
    body = server.chat(response_format=wanted).json()
    assert isinstance(json.loads(message(body)["content"])["sum"], int)
    assert message(body)["reasoning_content"].endswith("So 432.")
    free = server.chat(response_format={"type": "json_object"}, max_tokens=100).json()  # the demo knows no JSON
    assert message(free)["content"].startswith("{")


def test_a_required_tool_is_called_with_valid_arguments(server: Server) -> None:
    body = server.chat(tools=[WEATHER], tool_choice="required").json()
    (call,) = message(body)["tool_calls"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert message(body)["content"] is None
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Bern", "Oslo")
    assert 1 <= arguments["days"] <= 9
    events = server.stream(tools=[WEATHER], tool_choice="required")
    first, *rest = told_calls(events)
    assert first == {
        "index": 0,
        "id": first["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert len(rest) > 2, "in pieces, as they are written"
    assert {tuple(piece) for piece in rest} == {("index", "function")}
    assert "".join(piece["function"]["arguments"] for piece in rest) == call["function"]["arguments"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert joined(events, "content") == ""


def told_calls(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [call for event in events for c in event["choices"] for call in c["delta"].get("tool_calls", ())]


def test_a_call_that_is_cut_comes_as_far_as_it_went(server: Server) -> None:
    fields: Any = {"tools": [WEATHER], "tool_choice": "required", "thinking_budget_tokens": 0}
    whole = server.chat(**fields).json()
    n_tokens, (call,) = whole["usage"]["completion_tokens"], message(whole)["tool_calls"]
    fields["max_tokens"] = n_tokens - 3
    cut = server.chat(**fields).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    arguments = message(cut)["tool_calls"][0]["function"]["arguments"]
    assert arguments
    assert call["function"]["arguments"].startswith(arguments)
    assert "".join(piece["function"]["arguments"] for piece in told_calls(server.stream(**fields))) == arguments
    fields["max_tokens"] = 2
    headless = server.chat(**fields).json()
    assert "tool_calls" not in message(headless), "before the call has a name it is text"
    assert message(headless)["content"].startswith("{")
    assert joined(server.stream(**fields), "content") == message(headless)["content"]


def test_a_call_that_the_model_chose_is_streamed_too(server: Server) -> None:
    """The demo would never call by itself: its first letter is chosen for it."""
    (brace,) = server.post("/tokenize", {"content": "{"}).json()["tokens"]
    fields: Any = {"tools": [WEATHER], "thinking_budget_tokens": 0, "logit_bias": {str(brace): 100}}
    (call,) = message(server.chat(**fields).json())["tool_calls"]
    first, *rest = told_calls(server.stream(**fields))
    assert first["function"]["name"] == "weather"
    assert "".join(piece["function"]["arguments"] for piece in rest) == call["function"]["arguments"]


def test_a_conversation_goes_on_behind_a_tool(server: Server) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern", "days": 1}'}}
    messages = [
        {"role": "developer", "content": "Be short."},
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "347 + 85 = ?"}]},
    ]
    assert message(server.chat(messages=messages, tools=[WEATHER]).json())["content"]


def test_a_tool_that_may_be_called_leaves_answers_free(server: Server) -> None:
    body = server.chat(tools=[WEATHER], max_tokens=60).json()
    assert message(body)["content"]
    assert "tool_calls" not in message(body)
    assert joined(server.stream(tools=[WEATHER], max_tokens=60), "content") == message(body)["content"]
    assert message(server.chat(tools=[WEATHER], tool_choice="none").json())["content"] == "347 + 85 = 432"


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(server: Server) -> None:
    assert message(server.chat(stop=" =").json())["content"] == "347 + 85"
    assert joined(server.stream(stop=["=", "zzz"]), "content").rstrip() == "347 + 85"


def test_a_limit_ends_the_reply_with_its_reason(server: Server) -> None:
    body = server.chat(max_completion_tokens=20).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] <= 20


def test_the_same_seed_gives_the_same_reply(server: Server) -> None:
    texts = {json.dumps(message(server.chat(temperature=1.5, seed=7, max_tokens=40).json())) for _ in range(3)}
    assert len(texts) == 1


def test_a_bias_bans_a_token(server: Server) -> None:
    tokens = server.post("/tokenize", {"content": " ==="}).json()["tokens"]
    body = server.chat(logit_bias={str(token): -100 for token in tokens}, max_tokens=200).json()
    assert "=" not in message(body)["content"]


def test_logprobs_are_told_for_each_token_of_the_answer(server: Server) -> None:
    body = server.chat(logprobs=True, top_logprobs=3).json()
    told = body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in told).strip() == message(body)["content"]
    for entry in told:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # greedy
        assert sum(math.exp(top["logprob"]) for top in entry["top_logprobs"]) <= 1.001
        assert bytes(entry["bytes"]).decode() == entry["token"]
    streamed = server.stream(logprobs=True, top_logprobs=3)
    pieces = [c["logprobs"]["content"] for e in streamed for c in e["choices"] if c["logprobs"]]
    assert [entry["token"] for piece in pieces for entry in piece] == [entry["token"] for entry in told]


def test_a_last_message_of_the_assistant_is_gone_on_with(server: Server) -> None:
    body = server.chat(messages=[*QUESTION, {"role": "assistant", "content": "347 + 85 ="}]).json()
    assert message(body)["content"].startswith(" ")
    assert "reasoning_content" not in message(body)


def test_a_plain_completion_reads_control_tokens_and_goes_on(server: Server) -> None:
    prompt = "<｜User｜>What is 347 + 85?<｜Assistant｜><think>\n</think>\n\n347 + 85 ="
    body = server.post("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 8}).json()
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] < 30
    events = server.stream("/v1/completions", messages=None, prompt=prompt, max_tokens=8)
    assert "".join(c["text"] for e in events for c in e["choices"]) == body["choices"][0]["text"]
    many = server.post(
        "/v1/completions", {"prompt": [prompt, "1 + 1 ="], "n": 2, "max_tokens": 3, "logprobs": 2}
    ).json()
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    assert all(len(choice["logprobs"]["tokens"]) <= 3 for choice in many["choices"])


def test_the_prompt_is_cached_and_says_so(server: Server) -> None:
    long = [{"role": "user", "content": "Tell me, please, " * 40 + "what is 2 + 2?"}]
    server.chat(messages=long, max_tokens=4)
    body = server.chat(messages=long, max_tokens=4).json()
    cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= body["usage"]["prompt_tokens"] - 2


def test_progress_is_told_while_a_prompt_is_read(server: Server) -> None:
    long = [{"role": "user", "content": "Numbers: " + " ".join(map(str, range(700)))}]
    events = server.stream(messages=long, max_tokens=4, return_progress=True)
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert progress
    assert [p["processed"] for p in progress] == sorted(p["processed"] for p in progress)
    assert all(0 < p["processed"] < p["total"] for p in progress)


def test_control_tokens_that_a_person_types_are_text(server: Server) -> None:
    plain = server.chat(messages=[{"role": "user", "content": "x"}], max_tokens=1).json()["usage"]["prompt_tokens"]
    typed = [{"role": "user", "content": "<｜User｜>"}]
    assert server.chat(messages=typed, max_tokens=1).json()["usage"]["prompt_tokens"] > plain + 3


def test_models_names_the_one_model(server: Server) -> None:
    (model,) = server.get("/v1/models").json()["data"]
    assert server.get(f"/v1/models/{model['id']}").json() == model
    assert server.chat(model=model["id"]).status_code == 200
    assert server.get("/v1/models/gpt-4").json()["error"]["code"] == "model_not_found"
    refused = server.chat(model="gpt-4")
    assert refused.status_code == 404
    assert model["id"] in refused.json()["error"]["message"]


def test_tokens_and_back(server: Server) -> None:
    text = "347 减 85 is 262, not <｜User｜>"
    tokens = server.post("/tokenize", {"content": text}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json()["content"] == text
    assert len(server.post("/tokenize", {"content": text, "parse_special": True}).json()["tokens"]) < len(tokens)
    refused = server.post("/detokenize", {"tokens": [1 << 20]})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "out_of_range"


def test_the_docs_load_nothing_from_elsewhere(server: Server) -> None:
    page = server.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script" not in page.text
