"""Whose words a chunk holds, and which chunks are of one turn, by the turns of a manifest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from apex_memory.model import TURNS, Manifest
from apex_memory.speakers import refs_by_label


@dataclass(frozen=True, slots=True)
class ChunkTurn:
    """The turn that a chunk begins in: refs of its speaker, its day (UTC), and whether the chunk before is of the same turn."""

    speakers: Sequence[str] = ()
    day: date | None = None
    """None outside all turns."""
    continues: bool = False


NO_TURN = ChunkTurn()


def turns_by_chunk(manifest: Manifest) -> list[ChunkTurn]:
    """Return the turn of each chunk, in the order of the chunks."""
    turns = manifest.metadata.get(TURNS) or ()
    if not turns:
        return [NO_TURN] * len(manifest.chunks)
    starts = [start for start, *_ in turns]
    refs = refs_by_label(speaker for _, _, speaker, _ in turns)
    speakers = [refs.get(speaker, ()) for _, _, speaker, _ in turns]
    days = [_day(at, manifest.occurred_at) for *_, at in turns]
    chunks: list[ChunkTurn] = []
    last = -1
    for chunk in manifest.chunks:
        number = bisect_right(starts, chunk.start) - 1
        if number < 0 or chunk.start >= turns[number][1]:
            chunks.append(NO_TURN)
            last = -1
            continue
        chunks.append(ChunkTurn(speakers[number], days[number], continues=number == last))
        last = number
    return chunks


def _day(at: str | None, occurred_at: datetime) -> date:
    """Return the day of a turn; of one without a time, that of its document."""
    moment = datetime.fromisoformat(at) if at else occurred_at
    return moment.astimezone(UTC).date()
