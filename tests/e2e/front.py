"""Bodies in the shape Front sends them, signed with the tests' key."""

from __future__ import annotations

import json
from typing import Any

from apex_memory.model import now
from apex_memory.sources.base import InboundRequest, Source

START = 1_761_955_200  # seconds; `at` is added


def message(
    id: str, conversation_id: str, *, at: float, text: str = "Where is SHP-100045?"
) -> bytes:
    data = {
        "id": id,
        "type": "email",
        "is_inbound": True,
        "created_at": START + at,
        "subject": "ETA",
        "text": text,
        "body": f"<p>{text}</p>",
        "recipients": [{"handle": "ops@example.com", "role": "from", "name": "Ops"}],
        "attachments": [],
    }
    return _webhook(
        "inbound_received",
        "inbound",
        f"evt_{id}",
        conversation_id,
        at,
        {"_meta": {"type": "message"}, "data": data},
    )


def conversation(id: str, kind: str, *, at: float) -> bytes:
    outer = {
        "archive": "conversation_archived",
        "trash": "conversation_deleted",
        "restore": "conversation_restored",
    }[kind]
    return _webhook(outer, kind, f"evt_{id}_{kind}_{at}", id, at, None)


def _webhook(
    outer: str, inner: str, id: str, conversation_id: str, at: float, target: Any
) -> bytes:
    payload = {
        "id": id,
        "type": inner,
        "emitted_at": START + at,
        "conversation": {
            "id": conversation_id,
            "subject": "ETA",
            "status": "deleted" if inner == "trash" else "unassigned",
            "tags": [],
        },
        "source": {"_meta": {"type": "inboxes"}, "data": []},
    }
    if target:
        payload["target"] = target
    return json.dumps(
        {"type": outer, "authorization": {"id": "cmp_1"}, "payload": payload}
    ).encode()


def request(source: Source, body: bytes) -> InboundRequest:
    at = now()
    headers = {name.lower(): value for name, value in source.sign(body, at).items()}
    return InboundRequest(
        body=body, headers={"content-type": "application/json", **headers}, query={}, received_at=at
    )
