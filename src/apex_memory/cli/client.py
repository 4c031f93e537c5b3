"""The HTTP client with which commands call the gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx2

from apex_memory.config import Settings, load_settings
from apex_memory.engines.state import read_stack
from apex_memory.errors import ApexError, Misconfigured, Unavailable

KEY_FILE = "admin.key"
TIMEOUT = 120.0  # seconds for a response; on a machine slowed to a tenth some take half a minute
LONGEST_PAUSE = 10.0  # seconds; of what `Retry-After` asks for
PAGE_ROWS = 200  # rows of a list in one request
COMMANDS = {
    "GET /v1/events": "apex events",
    "GET /v1/documents": "apex documents",
    "GET /v1/sources": "apex sources",
    "GET /v1/secrets": "apex secrets list",
    "GET /v1/keys": "apex keys list",
    "`DELETE /v1/documents/ID`": "apex delete ID",
    "/v1/sources": "apex sources --json",
}
"""The command for each route that a remedy names: people who use the command line cannot do much with a route."""

_PLACE = re.compile(r"(?:^|(?<=^correct ))(?:path|query|body)\.(?=[a-z])")
"""Where a parameter stands in the request: the command line has no such places."""

_ROUTE = re.compile("|".join(re.escape(route) + r"(?![\w/`])" for route in COMMANDS))


class Refused(ApexError):
    """The gateway refused the request. Message and remedy are the gateway's; `status` is that of the response."""

    def __init__(self, message: str, *, remedy: str = "", status: int = 0) -> None:
        super().__init__(message, remedy=with_commands(remedy))
        self.status = status


def with_commands(remedy: str) -> str:
    """Return a remedy with commands in the place of HTTP routes."""
    return _ROUTE.sub(lambda match: f"`{COMMANDS[match[0]]}`", remedy)


class Gateway:
    """A session with the gateway. Its calls raise `Refused` or `Unavailable`, with a remedy."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT,
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """Return the JSON of the response. `timeout` is in seconds."""
        response = self._send(
            method,
            path,
            json=json,
            content=content,
            headers=dict(headers or {}),
            timeout=timeout,
            params=_given(params),
        )
        return response.json() if response.content else None

    def call_patiently(
        self, method: str, path: str, *, patience: float = 60, **request: Any
    ) -> Any:
        """Do the same, and repeat the request while the gateway returns 503, as its `Retry-After` says.

        Raises `Refused` when `patience` seconds have passed. Only for requests that may be repeated.
        """
        deadline = monotonic() + patience
        while True:
            try:
                return self.call(method, path, **request)
            except Busy as error:
                pause = min(error.after, LONGEST_PAUSE)
                if monotonic() + pause > deadline:
                    raise
                sleep(pause)

    def pages(
        self, path: str, name: str, params: Mapping[str, Any], limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return the first `limit` rows of a list, and the cursor at which the rest begins; None if there is no rest.

        `name` is the field of a page that holds its rows.
        """
        rows: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(rows) < limit:
            size = min(PAGE_ROWS, limit - len(rows))
            page = self.call("GET", path, params={**params, "cursor": cursor, "limit": size})
            rows += page[name]
            cursor = page["next"]
            if cursor is None:
                break
        return rows, cursor

    def download(self, path: str, *, params: Mapping[str, Any] | None = None) -> bytes:
        """Return the bytes of a response."""
        return self._send("GET", path, params=_given(params)).content

    def resolve(self, id: str) -> dict[str, str]:
        """Return the `event` and the `document` that any id names. Raises `Refused` if none or several do."""
        answer: dict[str, str] = self.call("GET", "/v1/resolve", params={"id": id})
        return answer

    def _send(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **request)
        except (httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise Unavailable(
                "gateway",
                f"{self.url} runs, and did not respond within {request.get('timeout', TIMEOUT):g} s",
                remedy="it is busy or slow, and may have done what was requested: `apex doctor` says what is slow",
            ) from None
        except httpx2.TransportError as error:
            raise Unavailable(
                "gateway",
                f"{self.url} does not respond ({type(error).__name__})",
                remedy="start it with `apex up`",
            ) from None
        if not response.is_success:
            raise _refused(response)
        return response

    def close(self) -> None:
        self._http.close()


class Busy(Refused):
    """The gateway returned 503: repeat the request after `after` seconds."""

    def __init__(self, message: str, *, remedy: str = "", after: float = 1.0) -> None:
        super().__init__(message, remedy=remedy, status=503)
        self.after = after


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _refused(response: httpx2.Response) -> Refused:
    try:
        problem = response.json()["error"]
        message = _PLACE.sub("", str(problem["message"]))
        remedy = _PLACE.sub("", str(problem.get("remedy", "")))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        message = f"the gateway returned status {response.status_code}"
        remedy = "run `apex doctor`"
    if response.status_code == 503:
        return Busy(message, remedy=remedy, after=_seconds(response.headers.get("retry-after")))
    return Refused(message, remedy=remedy, status=response.status_code)


def _seconds(header: str | None) -> float:
    """Return the seconds of a `Retry-After`; 1 where it has none."""
    return float(header) if header and header.isascii() and header.isdecimal() else 1.0


@contextmanager
def gateway(settings: Settings | None = None) -> Iterator[Gateway]:
    """Yield a session with the gateway that the settings name, or that runs from the data folder."""
    settings = settings or load_settings()
    session = Gateway(gateway_url(settings), admin_key(settings))
    try:
        yield session
    finally:
        session.close()


def gateway_url(settings: Settings) -> str:
    """Return the gateway's URL. Raises `Unavailable` when the settings name none and no stack runs."""
    if settings.url:
        return settings.url.rstrip("/")
    stack = read_stack(settings.data_dir)
    if stack is None or "gateway" not in stack.urls:
        raise Unavailable(
            "gateway",
            f"no stack runs from {settings.data_dir}",
            remedy="start it with `apex up`, or set APEX_URL",
        )
    return stack.urls["gateway"]


def admin_key(settings: Settings) -> str:
    """Return the API key: the setting, or the admin key that `apex up` keeps in the data folder; empty without one."""
    given = settings.api_key.get_secret_value()
    if given:
        return given
    file = key_file(settings)
    try:
        return file.read_text(encoding="utf-8").strip()
    except PermissionError:
        raise Misconfigured(
            f"{file}: permission denied", remedy="set APEX_API_KEY to your own key"
        ) from None
    except FileNotFoundError:
        return ""


def key_file(settings: Settings) -> Path:
    return settings.data_dir / KEY_FILE
