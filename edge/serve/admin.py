"""The routes beside replies: health, models, metrics, tokens, and control of what runs."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from edge.serve.answers import Content, Controlled, Health, ModelCard, ModelList, TokenList
from edge.serve.body import StrictRoute, documented
from edge.serve.desk import Desk
from edge.serve.metrics import CONTENT_TYPE
from edge.serve.openai_fields import ControlBody, DetokenizeBody, TokenizeBody
from edge.serve.problems import RETRY_AFTER_S

WELL = ("ok", "busy")


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(route_class=StrictRoute, tags=["Server"])

    @routes.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
    async def health() -> Response:
        """Where the server stands. The one route without a key; it names neither model nor version."""
        state = desk.state
        if state in WELL:
            return JSONResponse({"status": state})
        answer = {"status": state}
        if state == "down":
            answer["reason"] = "the engine died too often"
        return JSONResponse(answer, 503, {"Retry-After": str(RETRY_AFTER_S)})

    @routes.get("/v1/models", responses=documented(ModelList))
    async def models() -> Response:
        """The one model that is served."""
        return JSONResponse({"object": "list", "data": [card(desk)]})

    @routes.get("/v1/models/{model:path}", responses=documented(ModelCard))
    async def model(model: str) -> Response:
        desk.check_model(model)
        return JSONResponse(card(desk))

    @routes.get(
        "/metrics", responses={**documented(), 200: {"content": {"text/plain": {}}, "description": "Prometheus' text"}}
    )
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(desk.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @routes.post("/v1/chat/completions/control", responses=documented(Controlled))
    async def control(body: ControlBody, request: Request) -> Response:
        """End the thought of a running reply (answer_now), or the reply (cancel). id: the one in its first chunk."""
        act = desk.answer_now if body.action == "answer_now" else desk.cancel
        act(body.id, desk.client(request))
        return JSONResponse({"id": body.id, "action": body.action})

    @routes.post("/tokenize", responses=documented(TokenList))
    async def tokenize(body: TokenizeBody) -> Response:
        """The tokens of a text. parse_special: read control tokens in it as such."""
        tokens = await desk.engine.tokenize(((body.content, body.parse_special),))
        return JSONResponse({"tokens": list(tokens)})

    @routes.post("/detokenize", responses=documented(Content))
    async def detokenize(body: DetokenizeBody) -> Response:
        """The text of tokens, control tokens spelled out."""
        return JSONResponse({"content": await desk.engine.detokenize(body.tokens)})

    return routes


def card(desk: Desk) -> dict[str, Any]:
    """The model in OpenAI's form."""
    ready = desk.engine.ready
    meta = {
        "n_ctx": ready.n_ctx_tokens if ready else desk.engine.settings.n_ctx_tokens,
        "n_vocab": desk.info.n_vocab,
        "size": desk.info.n_bytes,
        "architecture": desk.info.architecture,
        "file_type": desk.info.file_type,
    }
    return {"id": desk.model, "object": "model", "created": desk.created, "owned_by": "edge", "meta": meta}
