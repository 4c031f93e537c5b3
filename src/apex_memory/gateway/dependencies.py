"""Dependencies of request handlers: the opened parts of this process, and the API key of the request."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from temporalio.client import Client

from apex_memory.app import App
from apex_memory.credentials.api_keys import KeyRing, ValidKey
from apex_memory.errors import Rejected
from apex_memory.flows.drain.control import Drains
from apex_memory.flows.fetch.control import Pulling
from apex_memory.gateway.codec_session import Sessions, session_key
from apex_memory.gateway.completion import CompletionWaiter
from apex_memory.gateway.freshness import FreshnessCache
from apex_memory.gateway.group_commit import GroupCommitter
from apex_memory.gateway.ops.data import HistoryData
from apex_memory.host_names import host_name, is_loopback
from apex_memory.machine_load import LoadMeter
from apex_memory.tasks import Background
from apex_memory.tls import ServerTls
from apex_memory.work_threads import WorkThreads

DIRECT_AT_ONCE = (
    2  # requests whose events the gateway processes itself; those beyond go the usual way
)


class Wakes(Protocol):
    """Notifies the workers of a source that something is ready. Never blocks, never raises."""

    def wake(self, source: str) -> None: ...

    def pull(self, source: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The opened parts that handlers use."""

    app: App
    keys: KeyRing
    waker: Wakes
    drains: Drains
    pulling: Pulling
    completion: CompletionWaiter
    group_commit: GroupCommitter
    temporal: Client
    load: LoadMeter
    ops_data: HistoryData
    freshness: FreshnessCache
    background: Background
    tls: ServerTls | None = None
    """The certificate that this gateway shows, None without TLS."""
    reconciling: set[str] = field(default_factory=set)
    """Stores whose comparison with PostgreSQL is under way."""
    processing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DIRECT_AT_ONCE))
    """Held for each request whose events this gateway processes itself."""
    reading: WorkThreads = field(default_factory=WorkThreads)
    """Read the bodies of large requests. The process is replaced when they are stuck."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """Work that outlives its request."""


def gateway_of(request: Request) -> Gateway:
    return cast(Gateway, request.app.state.gateway)


GatewayDep = Annotated[Gateway, Depends(gateway_of)]


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise `Rejected` for a parameter of the address that the route does not have: a misspelled filter would return everything."""
    route: APIRoute = request.scope["route"]
    known = _parameters_of(route.dependant)
    unknown = sorted(request.query_params.keys() - known)
    if unknown and request.method == "GET":
        takes = f"this route has {', '.join(sorted(known))}" if known else "this route has none"
        raise Rejected(f"{', '.join(unknown)[:200]}: unknown parameter", remedy=takes)


def _parameters_of(dependant: Dependant) -> set[str]:
    names = {field.alias for field in dependant.query_params}
    return names.union(*map(_parameters_of, dependant.dependencies))


async def require_known_sources(gateway: Gateway, names: Iterable[str | None]) -> None:
    """Raise `Rejected`, listing the sources, for a name that is neither a source nor the origin of an event in memory."""
    unknown = {name for name in names if name is not None and name not in gateway.app.sources}
    if not unknown:
        return
    # A source may have been removed from `source_path` after its events came.
    rows = await gateway.app.db.fetch(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE EXISTS (SELECT FROM inbox WHERE source = name)",
        (list(unknown),),
    )
    unknown -= {row["name"] for row in rows}
    if unknown:
        raise Rejected(
            f"{min(unknown)[:100]}: no such source",
            remedy=f"sources are {', '.join(gateway.app.sources)}",
        )


_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="An API key, `apex_…`. Scopes: ingest, read, admin; admin includes the other two.",
)
_HEADER = APIKeyHeader(
    name="X-API-Key", auto_error=False, scheme_name="header", description="The same API key."
)


def presented(request: Request) -> str | None:
    """Return the API key of a request, from `Authorization: Bearer` or `X-API-Key`."""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key")


def needs_no_key(request: Request) -> bool:
    """Return whether the caller is on this machine and the settings admit such callers without a key."""
    return gateway_of(request).app.settings.local_without_key and is_local(request)


def is_local(request: Request) -> bool:
    """Return whether the caller is a program on this machine, neither behind a proxy nor a web page in a browser.

    A proxy on this machine that rewrites `Host` and adds no header, as nginx does unless it is told otherwise, cannot
    be told from such a program.
    """
    client = request.client.host if request.client else ""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    named = is_loopback(host_name(request.headers.get("host", "")))
    return is_loopback(client) and named and not forwarded


def basic_password(request: Request) -> str | None:
    """Return the password of HTTP Basic; None for another kind of credentials."""
    kind, _, encoded = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


def credentials(request: Request) -> str | None:
    """Return the API key of a request, also that of the cookie of `/codec`, which counts there alone."""
    key = presented(request)
    if key or Sessions.NAME not in request.cookies:
        return key
    app = gateway_of(request).app
    return session_key(request, app.keyring, app.settings)


async def authenticate(request: Request) -> ValidKey:
    """Return the valid API key of a request, whatever its scopes. Raises `Unauthorized`."""
    return await gateway_of(request).keys.check(credentials(request), None)


class Requires:
    """Dependency that requires a valid API key with the scope, or any valid key for None. Raises `Unauthorized` or `Forbidden`."""

    def __init__(self, scope: str | None) -> None:
        self._scope = scope

    async def __call__(
        self,
        request: Request,
        _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)] = None,
        _header: Annotated[str | None, Security(_HEADER)] = None,
    ) -> ValidKey:
        return await gateway_of(request).keys.check(presented(request), self._scope)


AnyKey = Annotated[ValidKey, Depends(Requires(None))]
Reader = Annotated[ValidKey, Depends(Requires("read"))]
Writer = Annotated[ValidKey, Depends(Requires("ingest"))]
Admin = Annotated[ValidKey, Depends(Requires("admin"))]
