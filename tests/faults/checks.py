"""Check the promise in the stores themselves: after a run has healed, and on stores that are broken on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from apex_memory.app import App
from apex_memory.model import TOMBSTONE, Tally, document_uuid
from apex_memory.saga.stage import chunks_tally, edges_tally
from tests.faults.story import Send, text

Row = dict[str, Any]


@dataclass(slots=True)
class Findings:
    """Violations of the promise, as sentences by kind. Every run must end with none."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)

    def all(self) -> list[str]:
        kinds = ("lost", "doubled", "wrong", "partial", "orphans", "unfinished")
        return [f"{kind}: {what}" for kind in kinds for what in getattr(self, kind)]


async def examine(
    app: App, acknowledged: Mapping[UUID, Send], deletions: Mapping[UUID, int] | None = None
) -> Findings:
    """`deletions` holds the documents that a vendor marks as deleted, each with the first version that is a deletion."""
    findings = Findings()
    await _each_event_has_one_end(app, acknowledged, findings)
    await _each_document_is_its_newest_event(app, acknowledged, deletions or {}, findings)
    await _each_document_has_one_live_stage(app, findings)
    await _all_stores_hold_what_the_manifests_say(app, findings)
    await _nothing_else_is_in_the_stores(app, findings)
    await _nothing_is_under_way(app, findings)
    return findings


async def _each_event_has_one_end(
    app: App, acknowledged: Mapping[UUID, Send], findings: Findings
) -> None:
    """I1: done, superseded, parked with the store it waits for, or dead with a letter that states the reason."""
    rows = await app.db.fetch(
        """SELECT i.id, i.state, i.park_store, i.event_id, l.status AS letter FROM inbox i
           LEFT JOIN dead_letters l ON l.inbox_id = i.id"""
    )
    known = {row["id"]: row for row in rows}
    findings.lost += [
        f"{send.kind} {send.key} version {send.version}: acknowledged, not there"
        for id, send in acknowledged.items()
        if id not in known
    ]
    for row in rows:
        findings.ends[row["state"]] = findings.ends.get(row["state"], 0) + 1
        poison = row["id"] in acknowledged and acknowledged[row["id"]].kind == "poison"
        if row["state"] == "dead" and not row["letter"]:
            findings.lost.append(f"{row['event_id']}: dead without a letter")
        if row["state"] == "dead" and not poison:
            findings.lost.append(f"{row['event_id']}: a good event became a dead letter")
        if row["state"] == "parked" and not row["park_store"]:
            findings.unfinished.append(f"{row['event_id']}: parked for nobody")


async def _each_document_is_its_newest_event(
    app: App,
    acknowledged: Mapping[UUID, Send],
    deletions: Mapping[UUID, int],
    findings: Findings,
) -> None:
    """I2: readers see the newest acknowledged version with its exact text, or the document is deleted."""
    sent = {id: send for id, send in acknowledged.items() if send.kind != "poison"}
    newest = await app.db.fetch(
        """SELECT DISTINCT ON (doc_id) id, doc_id, doc_key, source, version, event_id, content_type FROM inbox
           WHERE state <> 'dead' ORDER BY doc_id, version DESC, event_id DESC"""
    )
    live = {
        row["doc_id"]: row
        for row in await app.db.fetch(
            "SELECT d.*, m.text FROM documents d JOIN manifests m ON m.id = d.manifest_id"
        )
    }
    parents = {send.doc_id: send.parent for send in sent.values() if send.parent}
    latest = {row["doc_id"]: row for row in newest}
    for row in newest:
        if row["id"] in acknowledged and row["id"] not in sent:
            continue  # poison, some of which can be read
        send = sent.get(row["id"])
        gone = row["content_type"] == TOMBSTONE or bool(send and send.deletes)
        if row["doc_id"] in deletions:
            gone = row["version"] >= deletions[row["doc_id"]]
        if not gone and (conversation := parents.get(row["doc_id"])):
            gone = _deleted_with(latest, sent, conversation, row)
        findings.wrong += _differences(row, live.get(row["doc_id"]), gone=gone)


def _deleted_with(
    latest: Mapping[UUID, Row], sent: Mapping[UUID, Send], conversation: str, row: Row
) -> bool:
    """Return whether the conversation's newest event deletes it, and is newer than this row."""
    parent = latest.get(document_uuid("frontapp", f"conversation:{conversation}"))
    if parent is None or parent["id"] not in sent or not sent[parent["id"]].deletes:
        return False
    return bool((parent["version"], parent["event_id"]) >= (row["version"], row["event_id"]))


def _differences(row: Row, document: Row | None, *, gone: bool) -> list[str]:
    name = f"{row['doc_key']} version {row['version']}"
    if gone:
        return [] if document is None or document["deleted"] else [f"{name}: deleted, but seen"]
    if document is None or document["deleted"]:
        return [f"{name}: the newest, but not seen"]
    if (document["version"], document["event_id"]) != (row["version"], row["event_id"]):
        return [f"{name}: version {document['version']} is seen instead"]
    if row["source"] == "documents" and document["text"] != text(row["doc_key"], row["version"]):
        return [f"{name}: its text is another one"]
    return []


async def _each_document_has_one_live_stage(app: App, findings: Findings) -> None:
    """I3: one committed stage a document, the one it points at; no key has two documents."""
    rows = await app.db.fetch(
        """SELECT d.doc_key, d.stage_id, array_agg(s.stage_id) FILTER (WHERE s.state = 'committed') AS committed
           FROM documents d LEFT JOIN stages s ON s.doc_id = d.doc_id GROUP BY d.doc_id"""
    )
    for row in rows:
        committed = row["committed"] or []
        if len(committed) > 1:
            findings.doubled.append(f"{row['doc_key']}: {len(committed)} stages are live")
        if row["stage_id"] not in committed:
            findings.wrong.append(f"{row['doc_key']}: points at a stage that is not committed")
    doubled = await app.db.fetch(
        "SELECT source, doc_key FROM documents GROUP BY 1, 2 HAVING count(*) > 1"
    )
    findings.doubled += [f"{row['doc_key']}: two documents" for row in doubled]


async def _all_stores_hold_what_the_manifests_say(app: App, findings: Findings) -> None:
    """I4: number and hashes of the live stages' items, in the graph and in the vectors."""
    rows = await app.db.fetch("SELECT doc_key, stage_id, manifest_id FROM documents")
    async with app.db.connection() as connection:
        manifests = await app.publication.manifests.load(
            connection, [row["manifest_id"] for row in rows]
        )
    stages = [row["stage_id"] for row in rows]
    in_graph, in_vectors = await app.graph.tally(stages), await app.vectors.tally(stages)
    for row in rows:
        manifest = manifests[row["manifest_id"]]
        for store, stored, expected in (
            ("graph", in_graph.get(row["stage_id"], Tally()), edges_tally(manifest)),
            ("vectors", in_vectors.get(row["stage_id"], Tally()), chunks_tally(manifest)),
        ):
            if stored != expected:
                findings.partial.append(
                    f"{row['doc_key']}: the {store} holds {stored.count} of {expected.count} items"
                )
    app.publication.manifests.forget(manifests)


async def _nothing_else_is_in_the_stores(app: App, findings: Findings) -> None:
    """I5: each stage in a store is known to PostgreSQL and not reaped."""
    rows = await app.db.fetch("SELECT stage_id, state FROM stages")
    state = {row["stage_id"]: row["state"] for row in rows}
    for name, store in (("graph", app.graph), ("vectors", app.vectors)):
        async for item in store.walk():
            if state.get(item.stage, "unknown") in ("unknown", "reaped"):
                findings.orphans.append(f"{item.stage} in the {name} is {state.get(item.stage)}")


async def _nothing_is_under_way(app: App, findings: Findings) -> None:
    """I6: no event waits, and no stage is neither live nor removed."""
    for waiting in await app.inbox.backlog():
        findings.unfinished.append(
            f"{waiting.events} events of {waiting.source} are {waiting.state}"
        )
    for row in await app.db.fetch(
        "SELECT state, count(*) AS n FROM stages WHERE state NOT IN ('committed', 'reaped') GROUP BY 1"
    ):
        findings.unfinished.append(f"{row['n']} stages are {row['state']}")


async def settle(app: App, *, seconds: float) -> float:
    """Wait until no work is in progress, or time is up; return the seconds that took.

    Then remove what a worker wrote that woke after the sweeper had been there: that is the
    reconciliation's part.
    """
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        findings = Findings()
        await _nothing_is_under_way(app, findings)
        if not findings.unfinished:
            break
        await asyncio.sleep(0.5)  # a bounded poll, which keeps its last findings
    for store in ("graph", "vectors"):
        await app.recovery.reconcile(store)
    return time.monotonic() - began
