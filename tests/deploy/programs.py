"""Programs for the tests of deployments, built from their Go modules once a checkout, into `.cache/deploy`."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deploy import ROOT

CACHE = ROOT / ".cache" / "deploy"
BUILT = CACHE / "bin"


@contextmanager
def building() -> Iterator[dict[str, str]]:
    """Keep other test runs from building at the same time, and yield the environment for Go."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield os.environ | {
            "GOPATH": str(CACHE / "go"),
            "GOBIN": str(BUILT),
            "GOFLAGS": "-modcacherw -buildvcs=false",
        }


def build(module: str, programs: dict[str, str], *also: str) -> Path:
    """Build programs of a Go module where they are missing, and return the folder of the module's source.

    `module` is `path@version`, `programs` are packages by the name of the program, and `also` are other modules whose
    versions are raised. They are built in a module of their own, because `go install` refuses some modules.
    """
    path = module.partition("@")[0]
    with building() as go:
        go["GOFLAGS"] += " -mod=mod"
        folder = CACHE / "modules" / path.replace("/", "-")

        def run(*command: str) -> str:
            ran = subprocess.run(
                ["go", *command], cwd=folder, env=go, check=True, stdout=subprocess.PIPE, text=True
            )
            return ran.stdout.strip()

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "go.mod").unlink(missing_ok=True)
        run("mod", "init", "programs")
        run("mod", "edit", *(f"-require={required}" for required in (module, *also)))
        for name, package in programs.items():
            if not (BUILT / name).exists():
                options = ("-trimpath", "-ldflags=-s -w", "-o", str(BUILT / name))
                run("build", *options, package)
        return Path(json.loads(run("mod", "download", "-json", module))["Dir"])
