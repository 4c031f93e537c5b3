"""Results of comparisons: recorded once a copy was processed, with what the copy was made of where it differs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from apex_memory.errors import ApexError
from apex_memory.model import Manifest, Tally
from apex_memory.rollout.comparison import Difference, ProcessedEvent, stored_metadata
from apex_memory.rollout.shadow_live import LiveEvent
from apex_memory.stores.postgres import Connection, fetch_rows
from apex_memory.telemetry import SHADOW_COMPARED

CONTENT_CHARS = 200_000  # of the text of a copy that differs, for the side-by-side view
ERROR_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    """The result of one copy, as its row records it. `equal` is None for a copy that was given up."""

    id: int
    state: str
    equal: bool | None = None
    differences: list[Difference] = field(default_factory=list)
    live_outcome: str | None = None
    shadow_outcome: str | None = None
    error: str | None = None
    tallies: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None

    @classmethod
    def of_failed(cls, id: int, error: ApexError) -> ComparisonResult:
        """Return the result of a copy that failed transiently, too often."""
        return cls(id=id, state="failed", error=_message(error))

    @classmethod
    def of_compared(
        cls,
        id: int,
        *,
        live: LiveEvent,
        shadow: ProcessedEvent,
        differences: list[Difference],
        seconds: dict[str, float],
        error: ApexError | None,
    ) -> ComparisonResult:
        return cls(
            id=id,
            state="compared",
            equal=not differences,
            differences=differences,
            live_outcome=live.processed.outcome,
            shadow_outcome=shadow.outcome,
            error=_message(error) if error else None,
            tallies={
                "graph": {"live": _tally(live.processed.graph), "shadow": _tally(shadow.graph)},
                "vectors": {
                    "live": _tally(live.processed.vectors),
                    "shadow": _tally(shadow.vectors),
                },
            },
            seconds={"live": live.seconds, "shadow": seconds},
            content=pack(shadow.manifest) if differences and shadow.manifest else None,
        )


@dataclass(frozen=True, slots=True)
class _RecordedCopy:
    subject: str
    state: str
    equal: bool | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many results were recorded. A copy that lost its lease meanwhile is not."""

    equal: int
    different: int
    failed: int


async def record(
    connection: Connection, batch: UUID, results: Sequence[ComparisonResult]
) -> Recorded:
    """Write the results of copies that the batch still owns; return how many."""
    if not results:
        return Recorded(0, 0, 0)
    copies = await fetch_rows(
        connection,
        _RecordedCopy,
        """UPDATE shadows s SET state = t.state, equal = t.equal, differences = t.differences::jsonb,
                  fields = ARRAY(SELECT DISTINCT item ->> 'field' FROM jsonb_array_elements(t.differences::jsonb) item),
                  live_outcome = t.live_outcome, shadow_outcome = t.shadow_outcome, error = t.error,
                  tallies = t.tallies::jsonb, seconds = t.seconds::jsonb, content = t.content,
                  live_seconds = t.live_seconds, shadow_seconds = t.shadow_seconds,
                  ended_at = clock_timestamp(), owner = NULL
           FROM (SELECT id FROM shadows WHERE owner = %s AND state = 'waiting' FOR UPDATE SKIP LOCKED) mine
           JOIN unnest(%b::bigint[], %b::text[], %b::boolean[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
                       %b::text[], %b::bytea[], %b::float8[], %b::float8[])
                AS t (id, state, equal, differences, live_outcome, shadow_outcome, error, tallies, seconds, content,
                      live_seconds, shadow_seconds) ON t.id = mine.id
           WHERE s.id = mine.id RETURNING s.subject, s.state, s.equal""",
        [batch, *(list(column) for column in zip(*map(_columns, results), strict=True))],
    )
    counts = {"equal": 0, "different": 0, "failed": 0}
    for copy in copies:
        outcome = "failed"
        if copy.state == "compared":
            outcome = "equal" if copy.equal else "different"
        counts[outcome] += 1
        SHADOW_COMPARED.labels(copy.subject, outcome).inc()
    return Recorded(**counts)


def _columns(result: ComparisonResult) -> tuple[Any, ...]:
    return (
        result.id,
        result.state,
        result.equal,
        _storable(json.dumps([difference.as_json() for difference in result.differences])),
        result.live_outcome,
        result.shadow_outcome,
        result.error,
        json.dumps(result.tallies),
        json.dumps(result.seconds),
        result.content,
        result.seconds.get("live", {}).get("total"),
        result.seconds.get("shadow", {}).get("total"),
    )


def _storable(text: str) -> str:
    """Return JSON that PostgreSQL takes: without NUL. Values of manifests are clean, but those of a broken candidate may not be."""
    return text.replace("\\u0000", "\\ufffd")


def _message(error: ApexError) -> str:
    return f"{type(error).__name__}: {error}"[:ERROR_CHARS].replace("\x00", "�")


def _tally(tally: Tally | None) -> list[int] | None:
    return None if tally is None else [tally.count, tally.checksum]


def content_of(manifest: Manifest) -> dict[str, Any]:
    """Return what a person compares of a manifest, as plain values. The text is cut at `CONTENT_CHARS`."""
    return {
        "pipeline": manifest.pipeline,
        "kind": manifest.kind,
        "title": manifest.title,
        "text": manifest.text[:CONTENT_CHARS],
        "cut": len(manifest.text) > CONTENT_CHARS,
        "occurred_at": manifest.occurred_at.isoformat(),
        "metadata": stored_metadata(manifest.metadata),
        "parent": str(manifest.parent_id) if manifest.parent_id else None,
        "deleted": manifest.deleted,
        "about": manifest.about,
        "chunks": [[chunk.start, chunk.end] for chunk in manifest.chunks],
        "entities": list(manifest.entities),
        "assertions": [
            [item.predicate, item.subject, item.object, item.value, item.start]
            for item in manifest.assertions
        ],
    }


def pack(manifest: Manifest) -> bytes:
    """Return the content of a manifest, as compressed JSON."""
    return zlib.compress(json.dumps(content_of(manifest), default=str).encode(), 1)


def unpack(content: bytes) -> dict[str, Any]:
    unpacked: dict[str, Any] = json.loads(zlib.decompress(content))
    return unpacked
