"""The gateway, as the command line calls it."""

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
    """The gateway refused the request; its own words and remedy are passed on."""


class Gateway:
    """A session with the gateway. Errors come as `Refused` or `Unavailable`, with a remedy."""

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
        """The answer's JSON, awaited for at most `timeout` seconds."""
        try:
            answer = self._http.request(
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
                f"{self.url} does not answer ({type(error).__name__})",
                remedy="start it with `apex up`",
            ) from None
        if answer.is_success:
            return answer.json() if answer.content else None
        raise _refused(answer)

    def close(self) -> None:
        self._http.close()


def _refused(answer: httpx2.Response) -> Refused:
    try:
        problem = answer.json()["error"]
        return Refused(f"{problem['message']}", remedy=problem.get("remedy", ""))
    except (json.JSONDecodeError, KeyError, TypeError):
        return Refused(f"the gateway answered {answer.status_code}", remedy="run `apex doctor`")


@contextmanager
def gateway(settings: Settings | None = None) -> Iterator[Gateway]:
    """The gateway of this data folder, or the one that the settings name."""
    settings = settings or load_settings()
    session = Gateway(gateway_url(settings), admin_key(settings))
    try:
        yield session
    finally:
        session.close()


def gateway_url(settings: Settings) -> str:
    if settings.url:
        return settings.url.rstrip("/")
    stack = read_stack(settings.data_dir)
    if stack is None or "gateway" not in stack.urls:
        raise Unavailable(
            "gateway",
            f"nothing runs from {settings.data_dir}",
            remedy="start it with `apex up`, or set APEX_URL",
        )
    return stack.urls["gateway"]


def admin_key(settings: Settings) -> str:
    """The key to send: the setting, or the admin key that `apex up` keeps in the data folder."""
    given = settings.api_key.get_secret_value()
    if given:
        return given
    file = key_file(settings)
    try:
        return file.read_text(encoding="utf-8").strip()
    except PermissionError:
        raise Misconfigured(
            f"{file}: may not be read by you", remedy="set APEX_API_KEY to a key of yours"
        ) from None
    except FileNotFoundError:
        return ""


def key_file(settings: Settings) -> Path:
    return settings.data_dir / KEY_FILE
