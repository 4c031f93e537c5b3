"""What pages in a browser on this machine reach of Temporal's dev server, which has no sign-in."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx2
import pytest

from apex_memory.config import Settings
from apex_memory.engines.base import free_port
from apex_memory.engines.selection import embedded_engines, environment_for
from apex_memory.engines.state import ownership
from apex_memory.engines.temporal import Temporal
from tests.attacks.sockets import beyond_loopback, listeners
from tests.conftest import running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def process_of(port: int) -> Path:
    """Return the entry in /proc of the server that was started with this port."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"start-dev" in arguments and str(port).encode() in arguments:
            return entry
    raise AssertionError(f"no server on port {port}")


def ports_of(process: Path) -> set[int]:
    """Return the TCP ports on which a process listens."""
    sockets = {str(file.readlink()) for file in (process / "fd").iterdir()}
    return {port for _, port, inode in listeners(process) if f"socket:[{inode}]" in sockets}


async def shows_a_page(port: int) -> bool:
    """Return whether the port serves a page to a browser."""
    async with httpx2.AsyncClient(timeout=5, follow_redirects=True) as http:
        try:
            answer = await http.get(f"http://127.0.0.1:{port}/")
        except httpx2.HTTPError:
            return False
    return "text/html" in answer.headers.get("content-type", "")


async def answers(port: int, host: str) -> bool:
    """Return whether the port lists namespaces over HTTP to a page of this host."""
    async with httpx2.AsyncClient(timeout=5) as http:
        try:
            answer = await http.get(
                f"http://127.0.0.1:{port}/api/v1/namespaces", headers={"host": host}
            )
        except httpx2.HTTPError:
            return False
    return answer.status_code == 200 and "namespaces" in answer.text


async def test_w4_no_page_reaches_temporals_http_api(engine_data: Path) -> None:
    engine_folder = engine_data / "attacked"
    engine_folder.mkdir()
    ui_port = free_port()
    async with running(Temporal(engine_folder, free_port(), "", ui_port)) as engine:
        ports = ports_of(process_of(engine.port)) - {ui_port}
        for host in ("127.0.0.1", "localhost", "attacker.example"):
            assert not [port for port in ports if await answers(port, f"{host}:{engine.port}")]
            assert not [port for port in ports if await answers(port, host)]
        # The API is there: it serves the only host name that no page can have.
        assert len([port for port in ports if await answers(port, "disabled.invalid")]) == 1


async def test_w4_temporal_listens_on_loopback_alone(engine_data: Path) -> None:
    """Its gRPC has no authentication: whoever reaches the port can start, signal and end workflows."""
    for name, ui_port in (("plain", None), ("with-ui", free_port())):
        folder = engine_data / f"listening-{name}"
        folder.mkdir()
        async with running(Temporal(folder, free_port(), "", ui_port)) as engine:
            ports = ports_of(process_of(engine.port))
            assert engine.port in ports
            assert not beyond_loopback(ports)


async def test_temporals_ui_runs_only_where_it_is_wanted(engine_data: Path) -> None:
    """The UI has no sign-in, so that every user of the machine could end workflows there."""
    for name, ui in (("plain", ""), ("with-ui", "embedded:")):
        folder = engine_data / name
        with ownership(folder):
            engines = embedded_engines(Settings(data_dir=folder, temporal_ui=ui), 32)
        (temporal,) = (engine for engine in engines if isinstance(engine, Temporal))
        async with running(temporal):
            pages = [
                port for port in ports_of(process_of(temporal.port)) if await shows_a_page(port)
            ]
        assert pages == ([temporal.ui_port] if ui else [])
        assert environment_for(engines, Settings()).get("APEX_TEMPORAL_UI", "") == temporal.ui_url


def test_the_ui_of_the_embedded_server_needs_the_embedded_server() -> None:
    with pytest.raises(ValueError, match="is the UI of the embedded server"):
        Settings(temporal="127.0.0.1:7233/apex", temporal_ui="embedded:")
