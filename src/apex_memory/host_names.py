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


def is_loopback(name: str) -> bool:
    """Whether a name or an address, without a port, is one of this machine alone."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
