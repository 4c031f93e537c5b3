"""`make peers`: measure Apex and its peers in turn, write `bench/peers/latest.json` and print the tables.

`python -m bench.peers NAME …` measures single systems; the others' figures stay. Before each peer Apex loads the same
documents, so that the ratio of the two holds on a machine with other work. `--report` prints the tables alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from apex_memory.engines.base import HOST
from apex_memory.telemetry import configure_logging
from bench.engines import scrub_environment
from bench.peers.documents import Work, work
from bench.peers.measure import Make, Models, kill_midway, load_rate, measure
from bench.peers.report import TITLES, table
from bench.peers.systems import ROOT, Apex, Peer

HERE = Path(__file__).parent
LATEST = HERE / "latest.json"
REQUIREMENTS = HERE / "requirements.txt"
VENV = ROOT / ".cache" / "peers"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", choices=[*TITLES, []], help="default: all")
    parser.add_argument(
        "--kill", action="store_true", help="measure the kill alone; other figures stay"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    failed: list[str] = []
    if not arguments.report:
        scrub_environment()
        configure_logging("error", "console")
        failed = asyncio.run(run(arguments.name or list(TITLES), only_kill=arguments.kill))
    print("\n".join(table(saved())))
    if failed:
        print(f"not measured, see above: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


async def run(names: Sequence[str], *, only_kill: bool = False) -> list[str]:
    """Measure the systems; return those that failed."""
    failed = []
    python = install()
    given = await work()
    async with model_server() as models, _folder() as folder:
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            began = time.monotonic()
            try:
                await _measure(name, python, models, folder, given, only_kill=only_kill)
            except Exception:  # noqa: BLE001 -- one broken peer must not hide the others' figures
                traceback.print_exc()
                failed.append(name)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return failed


async def _measure(
    name: str, python: Path, models: Models, folder: Path, given: Work, *, only_kill: bool
) -> None:
    """Measure one system; save its figures before it is killed, and again after."""
    make: Make = Apex if name == "apex" else partial(_peer, name, python, models.url)
    if only_kill:
        save({"name": name, "kill": await kill_midway(make, folder / name, given)})
        return
    beside = 0.0 if name == "apex" else await load_rate(Apex, folder / f"before-{name}", given)
    figures = await measure(make, folder / name, given, models)
    figures |= {"apex documents/s beside": beside, "load average": os.getloadavg()[1]}
    save(figures)
    save({"name": name, "kill": await kill_midway(make, folder / name, given)})


def _peer(name: str, python: Path, models: str, folder: Path) -> Peer:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Peer(name, folder, python=python, models=models)


def install() -> Path:
    """Make the peers' virtual environment if the requirements have changed; return its Python."""
    python, done = VENV / "bin" / "python", VENV / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"installing the peers into {VENV} …", file=sys.stderr)
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    options = ["--quiet", "--disable-pip-version-check", "--require-hashes"]
    subprocess.run([python, "-m", "pip", "install", *options, "-r", REQUIREMENTS], check=True)
    done.write_text(wanted)
    return python


@asynccontextmanager
async def model_server() -> AsyncIterator[Models]:
    """Run the models that all peers share; yield where."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.model_server", str(port)], cwd=ROOT
    )
    try:
        await asyncio.to_thread(_wait_for, f"http://{HOST}:{port}/counts", process)
        yield Models(f"http://{HOST}:{port}/v1", process.pid)
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urlopen(url):
                return
        except URLError:
            time.sleep(0.1)  # until it listens or ends
    raise RuntimeError("the model server ended")


@asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    """A folder that PostgreSQL's unprivileged user can pass through; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="apex-peers-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def saved() -> list[dict[str, Any]]:
    """Return the figures of `latest.json`, a mapping a system."""
    systems: list[dict[str, Any]] = []
    if LATEST.exists():
        systems = json.loads(LATEST.read_text())["systems"]
    return systems


def save(figures: dict[str, Any]) -> None:
    """Put figures of one system into `latest.json`; all others stay."""
    measured = figures.get(
        "kill", figures
    )  # the kill is measured later than the rest, and may be measured alone
    measured["measured at"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    by_name = {system["name"]: system for system in saved()}
    by_name[figures["name"]] = by_name.get(figures["name"], {}) | figures
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
    }
    systems = [by_name[name] for name in TITLES if name in by_name]
    body = {"machine": machine, "systems": systems}
    LATEST.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
