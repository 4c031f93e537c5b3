"""`python -m tests.alerts`: fire each alert on a real stack by its fault, and print how long it took to fire and to clear.

A real Prometheus scrapes the stack every two seconds. Its rules are those of deploy/prometheus with windows, waits and
thresholds in minutes divided by FACTOR, so that an hour takes two minutes. The seconds in the table are those that
passed; in production an alert takes up to FACTOR times as long. First an hour of a normal day passes
on a stack of its own, with simulated vendors FACTOR times as fast, in which no alert may fire. Writes alerts/latest.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2

from apex_memory.config import EMBEDDED
from apex_memory.engines.base import free_port
from tests.alerts.faults import FAULTS, SCRAPE_SECONDS, Fault, Scene, load, vendor_responses
from tests.alerts.rules import alerts, rule_files, scaled
from tests.e2e.simulated_day import simulated_vendors
from tests.e2e.stack import Stack, data_folder
from tests.faults.volumes import small_volume
from tests.receiver import LOOPBACK, receiving
from tests.waiting import until

FACTOR = 30
QUIET_SECONDS = 3600 / FACTOR
WARM_SECONDS = 60  # of load before the first fault
PATIENCE = 120.0  # seconds that an alert may take to fire, and to clear
RESULTS = Path("alerts") / "latest.json"
VECTORS_MEGABYTES = 150


@dataclass(frozen=True, slots=True)
class Row:
    """One alert: the seconds are None where it did not fire, or did not clear, within `PATIENCE`."""

    name: str
    fault: str
    seconds_to_fire: float | None
    seconds_to_clear: float | None
    doctor: str
    """What `apex doctor` finds meanwhile."""


class Prometheus:
    """A Prometheus over the targets of a stack, with the scaled rules."""

    def __init__(self, folder: Path, targets: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._http = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=5)
        for file in rule_files():
            text = scaled(file.read_text(encoding="utf-8"), FACTOR)
            (folder / file.name).write_text(text, encoding="utf-8")
        config = {
            "global": {
                "scrape_interval": f"{SCRAPE_SECONDS}s",
                "scrape_timeout": f"{SCRAPE_SECONDS}s",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(folder / file.name) for file in rule_files()],
            "scrape_configs": [
                {
                    "job_name": "apex",
                    "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "2s"}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Prometheus]:
        with (self._folder / "prometheus.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
                stdout=log,
                stderr=log,
            )
        try:
            await until(self._is_up, "Prometheus responds", seconds=60)
            yield self
        finally:
            process.terminate()
            await process.wait()
            await self._http.aclose()

    async def _is_up(self) -> bool:
        with suppress(httpx2.HTTPError):
            return (await self._http.get("/-/ready")).is_success
        return False

    async def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        with suppress(httpx2.HTTPError):
            answer = (await self._http.get("/api/v1/alerts")).json()
            rows = answer["data"]["alerts"]
            return {row["labels"]["alertname"] for row in rows if row["state"] == "firing"}
        return set()


async def exercise(fault: Fault, scene: Scene, prometheus: Prometheus) -> list[Row]:
    """Inject a fault, wait for its alerts, mend it, and wait until they are gone.

    It begins when none of its alerts fires, so that no alert is taken for that of an earlier fault.
    """
    waiting = time.monotonic()
    while await prometheus.firing() & set(fault.alerts) and time.monotonic() - waiting < PATIENCE:
        await asyncio.sleep(0.5)
    before = await prometheus.firing() & set(fault.alerts)
    if before:
        print(f"  {fault.what}: {sorted(before)} fire already", flush=True)
    fired: dict[str, float] = {}
    cleared: dict[str, float] = {}
    findings: list[str] = []
    began = time.monotonic()
    try:
        async with fault.inject(scene):
            while len(fired) < len(fault.alerts) and time.monotonic() - began < PATIENCE:
                for name in await prometheus.firing():
                    if name in set(fault.alerts) - before:
                        fired.setdefault(name, round(time.monotonic() - began, 1))
                await asyncio.sleep(0.5)
            findings = await diagnosis(scene.stack)
    except (httpx2.HTTPError, AssertionError, TimeoutError) as error:
        print(f"  {fault.what}: {error!r:.300}", flush=True)
    mended = time.monotonic()
    while len(cleared) < len(fired) and time.monotonic() - mended < PATIENCE:
        now_firing = await prometheus.firing()
        for name in fired:
            if name not in now_firing:
                cleared.setdefault(name, round(time.monotonic() - mended, 1))
        await asyncio.sleep(0.5)
    return [
        Row(name, fault.what, fired.get(name), cleared.get(name), "; ".join(findings))
        for name in fault.alerts
    ]


async def diagnosis(stack: Stack) -> list[str]:
    """Return what `apex doctor` does not find good."""
    with suppress(TimeoutError, ValueError):
        result = await stack.command("doctor", "--json", seconds=30)
        rows = json.loads(result.out)
        return [f"{row['what']}: {row['detail']}"[:160] for row in rows if row["state"] != "good"]
    return []


async def quiet_day(seconds: float) -> set[str]:
    """Return the alerts that fire during a normal day: eight simulated vendors, and a search a second."""
    fired: set[str] = set()
    async with data_folder() as folder:
        given = folder.parent / "simulated.toml"
        stack = Stack(folder, SETTINGS_FILE=str(given), FACTS_SECONDS="1", LOG_LEVEL="warning")
        try:
            async with simulated_vendors(folder.parent, given, folder, speed=FACTOR, trouble=0):
                await stack.start()
                await stack.whole(seconds=120)
                metrics = folder.parent / "prometheus-day"
                metrics.mkdir()
                server = Prometheus(metrics, folder / "prometheus-targets.json")
                async with server.running() as prometheus:
                    end = time.monotonic() + seconds
                    while time.monotonic() < end:
                        fired |= await prometheus.firing()
                        await stack.search("which shipments are late?")
                        await asyncio.sleep(1)  # the rhythm of the load
                    sources = await stack.get("/v1/sources")
        finally:
            await stack.stop()
    documents = {row["name"]: row["documents"] for row in sources["sources"]}
    print(
        f"a normal day, {seconds:.0f} s: {sorted(fired) or 'no alert'}; documents {documents}",
        flush=True,
    )
    return fired


def settings(legacy: str, vendor: str) -> dict[str, str]:
    source = "SOURCES__FRONTAPP__"
    return {
        f"{source}MIRROR_URL": legacy,
        f"{source}MIRROR_NETWORKS": f'["{LOOPBACK}"]',
        f"{source}API_TOKEN": "token",
        f"{source}BASE_URL": vendor,
        f"{source}POLL_SECONDS": "5",
        f"{source}REQUESTS_PER_MINUTE": "1000",
        "FACTS_SECONDS": "1",
        "LOG_LEVEL": "warning",
    }


async def run(chosen: Sequence[Fault], *, quiet_seconds: float) -> tuple[set[str], list[Row]]:
    rows: list[Row] = []
    ending = asyncio.current_task()
    assert ending
    for number in (signal.SIGINT, signal.SIGTERM):  # the stack is stopped, whatever ends the run
        asyncio.get_running_loop().add_signal_handler(number, ending.cancel)
    fired = await quiet_day(quiet_seconds) if quiet_seconds else set()
    async with data_folder() as folder, receiving() as legacy, receiving() as vendor:
        events: list[bytes] = []
        vendor.script = vendor_responses(events)
        base = f"http://127.0.0.1:{vendor.port}"
        with ExitStack() as mounted:
            mounted.enter_context(small_volume(folder / "vectors", VECTORS_MEGABYTES))
            stack = Stack(folder, GRAPH=EMBEDDED, **settings(legacy.url, base))
            try:
                print(f"the stack is up after {await stack.start():.0f} s", flush=True)
                await stack.whole(seconds=120)
                scene = Scene(stack, legacy, vendor, events)
                metrics = folder.parent / "prometheus"
                metrics.mkdir()
                server = Prometheus(metrics, folder / "prometheus-targets.json")
                loading = asyncio.create_task(load(scene))
                try:
                    async with server.running() as prometheus:
                        await asyncio.sleep(WARM_SECONDS)  # rates need a past
                        for fault in chosen:
                            for row in await exercise(fault, scene, prometheus):
                                rows.append(row)
                                print(line(row), flush=True)
                            write(fired, rows, quiet_seconds)
                finally:
                    loading.cancel()
                    await asyncio.gather(loading, return_exceptions=True)
            finally:
                await stack.stop()
    return fired, rows


def line(row: Row) -> str:
    def seconds(value: float | None) -> str:
        return "never" if value is None else f"{value:.1f} s"

    times = f"{seconds(row.seconds_to_fire):>9} {seconds(row.seconds_to_clear):>9}"
    return f"{row.name:<26} {times}  {row.fault}"


def write(fired: set[str], rows: Sequence[Row], quiet_seconds: float) -> None:
    """Write what is known so far, so that a run that is ended early leaves its table.

    `load` is the load average of the machine: beside other work, processes and scrapes are late, and alerts of lateness
    fire without a fault.
    """
    report = {
        "factor": FACTOR,
        "load": round(os.getloadavg()[0], 1),
        "quiet": {"seconds": quiet_seconds, "fired": sorted(fired)},
        "alerts": [asdict(row) for row in rows],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.alerts", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="names of alerts (default: all)")
    parser.add_argument(
        "--quiet", type=float, default=QUIET_SECONDS, help="seconds of a normal day first (default: %(default)s)"
    )  # fmt: skip
    arguments = parser.parse_args()
    only = set(arguments.only)
    if not shutil.which("prometheus"):
        print("NOT TESTED: prometheus is missing (Debian's package `prometheus`)")
        return 1
    chosen = [fault for fault in FAULTS if not only or only & set(fault.alerts)]
    try:
        fired, rows = asyncio.run(run(chosen, quiet_seconds=arguments.quiet))
    except asyncio.CancelledError:
        print(f"ended early; what was measured until then is in {RESULTS}")
        return 1
    print(f"\n{'alert':<26} {'fires':>9} {'clears':>9}  fault")
    for row in rows:
        print(line(row))
    without = sorted(set(alerts()) - {row.name for row in rows})
    if without and not only:
        print(f"without a fault here, tested by promtool alone: {', '.join(without)}")
    failed = [
        row.name for row in rows if row.seconds_to_fire is None or row.seconds_to_clear is None
    ]
    return 1 if failed or fired else 0


if __name__ == "__main__":
    sys.exit(main())
