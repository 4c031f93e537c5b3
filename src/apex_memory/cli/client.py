"""The commands' connection to the gateway: the Python client, with errors that name commands where the API names routes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from apex_memory.client import Apex, Refused
from apex_memory.client.calls import Call, any_json
from apex_memory.client.location import api_key, gateway_url
from apex_memory.config import Settings, load_settings
from apex_memory.tls import ClientTls

TIMEOUT = 120.0  # seconds for a response; on a machine slowed to a tenth some take half a minute
PAGE_ROWS = 200  # rows of a list in one request
COMMANDS = {
    "GET /v1/events": "apex events",
    "GET /v1/documents": "apex documents",
    "GET /v1/sources": "apex sources",
    "GET /v1/builds": "apex builds list",
    "GET /v1/secrets": "apex secrets list",
    "GET /v1/keys": "apex keys list",
    "GET /v1/rollouts": "apex rollout list",
    "`DELETE /v1/documents/ID`": "apex delete ID",
    "/v1/sources": "apex sources --json",
}
"""The command for each route that a remedy names: people who use the command line cannot do much with a route."""

_PLACE = re.compile(r"(?:^|(?<=^correct ))(?:path|query|body)\.(?=[a-z])")
"""Where a parameter stands in the request: the command line has no such places."""

_ROUTE = re.compile("|".join(re.escape(route) + r"(?![\w/`])" for route in COMMANDS))


def with_commands(remedy: str) -> str:
    """Return a remedy with commands in the place of HTTP routes."""
    return _ROUTE.sub(lambda match: f"`{COMMANDS[match[0]]}`", remedy)


class Gateway(Apex):
    """A connection to the gateway. Its calls raise `Refused` or `Unavailable`, with a remedy.

    With `patience` a request is repeated for so many seconds while the gateway returns 503: only for requests that may
    be repeated. Without it each is sent once.
    """

    def __init__(self, url: str, key: str, tls: ClientTls, *, patience: float = 0.0) -> None:
        super().__init__(url, key, timeout=TIMEOUT, patience=patience, tls=tls)

    def call(self, method: str, path: str, *, patience: float | None = None, **request: Any) -> Any:
        """Return the JSON of the response. `request` has the fields of `Call`; a `timeout` is in seconds.

        `patience` is that of the connection, unless given.
        """
        return self.send(
            Call(method=method, path=path, read=any_json, **request), patience=patience
        )

    def pages(
        self, path: str, name: str, params: Mapping[str, Any], limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return the first `limit` rows of a list, and the cursor at which the rest begins; None if there is no rest.

        `name` is the field of a page that holds its rows.
        """
        rows: list[dict[str, Any]] = []
        cursor: str | None = None
        for page in self.each_page(path, name, params, limit):
            rows += page[name]
            cursor = page["next"]
        return rows, cursor

    def each_page(
        self, path: str, name: str, params: Mapping[str, Any], limit: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the pages that have the first `limit` rows of a list; see `pages`."""
        cursor: str | None = None
        while limit > 0:
            size = min(PAGE_ROWS, limit)
            page = self.call("GET", path, params={**params, "cursor": cursor, "limit": size})
            yield page
            limit -= len(page[name])
            cursor = page["next"]
            if cursor is None:
                break

    def download(self, path: str, *, params: Mapping[str, Any] | None = None) -> bytes:
        """Return the bytes of a response."""
        return self.send(Call(method="GET", path=path, params=params or {}, read=bytes))

    def _explained(self, error: Refused) -> Refused:
        return explained(error)


def explained(error: Refused) -> Refused:
    """Return an error for people at the command line, who know neither routes nor places of a request."""
    return type(error)(
        _PLACE.sub("", str(error)),
        remedy=with_commands(_PLACE.sub("", error.remedy)),
        status=error.status,
        code=error.code,
        after=error.after,
    )


@contextmanager
def gateway(settings: Settings | None = None) -> Iterator[Gateway]:
    """Yield a connection to the gateway that the settings name, or that runs from the data folder."""
    settings = settings or load_settings()
    with Gateway(gateway_url(settings), api_key(settings), settings.connections_tls) as api:
        yield api
