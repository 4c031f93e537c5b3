"""The image and the Compose project on a real Docker Engine: built, started, given the demo's load, killed, stopped.

Public images are pulled where that is possible. Elsewhere stand-ins from packages take their place, see `tests/deploy/standins`.
Every test leaves the project running, so that they run in any order.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from apex_memory.client import Apex, ApexError
from apex_memory.engines.base import free_port
from tests.deploy import DEPLOY, DOCKERFILE, ROOT, compose, standins
from tests.deploy.containers import Docker, Inspection, Project, Unusable, engine, is_well, until
from tests.deploy.programs import CACHE

pytestmark = pytest.mark.deploy()

IMAGE = "apex-test/apex-memory"
PROBE = DOCKERFILE.read_text(encoding="utf-8").partition("ARG BASE=")[2].split()[0]
"""The public image that is pulled first: where it cannot be, no other is."""
PULL_SECONDS = 1800
SMOKE_SECONDS = 1200
RECOVERY_SECONDS = 300
STORES = {"postgres", "gateway"}
"""Without them nothing is taken in."""
SERVERS = [
    name
    for name, service in compose()["services"].items()
    if service["restart"] == "unless-stopped"
]


@dataclass
class Images:
    """What the project runs on: `files` and `profiles` beside the image of Apex."""

    files: list[Path]
    profiles: tuple[str, ...]


@pytest.fixture(scope="module")
def docker() -> Docker:
    try:
        return engine()
    except Unusable as error:
        pytest.skip(f"NOT TESTED: the Compose project on Docker: {error}")


@pytest.fixture(scope="module")
def images(docker: Docker) -> Images:
    """Build the image of Apex, and pull or build all others."""
    options = [f"--file={DOCKERFILE}", f"--tag={IMAGE}"]
    if docker.has_image(PROBE) or docker.succeeds("pull", PROBE, seconds=PULL_SECONDS):
        docker.build(str(ROOT), *options)
        return Images([], ("neo4j", "qdrant", "monitoring"))
    missing = [program for program in standins.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(
            "NOT TESTED: the Compose project on Docker: public images cannot be pulled here, and"
            f" their stand-ins need {', '.join(missing)}"
        )
    base = standins.build_base(docker)
    docker.build(str(ROOT), *options, f"--build-arg=BASE={base}", *standins.network_options())
    standins.build_images(docker)
    return Images([standins.OVERRIDE], standins.PROFILES)


class Stack:
    """The running project, and a client of its gateway."""

    def __init__(self, project: Project, folder: Path, ports: dict[str, int]) -> None:
        self.project = project
        self.secrets = folder / "secrets"
        self.ports = ports
        self.memory = Apex(
            f"http://127.0.0.1:{ports['APEX_PORT']}",
            (self.secrets / "admin_key").read_text(),
            patience=60,
        )

    def remember(self) -> str:
        """Have a text accepted, and return a word that only it has."""
        word = f"pallet{secrets.token_hex(6)}"
        receipt = self.memory.remember(f"The {word} waits at dock 7.", idempotency_key=word)
        assert receipt.events
        return word

    def finds(self, word: str) -> bool:
        """Return whether a text is found, with every store taking part."""
        try:
            answer = self.memory.search(word, limit=1)
        except ApexError:
            return False
        return not answer.degraded and any(word in hit.excerpt for hit in answer.hits)

    def get(self, port: str, path: str) -> bytes:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.ports[port]}{path}", timeout=30
        ) as response:
            content: bytes = response.read()
            return content

    def all_well(self) -> bool:
        return all(is_well(container) for container in self.project.servers().values())


@pytest.fixture(scope="module")
def stack(
    docker: Docker, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The project with the settings of its smoke test, in a copy of its folder, under a name of its own."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(DEPLOY, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("secrets"))
    here = folder / "compose"
    engines = images.profiles[:2]
    subprocess.run(["sh", here / "secrets.sh", *engines], check=True)
    ports = {name: free_port() for name in ("APEX_PORT", "TEMPORAL_UI_PORT", "GRAFANA_PORT")}
    environment = {
        "APEX_IMAGE": IMAGE,
        "APEX_TOML": "./smoke/apex.toml",
        "COMPOSE_PROFILES": ",".join(images.profiles),
        "OTEL_TRACES_SAMPLER_ARG": "1",
        **{name: str(port) for name, port in ports.items()},
    }
    files = [here / "compose.yaml", *images.files]
    project = Project(docker, f"apex-test-{secrets.token_hex(3)}", files, environment)
    try:
        project.up()
        stack = Stack(project, here, ports)
        with stack.memory:
            yield stack
    finally:
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "compose.log").write_text(project.logs("--timestamps"))
        project.compose("--profile=*", "down", "--volumes", "--timeout=60", seconds=300)
    left = {listing: project.ids(*listing) for listing in LISTINGS}
    assert not any(left.values()), left


LISTINGS = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))


def test_the_image_runs_as_nobody_and_holds_no_installer(docker: Docker, images: Images) -> None:
    def inside(code: str) -> str:
        entry = "--entrypoint=/opt/apex/bin/python3"
        return docker.run("run", "--rm", "--network=none", entry, IMAGE, "-c", code).strip()

    assert inside("import os; print(os.getuid(), os.getgid())") == "10001 10001"
    assert inside("from importlib.util import find_spec; print(find_spec('pip'))") == "None"
    assert "--wait" in docker.run("run", "--rm", "--network=none", IMAGE, "ingest", "--help")


def test_every_service_runs_and_every_job_has_ended_well(stack: Stack) -> None:
    containers = stack.project.containers()
    servers = stack.project.servers()
    assert all(is_well(container) for container in servers.values())
    for job in ("migrate", "temporal-schema", "temporal-namespace"):
        assert containers[job]["State"]["ExitCode"] == 0, job


def test_the_demos_load_is_taken_and_its_questions_have_answers(stack: Stack) -> None:
    stack.project.compose(
        "--profile=smoke",
        "up",
        "simulator",
        "smoke",
        "--abort-on-container-exit",
        "--exit-code-from=smoke",
        seconds=SMOKE_SECONDS,
    )
    stack.project.compose("--profile=smoke", "rm", "--force", "simulator", "smoke")
    # Compose has stopped what it was attached to, and that alone.
    assert stack.all_well()


def test_the_command_line_runs_beside_the_project(stack: Stack) -> None:
    status = json.loads(stack.project.compose("run", "--rm", "-T", "cli", "status", "--json"))
    assert status["stores"]


def test_the_pages_and_the_monitoring_respond(stack: Stack) -> None:
    namespaces = json.loads(stack.get("TEMPORAL_UI_PORT", "/api/v1/namespaces"))["namespaces"]
    assert "apex" in [item["namespaceInfo"]["name"] for item in namespaces]
    expected = {"gateway", "worker", "bulk", "temporal"} | (
        {"vectors"} & stack.project.servers().keys()
    )
    until(lambda: scraped(stack) == expected, "every process is scraped", seconds=60)
    word = stack.remember()
    until(partial(stack.finds, word), "a text is found", seconds=60)
    until(
        lambda: "spans" in stack.project.logs("otel-collector"),
        "the collector has received spans",
        seconds=60,
    )


def scraped(stack: Stack) -> set[str]:
    """Return the processes that Prometheus reads."""
    address = "http://127.0.0.1:9090/api/v1/query?query=up%3D%3D1"
    answer = stack.project.compose(
        "exec", "-T", "prometheus", "wget", "--quiet", "--output-document=-", address
    )
    return {row["metric"]["process"] for row in json.loads(answer)["data"]["result"]}


@pytest.mark.parametrize("service", SERVERS)
def test_a_killed_container_is_started_again_and_nothing_is_lost(
    stack: Stack, service: str
) -> None:
    container = stack.project.servers().get(service)
    if container is None:
        if service in standins.left_out():
            pytest.skip(f"NOT TESTED: {service}: no package carries it, and its image is not here")
        pytest.skip(f"{service} is not in the profiles that were chosen")
    stack.project.docker.run("kill", container["Id"])
    # Docker leaves alone what was killed by its own command.
    assert not stack.project.servers()[service]["State"]["Running"]
    words = [] if service in STORES else [stack.remember()]
    stack.project.up()
    words.append(stack.remember())
    for word in words:
        until(partial(stack.finds, word), f"{word} is found", seconds=RECOVERY_SECONDS)


def test_docker_starts_again_what_crashes(stack: Stack) -> None:
    """All processes die at once, as when a machine has no memory left."""
    before = stack.project.servers()
    word = stack.remember()
    pids = [container["State"]["Pid"] for container in before.values()]
    stack.project.docker.kill_processes(pids, IMAGE)
    until(
        lambda: stack.all_well() and restarted(stack.project.servers(), before),
        "every container is well again",
        seconds=RECOVERY_SECONDS,
    )
    until(partial(stack.finds, word), f"{word} is found", seconds=RECOVERY_SECONDS)


def restarted(now: dict[str, Inspection], before: dict[str, Inspection]) -> bool:
    """Return whether Docker has started each container again."""
    return all(now[name]["RestartCount"] > before[name]["RestartCount"] for name in before)


def test_the_project_stops_in_order_and_comes_back_with_its_memory(stack: Stack) -> None:
    project = stack.project
    word = stack.remember()
    servers = project.servers()
    try:
        project.compose("stop", seconds=300)
        for service, container in project.containers().items():
            state = container["State"]
            assert not state["OOMKilled"], service
            if service in servers:
                # 143 and 2: ended by SIGTERM, as the JVM and Go say. 137: killed after the time for stopping.
                assert state["ExitCode"] in (0, 2, 143), f"{service}: {state['ExitCode']}"
        project.compose("down", seconds=300)
        assert not project.ids("ps", "--all") and not project.ids("network", "ls")
    finally:
        project.up()
    until(partial(stack.finds, word), f"{word} is found", seconds=RECOVERY_SECONDS)


def test_no_secret_is_in_a_log_or_an_inspection(stack: Stack) -> None:
    """Not in an environment variable or on a command line either, where `docker inspect` shows it."""
    shown = stack.project.logs() + json.dumps(stack.project.containers())
    names = [name for name in compose()["secrets"] if name.endswith(("_password", "_key", "_keys"))]
    assert len(names) > 5
    for name in names:
        assert (stack.secrets / name).read_text().strip() not in shown, name
