"""What a client wants, in no client's words, and the engine requests that it becomes. Knows templates, not HTTP."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edge.chat import Conversation
from edge.config import Sampling
from edge.engine.client import choices
from edge.engine.protocol import Constraint, Generate
from edge.engine.reasoning import CLOSE, CLOSING, OPEN, opens_thought
from edge.model.gguf import ModelInfo
from edge.model.template import ChatTemplate
from edge.serve.problems import RequestError
from edge.tools import ToolSet

Message = Mapping[str, Any]
EFFORTS: dict[str, int | None] = {  # reasoning_effort -> thought tokens; None: what leaves room for an answer
    "none": 0,
    "minimal": 128,
    "low": 512,
    "medium": 2048,
    "high": None,
    "xhigh": None,
}


@dataclass(frozen=True)
class Ask:
    """One validated request for replies.

    messages: OpenAI's form, but contents are plain text and the arguments of tool calls are objects. A last message of
    the assistant is a prefill: the reply goes on behind it. prompts: instead of messages, raw text whose control tokens
    are read.
    """

    id: str
    client: str
    sampling: Sampling
    messages: tuple[Message, ...] = ()
    prompts: tuple[str, ...] = ()
    n: int = 1  # replies to each prompt
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    thinks: bool = True
    max_thought_tokens: int | None = None
    constraint: Constraint | None = None
    tools: ToolSet | None = None
    n_logprobs: int | None = None

    @property
    def calls_tools(self) -> bool:
        return self.tools is not None and self.tools.choice != "none"


def effort(level: str) -> tuple[bool, int | None]:
    """(thinks, max_thought_tokens) for a reasoning_effort of EFFORTS."""
    n_tokens = EFFORTS[level]
    return n_tokens != 0, n_tokens


def response_format(kind: Literal["text", "json_object", "json_schema"], schema: Any = None) -> Constraint | None:
    """The constraint for OpenAI's response_format."""
    if kind == "text":
        return None
    return Constraint("json") if kind == "json_object" else Constraint("json_schema", json.dumps(schema))


def requests(ask: Ask, template: ChatTemplate | None, info: ModelInfo) -> list[Generate]:
    """What the engine is asked: n requests for every prompt. Blocks while the template renders. Raises EdgeError."""
    if ask.calls_tools and ask.constraint is not None:
        raise RequestError("response_format", "it cannot be had together with tools; send one of both")
    if template is None and ask.messages:
        raise RequestError("messages", "this model has no chat template; use /v1/completions")
    prompts = [_raw(ask, prompt, info) for prompt in ask.prompts] if ask.prompts else [_chat(ask, template, info)]
    found = []
    for i, prompt in enumerate(prompts):
        request = replace(
            prompt,
            id=ask.id if len(prompts) == 1 else f"{ask.id}-{i}",
            stops=ask.stops,
            max_thought_tokens=ask.max_thought_tokens,
            constraint=prompt.constraint or ask.constraint,
            client=ask.client,
            n_logprobs=ask.n_logprobs,
        )
        found += choices(request, ask.n)
    return found


def _raw(ask: Ask, prompt: str, info: ModelInfo) -> Generate:
    adds_bos = info.add_bos is True and not prompt.startswith(info.bos_text)
    text = info.bos_text + prompt if adds_bos else prompt
    return Generate("", ((text, True),), ask.sampling, ask.max_tokens, thinks=False)


def _chat(ask: Ask, template: ChatTemplate | None, info: ModelInfo) -> Generate:
    assert template is not None
    system, messages, prefill = _parted(ask.messages)
    if ask.tools is None or "tools" not in template.source:
        messages = _told(messages)
    conversation = Conversation(
        template, ask.sampling, system, ask.max_tokens, ask.tools, ask.constraint, [dict(m) for m in messages]
    )
    request = conversation.request()
    segments = list(request.segments)
    thinks = ask.thinks and prefill is None
    if not thinks and info.thinks:
        is_open = opens_thought("".join(text for text, _ in segments[-2:]))
        segments.append((CLOSING if is_open else f"{OPEN}\n\n{CLOSE}\n\n", True))
    if prefill:
        segments.append((prefill, False))
    return replace(request, segments=tuple(segments), thinks=thinks)


def _parted(messages: Sequence[Message]) -> tuple[str | None, list[Message], str | None]:
    """(the system messages at the beginning as one, what follows, the text the reply shall go on behind)."""
    rest = list(messages)
    system = []
    while rest and rest[0]["role"] == "system":
        system.append(rest.pop(0)["content"])
    prefill = None
    if rest and rest[-1]["role"] == "assistant" and not rest[-1].get("tool_calls"):
        prefill = rest.pop()["content"]
    if not rest:
        raise RequestError("messages", "there is no message to reply to; add one of role user")
    return "\n\n".join(system) or None, rest, prefill


def _told(messages: Sequence[Message]) -> list[Message]:
    """Tool calls and their results as plain text, in the words of ToolSet, for a template that knows none."""
    names: dict[str, str] = {}
    told: list[Message] = []
    follows_result = False
    for message in messages:
        calls = message.get("tool_calls") or ()
        names |= {call["id"]: call["function"]["name"] for call in calls}
        content = message["content"]
        if message["role"] == "tool":
            content = f"{names.get(message.get('tool_call_id', ''), 'the function')} returned:\n{content}"
            if follows_result:  # templates want user and assistant in turn
                content = f"{told.pop()['content']}\n\n{content}"
            told.append({"role": "user", "content": content})
        elif calls:
            texts = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
            told.append({"role": "assistant", "content": "\n".join(filter(None, [content, *texts]))})
        else:
            told.append(message)
        follows_result = message["role"] == "tool"
    return told
