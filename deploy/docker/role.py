"""The entry point of the image: runs the role that the command names, and checks the health of the one that runs.

Only the standard library, because the health check starts it every few seconds.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

ROLES = {
    "gateway": ["apex_memory.gateway"],
    "worker": ["apex_memory.flows", "realtime"],
    "bulk": ["apex_memory.flows", "bulk"],
    "all": ["apex_memory.flows", "all"],
    "shadow": ["apex_memory.flows", "shadow"],
    "vectors": ["apex_memory.edge.server"],
}
"""The module of each role, and its argument. Any other command is one of `apex`."""

VECTORS = {
    "APEX_EDGE_DIR": "/var/lib/apex/vectors",
    "APEX_EDGE_HOST": "0.0.0.0",
    "APEX_EDGE_PORT": "8463",
    "APEX_EDGE_DIMENSION": "384",
    "APEX_EDGE_METRICS": "0.0.0.0:9464",
    "APEX_EDGE_LOG_FORMAT": "json",
}
"""Defaults of the vector process. Only its role has them: to the others they are unknown settings."""
PASSWORD = "APEX_EDGE_PASSWORD"

HEALTH_SECONDS = 8.0


def command_of(arguments: Sequence[str]) -> list[str]:
    """Return the program and its arguments for the command of a container."""
    python = [sys.executable, "-m"]
    if arguments and arguments[0] in ROLES:
        return [*python, *ROLES[arguments[0]], *arguments[1:]]
    return [*python, "apex_memory.cli", *arguments]


def prepare(role: str, environment: MutableMapping[str, str]) -> None:
    """Complete the environment of a role. Raises `SystemExit` where the vector process has no password."""
    if role != "vectors":
        return
    for name, value in VECTORS.items():
        environment.setdefault(name, value)
    file = environment.pop(f"{PASSWORD}_FILE", "")
    if file:
        try:
            environment[PASSWORD] = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            sys.exit(f"{PASSWORD}_FILE: cannot read {file} ({error.strerror})")
    if not environment.get(PASSWORD):
        sys.exit(f"{PASSWORD}_FILE is not set: name a file with the password of the vector process")


def health_url(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return what the process with these arguments serves when it is well; empty for one that serves nothing."""
    if "apex_memory.gateway" in arguments:
        return f"http://127.0.0.1:{environment.get('APEX_PORT', '8460')}/healthz"
    if "apex_memory.edge.server" in arguments:
        setting = environment.get("APEX_EDGE_METRICS", VECTORS["APEX_EDGE_METRICS"])
    elif "apex_memory.flows" in arguments and "shadow" not in arguments:
        name = "APEX_BULK_METRICS" if "bulk" in arguments else "APEX_WORKER_METRICS"
        setting = environment.get(name, "")
    else:
        return ""
    port = setting.rpartition(":")[2]
    return f"http://127.0.0.1:{port}/metrics" if port not in ("", "0") else ""


def running() -> list[list[str]]:
    """Return the arguments of every process of this container."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_text(encoding="utf-8", errors="replace").split("\0"))
        except OSError:
            continue  # it ended meanwhile
    return found


def check_health() -> int:
    """Return 0 if the role that runs here is well. A command of `apex` is well while it runs."""
    for arguments in running():
        url = health_url(arguments, os.environ)
        if url:
            try:
                with urllib.request.urlopen(url, timeout=HEALTH_SECONDS) as response:
                    return 0 if response.status == 200 else 1
            except OSError as error:
                print(f"{url}: {error}")
                return 1
    return 0


def main() -> int:
    arguments = sys.argv[1:]
    if arguments == ["health"]:
        return check_health()
    command = command_of(arguments)
    if arguments:
        prepare(arguments[0], os.environ)
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
