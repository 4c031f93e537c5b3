"""A record's own id at its vendor finds its document first, among records that differ in little but the id."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from apex_memory.app import App
from apex_memory.model import Event, document_uuid
from tests.e2e.conftest import land, text_event
from tests.records import RECORDS, Steps

# Of each record: where its id stands, and the ids of five records.
IDS: dict[tuple[str, ...], tuple[tuple[Steps, ...], list[Any]]] = {
    ("hubspot", "deal"): (
        (("id",), ("properties", "hs_object_id")),
        [str(n) for n in range(48_100_200_301, 48_100_200_306)],
    ),
    ("hubspot", "contact"): (
        (("id",), ("properties", "hs_object_id")),
        [str(n) for n in range(7051, 7056)],
    ),
    ("hubspot", "company"): (
        (("id",), ("properties", "hs_object_id")),
        [str(n) for n in range(6001, 6006)],
    ),
    ("frontapp", "conversation"): (
        (("conversation", "id"),),
        [f"cnv_1sagx9s{end}" for end in "abcde"],
    ),
    ("samsara", "vehicle_event, address, driver and vehicle"): (
        (("eventId",),),
        [f"5a0c1c7e-{n:02}" for n in range(1, 6)],
    ),
    ("plaid", "bank_transaction"): (
        (("transaction", "transaction_id"),),
        [f"lPNjeW1nR6CDn5okmGQ6hEpMo4lLNo{end}SrzqDje"[:37] + end for end in "abcde"],
    ),
    ("quickbooks", "invoice"): ((("Id",),), [str(n) for n in range(501, 506)]),
    ("turvo", "shipment"): ((("id",),), list(range(1_000_450_123, 1_000_450_128))),
    ("frontapp", "email and message"): (
        (("target", "data", "id"),),
        [f"msg_1sagx9s{end}" for end in "abcde"],
    ),
    ("llm", "conversation", "completion"): (
        (("id",),),
        [f"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG{end}" for end in "vwxyz"],
    ),
    ("llm", "conversation", "response"): (
        (("id",),),
        [f"msg_01XFDUDYJgAACzvnptvVoYE{end}" for end in "JKLMN"],
    ),
    ("llm", "conversation", "claude"): (
        (("uuid",),),
        [f"3f0c{n}b1e-92d4-4f7a-8a53-6c1d0e9b7a2{n}" for n in range(5)],
    ),
}


def with_id(body: Any, places: tuple[Steps, ...], id: Any) -> Any:
    """Return a record under another id."""
    changed = copy.deepcopy(body)
    for steps in places:
        holder = changed
        for step in steps[:-1]:
            holder = holder[step]
        holder[steps[-1]] = id
    return changed


def _kind(name: tuple[str, ...], event: Event) -> str:
    """Return what stands before the id in the key of a document."""
    return "conversation" if name[1] == "conversation" else event.doc_key.split(":")[0]


def events(name: tuple[str, ...]) -> list[Event]:
    places, ids = IDS[name]
    record = RECORDS[name]
    made = [record.event(with_id(record.body, places, id)) for id in ids]
    # Samples without a `receive` of their own have one key: each of these is a document.
    return [
        replace(event, event_id=f"{event.event_id}/{id}", doc_key=f"{_kind(name, event)}:{id}")
        if record.source.name in ("frontapp", "plaid", "samsara", "turvo")
        else event
        for event, id in zip(made, ids, strict=True)
    ]


@pytest.mark.parametrize("name", IDS, ids="/".join)
async def test_the_id_of_a_record_at_its_vendor_finds_it_first(
    app: App, name: tuple[str, ...]
) -> None:
    made = events(name)
    landed = await land(app, *made)
    await app.direct.drain(RECORDS[name].source.name)
    assert len({result.doc_id for result in landed}) == len(made)
    for id, result in zip(IDS[name][1], landed, strict=True):
        for query in (str(id), f"what do we know about {id}?"):
            hits = (await app.search.search(query)).hits
            assert hits and hits[0].doc_id == result.doc_id, query


async def test_a_number_without_its_label_is_found_by_its_kind(app: App) -> None:
    refs = ["shipment:SHP-104277", "shipment:SHP-42", "invoice:INV-1042", "load:LD-7"]
    made = [
        text_event(app, ref, f"Moved {n} pallets of tile over the pass", entities=[ref])
        for n, ref in enumerate(refs)
    ]
    others = [
        text_event(app, f"other{n}", f"shipment, load, invoice and {n} pallets of tile")
        for n in (104276, 104278, 41, 43, 1041, 1043, 6, 8)
    ]
    await land(app, *made, *others)
    await app.direct.drain("documents")
    for query, ref in {
        "shipment 104277": refs[0],
        "load #104277": refs[0],
        "where is load 104277?": refs[0],
        "shipment 42": refs[1],
        "SHP-42": refs[1],
        "invoice 1042": refs[2],
        "is invoice #1042 paid": refs[2],
        "load 7": refs[3],
    }.items():
        first = (await app.search.search(query)).hits[0]
        assert first.doc_id == document_uuid("documents", ref) and ref in first.why, query


async def test_a_control_number_finds_what_was_sent_with_it(app: App) -> None:
    made = [
        text_event(app, f"set{n}", f"Tender number {n}", entities=[f"id:{n}"])
        for n in range(104270, 104280)
    ]
    await land(app, *made)
    await app.direct.drain("documents")
    for query in ("control number 000104274", "EDI interchange 104274", "104274"):
        first = (await app.search.search(query)).hits[0]
        assert first.doc_id == document_uuid("documents", "set104274"), query
