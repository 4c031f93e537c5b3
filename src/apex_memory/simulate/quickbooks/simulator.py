"""QuickBooks Online: an invoice, a payment and a carrier's bill a shipment; changes, queries, OAuth, signed webhooks."""

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
        """Most objects in an answer of changes."""
        self.newest_first = False
        """Which of too many changes are shown: nobody promises either."""
        self.refresh, self.spent = FIRST_REFRESH, ""
        self.access = ""
        self.renewals = 0
        self.connected = True
        """Whether the company still lets the application in."""
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
            Route(f"{company}/cdc", self._told(self._changes)),
            Route(f"{company}/query", self._told(self._query), methods=["GET", "POST"]),
            Route(f"{company}/{{entity}}/{{id}}", self._told(self._one)),
        ]

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        return pushes(self.books, since, until)

    def truth(self, until: datetime) -> Sequence[Truth]:
        told = []
        for (entity, id), versions in self.books.versions.items():
            if past := [body for at, body in versions if at <= until]:
                last, key = past[-1], f"{REALM}:{entity}:{id}"
                gone = last.get("status") == "Deleted" or last.get("Active") is False
                text = last.get("PrivateNote") or last.get("Notes") or ""
                told.append(Truth(key, "" if gone else text, deleted=gone))
        return told

    # -- what it answers

    def _told(self, answer: Callable[[Request, str], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            if (bad := self._trouble(request)) is not None:
                return bad
            if self.chaos.strikes(self.chaos.mutations):
                self._touch()
            body = (await request.body()).decode()
            response = answer(request, body)
            response.headers["intuit_tid"] = "1-simulated-0001"
            return response

        return endpoint

    def _trouble(self, request: Request) -> Response | None:
        chaos = self.chaos
        if chaos.strikes(chaos.expiries):
            self.access = ""
        if not self.access or request.headers.get("authorization") != f"Bearer {self.access}":
            return _fault(401, "3200", "AuthenticationFault", "AUTHENTICATION", self.clock.now)
        if chaos.strikes(chaos.limits):
            answer = _fault(429, "003001", "ThrottleExceeded", "SERVICE", self.clock.now)
            answer.headers["Retry-After"] = "0.02"
            return answer
        if chaos.strikes(chaos.errors):
            return _fault(503, "10000", "ServiceUnavailable", "SystemFault", self.clock.now)
        return None

    def _touch(self) -> None:
        """Somebody changes an invoice or a vendor between two calls, often within one second."""
        now = self.clock.now
        live = [
            (entity, body)
            for entity in ("Invoice", "Vendor")
            for _, body in self.books.now(entity, now)
            if body.get("status") != "Deleted" and body.get("PrivateNote") != "Voided"
        ]
        self._touches += 1
        entity, body = live[(self._touches * 5) % len(live)]
        name = "PrivateNote" if entity == "Invoice" else "Notes"
        text = f"{str(body.get(name, '')).partition(' Touched')[0]} Touched {self._touches}."
        versions = self.books.versions[entity, body["Id"]]
        ahead = [one for one in versions if one[0] > now.replace(microsecond=0)]
        del versions[len(versions) - len(ahead) :]
        self.books.put(entity, body["Id"], now, {**body, name: text})
        for at, later in ahead:  # what the world still holds for it comes on top
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
        given = form.get("refresh_token")
        # The one before still works until the newest is used, in case its answer was lost.
        if not self.connected or not given or given not in (self.refresh, self.spent):
            return JSONResponse({"error": "invalid_grant"}, 400)
        self.renewals += 1
        self.spent, self.refresh = str(given), f"AB11-simulated-{self.renewals}"
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
        asked = query["entities"].split(",")
        if now - since > timedelta(days=30):
            return _fault(
                400, "4001", "changedSince: more than 30 days ago", "ValidationFault", now
            )
        found = [
            (at, entity, record)
            for entity in asked
            for at, record in self.books.now(entity, now)
            if at > since
        ]
        found.sort(key=lambda one: one[0], reverse=self.newest_first)
        shown = found[: self.cap]
        answers = []
        for entity in asked:
            records = [record for _, kind, record in shown if kind == entity]
            size = {"startPosition": 1, "maxResults": len(records)}
            answers.append({entity: records, **size} if records else {})
        return JSONResponse({"CDCResponse": [{"QueryResponse": answers}], "time": _iso_ms(now)})

    def _query(self, request: Request, body: str) -> Response:
        now = self.clock.now
        try:
            text = request.query_params.get("query") or body
            entity, found, start, most = select(self.books, text, now)
        except ValueError as error:
            return _fault(400, "4001", f"QueryValidationError: {error}", "ValidationFault", now)
        shown = found[start - 1 : start - 1 + most]
        told = {entity: shown, "startPosition": start, "maxResults": len(shown)} if shown else {}
        return JSONResponse({"QueryResponse": told, "time": _iso_ms(now)})

    def _one(self, request: Request, body: str) -> Response:
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
