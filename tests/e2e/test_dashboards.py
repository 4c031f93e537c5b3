"""Every query of every panel on a real Prometheus that scrapes a running stack under load: none is empty, none fails."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from apex_memory.engines.base import free_port
from apex_memory.gateway.ops.panels import lines
from apex_memory.gateway.ops.queries import RANGE
from tests.e2e.simulated_day import simulated_vendors
from tests.e2e.stack import Stack
from tests.soaking import only_in_soak
from tests.waiting import until

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
WINDOW = "1m"
OWN = ("gateway", "worker", "bulk", "vectors", "supervisor")

needs_prometheus = pytest.mark.skipif(
    not (PROMETHEUS and PROMTOOL),
    reason="needs Prometheus: install the package `prometheus` (Debian), or put `prometheus` and `promtool` on the path",
)


@asynccontextmanager
async def scraping(folder: Path, targets: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A Prometheus that scrapes these targets every three seconds; a client of its API."""
    config = folder / "prometheus.yml"
    config.write_text(
        f"""global: {{scrape_interval: 3s, scrape_timeout: 3s}}
scrape_configs:
  - job_name: apex
    file_sd_configs: [{{files: ["{targets}"], refresh_interval: 1s}}]
"""
    )
    assert PROMETHEUS and PROMTOOL
    subprocess.run([PROMTOOL, "check", "config", str(config)], check=True, capture_output=True)
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False
        ) as http:

            async def ready() -> bool:
                try:
                    return (await http.get("/-/ready")).is_success
                except httpx2.TransportError:
                    return False

            await until(ready, "Prometheus is ready", seconds=60, every=0.2)
            yield http
    finally:
        process.terminate()
        process.wait(30)


async def value(http: httpx2.AsyncClient, expression: str) -> list[Any]:
    """Return the result of an expression. Fails for an error of Prometheus."""
    answer = await http.get("/api/v1/query", params={"query": expression})
    assert answer.is_success, (expression, answer.text)
    result: list[Any] = answer.json()["data"]["result"]
    return result


@needs_prometheus
@pytest.mark.soak
@pytest.mark.long
@pytest.mark.alone("starts a whole stack, its vendors and Prometheus")
@pytest.mark.timeout(900)
async def test_every_panel_has_data_on_a_stack_under_load(request: pytest.FixtureRequest) -> None:
    only_in_soak(request)
    assert PROMTOOL
    folder = Path(tempfile.mkdtemp(prefix="apex-test-"))
    folder.chmod(0o711)
    settings = folder / "simulated.toml"
    stack = Stack(folder / "data", FACTS_SECONDS="1", SETTINGS_FILE=str(settings))
    stack.set(CALL_TIMEOUT_SECONDS="20", SNAPSHOT_SECONDS="20", GRACE_SECONDS="30")
    try:
        async with simulated_vendors(folder, settings, stack.data_dir, speed=300, trouble=0.2):
            await stack.start()
            targets = stack.data_dir / "prometheus-targets.json"
            await until(targets.exists, "the targets are written", seconds=30)
            async with scraping(folder, targets) as prometheus:
                await load(stack, prometheus)
                await check_names(stack)
    finally:
        await stack.stop()
        shutil.rmtree(folder)


async def load(stack: Stack, prometheus: httpx2.AsyncClient) -> None:
    """Use the stack until every query has a result; at the end name those that have none."""
    empty = {
        line.query.promql().replace(RANGE, WINDOW): f"{dashboard.title}: {panel.title}"
        for dashboard, panel, line in lines()
    }
    rounds = 0

    async def all_have_data() -> bool:
        nonlocal rounds
        rounds += 1
        note = {"key": f"note-{rounds}", "text": f"Shipment {rounds} left Hamburg."}
        question = {"query": "Which shipment left Hamburg?"}
        signature = {"x-front-signature": "wrong"}  # such a webhook is refused
        for answer in (
            await stack.http.post("/v1/documents", json=note),
            await stack.http.post("/v1/search", json=question),
            await stack.http.post("/hooks/frontapp", content=b"{}", headers=signature),
        ):
            # 503 while a machine that others use has no time; the panels are what is tested.
            assert answer.status_code in (200, 202, 401, 503), answer.text
        for expression in list(empty):
            result = await value(prometheus, expression)
            if any(item["value"][1] != "NaN" for item in result):
                del empty[expression]
        return not empty

    await until(
        all_have_data, lambda: f"without data: {empty}\n{stack.log_tail()}", seconds=400, every=1
    )
    for process in (*OWN, "temporal"):
        assert await value(prometheus, f'up{{process="{process}"}} == 1'), process


async def check_names(stack: Stack) -> None:
    """`promtool check metrics` finds nothing at any endpoint of Apex."""
    assert PROMTOOL
    status = await stack.get("/v1/status")
    addresses = {row["process"]: row["metrics"] for row in status["processes"]}
    assert set(addresses) == {*OWN, "temporal"}
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        for process in OWN:
            text = (await http.get(addresses[process])).text
            checked = await asyncio.to_thread(
                subprocess.run,
                [PROMTOOL, "check", "metrics"],
                input=text.encode(),
                capture_output=True,
                check=False,
            )
            complaints = checked.stdout + checked.stderr
            assert checked.returncode == 0 and not complaints, (process, complaints.decode())
    groups = json.loads((stack.data_dir / "prometheus-targets.json").read_text())
    assert {group["labels"]["process"] for group in groups} == {*OWN, "temporal"}
