"""Docker and Compose for the tests: the command line of the engine at `DOCKER_HOST`, and one Compose project on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.deploy.programs import BUILT, build

COMPOSE_MODULE = "github.com/docker/compose/v2"
COMPOSE_VERSION = "v2.40.3"
BUILDKIT_IS_BUILT_IN = 23
"""Before this version the command line has BuildKit in itself; since then it needs the plugin `buildx`."""
UP_SECONDS = 600
STOP_SECONDS = 180

Inspection = dict[str, Any]


class Unusable(Exception):
    """There is no Docker that could run these tests; the text says why."""


def engine() -> Docker:
    """Return the first `docker` on the path that can build images, if an engine responds to it. Raises `Unusable`."""
    reasons = []
    for folder in os.get_exec_path():
        program = shutil.which("docker", path=folder)
        if program:
            docker = Docker(program)
            reason = docker.unusable()
            if not reason:
                return docker
            reasons.append(reason)
    raise Unusable("; ".join(dict.fromkeys(reasons)) or "there is no program `docker`")


class Docker:
    """The command line of an engine."""

    def __init__(self, program: str) -> None:
        self.program = program

    def run(self, *arguments: str, seconds: float = 60) -> str:
        """Return what a command prints. Fails with what it prints otherwise."""
        return run([self.program, *arguments], seconds=seconds)

    def succeeds(self, *arguments: str, seconds: float = 60) -> bool:
        command = [self.program, *arguments]
        ran = subprocess.run(command, check=False, capture_output=True, timeout=seconds)
        return ran.returncode == 0

    def unusable(self) -> str:
        """Return why this program cannot be used; empty when it can."""
        command = [self.program, "version", "--format", "{{.Client.Version}} {{.Server.Version}}"]
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        if ran.returncode:
            return f"no Docker Engine responds ({ran.stderr.strip().splitlines()[-1]})"
        client = int(ran.stdout.split(".")[0])
        if client >= BUILDKIT_IS_BUILT_IN and not self.succeeds("buildx", "version"):
            return f"{self.program} has no plugin `buildx`, without which it builds no image"
        return ""

    def has_image(self, name: str) -> bool:
        return self.succeeds("image", "inspect", name)

    def build(self, folder: str, *options: str) -> None:
        """Build an image with BuildKit."""
        command = [self.program, "build", *options, folder]
        run(
            command,
            seconds=3600,
            environment={"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"},
        )

    @cached_property
    def compose(self) -> list[str]:
        """The command of Compose: the plugin, or a program that is built where there is none."""
        if self.succeeds("compose", "version"):
            return [self.program, "compose"]
        program = BUILT / "docker-compose"
        module = f"{COMPOSE_MODULE}@{COMPOSE_VERSION}"
        build(module, {program.name: f"{COMPOSE_MODULE}/cmd"})
        return [str(program)]

    def kill_processes(self, pids: Sequence[int], image: str) -> None:
        """End processes of the host at once, without a word to Docker, from a container that sees them."""
        code = f"import os\nfor pid in {list(pids)}: os.kill(pid, 9)"
        rights = ["--pid=host", "--user=0:0", "--network=none", "--entrypoint=python3"]
        self.run("run", "--rm", *rights, image, "-c", code)


class Project:
    """A Compose project: its files, the environment that fills them in, and what runs of it."""

    def __init__(
        self, docker: Docker, name: str, files: Sequence[Path], environment: Mapping[str, str]
    ) -> None:
        self.docker = docker
        self.name = name
        self._environment = environment
        self._command = [*docker.compose, "--project-name", name]
        for file in files:
            self._command += ["--file", str(file)]

    def compose(self, *arguments: str, seconds: float = 120) -> str:
        """Return what a command of Compose prints. Fails with that, and the state of the containers, otherwise."""
        command = [*self._command, "--ansi=never", "--progress=plain", *arguments]
        try:
            return run(command, seconds=seconds, environment=self._environment)
        except AssertionError as error:
            error.add_note(run([*self._command, "ps", "--all"], environment=self._environment))
            raise

    def up(self) -> None:
        """Start what does not run, and wait until all of it is healthy."""
        try:
            self.compose("up", "--detach", "--wait", seconds=UP_SECONDS)
        except AssertionError as error:
            error.add_note(self.logs("--tail=40"))
            raise

    def logs(self, *options: str) -> str:
        return self.compose("logs", "--no-color", *options)

    def containers(self) -> dict[str, Inspection]:
        """Return what Docker knows of each container of the project, by service."""
        ids = self.ids("ps", "--all")
        if not ids:
            return {}
        inspections = json.loads(self.docker.run("inspect", *ids))
        return {
            item["Config"]["Labels"]["com.docker.compose.service"]: item for item in inspections
        }

    def servers(self) -> dict[str, Inspection]:
        """Return the containers that are to run until they are stopped, by service."""
        return {
            service: item
            for service, item in self.containers().items()
            if item["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        }

    def ids(self, *listing: str) -> list[str]:
        """Return the ids of the project's containers, networks or volumes: `ps --all`, `network ls`, `volume ls`."""
        label = f"label=com.docker.compose.project={self.name}"
        return self.docker.run(*listing, "--quiet", "--filter", label).split()


def is_well(container: Inspection) -> bool:
    """Return whether a container runs and, if it has a health check, is healthy."""
    state = container["State"]
    return bool(state["Running"]) and state.get("Health", {}).get("Status", "healthy") == "healthy"


def run(
    command: Sequence[str], *, seconds: float = 60, environment: Mapping[str, str] | None = None
) -> str:
    """Return what a command prints. Fails with that, and its complaints, when its exit code is not 0."""
    ran = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | (environment or {}),
    )
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def until(happened: Callable[[], Any], what: str, *, seconds: float) -> None:
    """Wait until something has happened; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s: {what}"
        time.sleep(0.5)  # between two looks
