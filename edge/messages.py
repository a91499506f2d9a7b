"""What a conversation is made of, as it is kept and sent: frozen dataclasses, and their JSON. Knows no storage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Role = Literal["user", "assistant"]
FINISH_REASONS = ("stop", "length", "cancelled", "error")
N_TITLE_CHARS = 60
N_SNIPPET_CHARS = 120


@dataclass(frozen=True)
class Settings:
    """What one conversation sets for itself; None leaves it to the model and the defaults."""

    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    thinking_budget_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Usage:
    """The numbers of one reply."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    seconds_to_first_token: float
    tokens_per_second: float


@dataclass(frozen=True)
class Attachment:
    """The text of a file that goes into the prompt before the question."""

    name: str
    text: str
    n_tokens: int


@dataclass(frozen=True)
class Message:
    id: str
    parent: str | None
    role: Role
    content: str
    created: float  # Unix seconds
    reasoning: str | None = None
    finish_reason: str | None = None  # None: a question, or being written
    usage: Usage | None = None
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True)
class Conversation:
    id: str
    title: str  # "" until the first question names it
    folder: str | None
    pinned: bool
    created: float  # Unix seconds
    updated: float  # of the last message
    leaf: str | None  # the last message of the branch that is shown
    settings: Settings
    n_messages: int
    revision: int  # goes up with every change but the growing of a reply
    snippet: str | None = field(default=None, compare=False)  # where a search found it


def to_json(thing: Conversation | Message, *, texts: bool = False) -> dict[str, Any]:
    """As JSON has it; the text of attachments only with texts. A snippet only where there is one."""
    body = asdict(thing)
    if body.get("snippet", "") is None:
        del body["snippet"]
    if "attachments" in body:
        names = ("name", "text", "n_tokens") if texts else ("name", "n_tokens")
        body["attachments"] = [{name: attachment[name] for name in names} for attachment in body["attachments"]]
    return body


def shortened(text: str, n_chars: int) -> str:
    """The beginning of text as one line of at most n_chars."""
    line = " ".join(text.split())
    return line if len(line) <= n_chars else line[: n_chars - 1].rstrip() + "…"


def snippet(text: str, words: Sequence[str]) -> str:
    """One line of text around the first place where one of the words stands."""
    line = " ".join(text.split())
    lower = line.lower()
    at = min((i for word in words if (i := lower.find(word.lower())) >= 0), default=0)
    start = max(0, at - N_SNIPPET_CHARS // 3)
    return ("…" if start else "") + shortened(line[start:], N_SNIPPET_CHARS)
