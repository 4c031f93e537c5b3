"""The cookie of `/codec`: the API key of somebody who signed in, sealed, for a browser that shows Temporal's UI."""

from __future__ import annotations

import base64
import binascii
import json
from time import time
from typing import ClassVar
from urllib.parse import urlsplit

from starlette.requests import Request

from apex_memory.config import EMBEDDED, Settings
from apex_memory.errors import Misconfigured
from apex_memory.sealing import Keyring

PATH = "/codec"
SECONDS = 12 * 3600  # how long a sign-in lasts
PURPOSE = "sign-in of the codec"


class Sessions:
    """Makes and reads cookies. A key that is revoked ends its sessions, since each request checks it again."""

    NAME: ClassVar[str] = "apex_codec"

    def __init__(self, keys: Keyring) -> None:
        self._keys = keys.for_purpose(PURPOSE)

    def cookie_of(self, key: str) -> str:
        """Return the cookie of an API key. Raises `Misconfigured` where the installation has no key to seal it with."""
        content = json.dumps({"key": key, "until": int(time()) + SECONDS}).encode()
        sealed = self._keys.seal(content, bound=PURPOSE.encode())
        return f"{self._keys.first}.{base64.urlsafe_b64encode(sealed).decode()}"

    def key_of(self, cookie: str) -> str | None:
        """Return the API key of a cookie; None for one that has ended or was not made here."""
        id, _, text = cookie.partition(".")
        try:
            sealed = base64.b64decode(text, altchars=b"-_", validate=True)
            content = json.loads(
                self._keys.open(id, sealed, bound=PURPOSE.encode(), subject="a sign-in")
            )
        except (Misconfigured, binascii.Error, ValueError):
            return None
        return str(content["key"]) if content["until"] > time() else None


def session_key(request: Request, keys: Keyring, settings: Settings) -> str | None:
    """Return the API key of the cookie of a request to `/codec` from the UI; None for any other request.

    A page of another origin cannot use the cookie, also where the browser would send it.
    """
    cookie = request.cookies.get(Sessions.NAME)
    if not cookie or not request.url.path.startswith(f"{PATH}/"):
        return None
    origin = request.headers.get("origin")
    if not origin or origin != ui_origin(settings):
        return None
    return Sessions(keys).key_of(cookie)


def ui_origin(settings: Settings) -> str:
    """Return the origin of the UI that the setting `temporal_ui` names; empty without one."""
    if settings.temporal_ui in ("", EMBEDDED):
        return ""
    parts = urlsplit(settings.temporal_ui)
    return f"{parts.scheme}://{parts.netloc}".lower()
