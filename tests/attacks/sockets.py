"""Where the processes of this machine listen, from /proc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

LISTENING = "0A"  # state of a socket in /proc/net/tcp
LOOPBACK = (
    "0100007F",
    "00000000000000000000000001000000",
)  # 127.0.0.1 and ::1, as /proc writes them


def listeners(process: Path = Path("/proc/self")) -> Iterator[tuple[str, int, str]]:
    """Yield the address in hexadecimal, the port and the inode of each listening socket of the machine, as `process` sees it."""
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == LISTENING:
                address, _, port = columns[1].partition(":")
                yield address, int(port, 16), columns[9]


def beyond_loopback(ports: set[int]) -> set[int]:
    """Return those of the ports on which somebody listens at another address than loopback's. Each must be in use."""
    used = [(address, port) for address, port, _ in listeners() if port in ports]
    assert {port for _, port in used} == ports
    return {port for address, port in used if address not in LOOPBACK}
