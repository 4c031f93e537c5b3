"""Parsers for foreign input: JSON, times, ids, HTML. Malformed input raises `Rejected` with its place, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import resources
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from apex_memory.errors import Rejected
from apex_memory.markup import plain_text as markup_to_text
from apex_memory.markup import without_images
from apex_memory.model import MALFORMED, Event, Priority

MAX_DEPTH = 100
MAX_ERRORS = 20  # of one value that are looked at
MAX_KEY_BYTES = 1000  # keys are in B-tree indexes, whose rows hold about 2,700 bytes
MAX_VALUES = 4_000_000
"""Most values in a JSON text.

An empty list takes 3 bytes of a text and 64 bytes of memory, or 88 an object. Exports of conversations, which have the
largest bodies (50 MB), take 25 bytes a value and more.
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")
ListOf = Annotated[list[Item], Field(fail_fast=True)]
"""A list in a model of foreign input. Its first wrong item is its only error: pydantic keeps about 2 kB for each."""


def parse_json(body: bytes, place: str = "body") -> Any:
    """Return the JSON value in `body`, made `storable`. Numbers beyond a double become null.

    Raises `Rejected` for anything else than UTF-8 JSON, and for more than 100 levels or `MAX_VALUES` values.
    """
    check_value_count(body, place)
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep(place) from None
    except ValueError as error:
        raise Rejected(f"{place}: not JSON ({error})", remedy="send valid UTF-8 JSON") from None
    _check_depth(value, place)
    # Only an escape can produce characters that no database stores; most bodies have none and are not walked.
    return storable(value) if _ESCAPED.search(text) else value


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`. Raises `Rejected` for any other value."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise Rejected("body: expected a JSON object", remedy="send one JSON object")
    return value


def check_value_count(body: bytes, place: str) -> None:
    """Raise `Rejected` for a JSON text of more than `MAX_VALUES` values, before any of them is made."""
    # Each value but the first follows a comma or is the first one in a list or an object. Texts contain commas too, so
    # strings are left out, which takes longer, where the bytes alone would be too many.
    if _separators(body) > MAX_VALUES and _separators(_STRING.sub(b"", body)) > MAX_VALUES:
        raise Rejected(
            f"{place}: more than {MAX_VALUES:,} values", remedy="send it in several parts"
        )


def canonical(value: object) -> bytes:
    """Return the canonical JSON of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def storable(value: Any) -> Any:
    """Return the value with U+FFFD for NUL and lone surrogates, as vendors cut texts in the middle of an emoji."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


def check_metadata(metadata: object, place: str, max_bytes: int) -> None:
    """Raise `Rejected` for metadata of a caller that is larger than `max_bytes` as JSON, or has an integer beyond 64 bits."""
    size = len(canonical(metadata))
    if size > max_bytes:
        raise Rejected(
            f"{place}: {size:,} bytes of JSON, allowed are {max_bytes:,} (metadata_max_bytes)",
            remedy=f"send what is large as text or as a file, and the rest in {place}",
        )
    _check_integers(metadata, place)


def _check_integers(value: object, place: str) -> None:
    """Raise `Rejected` when a JSON value contains an integer beyond 64 bits, which no reader could get back."""
    level = [value]
    while level:
        following: list[object] = []
        for item in level:
            if isinstance(item, dict):
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, int) and not -(2**63) <= item < 2**63:
                raise Rejected(
                    f"{place}: an integer beyond 64 bits", remedy=f"send it as a string in {place}"
                )
        level = following


def checked(model: type[Model], value: object, place: str) -> Model:
    """Return `value` as `model`. `Rejected` names the path of the first wrong field and what is expected there."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        every = error.errors(include_input=False, include_url=False, include_context=False)
        wrong = every[:MAX_ERRORS]
        paths = [_path(place, item["loc"], value, item["type"] == "missing") for item in wrong]
        expected = [
            item["msg"] for item, path in zip(wrong, paths, strict=True) if path == paths[0]
        ]
        raise Rejected(
            f"{paths[0]}: {'; or '.join(dict.fromkeys(expected))}", remedy=f"correct {paths[0]}"
        ) from None


def parse_datetime(value: object, place: str) -> datetime:
    """Parse a time, exact to the microsecond: seconds since 1970, or ISO 8601, which is UTC without a zone."""
    try:
        if isinstance(value, str):
            return _from_text(value.strip())
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _from_seconds(Decimal(repr(value)))
    except (ValueError, ArithmeticError):
        pass
    raise Rejected(
        f"{place}: expected a time, as seconds since 1970 or ISO 8601", remedy=f"correct {place}"
    )


def parse_identifier(value: object, place: str) -> str:
    """Parse a natural key: one line of text, not empty, at most 1,000 bytes. Whole numbers are accepted as text."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    if not isinstance(value, str) or not value.strip() or _CONTROL.search(value):
        raise Rejected(f"{place}: expected an id, one line of text", remedy=f"correct {place}")
    if len(value.encode()) > MAX_KEY_BYTES:
        raise Rejected(
            f"{place}: longer than {MAX_KEY_BYTES} bytes", remedy="send a shorter id, or its hash"
        )
    return value


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object, else an empty one: for optional parts of a vendor's body."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[Any]:
    """Return `value` if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else ()


def as_string(value: object) -> str:
    """Return `value` if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def line(text: str, longest: int = 80) -> str:
    """Return the first line that is not blank, cut at `longest` characters."""
    first = next((row.strip() for row in text.splitlines() if row.strip()), "")
    return first if len(first) <= longest else first[: longest - 1].rstrip() + "…"


def plain_text(markup: str) -> str:
    """Return the readable text of HTML, with the alternative text of its images.

    Takes linear time, because anybody who sends a mail chooses its content.
    """
    return _UNSTORABLE.sub("\ufffd", markup_to_text(without_images(markup)))


def sample(source: str, name: str) -> bytes:
    """Return the bytes of a file in a source's `samples` folder."""
    return resources.files(__package__).joinpath(source, "samples", name).read_bytes()


def _separators(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _check_depth(value: Any, place: str) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for outer in level:
            inner += outer.values() if isinstance(outer, dict) else outer
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise _too_deep(place)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _too_deep(place: str) -> Rejected:
    return Rejected(f"{place}: nested more than {MAX_DEPTH} deep", remedy="send a flatter body")


def _from_seconds(seconds: Decimal) -> datetime:
    # By decimal digits: a double times a million is off by one in the last place. The bound comes
    # first, because a huge exponent would be written out in full.
    if not math.isfinite(seconds) or not -62_135_596_800 <= seconds < 253_402_300_799:
        raise ValueError("out of range")
    return _EPOCH + timedelta(microseconds=int((seconds * 1_000_000).to_integral_value()))


def _from_text(text: str) -> datetime:
    if re.fullmatch(r"-?\d{9,12}(\.\d{1,9})?", text, re.ASCII):
        return _from_seconds(Decimal(text))
    parsed = datetime.fromisoformat(text)
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def _path(place: str, location: Sequence[int | str], value: Any, missing: bool) -> str:
    # The location of an error in a union also names the branches of the union, which are not in the body.
    for n, step in enumerate(location, 1):
        absent = missing and n == len(location)
        if isinstance(value, dict) and isinstance(step, str) and (step in value or absent):
            place = f"{place}.{step}" if place else step
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            place, value = f"{place}[{step}]", value[step]
        else:
            break
    return place or "body"


def malformed_payload(record: object, reason: str, remedy: str) -> bytes:
    """Return the payload of an event that ends as a dead letter with this reason and remedy."""
    return canonical({"reason": reason, "remedy": remedy, "record": storable(record)})


def malformed_event(
    source: str, record: object, reason: Rejected, at: datetime, priority: Priority
) -> Event:
    """Return an event for a record that cannot be read. It ends as a dead letter with the reason.

    So the record is kept raw, an operator sees it, and it never stops its neighbours.
    """
    digest = hashlib.sha256(canonical(storable(record))).hexdigest()
    return Event(
        source=source,
        event_id=f"broken:{digest}",
        doc_key=f"broken:{digest}",
        version=0,
        occurred_at=at,
        payload=malformed_payload(record, str(reason), reason.remedy),
        content_type=MALFORMED,
        priority=priority,
    )
