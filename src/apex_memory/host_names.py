"""Host headers: which of them name this machine.

Whatever listens on loopback is reached by every page in a browser on this machine, under a name of the page's own
choice (DNS rebinding). So servers on loopback answer only requests whose Host is a name of loopback.
"""

from __future__ import annotations

import ipaddress
import re

PRIVATE_ENDINGS = (".internal", ".local", ".svc", ".home.arpa", ".lan")
"""Endings that no name of the internet has: RFC 6762, RFC 8375, the reserved `.internal`, and Kubernetes's services."""


_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]+", re.ASCII)
"""A host that resolvers read as an IPv4 address: `134744072` is 8.8.8.8."""


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


def is_private(name: str) -> bool:
    """Return whether a name or an address, without a port, is one of this machine or of a private network.

    Names of private networks are those without a dot, as containers have, and those that end as `PRIVATE_ENDINGS` do.
    """
    if is_loopback(name):
        return True
    if "." not in name and ":" not in name:
        return not _NUMBER.fullmatch(name)
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower().rstrip(".").endswith(PRIVATE_ENDINGS)
    return address.is_private and not address.is_unspecified


def is_loopback(name: str) -> bool:
    """Return whether a name or an address, without a port, is one of this machine alone."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
