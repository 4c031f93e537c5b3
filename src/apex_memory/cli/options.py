"""Options that several commands share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from apex_memory.errors import Rejected

TIME_HELP = "`2026-11-01`, `2026-11-01T08:00Z`, or `7d`, `12h`, `30m` ago"
Since = Annotated[str, typer.Option("--since", help=f"Start: {TIME_HELP}.")]
Until = Annotated[str, typer.Option("--until", help=f"End, exclusive: {TIME_HELP}.")]
AnyId = Annotated[
    str,
    typer.Argument(
        help="Any id: of the document or its event, the first 8 characters of one, a source's own id, or a document's key."
    ),
]

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")]

_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def parse_time(text: str) -> datetime:
    """Return the time of `7d`, `12h`, `30m` ago, or of a date or time in ISO 8601 (UTC without a zone). Raises `Rejected`."""
    text = text.strip()
    unit = _UNITS.get(text[-1:], "")
    try:
        if unit and text[:-1].isascii() and text[:-1].isdigit():
            return datetime.now(UTC) - timedelta(**{unit: int(text[:-1])})
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Rejected(
            f"{text!r} is not a time",
            remedy="write `7d`, `12h`, `2026-11-01` or `2026-11-01T08:00Z`",
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def iso(text: str | None) -> str | None:
    """Return the time of an option in ISO 8601 with its zone; None for an empty one. Raises `Rejected`."""
    return parse_time(text).isoformat() if text else None
