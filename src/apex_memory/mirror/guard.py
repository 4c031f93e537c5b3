"""Which addresses a mirror may connect to: those of the internet, and those of networks that the settings name.

A name is resolved, its addresses are checked, and the connection goes to a checked address, so that a name that
resolves differently a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

import httpcore2

from apex_memory.errors import Misconfigured, Unavailable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NAT64 = IPv6Network("64:ff9b::/96")
NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # metadata of Azure, at an address of the internet
        "192.0.0.0/24",  # IETF protocol assignments; metadata of Oracle Cloud
        "192.88.99.0/24",  # former 6to4 relays
        "64:ff9b:1::/48",  # local NAT64
        "fec0::/10",  # former site-local addresses
    )
)
"""Networks that `ipaddress` takes for global, and that no mirror of a vendor's webhook belongs to."""


def effective(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for (mapped, 6to4, Teredo, NAT64), or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped:
        return address.ipv4_mapped
    if address.sixtofour:
        return address.sixtofour
    if address.teredo:
        return address.teredo[1]
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Return whether an address is one of the internet: not of this machine, a link, a private network or a group."""
    real = effective(address)
    if not real.is_global or real.is_multicast or real.is_reserved:
        return False
    return not any(real.version == network.version and real in network for network in NOT_PUBLIC)


def in_networks(address: Address, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    real = effective(address)
    return any(real.version == network.version and real in network for network in networks)


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens the connections of one target, to permitted addresses only.

    `networks` are permitted beside the addresses of the internet. `encrypted` is false for a target without TLS,
    which may be in these networks only.
    """

    def __init__(self, networks: Sequence[Network], *, encrypted: bool) -> None:
        self._networks = networks
        self._encrypted = encrypted
        self._plain = httpcore2.AnyIOBackend()

    def permits(self, address: Address) -> bool:
        """Return whether a connection to the address may be opened."""
        if in_networks(address, self._networks):
            return True
        return self._encrypted and is_public(address)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first permitted address of `host` that responds, and return the connection.

        Raises `Misconfigured` when none of its addresses is permitted, `Unavailable` when it has none.
        """
        permitted = await self._resolve(host, port)
        failure: Exception | None = None
        for address in permitted:
            try:
                return await self._plain.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
        assert failure is not None
        raise failure

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Return the permitted addresses of a name, in the resolver's order."""
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unavailable(
                "mirror",
                f"the name of the target cannot be resolved ({type(error).__name__})",
                remedy="check the host in mirror_url, and the DNS of this machine",
            ) from error
        addresses = list(dict.fromkeys(str(row[4][0]) for row in rows))
        permitted = [text for text in addresses if self.permits(ip_address(text))]
        if not permitted:
            reason = "is not one of the internet"
            if not self._encrypted:
                reason = "is in none of mirror_networks, which a target without TLS must be"
            raise Misconfigured(
                f"the target's address {addresses[0]} {reason}",
                remedy="name the target's network in mirror_networks, or use https and a public address",
            )
        return permitted
