"""A real OpenTelemetry collector for the tests: built once into `.cache/collector`, which needs Go."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apex_memory.engines.base import HOST, free_port
from tests.otlp import Receiver, receiver

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / ".cache"
PROGRAM = CACHE / "collector" / "collector"
CONFIGURATION = """
receivers: {otlp: {protocols: {http: {endpoint: "%(endpoint)s"}}}}
processors: {batch: {timeout: 100ms}}
exporters: {otlp_http: {endpoint: "%(target)s", compression: gzip}}
service:
  telemetry: {metrics: {level: none}}
  pipelines: {traces: {receivers: [otlp], processors: [batch], exporters: [otlp_http]}}
"""


def build() -> Path:
    """Build the collector once a checkout, which takes minutes; several test runs may ask at the same time."""
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    with (PROGRAM.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_current():
            draft = PROGRAM.with_name("collector.new")
            go = {
                "GOPATH": str(CACHE / "go"),
                "GOFLAGS": "-modcacherw -mod=readonly -buildvcs=false",
            }
            command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(draft), "."]
            subprocess.run(command, cwd=HERE, env=os.environ | go, check=True)
            draft.rename(PROGRAM)
    return PROGRAM


def _is_current() -> bool:
    """Return whether the collector is there, made from the sources as they are now."""
    sources = (HERE / name for name in ("main.go", "go.mod", "go.sum"))
    return PROGRAM.exists() and all(
        file.stat().st_mtime <= PROGRAM.stat().st_mtime for file in sources
    )


@contextmanager
def collector(program: Path, folder: Path) -> Iterator[tuple[str, Receiver]]:
    """Run a collector that passes traces on; yield its address and what arrives behind it."""
    with receiver() as received:
        port = free_port()
        configuration = folder / "collector.yaml"
        values = {"endpoint": f"{HOST}:{port}", "target": received.url}
        configuration.write_text(CONFIGURATION % values)
        command = [str(program), f"--config=file:{configuration}"]
        with (folder / "collector.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield f"http://{HOST}:{port}", received
        finally:
            process.terminate()
            process.wait(timeout=30)
