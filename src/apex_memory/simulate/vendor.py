"""What a simulator is: routes that answer as the vendor does, webhooks that it sends, and what is true in the end."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from apex_memory.simulate.world import Clock, World


@dataclass(slots=True)
class Chaos:
    """How badly a vendor behaves. Shares are of calls or deliveries, 0 to 1; the same seed, the same trouble.

    `off()` ends it, for the quiet after which everything must have arrived.
    """

    seed: int = 1
    errors: float = 0.0
    """Calls answered 5xx."""
    limits: float = 0.0
    """Calls answered 429, with `Retry-After`."""
    expiries: float = 0.0
    """Calls on which the token is suddenly no longer valid (401)."""
    duplicates: float = 0.0
    """Webhooks sent twice."""
    disorder: float = 0.0
    """Webhooks held back behind later ones."""
    lost: float = 0.0
    """Webhooks never sent: the poll must make up for them."""
    mutations: float = 0.0
    """Page calls between which the data changes."""
    _dice: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 -- trouble, not a secret

    def strikes(self, share: float) -> bool:
        return share > 0 and self._dice.random() < share

    def off(self) -> None:
        """From now on everything goes well."""
        self.errors = self.limits = self.expiries = 0.0
        self.duplicates = self.disorder = self.lost = self.mutations = 0.0


@dataclass(frozen=True, slots=True)
class Push:
    """A webhook or an API call that the vendor (or an agent) makes: to `path` of Apex, at a time of the world.

    `sign` makes the headers at the moment of sending: signatures carry the real time.
    """

    at: datetime
    path: str
    body: bytes
    sign: Callable[[bytes, datetime], Mapping[str, str]]
    content_type: str = "application/json"
    keyed: bool = False
    """Sent with an API key of Apex, not with a signature."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What memory must hold of one thing in the end: `text` stands in its document; `deleted`: it is not found."""

    doc_key: str
    text: str = ""
    deleted: bool = False


class Simulator(ABC):
    """One vendor over the world. Everything it answers and sends is a function of world, clock, seed and chaos."""

    name: ClassVar[str]
    """The source that it feeds."""

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        self.world, self.clock, self.chaos = world, clock, chaos

    @abstractmethod
    def settings(self, base: str) -> dict[str, Any]:
        """`[sources.NAME]` that points the source at this simulator, served under `base` (no trailing slash)."""

    def routes(self) -> Sequence[BaseRoute]:
        """The vendor's API, relative to `base`."""
        return ()

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        """What is sent in this stretch of world time (since exclusive, until inclusive), in order, without chaos."""
        return ()

    @abstractmethod
    def truth(self, until: datetime) -> Sequence[Truth]:
        """All that memory must hold of this vendor once everything up to then has arrived."""

    async def open(self) -> None:  # noqa: B027 -- most are routes alone
        """Start what is more than routes (an SFTP server)."""

    async def close(self) -> None:  # noqa: B027 -- as above
        """End it."""


def trouble(chaos: Chaos, request: Request) -> Response | None:
    """A vendor's usual bad answers, in plain form; vendors with a form of their own make it themselves."""
    if chaos.strikes(chaos.limits):
        return JSONResponse({"message": "too many requests"}, 429, {"Retry-After": "0.02"})
    if chaos.strikes(chaos.errors):
        return JSONResponse({"message": "internal error"}, 503)
    return None
