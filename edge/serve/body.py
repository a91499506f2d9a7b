"""The body of a request: JSON read strictly, then checked by a pydantic model that knows every field it honours.

Python's json takes NaN, repeated names and any depth; none of these is JSON that two readers understand alike.
"""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from edge.serve.problems import RequestError, UnknownFieldError

N_LEVELS_MAX = 64
DOCUMENTED_STATUSES = {
    400: "A field is wrong, not supported, or out of range",
    401: "No key, or a wrong one",
    403: "A Host or Origin that is not ours",
    404: "No such model",
    408: "The request arrived too slowly",
    413: "The body is too large",
    415: "The content type is not application/json",
    422: "The request can never be answered",
    429: "Too many requests are waiting",
    503: "The engine loads, restarts or is down, or the server is stopping",
}


class Body(BaseModel):
    """A JSON object of a request. Unknown fields are refused, types are not guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Problem(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str


class ProblemAnswer(BaseModel):
    error: Problem


def parse(data: bytes) -> Any:
    """The value of JSON text. Raises RequestError."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError("", f"the body is not UTF-8 at byte {error.start}; encode it as UTF-8") from None
    if _depth(text) > N_LEVELS_MAX:
        raise RequestError("", f"the body is nested deeper than {N_LEVELS_MAX} levels; flatten it")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
    except json.JSONDecodeError as error:
        raise RequestError("", f"the body is not JSON ({error}); check its quotes and commas") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits
        raise RequestError("", "the body holds a number too long to read; shorten it") from None
    if re.search(r"\\u[dD][89a-fA-F]", text) and _has_half_character(value):
        raise RequestError("", "the body holds half of a surrogate pair; send whole characters")
    return value


def _has_half_character(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _depth(text: str) -> int:
    """Levels of nesting. Brackets inside strings do not count."""
    depth = deepest = 0
    for found in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', text):
        first = text[found.start()]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RequestError(name[:100], "this name stands twice in one object; keep one")
        found[name] = value
    return found


def _constant(name: str) -> Any:
    raise RequestError("", f"the body holds {name}, which JSON does not know; send a number")


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise RequestError("", f"the body holds {digits[:40]}, which is too large for a number; send a smaller one")
    return value


class StrictRoute(APIRoute):
    """A route whose JSON body is read by parse."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await original(_StrictRequest(request.scope, request.receive))

        return handler


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = parse(await self.body())
            except RequestError as error:  # FastAPI lets no other kind through; app.py answers with its cause
                raise HTTPException(400) from error
        return self._json


def request_error(error: RequestValidationError) -> RequestError:
    """The first thing that pydantic found wrong, in a sentence that ends in the next step."""
    found = error.errors()[0]
    field = ".".join(str(part) for part in found["loc"] if part != "body")[:200]
    match found["type"]:
        case "extra_forbidden":
            return UnknownFieldError(field)
        case "missing" if not field:
            return RequestError("", "the body is empty; send a JSON object")
        case "missing":
            return RequestError(field, "this field is missing; send it")
        case "value_error":
            return RequestError(field, str(found["ctx"]["error"]))
    problem = str(found["msg"])
    return RequestError(field, f"{problem[0].lower()}{problem[1:]}; change it")


def documented(
    answer: type[BaseModel] | None = None,
    *,
    content: dict[str, Any] | None = None,
    problem: type[BaseModel] = ProblemAnswer,
) -> dict[int | str, Any]:
    """The `responses` of a route for the OpenAPI document: its answer, and every error it may give."""
    found: dict[int | str, Any] = {
        status: {"model": problem, "description": text} for status, text in DOCUMENTED_STATUSES.items()
    }
    if answer is not None:
        found[200] = {"model": answer, "description": "The whole reply", "content": content or {}}
    return found
