"""`/docs`: the OpenAPI document as a plain page. No scripts and nothing from elsewhere, so it works offline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from markdown_it import MarkdownIt

METHODS = ("get", "post", "put", "patch", "delete")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent) }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: .4rem }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem; margin: .5rem 0 }
summary { cursor: pointer } summary b { display: inline-block; min-width: 4.5rem }
table { border-collapse: collapse; width: 100% }
td p { margin: 0 }
td { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0; vertical-align: top }
"""


def routes() -> APIRouter:
    router = APIRouter()
    router.add_api_route("/docs", show, include_in_schema=False, response_class=HTMLResponse)
    return router


async def show(request: Request) -> HTMLResponse:
    """The reference page."""
    return HTMLResponse(page(request.app.openapi()), headers={"Content-Security-Policy": _POLICY})


def page(document: Mapping[str, Any]) -> str:
    """The OpenAPI document as HTML."""
    about = document["info"]
    body = "".join(_section(document, tag) for tag in document["tags"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(about["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(about['title'])} {escape(about['version'])}</h1>"
        f"{_prose(about['description'])}"
        f'<p>For machines: <a href="/openapi.json">openapi.json</a></p>{body}</html>'
    )


def _prose(text: str) -> str:
    """Markdown as HTML; HTML in it is shown, not taken."""
    html: str = MarkdownIt("commonmark", {"html": False}).render(text)
    return html


def _section(document: Mapping[str, Any], tag: Mapping[str, str]) -> str:
    operations = "".join(
        _operation(document, method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS and tag["name"] in operation.get("tags", ())
    )
    return f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>{operations}"


def _operation(
    document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]
) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(item['name'])}</code><td>{item['in']}<td>{_prose(item.get('description', ''))}"
        for item in operation.get("parameters", ())
    )
    bodies = "".join(
        _content(document, "Body", operation.get("requestBody", {}).get("content", {}))
    )
    answers = "".join(
        f"<tr><td><code>{status}</code><td>{_prose(answer['description'])}"
        for status, answer in operation["responses"].items()
    )
    good = (item for status, item in operation["responses"].items() if status.startswith("2"))
    examples = "".join(
        part for item in good for part in _content(document, "Answer", item.get("content", {}))
    )
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"{_prose(operation.get('description', ''))}"
        f"<table>{parameters}</table>{bodies}<table>{answers}</table>{examples}</details>"
    )


def _content(document: Mapping[str, Any], title: str, content: Mapping[str, Any]) -> Iterator[str]:
    for kind, media in content.items():
        found = example_of(document, media)
        if found is not None:
            shown = (
                found if isinstance(found, str) else json.dumps(found, indent=2, ensure_ascii=False)
            )
            yield f"<p>{title}, <code>{escape(kind)}</code></p><pre>{escape(shown)}</pre>"


def example_of(document: Mapping[str, Any], media: Mapping[str, Any]) -> Any:
    """The first example of a body: its own, or that of its schema. None if there is none."""
    if "example" in media:
        return media["example"]
    for item in media.get("examples", {}).values():
        return item["value"]
    schema = media.get("schema", {})
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    examples = schema.get("examples", [])
    return examples[0] if examples else None
