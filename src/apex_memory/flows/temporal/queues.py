"""Where work waits: real-time and bulk work have task queues of their own, so that neither stands before the other."""

from __future__ import annotations

from apex_memory.model import Priority

REALTIME = "apex-realtime"
BULK = "apex-bulk"
QUEUES = (REALTIME, BULK)
ROLES = {"all": QUEUES, "realtime": (REALTIME,), "bulk": (BULK,)}
"""What a worker process may be started for, by its argument."""


def queue_of(priority: int) -> str:
    """The task queue for a source of this priority: P2 is bulk."""
    return BULK if priority >= Priority.P2 else REALTIME


def key_of(priority: int) -> int:
    """Temporal's priority key, 1 (first) to 5: it orders a queue's backlog and pre-empts nothing."""
    return 1 + 2 * priority


def drain_id(source: str) -> str:
    """The workflow id of a source's drain."""
    return f"drain:{source}"


def pull_id(source: str) -> str:
    """The id of a polled source's schedule, and the beginning of its runs'."""
    return f"pull:{source}"


def follow_id(source: str) -> str:
    return f"follow:{source}"


def file_id(source: str, file: str) -> str:
    return f"file:{source}:{file}"


def backfill_id(source: str, id: str) -> str:
    return f"backfill:{source}:{id}"
