"""Which assertions and refs a graph can hold. All adapters refuse the same ones, so that a graph can move to another engine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from apex_memory.errors import Rejected
from apex_memory.model import GraphAssertion

# FalkorDB's index loses strings above 4,096 bytes, Neo4j's above 8,000; PostgreSQL's refuses them above 2,700.
REF_BYTES = 2_000


def require_storable(item: GraphAssertion) -> None:
    """Raise `Rejected` for an assertion with values that a graph would garble."""
    ends = [end for end in (item.subject, item.object) if end is not None]
    if not all(map(_storable, ends)):
        raise _rejected(
            item,
            f"an entity ref is empty, over {REF_BYTES} bytes, or holds \\x00, \\x01 or space at an end",
        )
    if not all(map(_storable_text, (item.predicate, item.value or ""))):
        raise _rejected(item, "its predicate or value holds NUL or a lone surrogate")
    if not (item.start is None or -(2**63) <= item.start < 2**63):
        raise _rejected(item, "its start is over 64 bits")
    if not 0 <= item.hash < 2**31:
        raise _rejected(item, "its hash is over 31 bits")


def is_relation(item: GraphAssertion) -> bool:
    """Return whether both ends are things. Hop 1 follows relations only: a document is no bridge between its mentions."""
    return not any(
        end is not None and end.startswith("document:") for end in (item.subject, item.object)
    )


def valid_refs(refs: Sequence[str]) -> list[str]:
    """Return the refs that can be in the graph at all, each once."""
    return [ref for ref in dict.fromkeys(refs) if _storable(ref)]


def _rejected(item: GraphAssertion, reason: str) -> Rejected:
    return Rejected(
        f"assertion {item.id} ({item.predicate!a:.40}): {reason}",
        remedy="correct the source's mapping or the extractor for this event, then redrive it",
    )


def _storable_text(text: str) -> bool:
    return "\x00" not in text and (text.isascii() or not re.search(r"[\ud800-\udfff]", text))


def _storable(ref: str) -> bool:
    """Return whether an index finds the ref again: FalkorDB's trims ends, splits at \\x01 and drops long ones.

    MERGE creates a second node for a ref that the index does not find.
    """
    whole = ref != "" and ref.strip(" \t\n\v\f\r") == ref and "\x01" not in ref
    return whole and _storable_text(ref) and len(ref.encode()) <= REF_BYTES
