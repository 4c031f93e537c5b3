"""A source before a vendor that a test plays: the client between them, and what a pull brings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import httpx2

from apex_memory.errors import ApexError
from apex_memory.simulate.server import SimulatorServer, serve_simulators
from apex_memory.simulate.vendor import Chaos, Simulator, Truth
from apex_memory.simulate.world import Clock, World
from apex_memory.sources.auth import Renew, Token, Tokens
from apex_memory.sources.base import PulledSource
from apex_memory.sources.http import VendorClient
from apex_memory.sources.pages import BackfillRange, ChangeHint, Page, PullContext

S = TypeVar("S", bound=Simulator)


class NoTokens:
    """For a vendor whose token is a setting, or that has none."""

    async def current(self, name: str) -> Token | None:
        raise AssertionError(f"{name} is requested, and nothing is renewed here")

    async def renewed(self, name: str, spent: Token | None, renew: Renew) -> Token:
        raise AssertionError(f"{name} is renewed, and nothing is renewed here")


@dataclass
class KeptTokens:
    """In the place of the vault."""

    kept: dict[str, Token] = field(default_factory=dict)

    async def current(self, name: str) -> Token | None:
        return self.kept.get(name)

    async def renewed(self, name: str, spent: Token | None, renew: Renew) -> Token:
        self.kept[name] = await renew(self.kept.get(name))
        return self.kept[name]


@asynccontextmanager
async def vendor_client(
    source: str, tokens: Tokens | None = None, *, patience: float = 0
) -> AsyncIterator[VendorClient]:
    """A client whose calls are not spread out. Without `tokens` none may be requested."""
    async with httpx2.AsyncClient(verify=False) as http:  # plain HTTP here: no certificates to load
        yield VendorClient(
            source, http, tokens or NoTokens(), rate_limits=lambda: [(1_000, 1)], patience=patience
        )


class Played(Simulator):
    """A vendor whose responses a test gives. Its world means nothing."""

    def __init__(self) -> None:
        world = World.make(1, shipments=1)
        super().__init__(world, Clock(world.start), Chaos())

    def settings(self, base: str) -> dict[str, Any]:
        return {}

    def truth(self, until: datetime) -> Sequence[Truth]:
        return ()


@asynccontextmanager
async def emptied(
    served: SimulatorServer, kind: type[S]
) -> AsyncIterator[tuple[S, dict[str, Any], VendorClient]]:
    """The one simulator that is served, as new; the settings that point to it; and a client."""
    (simulator,) = served.simulators
    assert isinstance(simulator, kind)
    simulator.__init__()  # type: ignore[misc] # as new, and still served
    async with vendor_client(kind.name, KeptTokens(), patience=0.2) as client:
        yield simulator, served.settings()[kind.name], client


async def pulled(
    make: Callable[..., PulledSource],
    vendor: Simulator,
    *,
    cursor: dict[str, Any] | None = None,
    change_hints: Sequence[ChangeHint] = (),
    window: BackfillRange | None = None,
    **settings: Any,
) -> tuple[list[Page], ApexError | None]:
    """All pages of a pull, and the error that it ended with. `make` takes the vendor's address and settings."""
    pages: list[Page] = []
    async with serve_simulators([vendor]) as served, vendor_client(vendor.name) as client:
        context = PullContext(
            client=client, cursor=cursor or {}, change_hints=change_hints, window=window
        )
        try:
            async for page in make(f"{served.url}/{vendor.name}", **settings).pull(context):
                pages.append(page)  # noqa: PERF401 -- what came before an error counts
        except ApexError as error:
            return pages, error
    return pages, None
