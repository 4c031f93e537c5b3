"""QuickBooks Online: an invoice, a payment and a bill a shipment; change data capture, queries, OAuth, signed webhooks."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.quickbooks.books import books_of, iso
from apex_memory.simulate.quickbooks.query import select
from apex_memory.simulate.quickbooks.webhooks import REALM, VERIFIER, pushes
from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, World

CLIENT, SECRET = "simulated-client", "simulated-secret"
FIRST_REFRESH = "AB11-simulated-0"


class QuickBooks(Simulator):
    name: ClassVar[str] = "quickbooks"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.books = books_of(world)
        self.cap = 1000
        """Most objects in a response of change data capture."""
        self.newest_first = False
        """Which of too many changes are returned: the contract promises neither."""
        self.refresh, self.spent = FIRST_REFRESH, ""
        self.access = ""
        self.renewals = 0
        self.connected = True
        """Whether the company still allows the application."""
        self._touches = 0

    def settings(self, base: str) -> dict[str, Any]:
        return {
            "client_id": CLIENT,
            "client_secret": SECRET,
            "realm_ids": [REALM],
            "refresh_tokens": [FIRST_REFRESH],
            "verifier_tokens": [VERIFIER],
            "base_url": base,
            "token_url": f"{base}/oauth2/v1/tokens/bearer",
        }

    def routes(self) -> Sequence[BaseRoute]:
        company = f"/v3/company/{REALM}"
        return [
            Route("/oauth2/v1/tokens/bearer", self._token, methods=["POST"]),
            Route("/.well-known/openid_configuration", _discovery),
            Route(f"{company}/cdc", self._endpoint(self._changes)),
            Route(f"{company}/query", self._endpoint(self._query), methods=["GET", "POST"]),
            Route(f"{company}/{{entity}}/{{id}}", self._endpoint(self._read)),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        return pushes(self.books, since, until)

    def truth(self, until: datetime) -> Sequence[Truth]:
        truth = []
        for (entity, id), versions in self.books.versions.items():
            if past := [body for at, body in versions if at <= until]:
                last, key = past[-1], f"{REALM}:{entity}:{id}"
                deleted = last.get("status") == "Deleted" or last.get("Active") is False
                text = last.get("PrivateNote") or last.get("Notes") or ""
                truth.append(Truth(key, "" if deleted else text, deleted=deleted))
        return truth

    def _endpoint(self, respond: Callable[[Request, str], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            if (error := self._refused(request)) is not None:
                return error
            if self.chaos.strikes(self.chaos.mutations):
                self._touch()
            body = (await request.body()).decode()
            response = respond(request, body)
            response.headers["intuit_tid"] = "1-simulated-0001"
            return response

        return endpoint

    def _refused(self, request: Request) -> Response | None:
        chaos = self.chaos
        if chaos.strikes(chaos.expiries):
            self.access = ""
        if not self.access or request.headers.get("authorization") != f"Bearer {self.access}":
            return _fault(401, "3200", "AuthenticationFault", "AUTHENTICATION", self.clock.now)
        if chaos.strikes(chaos.limits):
            response = _fault(429, "003001", "ThrottleExceeded", "SERVICE", self.clock.now)
            response.headers["Retry-After"] = "0.02"
            return response
        if chaos.strikes(chaos.errors):
            return _fault(503, "10000", "ServiceUnavailable", "SystemFault", self.clock.now)
        return None

    def _touch(self) -> None:
        """Change an invoice or a vendor between two calls, often within one second."""
        now = self.clock.now
        live = []
        for entity in ("Invoice", "Vendor"):
            for _, body in self.books.now(entity, now):
                if body.get("status") != "Deleted" and body.get("PrivateNote") != "Voided":
                    live.append((entity, body))
        self._touches += 1
        entity, body = live[(self._touches * 5) % len(live)]
        name = "PrivateNote" if entity == "Invoice" else "Notes"
        text = f"{str(body.get(name, '')).partition(' Touched')[0]} Touched {self._touches}."
        versions = self.books.versions[entity, body["Id"]]
        ahead = [version for version in versions if version[0] > now.replace(microsecond=0)]
        del versions[len(versions) - len(ahead) :]
        self.books.put(entity, body["Id"], now, {**body, name: text})
        for at, later in ahead:  # the versions that the world plans come on top
            if later.get("status") == "Deleted":
                self.books.delete(entity, body["Id"], at)
            else:
                self.books.put(entity, body["Id"], at, later)

    async def _token(self, request: Request) -> Response:
        pair = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        form = await request.form()
        if request.headers.get("authorization") != f"Basic {pair}":
            return JSONResponse({"error": "invalid_client"}, 401)
        if form.get("grant_type") != "refresh_token":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        sent = form.get("refresh_token")
        # The previous token works until the newest is used, in case the response with it was lost.
        if not self.connected or not sent or sent not in (self.refresh, self.spent):
            return JSONResponse({"error": "invalid_grant"}, 400)
        self.renewals += 1
        self.spent, self.refresh = str(sent), f"AB11-simulated-{self.renewals}"
        self.access = f"access-{self.renewals}"
        return JSONResponse(
            {
                "token_type": "bearer",
                "access_token": self.access,
                "expires_in": 3600,
                "refresh_token": self.refresh,
                "x_refresh_token_expires_in": 8_726_400,
            }
        )

    def _changes(self, request: Request, body: str) -> Response:
        query, now = request.query_params, self.clock.now
        since = datetime.fromisoformat(query["changedSince"]).astimezone(UTC)
        entities = query["entities"].split(",")
        if now - since > timedelta(days=30):
            return _fault(
                400, "4001", "changedSince: more than 30 days ago", "ValidationFault", now
            )
        changes: list[tuple[datetime, str, dict[str, Any]]] = []
        for entity in entities:
            current = self.books.now(entity, now)
            changes += [(at, entity, record) for at, record in current if at > since]
        changes.sort(key=lambda change: change[0], reverse=self.newest_first)
        returned = changes[: self.cap]
        responses = []
        for entity in entities:
            records = [record for _, kind, record in returned if kind == entity]
            size = {"startPosition": 1, "maxResults": len(records)}
            responses.append({entity: records, **size} if records else {})
        return JSONResponse({"CDCResponse": [{"QueryResponse": responses}], "time": _iso_ms(now)})

    def _query(self, request: Request, body: str) -> Response:
        now = self.clock.now
        try:
            text = request.query_params.get("query") or body
            entity, records, start, most = select(self.books, text, now)
        except ValueError as error:
            return _fault(400, "4001", f"QueryValidationError: {error}", "ValidationFault", now)
        page = records[start - 1 : start - 1 + most]
        content = {entity: page, "startPosition": start, "maxResults": len(page)} if page else {}
        return JSONResponse({"QueryResponse": content, "time": _iso_ms(now)})

    def _read(self, request: Request, body: str) -> Response:
        now, names = self.clock.now, {kind.lower(): kind for kind, _ in self.books.versions}
        entity = names.get(request.path_params["entity"], "")
        for _, record in self.books.now(entity, now):
            if record["Id"] == request.path_params["id"] and record.get("status") != "Deleted":
                return JSONResponse({entity: record, "time": _iso_ms(now)})
        return _fault(400, "610", "Object Not Found", "ValidationFault", now)


async def _discovery(request: Request) -> Response:
    base = str(request.url).removesuffix("/.well-known/openid_configuration")
    return JSONResponse(
        {
            "issuer": base,
            "authorization_endpoint": f"{base}/connect/oauth2",
            "token_endpoint": f"{base}/oauth2/v1/tokens/bearer",
            "userinfo_endpoint": f"{base}/v1/openid_connect/userinfo",
            "revocation_endpoint": f"{base}/v2/oauth2/tokens/revoke",
            "jwks_uri": f"{base}/op/v1/jwks",
        }
    )


def _fault(status: int, code: str, message: str, type: str, now: datetime) -> Response:
    error = {"Message": message, "Detail": message, "code": code, "element": ""}
    return JSONResponse({"Fault": {"Error": [error], "type": type}, "time": _iso_ms(now)}, status)


def _iso_ms(at: datetime) -> str:
    return iso(at, "milliseconds")
