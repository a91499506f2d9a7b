"""Errors on their way to a client: the ones only HTTP knows, and the one table from EdgeError to status and code."""

from dataclasses import dataclass
from typing import Any

from edge import errors
from edge.errors import EdgeError, ProblemError

RETRY_AFTER_S = 2  # the engine is back after its load time


@dataclass(eq=False)
class RequestError(EdgeError):
    """A request that says something wrong. field: its path, such as messages.0.role; "" for the whole body."""

    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


@dataclass(eq=False)
class UnknownFieldError(RequestError):
    """A field that would not be honoured."""

    problem: str = "this field is not supported; leave it out"


@dataclass(eq=False)
class KeyRequiredError(EdgeError):
    def __str__(self) -> str:
        return "this server wants a key; send the header Authorization: Bearer KEY"


class ForbiddenError(ProblemError):
    """A Host or Origin that is not ours."""


@dataclass(eq=False)
class NotFoundError(EdgeError):
    """No such route, model or running request."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} is not here; {self.remedy}"


@dataclass(eq=False)
class ModelNotFoundError(NotFoundError):
    pass


@dataclass(eq=False)
class MethodError(EdgeError):
    method: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.method} is not for this path; use {self.allowed}"


@dataclass(eq=False)
class TooSlowError(EdgeError):
    seconds: float

    def __str__(self) -> str:
        return f"the request did not arrive within {self.seconds:g} s; send it faster"


@dataclass(eq=False)
class BodyTooLargeError(EdgeError):
    n_bytes_max: int

    def __str__(self) -> str:
        return f"the request has more than {self.n_bytes_max:,} bytes; shorten it or start the server with --max-body"


@dataclass(eq=False)
class MediaTypeError(EdgeError):
    found: str

    def __str__(self) -> str:
        return f"the content type is {self.found or 'missing'}; send application/json"


@dataclass(eq=False)
class TooManyConnectionsError(EdgeError):
    n_connections_max: int

    def __str__(self) -> str:
        return f"{self.n_connections_max} connections are open already; close some or try again in a moment"


@dataclass(eq=False)
class StoppingError(EdgeError):
    def __str__(self) -> str:
        return "the server is stopping; send the request again when it is back"


# class -> status, code. The first line that fits counts.
TABLE: tuple[tuple[type[EdgeError], int, str], ...] = (
    (UnknownFieldError, 400, "unsupported_field"),
    (RequestError, 400, "invalid_request"),
    (errors.OutOfRangeError, 400, "out_of_range"),
    (errors.ContextOverflowError, 400, "context_length_exceeded"),
    (errors.ConstraintError, 400, "invalid_constraint"),
    (errors.RefusedMessagesError, 400, "messages_refused"),
    (errors.TransferError, 400, "invalid_conversation"),
    (KeyRequiredError, 401, "invalid_api_key"),
    (ForbiddenError, 403, "forbidden"),
    (ModelNotFoundError, 404, "model_not_found"),
    (NotFoundError, 404, "not_found"),
    (errors.UnknownConversationError, 404, "unknown_conversation"),
    (MethodError, 405, "method_not_allowed"),
    (TooSlowError, 408, "request_timeout"),
    (errors.RevisionError, 409, "stale_revision"),
    (errors.ReplyRunningError, 409, "reply_running"),
    (BodyTooLargeError, 413, "request_too_large"),
    (MediaTypeError, 415, "unsupported_media_type"),
    (errors.TemplateError, 422, "template_failed"),
    (errors.ConstraintDeadEndError, 422, "constraint_dead_end"),
    (errors.DocumentError, 422, "unreadable_file"),
    (errors.PoisonedRequestError, 422, "request_quarantined"),
    (errors.BusyError, 429, "busy"),
    (TooManyConnectionsError, 503, "too_many_connections"),
    (StoppingError, 503, "stopping"),
    (errors.EngineDiedError, 503, "engine_restarted"),
    (errors.EngineDownError, 503, "engine_down"),
    (EdgeError, 503, "engine_error"),
)
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def status_of(error: EdgeError) -> int:
    return next(status for kind, status, _ in TABLE if isinstance(error, kind))


def code_of(error: EdgeError) -> str:
    """A word that stays the same, for programs."""
    return next(code for kind, _, code in TABLE if isinstance(error, kind))


def type_of(status: int) -> str:
    """The class of an error as OpenAI and Anthropic name it."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def body_of(error: EdgeError) -> dict[str, Any]:
    """The error in OpenAI's form."""
    field = error.field if isinstance(error, RequestError) else getattr(error, "name", None)
    kind = type_of(status_of(error))
    return {"error": {"message": str(error), "type": kind, "param": field or None, "code": code_of(error)}}


def headers_of(error: EdgeError) -> dict[str, str]:
    """What a status asks for beside the body."""
    match status_of(error):
        case 401:
            return {"WWW-Authenticate": "Bearer"}
        case 429 | 503:
            return {"Retry-After": str(RETRY_AFTER_S)}
        case 405 if isinstance(error, MethodError):
            return {"Allow": error.allowed}
    return {}
