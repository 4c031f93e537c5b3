"""Space on the disk of an embedded PostgreSQL: events are refused before it is full, and processing ends in time.

PostgreSQL stops when it cannot extend its log, and then nothing works, searches included. So no events land, by the
gateway or by pulls, while there is still room for some segments of the log. What has landed is processed until half
of that is left, and then waits. The graph and the vectors refuse writes much earlier, see `disk_space`.
"""

from __future__ import annotations

from time import monotonic

from psycopg.conninfo import conninfo_to_dict

from apex_memory.config import Settings
from apex_memory.disk_space import RESERVE_SHARE, disk_space, in_bytes
from apex_memory.engines.state import read_stack
from apex_memory.errors import NoWrites

ENGINE = "postgres"
LOG_SEGMENT = 16 * 1024 * 1024
RESERVE_BYTES = 3 * LOG_SEGMENT  # on a small volume a tenth of it instead
PROCESSING = 2
LOOK_SECONDS = 0.5  # between two looks at the volume


class PostgresSpace:
    """Whether PostgreSQL has room. Always, where it is a server by URL: its own monitoring watches it.

    `share` divides the reserve: 1 for what lands, `PROCESSING` for what is processed.
    """

    def __init__(self, settings: Settings, *, share: int = 1) -> None:
        self._share = share
        self._folder = settings.data_dir / ENGINE
        self._watched = _is_embedded(settings)
        self._looked_at = float("-inf")
        self._refusal: str | None = None

    def require(self) -> None:
        """Raise `NoWrites` while the volume is nearly full."""
        if refusal := self.refusal():
            raise NoWrites(
                "documents",
                refusal,
                remedy="nothing of this request is stored: repeat it after the seconds in Retry-After; free space on the disk of PostgreSQL",
            )

    def refusal(self) -> str | None:
        """Return why nothing may be written now; None while there is room."""
        if self._watched and monotonic() - self._looked_at >= LOOK_SECONDS:
            self._refusal = self._look()
            self._looked_at = monotonic()
        return self._refusal

    def _look(self) -> str | None:
        try:
            space = disk_space(self._folder)
        except OSError:  # its volume may be away for a moment; PostgreSQL itself decides then
            return None
        needed = min(RESERVE_BYTES, space.total // RESERVE_SHARE) // self._share
        if self._refusal:  # a quarter more, so that it does not flap
            needed = needed * 5 // 4
        if space.free >= needed:
            return None
        return f"its disk is nearly full, {in_bytes(space.free)} are free and {in_bytes(needed)} are kept for what has landed"


def _is_embedded(settings: Settings) -> bool:
    """Return whether the URL is that of the PostgreSQL which runs from this data folder."""
    stack = read_stack(settings.data_dir)
    child = stack.children.get(ENGINE) if stack else None
    if child is None or not child.port:
        return False
    return conninfo_to_dict(settings.documents).get("port") == str(child.port)
