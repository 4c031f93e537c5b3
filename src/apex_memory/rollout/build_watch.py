"""The routing of builds as a process knows it, and the record that a worker of its build runs."""

from __future__ import annotations

import asyncio

from apex_memory.errors import ApexError
from apex_memory.rollout.builds import Role, Routing, register, routing
from apex_memory.stores.postgres import Postgres
from apex_memory.telemetry import logger

SEEN_SECONDS = 5.0  # between two times that a worker records that it runs
WATCH_SECONDS = 1.0


class BuildWatch:
    """The routing as a process knows it: read every second. Claims do not rely on it; wakes and drains do."""

    def __init__(self, db: Postgres, build: str = "") -> None:
        self._db = db
        self._build = build
        self._log = logger(component="builds")
        self.routing = Routing()

    async def refresh(self) -> Routing:
        """Read the routing now and return it."""
        self.routing = await routing(self._db)
        return self.routing

    async def watch(self) -> None:
        """Read the routing every second. Never returns."""
        while True:
            try:
                await self.refresh()
            except ApexError as error:
                self._log.warning("routing of builds not read", reason=str(error)[:200])
            await asyncio.sleep(WATCH_SECONDS)

    async def work(self, *, decides: bool) -> None:
        """Register the build of this worker, record every few seconds that it runs, and watch. Never returns."""
        role: Role | None = None
        due = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            try:
                if clock() >= due:
                    registered = await register(self._db, self._build, decides=decides)
                    due = clock() + SEEN_SECONDS
                    if registered != role:
                        role = registered
                        self._show(role)
                await self.refresh()
            except ApexError as error:
                self._log.warning("build not recorded", reason=str(error)[:200])
            await asyncio.sleep(WATCH_SECONDS)

    def _show(self, role: Role) -> None:
        if role == "current":
            self._log.info("this build is current", build=self._build)
        else:
            self._log.warning(
                "this build is not current and waits: `apex builds ramp` or `promote` gives it documents",
                build=self._build,
                role=role,
            )
