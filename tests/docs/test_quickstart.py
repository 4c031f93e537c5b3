"""The quickstart's commands run as written, in a fresh clone, with no setting and no tool of this environment but Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from apex_memory.engines.base import free_port
from apex_memory.engines.state import leftovers, read_stack

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="the engines' supported system"),
    pytest.mark.timeout(400),
]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "quickstart.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands(section: str) -> list[str]:
    """Return the commands of a section's console blocks; a line that ends in a backslash goes on."""
    text = PAGE.read_text(encoding="utf-8")
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    assert part, section
    blocks = "".join(BLOCK.findall(part)).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in blocks.splitlines() if line.startswith("$ ")]


def test_the_quickstart_runs_as_written_in_a_fresh_clone(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)  # PostgreSQL's user passes through
    port = free_port()
    get_it, run_it = commands("Get it"), commands("Run it")
    send_it = [line.replace(":8460/", f":{port}/") for line in commands("Send it events")[:2]]
    assert get_it[0].startswith("git clone") and get_it[-1].startswith("pip install")
    assert run_it[0] == "apex up --detach" and any("curl" in line for line in send_it)
    # The packages are those of this environment: the installation is what `make check` has done already.
    install = f'echo {sys.prefix!r}/lib/python*/site-packages > "$(echo .venv/lib/python*/site-packages)/parent.pth"'
    apex = 'printf "#!/bin/sh\\nexec \\"$PWD/.venv/bin/python\\" -m apex_memory.cli \\"\\$@\\"\\n" > .venv/bin/apex; chmod +x .venv/bin/apex'
    script = "\n".join(
        [
            "set -eux",
            *get_it[:-1],
            install,
            apex,
            "export PYTHONPATH=$PWD/src",
            *run_it,
            *send_it,
            "apex search 'who waits at dock 4?' | grep 'waits at dock 4'",
            "apex doctor",
            "apex stop",
        ]
    )
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "REPOSITORY": str(ROOT),
        "APEX_PORT": str(port),
        "LANG": "C.UTF-8",
    }
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    folder = tmp_path / "apex-memory" / ".apex"
    try:
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=380,
        )
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    finally:
        if stack := read_stack(folder):
            os.kill(stack.pid, 15)
    files = len(list((ROOT / "examples" / "documents").iterdir()))
    for part in (
        "Starting Apex Memory",
        f"{files} new, 0 unchanged",
        "waits at dock 4",
        "All stopped.",
    ):
        assert part in ran.stdout, part
    assert "Traceback" not in ran.stdout + ran.stderr and "INFO" not in ran.stderr
    assert read_stack(folder) is None and leftovers(folder) == []
