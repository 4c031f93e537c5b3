"""Errors as HTTP responses: the one place where a status is chosen.

Every error has the same body, `{"error": {"code", "message", "remedy"}}`. It never repeats what
was sent: messages name fields and limits, not values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from apex_memory.errors import (
    ApexError,
    Conflict,
    Forbidden,
    Misconfigured,
    NotFound,
    Rejected,
    RetryLater,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from apex_memory.telemetry import REFUSED

STORE_SECONDS = 5  # Retry-After while a store is unavailable: about the time that its restart takes

# The most specific class stands first.
STATUSES: tuple[tuple[type[ApexError], int, str], ...] = (
    (Forbidden, 403, "forbidden"),
    (Unauthorized, 401, "unauthorized"),
    (NotFound, 404, "not_found"),
    (TooLarge, 413, "too_large"),
    (Rejected, 422, "rejected"),
    (Conflict, 409, "conflict"),
    (RetryLater, 503, "retry_later"),
    (Unavailable, 503, "unavailable"),
    (Misconfigured, 500, "misconfigured"),
)
HTTP_CODES = {
    400: ("bad_request", "send a well-formed request"),
    401: ("unauthorized", "send an API key, as the password of HTTP Basic where a browser asks"),
    404: ("not_found", "see /docs for the routes"),
    405: ("method_not_allowed", "see /docs for the methods of this route"),
    408: ("timeout", "send the body faster, or in parts"),
    413: ("too_large", "send less at once; limits are in /v1/sources and the settings"),
    415: ("unsupported_media_type", "send `Content-Type: application/json`"),
}


class Malformed(Rejected):
    """The body does not match its content type: 400, where `Rejected` is 422."""


def install(api: FastAPI) -> None:
    """Register the handlers that turn every error of a route into a response of this shape."""
    api.add_exception_handler(ApexError, _apex)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)


def problem(
    status: int,
    code: str,
    message: str,
    remedy: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    **more: str,
) -> Response:
    """Return the error response. `more` adds fields beside code, message and remedy."""
    body = {"error": {"code": code, "message": message, "remedy": remedy, **more}}
    return Response(
        orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def status_of(error: ApexError) -> tuple[int, str]:
    """Return the HTTP status and the code of an error."""
    if isinstance(error, Malformed):
        return 400, "malformed"
    for kind, status, code in STATUSES:
        if isinstance(error, kind):
            return status, code
    return 500, "internal"


async def _apex(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApexError)
    _, code = status_of(error)
    _count(request, code)
    return response_for(error, keyed=not request.url.path.startswith("/hooks/"))


def response_for(error: ApexError, *, keyed: bool) -> Response:
    """Return the response to an error. `keyed` is whether the route takes an API key."""
    status, code = status_of(error)
    headers = _headers(error, keyed=keyed)
    return problem(status, code, _clean(str(error)), error.remedy, headers=headers)


def _headers(error: ApexError, *, keyed: bool) -> dict[str, str]:
    if isinstance(error, RetryLater):
        return {"Retry-After": str(max(1, math.ceil(error.after)))}
    if isinstance(error, Unavailable):
        return {"Retry-After": str(STORE_SECONDS)}
    if isinstance(error, Unauthorized) and not isinstance(error, Forbidden) and keyed:
        return {"WWW-Authenticate": 'Bearer realm="apex"'}
    # The rest of the body stays unread, so the connection cannot be used again.
    return {"Connection": "close"} if isinstance(error, TooLarge) else {}


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    _release_body(error)
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        _count(request, "malformed")
        return problem(400, "malformed", "body: not JSON", "send valid UTF-8 JSON")
    place = ".".join(str(step) for step in first["loc"])[:100]
    _count(request, "invalid")
    return problem(422, "invalid", _clean(f"{place}: {first['msg']}"), f"correct {_clean(place)}")


def _release_body(error: RequestValidationError) -> None:
    """Cut what validators raised off the frames that hold the parsed body and, in a circle, the error.

    Such circles live until the garbage collector runs, which is seldom here: refused bodies took gigabytes.
    """
    for detail in error.errors():
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, BaseException):
            cause.__traceback__ = None


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, remedy = HTTP_CODES.get(error.status_code, ("refused", ""))
    _count(request, code)
    headers = dict(error.headers or {})
    if error.status_code in (408, 413):
        headers["Connection"] = "close"
    return problem(error.status_code, code, error.detail, remedy, headers=headers)


def _count(request: Request, code: str) -> None:
    """Count the refusal of a request that would have landed events."""
    if request.method == "POST":
        source = request.app.state.routes.get(request.url.path)
        if source:
            REFUSED.labels(source, code).inc()


def _clean(text: str) -> str:
    """Return at most 500 characters, without surrogates, which some JSON readers refuse."""
    return text[:500].encode("utf-8", "replace").decode()
