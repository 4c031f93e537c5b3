"""`apex simulate`: the vendors' APIs respond, Apex reads the settings it writes, and Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tomllib
from pathlib import Path

import httpx2

from apex_memory.cli.simulate import settings_toml
from apex_memory.simulate.registry import simulator_classes
from apex_memory.sources import registry


async def test_the_settings_point_to_the_vendors(tmp_path: Path) -> None:
    file = tmp_path / "apex.toml"
    command = [sys.executable, "-m", "apex_memory.cli", "simulate"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("APEX_")
    }
    process = await asyncio.create_subprocess_exec(
        *(*command, "--port", "0", "--settings", str(file), "--shipments", "3"),
        env={**environment, "APEX_DATA_DIR": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    try:
        output = ""
        async with asyncio.timeout(30):
            while "Waiting for the gateway" not in output:
                line = await process.stdout.readline()
                assert line, output
                output += line.decode()
        tables = tomllib.loads(file.read_text())["sources"]
        assert set(tables) == {kind.name for kind in simulator_classes()}
        loaded = registry.load(tables)
        assert not [
            source.name for source in loaded.values() if source.pulled and source.missing_settings
        ]
        url = re.search(r"http://127\.0\.0\.1:\d+", output)
        assert url, output
        async with httpx2.AsyncClient() as http:
            refused = await http.get(f"{url[0]}/samsara/fleet/vehicles/stats/feed?types=gps")
            assert refused.status_code == 401
            token = tables["samsara"]["api_token"]
            answer = await http.get(
                f"{url[0]}/samsara/fleet/vehicles/stats/feed?types=gps",
                headers={"Authorization": f"Bearer {token}"},
            )
            assert answer.status_code == 200 and answer.json()["pagination"]["endCursor"]
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            await process.wait()
    assert process.returncode == 0


def test_settings_survive_toml() -> None:
    tables = {
        "plaid": {"items": [{"id": "a", "access_token": "t"}], "secret": 'q"uo\\te', "on": True},
        "edi": {"folder": Path("/x y"), "count": 3, "share": 0.5},
    }
    read = tomllib.loads(settings_toml(tables))["sources"]
    assert read["plaid"] == tables["plaid"]
    assert read["edi"] == {"folder": "/x y", "count": 3, "share": 0.5}
