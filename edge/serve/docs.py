"""The page /docs: the OpenAPI document as plain HTML. One answer, no script, nothing loaded from anywhere."""

import base64
import hashlib
import html
import json
from typing import Any

from fastapi import APIRouter, FastAPI, Response

from edge.serve.body import documented

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .4rem 0; }
code { font-family: ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem; background: #8882; border-radius: .4rem; }
b.method { display: inline-block; width: 4.5rem; }
:root { color-scheme: light dark; }
"""
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-{}'"


def router(app: FastAPI) -> APIRouter:
    routes = APIRouter(tags=["Server"])

    @routes.get("/docs", responses={**documented(), 200: {"content": {"text/html": {}}, "description": "This page"}})
    async def docs() -> Response:
        """Every route with its fields."""
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        headers = {"Content-Security-Policy": POLICY.format(digest)}
        return Response(page(app.openapi()), media_type="text/html", headers=headers)

    return routes


def page(document: dict[str, Any]) -> str:
    """The HTML of an OpenAPI document."""
    schemas = document.get("components", {}).get("schemas", {})
    routes = [
        _route(path, method, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>edge: routes</title><style>{STYLE}</style>'
        '<meta name="viewport" content="width=device-width"><h1>Routes</h1>'
        '<p>Machine-readable: <a href="/openapi.json">/openapi.json</a>. Every route but /health wants the key, as '
        "<code>Authorization: Bearer KEY</code>, where one is set. Fields that are not listed are refused.</p>"
        + "".join(routes)
    )


def _route(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = body.get("$ref", "").rpartition("/")[2]
    fields = f"<pre>{html.escape(_fields(name, schemas))}</pre>" if name else ""
    statuses = ", ".join(
        f"<code>{status}</code> {html.escape(answer['description'])}"
        for status, answer in sorted(operation["responses"].items())
    )
    text = html.escape(operation.get("description", operation.get("summary", "")))
    return (
        f'<details><summary><b class="method">{method.upper()}</b><code>{html.escape(path)}</code></summary>'
        f"<p>{text}</p>{fields}<p>{statuses}</p></details>"
    )


def _fields(name: str, schemas: dict[str, Any]) -> str:
    """The fields of a body, one a line: name, type with its bounds, whether it must be there."""
    schema = schemas.get(name, {})
    required = schema.get("required", ())
    lines = [
        f"{field}{'' if field in required else '?'}: {_kind(kind)}"
        for field, kind in schema.get("properties", {}).items()
    ]
    return "\n".join(lines)


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(_kind(part) for part in schema[union] if part.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"[{_kind(schema.get('items', {}))}]"
    return " ".join([kind, *bounds])
