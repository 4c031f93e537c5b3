"""The inbox: raw events, durable before anything else happens to them, and claimed in batches.

Every write to the table `inbox` is in this package: `landing` inserts events, `leases` hands them out, and
`transitions` moves them from state to state. `queries` reads. `Inbox` offers what callers need outside a
transaction of their own; the functions of the modules take the caller's connection.
"""

from __future__ import annotations

from apex_memory.inbox.inbox import Inbox
from apex_memory.inbox.leases import Batch, ClaimedEvent, WorkflowRun
from apex_memory.inbox.queries import EVENT_COLUMNS, StoredEvent
from apex_memory.inbox.routing import Consumer

__all__ = [
    "EVENT_COLUMNS",
    "Batch",
    "ClaimedEvent",
    "Consumer",
    "Inbox",
    "StoredEvent",
    "WorkflowRun",
]
