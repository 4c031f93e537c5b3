"""`apex simulate`: the vendors' APIs respond, Apex reads the settings it writes, and Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest

from apex_memory.cli.simulate import settings_toml, write_settings
from apex_memory.errors import Conflict, Misconfigured
from apex_memory.simulate.registry import simulator_classes
from apex_memory.sources import registry
from apex_memory.sources.base import PulledSource


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
            source.name
            for source in loaded.values()
            if isinstance(source, PulledSource) and source.missing_settings
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


async def test_o3_a_settings_file_of_somebody_else_is_never_touched(tmp_path: Path) -> None:
    file = tmp_path / "apex.toml"
    own = '# mine\n[sources.plaid]\nsecret = "real"\n'
    file.write_text(own)
    with pytest.raises(Conflict, match="left as it is") as refused:
        write_settings(file, {"plaid": {"secret": "simulated"}})
    assert "--settings" in refused.value.remedy
    assert file.read_text() == own
    assert list(tmp_path.iterdir()) == [file]
    # The command refuses before anything starts.
    process, output = await run_simulate(tmp_path, "--settings", str(file))
    assert process.returncode != 0
    assert "left as it is" in " ".join(output.split()) and "Traceback" not in output
    assert file.read_text() == own


def test_o3_a_file_of_an_earlier_run_is_replaced_and_private(tmp_path: Path) -> None:
    file = tmp_path / "simulated.toml"
    write_settings(file, {"plaid": {"secret": "first"}})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    write_settings(file, {"plaid": {"secret": "second"}})
    assert tomllib.loads(file.read_text())["sources"]["plaid"] == {"secret": "second"}
    edited = file.read_text().replace("second", "edited by hand")
    file.write_text(edited)
    with pytest.raises(Conflict):
        write_settings(file, {"plaid": {"secret": "third"}})
    assert file.read_text() == edited


@pytest.mark.parametrize("kind", ["folder", "binary", "no parent"])
def test_o3_what_is_no_settings_file_is_an_error_with_a_remedy(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "target"
    if kind == "folder":
        file.mkdir()
    elif kind == "binary":
        file.write_bytes(b"\xff\xfe\x00")
    else:
        file = tmp_path / "missing" / "target"
    with pytest.raises((Conflict, Misconfigured)) as refused:
        write_settings(file, {})
    assert refused.value.remedy


async def test_a_taken_port_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        process, output = await run_simulate(tmp_path, "--port", port)
    assert process.returncode != 0
    assert "Traceback" not in output
    assert f"port {port} is not available" in " ".join(output.split()) and "--port 0" in output


async def run_simulate(folder: Path, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """Run `apex simulate` to its end; return the process and its output."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("APEX_")
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "apex_memory.cli", "simulate", "--shipments", "1", *arguments),
        env={**environment, "APEX_DATA_DIR": str(folder / "data")},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    return process, output.decode()


def test_settings_survive_toml() -> None:
    tables = {
        "plaid": {"items": [{"id": "a", "access_token": "t"}], "secret": 'q"uo\\te', "on": True},
        "edi": {"folder": Path("/x y"), "count": 3, "share": 0.5},
    }
    read = tomllib.loads(settings_toml(tables))["sources"]
    assert read["plaid"] == tables["plaid"]
    assert read["edi"] == {"folder": "/x y", "count": 3, "share": 0.5}
