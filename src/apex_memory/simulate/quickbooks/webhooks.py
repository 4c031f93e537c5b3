"""QuickBooks' webhooks: signed, up to five changes each, in the legacy format and in that of CloudEvents."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from apex_memory.simulate.quickbooks.books import PACIFIC, Books
from apex_memory.simulate.vendor import Push

REALM = "9130350000000001"
VERIFIER = "simulated-verifier"

Notice = tuple[datetime, str, str, str, str]
"""Time, entity, id, operation, and the id that a merge removed."""


def pushes(books: Books, since: datetime, until: datetime) -> Iterator[Push]:
    """Yield the webhooks of a range of time (since exclusive, until inclusive), in order."""
    notices = []
    for (entity, id), versions in books.versions.items():
        for n, (at, body) in enumerate(versions):
            if since < at <= until:
                notices.append((at, entity, id, _operation(n, body), ""))
    notices += [
        (at, entity, kept, "Merge", removed)
        for at, entity, kept, removed in books.merges
        if since < at <= until
    ]
    notices.sort()
    for n in range(0, len(notices), 5):
        batch = notices[n : n + 5]
        content: Any = _legacy(batch) if n % 2 else _cloud_events(batch)
        yield Push(batch[0][0], "/hooks/quickbooks", json.dumps(content).encode(), signed)


def signed(body: bytes, at: datetime) -> Mapping[str, str]:
    """Return the signature header of a body."""
    digest = hmac.digest(VERIFIER.encode(), body, "sha256")
    return {"intuit-signature": base64.b64encode(digest).decode()}


def _operation(n: int, body: Mapping[str, Any]) -> str:
    if body.get("status") == "Deleted":
        return "Delete"
    if body.get("PrivateNote") == "Voided":
        return "Void"
    return "Update" if n else "Create"


def _legacy(notices: Sequence[Notice]) -> dict[str, Any]:
    entities = [
        {
            "name": entity,
            "id": id,
            "operation": operation,
            "lastUpdated": at.astimezone(PACIFIC).strftime("%Y-%m-%dT%H:%M:%S%z"),
            **({"deletedId": removed} if removed else {}),
        }
        for at, entity, id, operation, removed in notices
    ]
    return {"eventNotifications": [{"realmId": REALM, "dataChangeEvent": {"entities": entities}}]}


def _cloud_events(notices: Sequence[Notice]) -> list[dict[str, Any]]:
    past = {"Create": "created", "Update": "updated", "Delete": "deleted"}
    past |= {"Merge": "merged", "Void": "voided"}
    return [
        {
            "specversion": "1.0",
            "id": f"{entity}-{id}-{int(at.timestamp())}-{operation}",
            "source": "intuit.simulated=",
            "type": f"qbo.{entity.lower()}.{past[operation]}.v1",
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "intuitentityid": id,
            "intuitaccountid": REALM,
            "data": {"deletedId": removed} if removed else {},
        }
        for at, entity, id, operation, removed in notices
    ]
