"""A record's own id at its vendor finds its document first, among records that differ in little but the id."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from apex_memory.app import App
from apex_memory.model import Event
from tests.e2e.conftest import land
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


def events(name: tuple[str, ...]) -> list[Event]:
    places, ids = IDS[name]
    record = RECORDS[name]
    made = [record.event(with_id(record.body, places, id)) for id in ids]
    # Samples without a `receive` of their own have one key: each of these is a document.
    return [
        replace(
            event, event_id=f"{event.event_id}/{id}", doc_key=f"{event.doc_key.split(':')[0]}:{id}"
        )
        if record.source.name in ("frontapp", "plaid", "turvo")
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
