"""QuickBooks Online: an invoice, a payment and a carrier's bill a shipment; changes, queries, OAuth, signed webhooks."""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from apex_memory.simulate.vendor import Chaos, Push, Simulator, Truth
from apex_memory.simulate.world import Clock, Company, Shipment, World

REALM = "9130350000000001"
CLIENT, SECRET, VERIFIER = "simulated-client", "simulated-secret", "simulated-verifier"
FIRST_REFRESH = "AB11-simulated-0"
PACIFIC = timezone(timedelta(hours=-8))  # its times carry an offset
LISTS = ("Customer", "Vendor")
USD = {"value": "USD", "name": "United States Dollar"}


@dataclass(slots=True)
class Books:
    """Records by (type, id), each a list of versions (time, body), oldest first. Times are whole seconds."""

    versions: dict[tuple[str, str], list[tuple[datetime, dict[str, Any]]]] = field(
        default_factory=dict
    )

    def put(self, entity: str, id: str, at: datetime, body: Mapping[str, Any]) -> None:
        """Write a version; its sync token is one more than the last."""
        told = self.versions.setdefault((entity, id), [])
        at = at.replace(microsecond=0)
        created = told[0][0] if told else at
        meta = {"CreateTime": _iso(created), "LastUpdatedTime": _iso(at)}
        own = {
            "domain": "QBO",
            "sparse": False,
            "Id": id,
            "SyncToken": str(len(told)),
            "MetaData": meta,
        }
        told.append((at, {**body, **own}))

    def delete(self, entity: str, id: str, at: datetime) -> None:
        at = at.replace(microsecond=0)
        gone = {"domain": "QBO", "status": "Deleted", "Id": id}
        self.versions[entity, id].append((at, {**gone, "MetaData": {"LastUpdatedTime": _iso(at)}}))

    def now(self, entity: str, now: datetime) -> list[tuple[datetime, dict[str, Any]]]:
        """The last version of each record of a type."""
        found = []
        for (kind, _), versions in self.versions.items():
            if kind == entity and (past := [one for one in versions if one[0] <= now]):
                found.append(past[-1])
        return found


class Financial(Simulator):
    name: ClassVar[str] = "financial"

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        super().__init__(world, clock, chaos)
        self.books = Books()
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
        self._gone: list[tuple[datetime, str, str, str]] = []  # merges: at, entity, kept, lost
        self._tell()

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
        notices = []
        for (entity, id), versions in self.books.versions.items():
            for n, (at, body) in enumerate(versions):
                if since < at <= until:
                    notices.append((at, entity, id, _operation(n, body), ""))
        notices += [
            (at, entity, kept, "Merge", lost)
            for at, entity, kept, lost in self._gone
            if since < at <= until
        ]
        notices.sort()
        for n in range(0, len(notices), 5):
            some = notices[n : n + 5]
            told: Any = _legacy(some) if n % 2 else _cloud(some)
            yield Push(notices[n][0], "/hooks/financial", json.dumps(told).encode(), signed)

    def truth(self, until: datetime) -> Sequence[Truth]:
        told = []
        for (entity, id), versions in self.books.versions.items():
            if past := [body for at, body in versions if at <= until]:
                last, key = past[-1], f"{REALM}:{entity}:{id}"
                gone = last.get("status") == "Deleted" or last.get("Active") is False
                text = last.get("PrivateNote") or last.get("Notes") or ""
                told.append(Truth(key, "" if gone else text, deleted=gone))
        return told

    # -- the world as its books tell it

    def _tell(self) -> None:
        opened = self.world.start - timedelta(days=2)
        for company in self.world.customers:
            self.books.put("Customer", str(company.number), opened, _party(company))
        for company in self.world.carriers:
            self.books.put("Vendor", str(company.number), opened, _party(company))
        self._leave(opened)
        for shipment in self.world.shipments:
            self._money(shipment)

    def _leave(self, opened: datetime) -> None:
        """A customer made inactive, one that comes back, and a vendor entered twice and merged."""
        start, carrier = self.world.start, self.world.carriers[0]
        for n, name in enumerate(("Closed Mills", "Seasonal Orchards")):
            body = {"DisplayName": name, "Active": True, "Notes": f"{name}, called monthly."}
            self.books.put("Customer", str(9_900 + n), opened, body)
            away = start + timedelta(hours=4 + n)
            self.books.put("Customer", str(9_900 + n), away, {**body, "Active": False})
            if n:
                back = {**body, "Notes": f"{name} is back."}
                self.books.put("Customer", str(9_900 + n), away + timedelta(hours=3), back)
        merged = start + timedelta(hours=7)
        twice = {"DisplayName": f"{carrier.name} (2)", "Active": True, "Notes": "Entered twice."}
        self.books.put("Vendor", "9990", opened, twice)
        self.books.delete("Vendor", "9990", merged)
        self._gone.append((merged.replace(microsecond=0), "Vendor", str(carrier.number), "9990"))

    def _money(self, shipment: Shipment) -> None:
        books, id = self.books, str(shipment.number - 100_000)
        if delivered := shipment.at("delivered"):
            books.put("Bill", id, delivered, _bill(shipment))
        billed, paid = shipment.at("invoiced"), shipment.at("paid")
        if billed is None or paid is None:
            return
        invoice = _invoice(shipment)
        books.put("Invoice", id, billed, invoice)
        if shipment.number % 4 == 0:  # entered twice: one is deleted, one voided
            twice, void = str(2_000 + int(id)), str(3_000 + int(id))
            books.put("Invoice", twice, billed, {**invoice, "DocNumber": f"{shipment.invoice}-2"})
            books.delete("Invoice", twice, billed + timedelta(minutes=20))
            wrong = {**invoice, "DocNumber": f"{shipment.invoice}-3"}
            books.put("Invoice", void, billed, wrong)
            books.put(
                "Invoice",
                void,
                billed + timedelta(minutes=30),
                {**wrong, "PrivateNote": "Voided", "Balance": 0},
            )
        note = f"{shipment.invoice} is paid."
        link = [{"TxnId": id, "TxnType": "Payment"}]
        done = {**invoice, "Balance": 0, "LinkedTxn": link, "PrivateNote": note}
        books.put("Payment", id, paid, _payment(shipment, id))
        books.put("Invoice", id, paid, done)

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
            entity, found, start, most = self._selected(request.query_params.get("query") or body)
        except ValueError as error:
            return _fault(400, "4001", f"QueryValidationError: {error}", "ValidationFault", now)
        shown = found[start - 1 : start - 1 + most]
        told = {entity: shown, "startPosition": start, "maxResults": len(shown)} if shown else {}
        return JSONResponse({"QueryResponse": told, "time": _iso_ms(now)})

    def _selected(self, text: str) -> tuple[str, list[dict[str, Any]], int, int]:
        match = _QUERY.fullmatch(text.strip())
        if match is None:
            raise ValueError("not understood")
        entity, now = match["entity"], self.clock.now
        conditions = re.split(r"\s+and\s+", match["where"] or "", flags=re.IGNORECASE)
        conditions = [one for one in conditions if one]
        if entity in LISTS and not any(one.lower().startswith("active") for one in conditions):
            conditions.append("Active in (true)")
        tests = [_condition(one) for one in conditions]
        start, most = int(match["start"] or 1), int(match["most"] or 100)
        if most > 1000 or start < 1:
            raise ValueError("page")
        found = [
            record
            for at, record in self.books.now(entity, now)
            if record.get("status") != "Deleted" and all(test(at, record) for test in tests)
        ]
        if match["order"] == "MetaData.LastUpdatedTime":
            found.sort(key=lambda one: datetime.fromisoformat(one["MetaData"]["LastUpdatedTime"]))
        return entity, found, start, most

    def _one(self, request: Request, body: str) -> Response:
        now, names = self.clock.now, {kind.lower(): kind for kind, _ in self.books.versions}
        entity = names.get(request.path_params["entity"], "")
        for _, record in self.books.now(entity, now):
            if record["Id"] == request.path_params["id"] and record.get("status") != "Deleted":
                return JSONResponse({entity: record, "time": _iso_ms(now)})
        return _fault(400, "610", "Object Not Found", "ValidationFault", now)


_QUERY = re.compile(
    r"select \* from (?P<entity>\w+)(?: where (?P<where>.+?))?(?: order ?by (?P<order>[\w.]+)(?: asc)?)?"
    r"(?: startposition (?P<start>\d+))?(?: maxresults (?P<most>\d+))?",
    re.IGNORECASE,
)


def _condition(text: str) -> Callable[[datetime, Mapping[str, Any]], bool]:
    if active := re.fullmatch(r"Active in \((.+)\)", text, re.IGNORECASE):
        wanted = [one.strip().lower() == "true" for one in active[1].split(",")]
        return lambda at, record: record.get("Active", True) in wanted
    if timed := re.fullmatch(r"MetaData\.LastUpdatedTime\s*(>=|<=|>|<|=)\s*'(.+)'", text):
        than = datetime.fromisoformat(timed[2])
        compare: dict[str, Callable[[datetime], bool]] = {
            ">=": lambda at: at >= than,
            "<=": lambda at: at <= than,
            ">": lambda at: at > than,
            "<": lambda at: at < than,
            "=": lambda at: at == than,
        }
        return lambda at, record: compare[timed[1]](at)
    if equal := re.fullmatch(r"(\w+)\s*=\s*'(.*)'", text):
        return lambda at, record: str(record.get(equal[1])) == equal[2]
    raise ValueError(text)


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


def signed(body: bytes, at: datetime) -> Mapping[str, str]:
    digest = hmac.digest(VERIFIER.encode(), body, "sha256")
    return {"intuit-signature": base64.b64encode(digest).decode()}


Told = tuple[datetime, str, str, str, str]  # at, entity, id, operation, lost by a merge


def _operation(n: int, body: Mapping[str, Any]) -> str:
    if body.get("status") == "Deleted":
        return "Delete"
    if body.get("PrivateNote") == "Voided":
        return "Void"
    return "Update" if n else "Create"


def _legacy(notices: Sequence[Told]) -> dict[str, Any]:
    entities = [
        {
            "name": entity,
            "id": id,
            "operation": operation,
            "lastUpdated": at.astimezone(PACIFIC).strftime("%Y-%m-%dT%H:%M:%S%z"),
            **({"deletedId": lost} if lost else {}),
        }
        for at, entity, id, operation, lost in notices
    ]
    return {"eventNotifications": [{"realmId": REALM, "dataChangeEvent": {"entities": entities}}]}


def _cloud(notices: Sequence[Told]) -> list[dict[str, Any]]:
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
            "data": {"deletedId": lost} if lost else {},
        }
        for at, entity, id, operation, lost in notices
    ]


def _party(company: Company) -> dict[str, Any]:
    person = company.people[0]
    return {
        "DisplayName": company.name,
        "CompanyName": company.name,
        "GivenName": person.name.split()[0],
        "FamilyName": person.name.split()[-1],
        "PrimaryEmailAddr": {"Address": f"billing@{company.domain}"},
        "PrimaryPhone": {"FreeFormNumber": person.phone},
        "Active": True,
        "Balance": 0,
        "Notes": f"SCAC {company.scac}, MC {company.mc}." if company.scac else "Net 30.",
    }


def _invoice(shipment: Shipment) -> dict[str, Any]:
    total = shipment.total_cents / 100
    lane = f"{shipment.origin.city} {shipment.origin.state} to {shipment.destination.city} {shipment.destination.state}"
    lines = [("Freight", shipment.linehaul_cents, f"{shipment.id} {lane}")]
    lines.append(("Fuel surcharge", shipment.fuel_cents, f"{shipment.id}, {shipment.miles} miles"))
    return {
        "DocNumber": shipment.invoice,
        "TxnDate": f"{shipment.at('invoiced'):%Y-%m-%d}",
        "DueDate": f"{(shipment.at('invoiced') or shipment.milestones[-1].at) + timedelta(days=30):%Y-%m-%d}",
        "CurrencyRef": USD,
        "CustomerRef": {"value": str(shipment.customer.number), "name": shipment.customer.name},
        "CustomField": [
            {"DefinitionId": "1", "Name": "PO", "Type": "StringType", "StringValue": shipment.po}
        ],
        "CustomerMemo": {"value": f"Thank you for shipping with us. PO {shipment.po}."},
        "PrivateNote": f"Delivered by {shipment.carrier.name}, unit {shipment.vehicle.unit}.",
        "Line": [
            {
                "Id": str(n),
                "LineNum": n,
                "Description": what,
                "Amount": cents / 100,
                "DetailType": "SalesItemLineDetail",
                "SalesItemLineDetail": {"ItemRef": {"value": str(n), "name": item}},
            }
            for n, (item, cents, what) in enumerate(lines, 1)
        ]
        + [{"Amount": total, "DetailType": "SubTotalLineDetail", "SubTotalLineDetail": {}}],
        "TotalAmt": total,
        "Balance": total,
        "LinkedTxn": [],
    }


def _payment(shipment: Shipment, invoice_id: str) -> dict[str, Any]:
    total = shipment.total_cents / 100
    named = {"Name": "txnReferenceNumber", "Value": shipment.invoice}
    return {
        "TxnDate": f"{shipment.at('paid'):%Y-%m-%d}",
        "CurrencyRef": USD,
        "CustomerRef": {"value": str(shipment.customer.number), "name": shipment.customer.name},
        "PaymentRefNum": f"ACH{shipment.number}",
        "PrivateNote": f"ACH from {shipment.customer.name} for {shipment.invoice}.",
        "TotalAmt": total,
        "Line": [
            {
                "Amount": total,
                "LinkedTxn": [{"TxnId": invoice_id, "TxnType": "Invoice"}],
                "LineEx": {
                    "any": [
                        {
                            "name": "{http://schema.intuit.com/finance/v3}NameValue",
                            "nil": False,
                            "value": named,
                        }
                    ]
                },
            }
        ],
    }


def _bill(shipment: Shipment) -> dict[str, Any]:
    total = round(shipment.total_cents * 0.86) / 100
    return {
        "DocNumber": shipment.pro,
        "TxnDate": f"{shipment.at('delivered'):%Y-%m-%d}",
        "CurrencyRef": USD,
        "VendorRef": {"value": str(shipment.carrier.number), "name": shipment.carrier.name},
        "PrivateNote": f"{shipment.pro} for {shipment.id}.",
        "Line": [
            {
                "Id": "1",
                "Description": f"Line haul {shipment.id}",
                "Amount": total,
                "DetailType": "AccountBasedExpenseLineDetail",
                "AccountBasedExpenseLineDetail": {
                    "AccountRef": {"value": "80", "name": "Purchased transportation"}
                },
            }
        ],
        "TotalAmt": total,
        "Balance": total,
    }


def _fault(status: int, code: str, message: str, type: str, now: datetime) -> Response:
    error = {"Message": message, "Detail": message, "code": code, "element": ""}
    return JSONResponse({"Fault": {"Error": [error], "type": type}, "time": _iso_ms(now)}, status)


def _iso(at: datetime) -> str:
    return at.astimezone(PACIFIC).isoformat(timespec="seconds")


def _iso_ms(at: datetime) -> str:
    return at.astimezone(PACIFIC).isoformat(timespec="milliseconds")
