"""Where the gateway is, and the key for it: from the settings, or from the data folder of a stack on this machine."""

from __future__ import annotations

from pathlib import Path

from apex_memory.config import Settings
from apex_memory.engines.state import read_stack
from apex_memory.errors import Misconfigured, Unavailable

KEY_FILE = "admin.key"


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


def api_key(settings: Settings) -> str:
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
    """Return the file in which `apex up` keeps the admin key."""
    return settings.data_dir / KEY_FILE
