"""Turvo: its public API with both page objects, thin webhooks with a token, records with more than the list's rows."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import count
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.turvo.records import (
    Remark,
    Step,
    common_fields,
    detail_fields,
    entered,
    plain,
    planned,
    reached,
    remark_text,
    removed,
    stamp,
    status,
    steps,
    turvo_id,
    twin_id,
    twin_record,
)
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth, chaos_response
from apex_memory.simulate.world import Clock, Shipment, World

TENANT = "9901"
CLIENT, USER = (
    ("publicapi-apex", "example-client-secret"),
    ("apex@acme.example", "example-password"),
)
API_KEY = "example-turvo-api-key"
TOKEN, HMAC_KEY = "example-turvo-webhook-token", "example-turvo-hmac-key"


class Turvo(Simulator):
    """Shipments from their tender on. One has a twin that is removed, one a twin that gets the flag `deleted`."""

    name: ClassVar[str] = "turvo"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.tokens: set[str] = set()
        self.calls: list[str] = []
        self.remarks: dict[int, Remark] = {}  # of a shipment: its newest remark
        self.serial = count(1)

    def settings(self, base: str) -> dict[str, Any]:
        return {
            "base_url": f"{base}/v1",
            "client_id": CLIENT[0],
            "client_secret": CLIENT[1],
            "api_key": API_KEY,
            "username": USER[0],
            "password": USER[1],
            "webhook_tokens": [TOKEN],
            "webhook_header": "X-Turvo-Token",
            "hmac_keys": [HMAC_KEY],
            "listing_seconds": 0,
            "overlap_seconds": 60,
            "page_size": 5,
        }

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/v1/oauth/token", self.authenticate, methods=["POST"]),
            Route("/v1/shipments/list", self.list_shipments),
            Route("/v1/shipments/{id}", self.show_shipment),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        """A webhook for each change. Remarks (`mutations`) send none: only the list shows them."""
        notices: list[tuple[datetime, dict[str, Any]]] = []
        for shipment in self.world.shipments:
            id = turvo_id(shipment)
            notices += [(step.at, _notice(id, step.at, step)) for step in steps(shipment)]
        for twin in (self.deleted_twin, self.flagged_twin):
            notices += [(at, _notice(twin_id(twin), at)) for at in (entered(twin), removed(twin))]
        undated = {"eventName": "SHIPMENT_UPDATE", "eventPayload": {"load": {"id": twin_id(self.flagged_twin)}}}  # fmt: skip
        notices.append((removed(self.flagged_twin), undated))
        notices.append((self.world.start + timedelta(hours=1), _carrier_notice(self.world)))
        for at, body in sorted(notices, key=lambda notice: notice[0]):
            if since < at <= until:
                yield Push(at, "/hooks/turvo", json.dumps(body).encode(), signed)

    def truth(self, until: datetime) -> Sequence[Truth]:
        truth = []
        for shipment in self.world.shipments:
            statuses = reached(shipment, until)
            if not statuses:
                continue
            serial, remarked_at = self.remarks.get(shipment.number, (0, until))
            if serial and remarked_at > statuses[-1].at:
                text = f"Remark: {remark_text(shipment, serial)}"
            else:
                text = f"Status: {plain(statuses[-1])}"
            truth.append(Truth(f"shipment:{turvo_id(shipment)}", text))
        for twin in (self.deleted_twin, self.flagged_twin):
            key = f"shipment:{twin_id(twin)}"
            if until >= removed(twin):
                truth.append(Truth(key, deleted=True))
            elif until >= entered(twin):
                truth.append(Truth(key, "Status: Tendered"))
        return truth

    @property
    def deleted_twin(self) -> Shipment:
        return self.world.shipments[0]

    @property
    def flagged_twin(self) -> Shipment:
        return self.world.shipments[1]

    def change(self, number: int) -> None:
        """Write a remark on a shipment, for which no webhook is sent."""
        times = [at for _, at in self.remarks.values()]
        newest = max([self.clock.now, *(at + timedelta(milliseconds=1) for at in times)])
        self.remarks[number] = (next(self.serial), newest)

    async def authenticate(self, request: Request) -> Response:
        self.calls.append("token")
        if error := chaos_response(self.chaos):
            return error
        body = await request.json()
        query = request.query_params
        given = (query.get("client_id"), query.get("client_secret"), body.get("username"), body.get("password"))  # fmt: skip
        grant = (body.get("grant_type"), body.get("scope"), body.get("type"))
        if (
            request.headers.get("x-api-key") != API_KEY
            or given != (*CLIENT, *USER)
            or grant != ("password", "read+trust+write", "business")
        ):
            return JSONResponse({"error": "invalid_grant"}, 401)
        token = f"turvo-token-{next(self.serial)}"
        self.tokens.add(token)
        return JSONResponse(
            {
                "access_token": token,
                "refresh_token": f"refresh-{token}",
                "token_type": "bearer",
                "expires_in": 43_199,
                "tenant_ref": TENANT,
            }
        )

    async def list_shipments(self, request: Request) -> Response:
        """Newest change first; the page object is one of the two that clients have met."""
        self.calls.append("list")
        if refused := self._refused(request):
            return refused
        start, size = int(request.query_params["start"]), int(request.query_params["pageSize"])
        rows = self._rows()
        page = rows[start : start + size]
        more = start + size < len(rows)
        pagination: dict[str, Any]
        if len(self.calls) % 3:
            pagination = {"start": start, "pageSize": size, "totalRecordsInPage": len(page), "moreAvailable": more}  # fmt: skip
        else:
            pagination = {"total": len(rows), "pages": -(-len(rows) // size), "page": start // size, "limit": size}  # fmt: skip
        response = _success({"shipments": page, "pagination": pagination})
        if self.chaos.strikes(self.chaos.mutations):
            known = [
                shipment for shipment in self.world.shipments if reached(shipment, self.clock.now)
            ]
            if known:
                self.change(known[len(self.calls) % len(known)].number)
        return response

    async def show_shipment(self, request: Request) -> Response:
        self.calls.append("shipment")
        if refused := self._refused(request):
            return refused
        record = self._record(request.path_params["id"])
        if record is None:
            return JSONResponse({"Status": "ERROR", "details": {"errorCode": "404"}}, 404)
        return _success(record)

    def _refused(self, request: Request) -> Response | None:
        """Return an error response, or None. Some errors have HTTP 200: only `Status` shows them."""
        if self.chaos.strikes(self.chaos.expiries):
            self.tokens.clear()
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens or request.headers.get("x-api-key") != API_KEY:
            return JSONResponse({"error": "invalid_token"}, 401)
        if self.chaos.strikes(self.chaos.errors / 2):
            details = {"errorMessage": "Something went wrong", "errorCode": "5000"}
            return JSONResponse({"Status": "ERROR", "details": details})
        return chaos_response(self.chaos)

    def _rows(self) -> list[dict[str, Any]]:
        now = self.clock.now
        rows = []
        for shipment in self.world.shipments:
            if not reached(shipment, now):
                continue
            pickup, delivery = planned(shipment)
            row = common_fields(shipment, now, self.remarks.get(shipment.number))
            rows.append(row | {"startDate": stamp(pickup), "endDate": stamp(delivery)})
        twins = (self.deleted_twin, self.flagged_twin)
        rows += [twin_record(twin, now) for twin in twins if self._exists(twin)]
        rows.sort(key=lambda row: (row["lastUpdatedOn"], row["id"]), reverse=True)
        return rows

    def _record(self, id: str) -> dict[str, Any] | None:
        now = self.clock.now
        for twin in (self.deleted_twin, self.flagged_twin):
            if id == str(twin_id(twin)):
                return twin_record(twin, now) if self._exists(twin) else None
        for shipment in self.world.shipments:
            if id == str(turvo_id(shipment)) and reached(shipment, now):
                remark = self.remarks.get(shipment.number)
                record = common_fields(shipment, now, remark) | detail_fields(shipment, now, remark)
                if shipment.number % 2:  # some records have no time of change
                    del record["lastUpdatedOn"]
                return record
        return None

    def _exists(self, twin: Shipment) -> bool:
        now = self.clock.now
        return entered(twin) <= now and (twin is self.flagged_twin or now < removed(twin))


def signed(body: bytes, at: datetime) -> Mapping[str, str]:
    """Return the profile's token, and the signature of a proxy."""
    digest = hmac.new(HMAC_KEY.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Turvo-Token": TOKEN, "X-Turvo-Signature": digest}


def _notice(id: int, at: datetime, step: Step | None = None) -> dict[str, Any]:
    """Return the body of a webhook: an id, and the status where the status changed."""
    payload: dict[str, Any] = {"id": id}
    if step:
        payload |= {"status": status(step.key)}
    return {
        "tenantId": TENANT,
        "eventName": "SHIPMENT_STATUS_UPDATE" if step else "SHIPMENT_UPDATE",
        "eventTime": stamp(at),
        "eventPayload": payload,
    }


def _success(details: Mapping[str, Any]) -> Response:
    return JSONResponse({"Status": "SUCCESS", "details": details})


def _carrier_notice(world: World) -> dict[str, Any]:
    return {
        "tenantId": TENANT,
        "eventName": "CARRIER_UPDATE",
        "eventTime": stamp(world.start),
        "eventPayload": {"id": world.carriers[0].number},
    }
