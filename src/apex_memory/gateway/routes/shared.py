"""What all routes document alike: the shape of refusals, examples, times."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict

EVENT = "0a3f6f4e-64c7-5d0f-9d83-2b8a4b0e6c11"
DOCUMENT = "5e0c2f9a-1f43-5c1d-8f0e-7a2f2f8f1b90"


def _said(value: Any) -> Any:
    """Refuse what pydantic would take for seconds since 1970: the contract says ISO 8601."""
    if isinstance(value, datetime) or (isinstance(value, str) and "-" in value):
        return value
    raise ValueError("expected a time in ISO 8601, with its zone")


IsoDateTime = Annotated[AwareDatetime, BeforeValidator(_said)]


def example(*values: dict[str, Any]) -> ConfigDict:
    """Model settings with examples for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": list(values)})


class Refusal(BaseModel):
    """Why a request was refused, and the way out."""

    code: str
    message: str
    remedy: str
    id: str | None = None
    """Only for 500: find it in the gateway's log."""


class Problem(BaseModel):
    """The answer to every refused request."""

    model_config = example(
        {
            "error": {
                "code": "not_found",
                "message": "no such event",
                "remedy": "check the id; GET /v1/events lists events",
            }
        }
    )
    error: Refusal


_KNOWN = {
    400: (
        "The body is not what its content type says.",
        "malformed",
        "body: not JSON",
        "send valid UTF-8 JSON",
    ),
    401: (
        "No valid key or signature.",
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
        "No such thing.",
        "not_found",
        "no such document, or deleted already",
        "GET /v1/documents lists documents",
    ),
    408: (
        "The body did not arrive in time.",
        "timeout",
        "body: not here within 120 s",
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
        "The Host header is not ours (only while bound to loopback).",
        "wrong_host",
        "this Host is not ours",
        "call the gateway by a name of loopback, or set `url` to its public address",
    ),
    422: (
        "The request is understood and cannot be right.",
        "invalid",
        "query.limit: Input should be less than or equal to 200",
        "correct query.limit",
    ),
    503: (
        "A store is away, or too much is going on. `Retry-After` says when to send it again; nothing was kept.",
        "unavailable",
        "documents: PostgreSQL does not answer (OperationalError)",
        "run `apex doctor`",
    ),
}


def problems(*statuses: int, host: bool = True) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for refusals with these statuses, and for a Host that is not ours, where that is checked."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in (*statuses, *([421] if host else [])):
        description, code, message, remedy = _KNOWN[status]
        refusal = {"error": {"code": code, "message": message, "remedy": remedy}}
        documented[status] = {
            "model": Problem,
            "description": description,
            "content": {"application/json": {"example": refusal}},
        }
        if status == 503:
            documented[status]["headers"] = {
                "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
            }
    return documented
