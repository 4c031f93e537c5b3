"""The HTTP client with which commands call the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from apex_memory.config import Settings, load_settings
from apex_memory.engines.state import read_stack
from apex_memory.errors import ApexError, Misconfigured, Unavailable

KEY_FILE = "admin.key"


class Refused(ApexError):
    """The gateway refused the request. Message and remedy are the gateway's."""


class Gateway:
    """A session with the gateway. Its calls raise `Refused` or `Unavailable`, with a remedy."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._http = httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=60
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
        timeout: float = 60,
    ) -> Any:
        """Return the JSON of the response. `timeout` is in seconds."""
        try:
            response = self._http.request(
                method,
                path,
                json=json,
                content=content,
                headers=dict(headers or {}),
                timeout=timeout,
                params={name: value for name, value in (params or {}).items() if value is not None},
            )
        except httpx2.TransportError as error:
            raise Unavailable(
                "gateway",
                f"{self.url} does not respond ({type(error).__name__})",
                remedy="start it with `apex up`",
            ) from None
        if response.is_success:
            return response.json() if response.content else None
        raise _refused(response)

    def close(self) -> None:
        self._http.close()


def _refused(response: httpx2.Response) -> Refused:
    try:
        problem = response.json()["error"]
        return Refused(str(problem["message"]), remedy=problem.get("remedy", ""))
    except (json.JSONDecodeError, KeyError, TypeError):
        return Refused(
            f"the gateway returned status {response.status_code}", remedy="run `apex doctor`"
        )


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
