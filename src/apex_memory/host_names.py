"""Host headers: which of them name this machine.

Whatever listens on loopback is reached by every page in a browser on this machine, under a name of the page's own
choice (DNS rebinding). So servers on loopback answer only requests whose Host is a name of loopback.
"""

from __future__ import annotations

import ipaddress


def host_name(host: str) -> str:
    """Return the name in `name:port` or `[::1]:port`, in lower case."""
    host = host.partition("/")[0].strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port`; the host may be an IPv6 address in brackets. Raises `ValueError`."""
    host, separator, port = text.rpartition(":")
    if not (separator and host and port.isdecimal() and int(port) < 65_536):
        raise ValueError("must be `host:port`, such as 127.0.0.1:9464; port 0 chooses a free one")
    return host.strip("[]"), int(port)


def is_loopback(name: str) -> bool:
    """Whether a name or an address, without a port, is one of this machine alone."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
