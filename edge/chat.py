"""A conversation: messages in, one request for the engine out. Knows the model's template, not its tokens.

Thoughts never return to the model: only questions and answers are kept. When the context is full, the oldest turns go.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from edge.config import Sampling
from edge.engine.protocol import Constraint, Done, Event, Generate, Text
from edge.errors import ContextOverflowError, ModelFileError
from edge.model.gguf import ModelInfo
from edge.model.template import ChatTemplate
from edge.tools import ToolSet


class Generates(Protocol):
    """What a conversation asks of an engine; edge.engine.client.Engine is the real one."""

    def generate(self, request: Generate) -> Iterator[Event]: ...


def chat_template(info: ModelInfo) -> ChatTemplate:
    """The template a model file carries. Raises ModelFileError if it has none, TemplateError if it is broken."""
    if info.chat_template is None:
        raise ModelFileError(info.path, "has no chat template", "use an instruction-tuned model")
    return ChatTemplate(info.chat_template, bos=info.bos_text, eos=info.eos_text)


@dataclass
class Conversation:
    """Questions and answers so far, and how the next reply is made."""

    template: ChatTemplate
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    max_tokens: int | None = None
    tools: ToolSet | None = None
    constraint: Constraint | None = None  # of every answer; tools bring their own
    messages: list[dict[str, str]] = field(default_factory=list)  # role user or assistant, in turn
    n_dropped_turns: int = 0  # oldest turns that the context has no more room for

    def request(self) -> Generate:
        """The request for the next reply to the messages so far."""
        tools, system = self.tools, self.system or ""
        has_place = tools is not None and "tools" in self.template.source
        if tools is not None and tools.choice != "none" and not has_place:
            system = f"{system}\n\n{tools.instruction()}".strip()
        head = [{"role": "system", "content": system}] if system else []
        segments = self.template.render([*head, *self.messages], tools=tools.tools if tools and has_place else None)
        return Generate(
            id=uuid.uuid4().hex,
            segments=tuple((segment.text, segment.is_template) for segment in segments),
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            constraint=tools.constraint() if tools else self.constraint,
        )

    def ask(
        self, question: str, engine: Generates, on_start: Callable[[str], None] = lambda _: None
    ) -> Iterator[Event]:
        """Add a question and yield the events of its reply; the answer joins the messages when it is done.

        on_start gets the request's id, to cancel it by. After a question that got no whole reply the conversation is
        as it was before.
        """
        before = list(self.messages), self.n_dropped_turns
        self.messages.append({"role": "user", "content": question})
        answer = ""
        is_done = False
        try:
            for event in self._generate(engine, on_start):
                if isinstance(event, Text) and event.kind == "answer":
                    answer += event.text
                is_done = isinstance(event, Done)
                if is_done:
                    self.messages.append({"role": "assistant", "content": answer})
                yield event
        finally:
            if not is_done:
                self.messages, self.n_dropped_turns = before

    def _generate(self, engine: Generates, on_start: Callable[[str], None]) -> Iterator[Event]:
        while True:
            request = self.request()
            on_start(request.id)
            try:
                yield from engine.generate(request)
                return
            except ContextOverflowError:
                if len(self.messages) == 1:  # the question alone is too long
                    raise
                del self.messages[:2]
                self.n_dropped_turns += 1

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.messages.clear()
        self.n_dropped_turns = 0
