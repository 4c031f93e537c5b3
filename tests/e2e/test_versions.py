"""Which version readers see, whatever order deliveries come in: through the HTTP API of the whole stack."""

from __future__ import annotations

import itertools
import json
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e import front
from tests.e2e.stack import Stack, running_stack
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(240),  # processes start on a machine that others work on, too
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.fixture
def shipments() -> Iterator[str]:
    """Shipment numbers that no other test has."""
    first = uuid.uuid4().int % 10**7 * 10**4
    return (f"SHP-{first + n}" for n in itertools.count())


async def naming(stack: Stack, shipment: str) -> list[str]:
    """Return the documents that a search for a shipment shows as naming it, one entry a hit."""
    answer = await stack.search(shipment, entities=[f"shipment:{shipment}"])
    assert answer["degraded"] == []
    return [hit["document_id"] for hit in answer["hits"]]


async def document(stack: Stack, event: Any) -> Any:
    """The document of an event in full; None when readers see none."""
    answer = await stack.http.get(f"/v1/documents/{event['document_id']}")
    assert answer.status_code in (200, 404), answer.text
    return answer.json() if answer.status_code == 200 else None


async def state(stack: Stack, event: Any) -> str:
    return str((await stack.get(f"/v1/events/{event['id']}"))["state"])


async def hooked(stack: Stack, body: bytes) -> Any:
    """Send a Front webhook and wait for its end."""
    answer = await stack.hook(body, path="/hooks/frontapp?wait=searchable&timeout=30")
    assert answer.status_code == 200, answer.text
    [event] = answer.json()["events"]
    return event


async def deleted(stack: Stack, event: Any) -> Any:
    path = f"/v1/documents/{event['document_id']}?wait=searchable&timeout=30"
    answer = await stack.http.delete(path)
    assert answer.status_code == 200, answer.text
    [deletion] = answer.json()["events"]
    return deletion


async def test_the_receipt_names_stores_and_times_and_is_true(
    stack: Stack, shipments: Iterator[str]
) -> None:
    shipment = next(shipments)
    body = {"key": shipment, "text": f"{shipment} left Reno."}
    answer = await stack.http.post("/v1/documents?wait=searchable&timeout=30", json=body)
    named = await naming(stack, shipment)  # at once: the receipt states that it is searchable
    assert answer.status_code == 200 and answer.json()["searchable"] is True
    [event] = answer.json()["events"]
    assert named == [event["document_id"]]
    assert (event["state"], event["duplicate"]) == ("done", False)
    assert {event["stores"][name]["state"] for name in ("documents", "graph", "vectors")} == {
        "held"
    }
    at = {
        name: datetime.fromisoformat(event["stores"][name]["at"]) for name in ("graph", "vectors")
    }
    received = datetime.fromisoformat(event["received_at"])
    committed = datetime.fromisoformat(event["stores"]["documents"]["at"])
    assert received < min(at.values()) <= max(at.values()) <= committed
    assert committed <= datetime.fromisoformat(event["ended_at"])


async def test_an_update_takes_the_place_of_the_version_before(
    stack: Stack, shipments: Iterator[str]
) -> None:
    old, new = next(shipments), next(shipments)
    first = await stack.remember(old, f"{old} waits in Reno.", version=1)
    second = await stack.remember(old, f"{new} waits in Elko.", version=2)
    assert first["document_id"] == second["document_id"]
    assert await naming(stack, new) == [first["document_id"]]
    assert await naming(stack, old) == []
    shown = await document(stack, first)
    assert shown["text"] == f"{new} waits in Elko."
    assert [(v["version"], v["state"]) for v in shown["versions"]] == [
        (2, "committed"),
        (1, "superseded"),
    ]
    assert await state(stack, first) == await state(stack, second) == "done"
    held = (await stack.get(f"/v1/events/{first['id']}"))["stores"]
    assert held["graph"]["state"] in ("superseded", "removed"), "the collector may have been by"
    earlier = await stack.get(f"/v1/documents/{first['document_id']}/versions/1")
    assert earlier["text"] == f"{old} waits in Reno."


async def test_the_same_webhook_twice_takes_effect_once(
    stack: Stack, shipments: Iterator[str]
) -> None:
    shipment = next(shipments)
    body = front.message(f"msg_{shipment}", f"cnv_{shipment}", at=0, text=f"Where is {shipment}?")
    first = await hooked(stack, body)
    second = await hooked(stack, body)
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert first["id"] == second["id"] and second["state"] == "done"
    assert await naming(stack, shipment) == [first["document_id"]]
    [version] = (await document(stack, first))["versions"]
    assert version["id"] == first["id"]


async def test_f27_an_idempotency_key_used_again_with_another_body_is_refused(
    stack: Stack, shipments: Iterator[str]
) -> None:
    shipment, other = next(shipments), next(shipments)
    path, headers = "/v1/documents?wait=searchable&timeout=30", {"idempotency-key": shipment}
    sent = [
        await stack.http.post(
            path, json={"key": shipment, "text": f"{name} is late."}, headers=headers
        )
        for name in (shipment, other, shipment)
    ]
    assert [response.status_code for response in sent] == [200, 422, 200]
    assert "Idempotency-Key" in sent[1].json()["error"]["message"]
    [first], [again] = (sent[n].json()["events"] for n in (0, 2))
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert first["id"] == again["id"]
    assert await naming(stack, shipment) == [first["document_id"]]
    assert await naming(stack, other) == []


async def test_a_late_older_version_is_superseded(stack: Stack, shipments: Iterator[str]) -> None:
    old, new = next(shipments), next(shipments)
    newer = await stack.remember(new, f"{new} is in Elko.", version=20)
    older = await stack.remember(new, f"{old} is in Reno.", version=10)
    assert older["state"] == "superseded"
    assert await naming(stack, new) == [newer["document_id"]]
    assert await naming(stack, old) == []
    assert (await document(stack, newer))["text"] == f"{new} is in Elko."


async def test_of_equal_versions_the_greater_event_id_wins_in_either_order(
    stack: Stack, shipments: Iterator[str]
) -> None:
    for order in (("a", "b"), ("b", "a")):
        shipment = next(shipments)
        sent = {}
        for name in order:
            body = {"key": shipment, "text": f"{shipment}, side {name}.", "version": 7}
            headers = {"idempotency-key": f"{shipment}-{name}"}
            answer = await stack.post(
                "/v1/documents?wait=searchable&timeout=30", json=body, headers=headers
            )
            [sent[name]] = answer["events"]
        assert (await document(stack, sent["a"]))["text"] == f"{shipment}, side b."
        assert await naming(stack, shipment) == [sent["b"]["document_id"]]
        # The one that lost came too late, or was shown until the other one came.
        assert sent["a"]["state"] == ("done" if order[0] == "a" else "superseded")
        assert sent["b"]["state"] == "done"


async def test_a_deletion_hides_and_nothing_older_revives(
    stack: Stack, shipments: Iterator[str]
) -> None:
    shipment, late = next(shipments), next(shipments)
    event = await stack.remember(shipment, f"{shipment} is lost.", version=5)
    deletion = await deleted(stack, event)
    assert deletion["state"] == "done" and deletion["document_id"] == event["document_id"]
    assert await document(stack, event) is None
    assert await naming(stack, shipment) == []
    again = await stack.http.delete(f"/v1/documents/{event['document_id']}")
    assert again.status_code == 404, "what is deleted cannot be deleted"
    older = await stack.remember(shipment, f"{late} is lost.", version=6)
    assert older["state"] == "superseded" and await document(stack, event) is None
    assert await naming(stack, late) == []
    listed = (await stack.get("/v1/documents", deleted=True, limit=200))["documents"]
    [row] = [row for row in listed if row["document_id"] == event["document_id"]]
    assert row["deleted"] is True
    # What was deleted is gone from the stores as well, once no reader can see it any more.
    held = (await stack.get(f"/v1/events/{event['id']}"))["stores"]
    assert held["vectors"]["state"] in ("superseded", "removed")


async def test_what_was_deleted_can_come_back_as_a_newer_version(
    stack: Stack, shipments: Iterator[str]
) -> None:
    shipment, back = next(shipments), next(shipments)
    event = await stack.remember(shipment, f"{shipment} is lost.")
    deletion = await deleted(stack, event)
    again = await stack.remember(shipment, f"{back} was found.")
    assert again["state"] == "done" and again["document_id"] == event["document_id"]
    assert await naming(stack, back) == [event["document_id"]]
    assert await naming(stack, shipment) == []
    shown = await document(stack, event)
    assert [version["id"] for version in shown["versions"]] == [
        again["id"],
        deletion["id"],
        event["id"],
    ]


async def test_a_front_trash_takes_the_conversation_away_and_a_restore_brings_it_back(
    stack: Stack, shipments: Iterator[str]
) -> None:
    shipment, late = next(shipments), next(shipments)
    conversation = f"cnv_{shipment}"
    message = await hooked(
        stack, front.message(f"msg_{shipment}", conversation, at=1, text=f"About {shipment}.")
    )
    assert await naming(stack, shipment) == [message["document_id"]]
    trash = await hooked(stack, front.conversation(conversation, "trash", at=2))
    assert trash["state"] == "done"
    await gone(stack, message)
    assert await naming(stack, shipment) == []

    old = front.message(f"msg_{late}", conversation, at=1.5, text=f"About {late}.")
    delayed = await hooked(stack, old)
    assert delayed["state"] == "superseded", "written before the trash, delivered after it"
    assert await naming(stack, late) == []

    restored = await hooked(stack, front.conversation(conversation, "restore", at=3))
    assert restored["state"] == "done"
    await back(stack, message, delayed)
    assert await naming(stack, shipment) == [message["document_id"]]
    assert await naming(stack, late) == [delayed["document_id"]]


async def test_a_webhook_of_an_older_state_does_not_undo_a_newer_one(
    stack: Stack, shipments: Iterator[str]
) -> None:
    shipment, old = next(shipments), next(shipments)
    new = await hooked(stack, edited(shipment, "evt_new", at=20, text=f"{shipment} is late."))
    older = await hooked(stack, edited(shipment, "evt_old", at=10, text=f"{old} is late."))
    assert older["document_id"] == new["document_id"] and older["state"] == "superseded"
    assert await naming(stack, old) == []
    assert await naming(stack, shipment) == [new["document_id"]]


def edited(message: str, event: str, *, at: float, text: str) -> bytes:
    """A Front event of its own about a message that other events are about as well."""
    body = json.loads(front.message(f"msg_{message}", f"cnv_{message}", at=at, text=text))
    body["payload"]["id"] = f"{event}_{message}"
    return json.dumps(body).encode()


async def gone(stack: Stack, *events: Any) -> None:
    await until_all(stack, events, here=False)


async def back(stack: Stack, *events: Any) -> None:
    await until_all(stack, events, here=True)


async def until_all(stack: Stack, events: Any, *, here: bool) -> None:
    """Children follow their parent by events of their own, which nobody waits for."""

    async def all_are() -> bool:
        shown = [await document(stack, event) for event in events]
        return all((document is not None) is here for document in shown)

    await until(all_are, seconds=30, what=stack.log_tail)
