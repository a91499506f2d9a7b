"""The application: all routes over one desk, behind the guard; how errors become answers; what is logged."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from edge.errors import EdgeError
from edge.serve import admin, anthropic, docs, ollama, openai, responses
from edge.serve.body import request_error
from edge.serve.desk import Desk
from edge.serve.entry import Entry, entry
from edge.serve.guard import Guard, ProblemForm, Rules
from edge.serve.problems import MethodError, NotFoundError, code_of, headers_of, status_of

logger = logging.getLogger(__name__)
requests_log = logging.getLogger("edge.requests")

# What speaks for other clients: its routes, and the beginning of the paths whose errors it writes.
Maker = Callable[[Desk], APIRouter]
TRANSLATIONS: tuple[Maker, ...] = (responses.router, anthropic.router, ollama.router)
PROBLEM_FORMS: dict[str, ProblemForm] = {
    **dict.fromkeys(anthropic.PATHS, anthropic.problem),
    **dict.fromkeys(ollama.PATHS, ollama.problem),
}


def make_app(desk: Desk, rules: Rules, *, json_log: bool = False, routers: tuple[APIRouter, ...] = ()) -> ASGIApp:
    """The ASGI application. routers: more routes, of features that have state of their own."""
    rules = replace(rules, forms={**PROBLEM_FORMS, **rules.forms})

    def answer(request: Request, error: EdgeError) -> Response:
        entry().code = code_of(error)
        return JSONResponse(rules.form(request.url.path)(error), status_of(error), headers_of(error))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await desk.engine.close()

    app = FastAPI(title="edge", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    for make in (openai.router, admin.router, *TRANSLATIONS):
        app.include_router(make(desk))
    for router in routers:
        app.include_router(router)
    app.include_router(docs.router(app))

    @app.exception_handler(EdgeError)
    async def known(request: Request, error: EdgeError) -> Response:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, request_error(error))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, EdgeError):
            return answer(request, error.__cause__)
        if error.status_code == 405:
            return answer(request, MethodError(request.method, (error.headers or {}).get("Allow", "GET")))
        return answer(request, NotFoundError("what this path names", "see /docs for what is"))

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        logger.error("a bug", exc_info=error)
        body = {"message": "something went wrong inside; the server's log says what", "type": "server_error"}
        return JSONResponse({"error": {**body, "param": None, "code": "internal_error"}}, 500)

    def answered(facts: Entry) -> None:
        desk.metrics.requests.labels(facts.route or "other", str(facts.status)).inc()
        requests_log.info("%s", facts.line(as_json=json_log))

    return Guard(app, rules, answered)
