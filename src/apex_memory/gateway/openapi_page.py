"""`/docs`: the OpenAPI document as a plain page, without scripts or external files, so that it works offline."""

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


router = APIRouter()


@router.get(
    "/docs",
    include_in_schema=False,
    response_class=HTMLResponse,
)
async def show(request: Request) -> HTMLResponse:
    """Return the reference page."""
    return HTMLResponse(page(request.app.openapi()), headers={"Content-Security-Policy": _POLICY})


def page(document: Mapping[str, Any]) -> str:
    """Return the OpenAPI document as HTML."""
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
    """Return Markdown as HTML. HTML in it is escaped."""
    html: str = MarkdownIt("commonmark", {"html": False}).render(text)
    return html


def _section(document: Mapping[str, Any], tag: Mapping[str, str]) -> str:
    parts = [f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS and tag["name"] in operation.get("tags", ()):
                parts.append(_operation(document, method, path, operation))
    return "".join(parts)


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
    responses = "".join(
        f"<tr><td><code>{status}</code><td>{_prose(response['description'])}"
        for status, response in operation["responses"].items()
    )
    examples = ""
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            examples += "".join(_content(document, "Response", response.get("content", {})))
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"{_prose(operation.get('description', ''))}"
        f"<table>{parameters}</table>{bodies}<table>{responses}</table>{examples}</details>"
    )


def _content(document: Mapping[str, Any], title: str, content: Mapping[str, Any]) -> Iterator[str]:
    for kind, media in content.items():
        example = example_of(document, media)
        if example is None:
            continue
        text = example
        if not isinstance(example, str):
            text = json.dumps(example, indent=2, ensure_ascii=False)
        yield f"<p>{title}, <code>{escape(kind)}</code></p><pre>{escape(text)}</pre>"


def example_of(document: Mapping[str, Any], media: Mapping[str, Any]) -> Any:
    """Return the first example of a body, its own or that of its schema; None without an example."""
    if "example" in media:
        return media["example"]
    for item in media.get("examples", {}).values():
        return item["value"]
    schema = media.get("schema", {})
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    examples = schema.get("examples", [])
    return examples[0] if examples else None
