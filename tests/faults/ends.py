"""The rule, checked against an installation: what became of every event that was acknowledged.

What was answered 2xx ends as a live version, a superseded version with its text kept, or a dead letter that
somebody sees; nothing can hold a source for ever.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any
from uuid import UUID

from apex_memory.app import App
from apex_memory.errors import ApexError
from apex_memory.inbox import StoredEvent
from apex_memory.model import MALFORMED, TOMBSTONE, Event
from tests.faults.entrances import Acknowledged, Entrances

Row = dict[str, Any]
LETTERS = 200  # dead letters in a page of the API, at most


async def broken(ways: Entrances) -> list[str]:
    """What breaks the rule, in words; empty when it holds. Call it when nothing is left to work on."""
    wrong = list(ways.record.wrong)
    rows = await _rows(ways.app)
    letters = await _listed_letters(ways)
    for item in ways.record.events:
        row = rows.get(item.event.id)
        name = f"{item.event.source} {item.event.event_id[:80]}"
        if row is None:
            wrong.append(f"lost: {name}: acknowledged, not in the inbox")
            continue
        wrong += [f"{what}: {name}" for what in _end(row, letters)]
        if item.duplicate and not _same_content(ways.app, item, row):
            wrong.append(f"dropped: {name}: acknowledged as a duplicate of other content")
    wrong += _missing_words(ways, rows)
    wrong += await _held(ways)
    return list(dict.fromkeys(wrong))


async def _rows(app: App) -> dict[UUID, Row]:
    """Every event with its payload, its manifest, and whether readers see it."""
    rows = await app.db.fetch(
        """SELECT i.*, p.body, p.data_key, r.object, m.text, m.title, m.metadata, m.deleted AS deletes, d.doc_id IS NOT NULL AS live,
                  newer.doc_id IS NOT NULL AS outdated, parent.deleted AS orphaned
           FROM inbox i LEFT JOIN payloads p ON p.inbox_id = i.id LEFT JOIN payload_references r ON r.inbox_id = i.id
           LEFT JOIN LATERAL (SELECT * FROM manifests WHERE inbox_id = i.id ORDER BY created_at DESC LIMIT 1) m ON true
           LEFT JOIN documents d ON d.doc_id = i.doc_id AND d.event_id = i.event_id AND d.version = i.version
           LEFT JOIN documents newer ON newer.doc_id = i.doc_id AND (newer.version, newer.event_id) > (i.version, i.event_id)
           LEFT JOIN documents parent ON parent.doc_id = m.parent_id"""
    )
    return {row["id"]: row for row in rows}


async def _listed_letters(ways: Entrances) -> dict[UUID, Row]:
    """Return the dead letters that the API lists, by their event."""
    letters: dict[UUID, Row] = {}
    page: dict[str, Any] = {"status": "any", "limit": LETTERS}
    while True:
        response = await ways.http.get("/v1/dead-letters", params=page)
        assert response.is_success, response.text
        letters |= {UUID(item["event"]): item for item in response.json()["dead_letters"]}
        if response.json()["next"] is None:
            return letters
        page["cursor"] = response.json()["next"]


def _end(row: Row, letters: dict[UUID, Row]) -> list[str]:
    """What is wrong with where an event is."""
    state = row["state"]
    if state == "dead":
        letter = letters.get(row["id"])
        if letter is None:
            return ["dead without a letter in the list"]
        if not letter["message"] or not letter["remedy"]:
            return ["dead without a reason and a remedy"]
        return []
    if state not in ("done", "superseded"):
        return [f"not at its end, but {state} ({row['last_error']})"]
    if row["body"] is None:
        return [f"{state}, and its payload is gone"]
    if row["text"] is None:
        return [f"{state} without a text"]
    if state == "done" and not row["live"] and not row["outdated"]:
        return ["done, and neither live nor outdated"]
    if state == "superseded" and not row["outdated"] and not row["orphaned"]:
        return ["superseded by nothing"]
    return []


def _same_content(app: App, item: Acknowledged, row: Row) -> bool:
    """Return whether a duplicate has the content of the event that was stored first."""
    if row["body"] is None or bytes(row["body"]) == item.event.payload:
        return True
    stored = StoredEvent(**{field.name: row[field.name] for field in fields(StoredEvent)})
    return _meaning(app, stored.event()) == _meaning(app, item.event)


def _meaning(app: App, event: Event) -> str:
    """All that a document of this event would say."""
    if event.content_type in (TOMBSTONE, MALFORMED):
        return f"{event.content_type} {event.payload!r}"
    try:
        return repr(app.sources[event.source].document(event))
    except ApexError as error:
        return f"{error} {event.payload!r}"


def _missing_words(ways: Entrances, rows: dict[UUID, Row]) -> list[str]:
    """Return the requests whose words are in none of the versions that their events became."""
    wrong = []
    for request in ways.record.requests:
        known = [rows[id] for id in request.ids if id in rows]
        if any(row["state"] == "dead" for row in known):
            continue
        kept = " ".join(_everything_said(row) for row in known)
        wrong += [
            f"dropped: {request.name}: acknowledged, and {word} is in no version"
            for word in request.words
            if word.lower() not in kept
        ]
    return wrong


def _everything_said(row: Row) -> str:
    text = f"{row['title']} {row['text']} {json.dumps(row['metadata'], default=str)}"
    return text.lower()


async def _held(ways: Entrances) -> list[str]:
    """Return the sources that something holds: events that wait, hints that no pull fetches, files that never end."""
    app = ways.app
    backlog = await app.inbox.backlog()
    hints = await app.db.fetch("SELECT source, key FROM change_hints")
    files = await app.db.fetch("SELECT source, name FROM files WHERE ended_at IS NULL")
    return [
        *(f"held: {row.events} events of {row.source} are {row.state}" for row in backlog),
        *(
            f"held: the hint {hint['key']} of {hint['source']}"
            for hint in hints
            if hint["source"] in ways.simulators
        ),
        *(f"held: the file {file['name']} of {file['source']}" for file in files),
    ]
