"""What a simulator is: the vendor's API, the webhooks it sends, and what memory must hold in the end."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from apex_memory.simulate.world import Clock, World


@dataclass(slots=True)
class Chaos:
    """How badly a vendor behaves. Shares are of calls or deliveries, 0 to 1; the same seed, the same faults."""

    seed: int = 1
    errors: float = 0.0
    """Calls that get a 5xx."""
    limits: float = 0.0
    """Calls that get a 429, with `Retry-After`."""
    expiries: float = 0.0
    """Calls on which the token has expired (401)."""
    duplicates: float = 0.0
    """Webhooks sent twice."""
    disorder: float = 0.0
    """Webhooks held back behind later ones."""
    lost: float = 0.0
    """Webhooks never sent: only the poll brings what they were about."""
    mutations: float = 0.0
    """Calls for a page after which the data changes."""
    _dice: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 -- faults, not a secret

    def strikes(self, share: float) -> bool:
        """Return whether the fault of this share happens now."""
        return share > 0 and self._dice.random() < share

    def off(self) -> None:
        """End all faults, for the calm after which everything must have arrived."""
        self.errors = self.limits = self.expiries = 0.0
        self.duplicates = self.disorder = self.lost = self.mutations = 0.0


@dataclass(frozen=True, slots=True)
class Push:
    """A webhook, or an API call of an agent, to `path` of Apex at the world time `at`.

    `sign` returns the headers for a body and the time of sending: signatures hold real time.
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
    """What memory must hold of one document in the end: `text` is in it; or, if `deleted`, that it is not found."""

    doc_key: str
    text: str = ""
    deleted: bool = False


class Simulator(ABC):
    """One vendor over the world. All that it returns and sends is a function of world, clock, seed and chaos."""

    name: ClassVar[str]
    """The source that it feeds."""

    def __init__(self, world: World, clock: Clock, chaos: Chaos) -> None:
        self.world, self.clock, self.chaos = world, clock, chaos

    @abstractmethod
    def settings(self, base: str) -> dict[str, Any]:
        """Return the `[sources.NAME]` table that points the source at this simulator.

        It is served under the URL `base`, which has no trailing slash.
        """

    def routes(self) -> Sequence[BaseRoute]:
        """Return the vendor's API, with paths relative to `base`."""
        return ()

    def pushes(self, since: datetime, until: datetime) -> Iterable[Push]:
        """Return what is sent in this range of world time (since exclusive, until inclusive), in order, without chaos."""
        return ()

    @abstractmethod
    def truth(self, until: datetime) -> Sequence[Truth]:
        """Return all that memory must hold of this vendor once everything up to `until` has arrived."""

    async def open(self) -> None:  # noqa: B027 -- most have routes only
        """Start what is not served by routes (an SFTP server)."""

    async def close(self) -> None:  # noqa: B027 -- as above
        """Stop what `open` started."""


def chaos_response(chaos: Chaos) -> Response | None:
    """Return a plain 429 or 503 where one strikes; vendors with an error format of their own build theirs."""
    if chaos.strikes(chaos.limits):
        return JSONResponse({"message": "too many requests"}, 429, {"Retry-After": "0.02"})
    if chaos.strikes(chaos.errors):
        return JSONResponse({"message": "internal error"}, 503)
    return None
