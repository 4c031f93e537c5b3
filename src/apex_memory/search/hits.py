"""The hits of a search: ranked passages with their texts and origins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from apex_memory.search.documents import document_path, spoken_turn
from apex_memory.search.excerpt import excerpter, marker
from apex_memory.search.ranking import RankedPassage
from apex_memory.search.results import Hit, Provenance
from apex_memory.search.snapshot import SNIPPET_CHARS, SnapshotReader, Snippet


async def read_hits(
    reader: SnapshotReader,
    passages: Sequence[RankedPassage],
    query: str,
    is_relevant: Callable[[str], bool],
) -> list[Hit]:
    """Return the passages with their texts and origins."""
    excerpt, mark = excerpter(query, is_relevant), marker(query, is_relevant)
    snippets = await reader.snippets(
        [(passage.doc, passage.start, passage.end) for passage in passages]
    )
    return [
        _hit(rank, passage, snippet, excerpt(snippet.snippet), mark)
        for rank, (passage, snippet) in enumerate(zip(passages, snippets, strict=True), start=1)
    ]


def _hit(
    rank: int,
    passage: RankedPassage,
    snippet: Snippet,
    excerpt: str,
    mark: Callable[[str], list[tuple[int, int]]],
) -> Hit:
    return Hit(
        rank=rank,
        doc_id=snippet.doc_id,
        title=snippet.title,
        source=snippet.source,
        kind=snippet.kind,
        occurred_at=snippet.occurred_at,
        snippet=snippet.snippet,
        excerpt=excerpt,
        highlights=mark(excerpt),
        start=passage.start,
        end=min(passage.end, passage.start + SNIPPET_CHARS),
        score=passage.score,
        legs=passage.legs,
        why=passage.why,
        points=passage.points,
        turn=spoken_turn(snippet.turn) if snippet.turn else None,
        link=snippet.link or document_path(snippet.doc_id),
        provenance=Provenance(
            inbox_id=snippet.inbox_id,
            event_id=snippet.event_id,
            version=snippet.version,
            received_at=snippet.received_at,
            manifest_id=snippet.manifest_id,
            stage_id=snippet.stage_id,
        ),
    )
