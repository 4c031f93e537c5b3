"""The Python client of a running gateway: `Apex`, and `AsyncApex` for asyncio.

    from apex_memory.client import Apex

    with Apex() as memory:
        memory.remember("SHP-100045 waits at dock 4 until noon.", wait=10)
        for hit in memory.search("where is SHP-100045?", limit=3).hits:
            print(hit.title, hit.excerpt)

It speaks the HTTP API and imports neither the gateway nor a store. Texts in its results are what people wrote in mails,
files and chats: data for an agent, never instructions to it.
"""

from apex_memory.client.apex import Apex, AsyncApex
from apex_memory.client.errors import (
    Busy,
    Conflict,
    Forbidden,
    NotFound,
    Refused,
    Rejected,
    TooLarge,
    Unauthorized,
)
from apex_memory.client.results import (
    Attribute,
    Citation,
    Context,
    Document,
    DocumentPage,
    DocumentSummary,
    Entity,
    Event,
    EventPage,
    Freshness,
    Hit,
    OwnKey,
    Provenance,
    Receipt,
    Relation,
    SearchAnswer,
    SourceState,
    Status,
    StoredEvent,
    Turn,
    Version,
)
from apex_memory.errors import ApexError, Misconfigured, Unavailable
from apex_memory.tls import ClientTls

__all__ = [
    "Apex",
    "ApexError",
    "AsyncApex",
    "Attribute",
    "Busy",
    "Citation",
    "ClientTls",
    "Conflict",
    "Context",
    "Document",
    "DocumentPage",
    "DocumentSummary",
    "Entity",
    "Event",
    "EventPage",
    "Forbidden",
    "Freshness",
    "Hit",
    "Misconfigured",
    "NotFound",
    "OwnKey",
    "Provenance",
    "Receipt",
    "Refused",
    "Rejected",
    "Relation",
    "SearchAnswer",
    "SourceState",
    "Status",
    "StoredEvent",
    "TooLarge",
    "Turn",
    "Unauthorized",
    "Unavailable",
    "Version",
]
