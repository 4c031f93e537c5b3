"""HubSpot's webhooks: up to a hundred notices in each, signed over the URL as HubSpot normalizes it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from apex_memory.simulate.hubspot.objects import SINGULAR, TOUCHED, Objects, Version
from apex_memory.simulate.vendor import Push

SECRET = "simulated-client-secret"  # noqa: S105 -- of a simulator
URL = "https://apex.example/hooks/hubspot?tenant=acme%2C1"
PORTAL, APP = 44_001, 33_001


def pushes(objects: Objects, since: datetime, until: datetime) -> Iterator[Push]:
    """Yield the webhooks of a range of time (since exclusive, until inclusive), in order."""
    moments: dict[datetime, list[dict[str, Any]]] = {}
    for (plural, id), versions in objects.items():
        for previous, version in zip([None, *versions], versions, strict=False):
            if since < version.at <= until:
                notices = moments.setdefault(version.at, [])
                notices += _notices(plural, id, previous, version)
    for at in sorted(moments):
        for start in range(0, len(moments[at]), 100):
            body = json.dumps(moments[at][start : start + 100]).encode()
            yield Push(at, "/hooks/hubspot", body, signed)


def signed(body: bytes, at: datetime) -> Mapping[str, str]:
    """Return the headers of a v3 signature. HubSpot decodes some characters of the URL first."""
    stamp = str(int(at.timestamp() * 1000))
    text = b"POST" + URL.replace("%2C", ",").encode() + body + stamp.encode()
    digest = hmac.digest(SECRET.encode(), text, "sha256")
    return {
        "X-HubSpot-Request-Timestamp": stamp,
        "X-HubSpot-Signature-v3": base64.b64encode(digest).decode(),
        "X-HubSpot-Signature": hashlib.sha256(SECRET.encode() + body).hexdigest(),
        "X-HubSpot-Signature-Version": "v1",
    }


def _notices(
    plural: str, id: int, previous: Version | None, version: Version
) -> list[dict[str, Any]]:
    """Return the notices of a new version. A change comes before the creation that it belongs to."""
    notice = {
        "eventId": id * 10 + 1,
        "subscriptionId": 24_001,
        "portalId": PORTAL,
        "appId": APP,
        "occurredAt": int(version.at.timestamp() * 1000),
        "attemptNumber": 0,
        "objectId": id,
        "changeSource": "CRM_UI",
        "sourceId": "userId:9",
    }
    kind = SINGULAR[plural]
    if version.archived:
        return [{**notice, "subscriptionType": f"{kind}.deletion", "changeFlag": "DELETED"}]
    if previous and previous.archived:
        return [{**notice, "subscriptionType": f"{kind}.restore"}]
    property = "dealstage" if plural == "deals" else TOUCHED[plural]
    change = {
        **notice,
        "subscriptionType": f"{kind}.propertyChange",
        "propertyName": property,
        "propertyValue": version.properties[property],
    }
    created = {**notice, "subscriptionType": f"{kind}.creation", "changeFlag": "CREATED"}
    return [change] if previous else [change, created]
