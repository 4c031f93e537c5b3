"""What all routes share: error responses, examples, times, pages of a list."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, model_validator

from apex_memory.errors import NotFound, Rejected
from apex_memory.gateway.dependencies import Gateway

Key = TypeVar("Key")
Row = TypeVar("Row")

EVENT = "0a3f6f4e-64c7-5d0f-9d83-2b8a4b0e6c11"
DOCUMENT = "5e0c2f9a-1f43-5c1d-8f0e-7a2f2f8f1b90"


def _require_iso_text(value: Any) -> Any:
    """Refuse numbers, which pydantic would take for seconds since 1970: the API takes ISO 8601."""
    if isinstance(value, datetime) or (isinstance(value, str) and "-" in value):
        return value
    raise ValueError("expected a time in ISO 8601, with its zone")


IsoDateTime = Annotated[AwareDatetime, BeforeValidator(_require_iso_text)]


class RequestBody(BaseModel):
    """The JSON body of a request, or a table in it: unknown fields are refused.

    All of them by one error: pydantic makes an error for each, and 60,000 errors take the event loop 3 s.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_no_unknown_field(cls, body: Any) -> Any:
        if isinstance(body, dict):
            unknown = next((name for name in body if name not in cls.model_fields), None)
            if unknown is not None:
                known = ", ".join(cls.model_fields)
                raise ValueError(f"no field is named `{str(unknown)[:50]}`; there are: {known}")
        return body


Cursor = Annotated[str | None, Query(max_length=1_000, description="`next` of the previous page.")]
Limit = Annotated[
    int, Query(ge=1, le=500, description="Most items in the response.", examples=[50])
]
SourceName = Annotated[
    str, Path(description="The source's name.", examples=["plaid"], max_length=100)
]


def require_source(gateway: Gateway, name: str) -> None:
    """Raise `NotFound` for a name that no source has."""
    if name not in gateway.app.sources:
        raise NotFound(f"{name[:100]}: no such source", remedy="GET /v1/sources lists them")


def page_of(
    rows: Sequence[Row], limit: int, position: Callable[[Row], tuple[datetime, object]]
) -> tuple[Sequence[Row], str | None]:
    """Return the first `limit` rows and the cursor of the page that follows them, None if there is none.

    `rows` holds one more than the page if another page follows. `position` returns the time and the key of a row; rows
    are ordered by the time, and by the key where times are equal.
    """
    page = rows[:limit]
    if len(rows) <= limit:
        return page, None
    at, key = position(page[-1])
    return page, base64.urlsafe_b64encode(f"{at.isoformat()} {key}".encode()).decode()


def parse_cursor(cursor: str | None, key: Callable[[str], Key]) -> tuple[datetime, Key] | None:
    """Return the time and the key in a cursor of `page_of`; None for the first page. Raises `Rejected` for any other text."""
    if cursor is None:
        return None
    try:
        at, _, rest = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise ValueError("a time without its zone")
        return moment, key(rest)
    except (binascii.Error, ValueError):
        raise Rejected(
            "query.cursor: not a cursor", remedy="send `next` of the previous page"
        ) from None


def example(*values: dict[str, Any]) -> ConfigDict:
    """Return model settings with examples for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": list(values)})


class ErrorDetail(BaseModel):
    """Why a request failed, and what to do about it."""

    code: str
    message: str
    remedy: str
    id: str | None = None
    """Only for 500: the id under which the gateway logged the error."""


class ErrorResponse(BaseModel):
    """The body of every error response."""

    model_config = example(
        {
            "error": {
                "code": "not_found",
                "message": "no such event",
                "remedy": "check the id; GET /v1/events lists events",
            }
        }
    )
    error: ErrorDetail


_KNOWN = {
    400: (
        "The body does not match its content type.",
        "malformed",
        "body: not JSON",
        "send valid UTF-8 JSON",
    ),
    401: (
        "The API key or the signature is missing or not valid.",
        "unauthorized",
        "no API key",
        "send `Authorization: Bearer apex_…` with a key from `apex keys create`",
    ),
    403: (
        "The key lacks the scope.",
        "forbidden",
        "this key lacks the scope `admin`",
        "use a key with `admin`, or create one with `apex keys create`",
    ),
    404: (
        "Not found.",
        "not_found",
        "no such document, or it is deleted already",
        "GET /v1/documents lists documents",
    ),
    431: (
        "The headers are larger than 32 kB, or more than 100.",
        "headers_too_large",
        "headers: larger than 32768 bytes",
        "send fewer or shorter headers, or a shorter query",
    ),
    408: (
        "The body did not arrive in time.",
        "timeout",
        "body: not complete within 120 s",
        "send the body faster, or in parts",
    ),
    409: (
        "The request contradicts what is stored.",
        "conflict",
        "dead letter 7 is discarded",
        "only open ones can be redriven or discarded",
    ),
    413: (
        "The body is over the limit. The connection is closed.",
        "too_large",
        "body: larger than 5000000 bytes",
        "send less at once; limits are in /v1/sources and the settings",
    ),
    421: (
        "The Host header names another server (checked only while bound to loopback).",
        "wrong_host",
        "the Host header names another server",
        "call the gateway by a name of loopback, or set `url` to its public address",
    ),
    422: (
        "The request is well-formed, but a value is not acceptable.",
        "invalid",
        "query.limit: Input should be less than or equal to 200",
        "correct query.limit",
    ),
    503: (
        "A store is unavailable, or the gateway is overloaded. Repeat the request when the seconds in `Retry-After` have passed: the event may have been stored already, and repeating it does not store it twice.",
        "unavailable",
        "documents: PostgreSQL does not respond (OperationalError)",
        "run `apex doctor`",
    ),
}


def problems(*statuses: int, host: bool = True) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for these error statuses, and for a wrong Host, where that is checked."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in (*statuses, *([421] if host else []), 431):
        description, code, message, remedy = _KNOWN[status]
        body = {"error": {"code": code, "message": message, "remedy": remedy}}
        documented[status] = {
            "model": ErrorResponse,
            "description": description,
            "content": {"application/json": {"example": body}},
        }
        if status == 503:
            documented[status]["headers"] = {
                "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
            }
    return documented
