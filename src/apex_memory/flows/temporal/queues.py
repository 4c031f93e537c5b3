"""Task queues and workflow ids. Real-time and bulk work have separate task queues, so that neither delays the other.

Copies have a queue of their own, which the worker of the real-time queue serves: the bulk worker has the lowest CPU
priority, and what a gate waits for would then stand still on a busy machine. What copies may take from live events is
limited where they are processed (`rollout/shadow_steps.py`), and a copy that waits for its turn takes no live batch's slot.
"""

from __future__ import annotations

from apex_memory.model import Priority

REALTIME = "apex-realtime"
BULK = "apex-bulk"
SHADOW = "apex-shadow"
QUEUES = (REALTIME, BULK, SHADOW)
ROLES = {"all": QUEUES, "realtime": (REALTIME, SHADOW), "bulk": (BULK,)}
"""The task queues of a worker process, by its role (its argument)."""


def queue_of(priority: int) -> str:
    """Return the task queue for a source of this priority: P2 is bulk."""
    return BULK if priority >= Priority.P2 else REALTIME


def key_of(priority: int) -> int:
    """Return Temporal's priority key, 1 (first) to 5. It orders the backlog of a queue and pre-empts nothing."""
    return 1 + 2 * priority


def drain_id(source: str) -> str:
    """Return the workflow id of a source's drain."""
    return f"drain:{source}"


def candidate_drain_id(source: str, build: str) -> str:
    """Return the workflow id of the drain of a source's documents that a candidate build processes."""
    return f"drain:{source}@{build}"


COPIES = "shadow:"
"""Begins the name under which the copies of a source's events are drained: `shadow:frontapp`."""


def copies_of(source: str) -> str:
    """Return the name under which the copies of a source's events are drained. It is also the workflow's id."""
    return COPIES + source


def pull_id(source: str) -> str:
    """Return the id of a polled source's schedule, which is the prefix of the ids of its workflows."""
    return f"pull:{source}"


def follow_id(source: str) -> str:
    return f"follow:{source}"


def file_id(source: str, file: str) -> str:
    return f"file:{source}:{file}"


def backfill_id(source: str, id: str) -> str:
    return f"backfill:{source}:{id}"
