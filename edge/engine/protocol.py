"""What the front process and the engine process say to each other: frozen dataclasses, one JSON line each.

Knows no sockets and no tokens. A line that is not one of these messages is a ProtocolError: the two sides are one
program, so it means a bug or a process that is going down, never a request that may be ignored.
"""

import json
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from edge import errors
from edge.config import EngineSettings, Sampling
from edge.errors import EdgeError

Kind = Literal["thought", "answer"]
FinishReason = Literal["stop", "length", "cancelled"]


class ProtocolError(EdgeError):
    """The other process said something that is not in this file."""


# ---------------------------------------------------------------- front to engine


@dataclass(frozen=True)
class Load:
    """The first message: what to load."""

    settings: EngineSettings


@dataclass(frozen=True)
class Constraint:
    """What an answer must be. Applies after the thought."""

    kind: Literal["json_schema", "json", "regex", "choice", "lark", "tools"]
    value: str = ""  # JSON text of the schema, the choices or Calls; the regex; the Lark grammar; nothing for "json"


class Calls(TypedDict):
    """The value of a constraint to tool calls."""

    schema: dict[str, Any]  # of a call
    marks: tuple[str, str] | None  # what may stand around it
    is_free: bool  # any other text will do as well


@dataclass(frozen=True)
class Generate:
    """One reply wanted. segments: (text, is_template) in order; control tokens are read in template text only."""

    id: str
    segments: tuple[tuple[str, bool], ...]
    sampling: Sampling
    max_tokens: int | None = None  # thought and answer together; None: what the context holds
    stops: tuple[str, ...] = ()  # end the answer, and are not part of it
    thinks: bool = True  # False: the whole output is the answer
    max_thought_tokens: int | None = None  # None: what leaves room for an answer
    constraint: Constraint | None = None
    stop_tokens: tuple[int, ...] = ()  # end the reply like the model's own end tokens
    client: str = ""  # whose request; waiting requests of different clients take turns
    n_logprobs: int | None = None  # tell each token's log-probability, and those of the n likeliest; None: not
    ignore_end: bool = False  # never sample an end token (measurements want a fixed length)
    min_reply_tokens: int = 0  # a prompt that leaves less room is refused, but for a quarter of the context at most
    inside_thought: bool = False  # the prompt ends in the middle of a thought
    conversation: str = ""  # whose text the KV memory will hold, for Forget


@dataclass(frozen=True)
class Cancel:
    id: str


@dataclass(frozen=True)
class AnswerNow:
    """End the thought of a running reply and begin its answer."""

    id: str


@dataclass(frozen=True)
class Tokenize:
    """The tokens of a text in segments are wanted, as a prompt would be read."""

    id: str
    segments: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Detokenize:
    """The text of tokens is wanted."""

    id: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Forget:
    """Empty the KV memory that holds a conversation's text and is not at work."""

    conversation: str


@dataclass(frozen=True)
class Close:
    """Finish: the engine process leaves."""


# ---------------------------------------------------------------- engine to front


@dataclass(frozen=True)
class Loading:
    share: float  # 0 … 1


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    n_ctx_tokens: int
    n_slots: int
    n_threads: int
    load_time_s: float
    system: str  # what the library was built with
    network: str = ""  # why the engine process could open a network connection; "" where it cannot


@dataclass(frozen=True)
class Beat:
    """The engine is alive, and how full it is; sent at least once a second between steps."""

    n_running: int = 0  # requests in a slot
    n_waiting: int = 0
    n_kv_tokens: int = 0  # that the slots hold; what they share counts for each


@dataclass(frozen=True)
class Phase:
    """Where a request stands. What has arrived but does not wait yet, or runs, is what a death is blamed on."""

    id: str
    phase: Literal["arrived", "waiting", "running"]


@dataclass(frozen=True)
class Progress:
    """How far the prompt of a request has been read."""

    id: str
    n_done_tokens: int
    n_prompt_tokens: int
    seconds_left: float


@dataclass(frozen=True)
class Text:
    """A piece of a reply, whole characters only."""

    id: str
    kind: Kind
    text: str


@dataclass(frozen=True)
class TokenLogprob:
    """One sampled token and its natural log-probability before any sampling setting; top: the likeliest, best first."""

    id: str
    kind: Kind
    text: str  # part of a character shows as U+FFFD
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Done:
    """The end of a reply, with its numbers."""

    id: str
    finish_reason: FinishReason
    n_prompt_tokens: int
    n_cached_tokens: int  # of the prompt, found in the KV cache
    n_thought_tokens: int
    n_answer_tokens: int
    queue_time_s: float  # from arrival to the first prompt token
    prefill_time_s: float  # from the first prompt token to the first output token
    decode_time_s: float  # from the first output token to the last
    stop: str | None = None  # the stop string that ended the answer

    @property
    def n_output_tokens(self) -> int:
        return self.n_thought_tokens + self.n_answer_tokens

    @property
    def time_to_first_token_s(self) -> float:
        return self.queue_time_s + self.prefill_time_s

    @property
    def prefill_tokens_per_s(self) -> float:
        evaluated = self.n_prompt_tokens - self.n_cached_tokens
        return evaluated / self.prefill_time_s if self.prefill_time_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """The first output token belongs to the prefill, so n - 1 tokens take decode_time_s."""
        return (self.n_output_tokens - 1) / self.decode_time_s if self.decode_time_s else 0.0


@dataclass(frozen=True)
class Tokens:
    """What Tokenize asked for."""

    id: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Detokenized:
    """What Detokenize asked for; bytes that are no whole character show as U+FFFD."""

    id: str
    text: str


@dataclass(frozen=True)
class Failed:
    """An error. id "" means the engine itself: it could not load."""

    id: str
    error: str  # name of a class in edge.errors
    facts: dict[str, Any]  # its fields

    @classmethod
    def of(cls, request_id: str, error: EdgeError) -> "Failed":
        return cls(request_id, type(error).__name__, {k: _plain(v) for k, v in vars(error).items()})

    def exception(self) -> EdgeError:
        """The error as it was raised on the other side."""
        kind = getattr(errors, self.error, None)
        if not (isinstance(kind, type) and issubclass(kind, EdgeError)):
            raise ProtocolError(f"unknown error {self.error}")
        return kind(**self.facts)


Request = Load | Generate | Cancel | AnswerNow | Tokenize | Detokenize | Forget | Close
Event = Loading | Ready | Beat | Phase | Progress | Text | TokenLogprob | Done | Tokens | Detokenized | Failed
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (*Request.__args__, *Event.__args__)}
_NESTED: dict[str, type] = {"settings": EngineSettings, "sampling": Sampling, "constraint": Constraint}
_TUPLES, _PAIRS = ("stops", "stop_tokens", "tokens"), ("segments", "top")


def encode(message: Request | Event) -> bytes:
    """One line of JSON, newline included."""
    body = {"type": type(message).__name__, **{f.name: _plain(getattr(message, f.name)) for f in fields(message)}}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> Any:
    """The message in a line. Raises ProtocolError."""
    try:
        body = json.loads(line.decode("utf-8", "surrogatepass"))
        kind = _KINDS[body.pop("type")]
        for name, nested in _NESTED.items():
            if body.get(name) is not None:
                body[name] = nested(**body[name])
        if "settings" in body:
            body["settings"] = _tupled(body["settings"])
        if "sampling" in body:
            bias = tuple((token, added) for token, added in body["sampling"].logit_bias)
            body["sampling"] = replace(body["sampling"], logit_bias=bias)
        body |= {name: tuple((a, b) for a, b in body[name]) for name in _PAIRS if name in body}
        body |= {name: tuple(body[name]) for name in _TUPLES if name in body}
        return kind(**body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"not a message: {line[:80]!r}") from error


def _tupled(settings: EngineSettings) -> EngineSettings:
    """JSON has no tuples: put them back."""
    cpus = None if settings.cpus is None else tuple(settings.cpus)
    return replace(settings, cpus=cpus, environment=tuple((name, value) for name, value in settings.environment))


def _plain(value: Any) -> Any:
    """A field as JSON can hold it."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "__fspath__"):
        return str(value)
    return value
