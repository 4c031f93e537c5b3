"""The Compose project against the settings, the image and itself, without an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from apex_memory.config import Settings, file_variables, load_settings
from apex_memory.engines.temporal import dynamic_config_file
from apex_memory.simulate.day import yesterday
from apex_memory.simulate.registry import simulator_classes
from apex_memory.simulate.server import SimulatorServer
from apex_memory.simulate.vendor import Chaos
from apex_memory.simulate.world import Clock, World
from apex_memory.sources import registry
from tests.deploy import COMPOSE, DEPLOY, ROOT, compose, role, standins, tool

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "APEX_IMAGE" in service["image"]}
PUBLISHED = {"gateway", "temporal-ui", "grafana"}
WRITABLE = {"neo4j"}
"""Services whose images write their configuration at each start."""
ALWAYS_SET = {f"APEX_{name.upper()}" for name in Settings.model_fields} | {"APEX_SETTINGS_FILE"}
THIRD_PARTY = {
    "postgres": r"POSTGRES_(PASSWORD_FILE|INITDB_ARGS)",
    "qdrant": r"QDRANT__TELEMETRY_DISABLED",
    "neo4j": r"NEO4J_(AUTH_FILE|server_memory_\w+|dbms_usage__report_enabled|db_tx__log_rotation_\w+)",
    "temporal": r"POSTGRES_HOST|TEMPORAL_SHARDS",
    "temporal-schema": r"POSTGRES_HOST|TEMPORAL_DB_PASSWORD_FILE",
    "temporal-namespace": r"TEMPORAL_ADDRESS|NAMESPACE|RETENTION|HOME",
    "temporal-ui": r"TEMPORAL_(ADDRESS|DEFAULT_NAMESPACE|DISABLE_NEWS_FETCH|CORS_ORIGINS)",
    "grafana": r"GF_\w+",
}
"""Variables of the images of others: each is one that the image, or a script of ours, reads."""
TRACING = re.compile(r"OTEL_(EXPORTER_OTLP_ENDPOINT|TRACES_SAMPLER|TRACES_SAMPLER_ARG)")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:?-[^}]*)?\}")


def environment(service: dict[str, Any]) -> dict[str, str]:
    given: dict[str, str] = service.get("environment", {})
    return given


def named(entries: list[Any]) -> dict[str, str]:
    """Return secrets or configs of a service: name, and where they are in the container."""
    targets = {}
    for entry in entries:
        if isinstance(entry, str):
            targets[entry] = f"/run/secrets/{entry}"
        else:
            targets[entry["source"]] = entry["target"]
    return targets


@pytest.fixture(scope="module", params=["neo4j qdrant", "falkordb edge"])
def secrets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of secrets that the script makes for a choice of engines."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(COMPOSE / "secrets.sh", folder)
    subprocess.run(["sh", folder / "secrets.sh", *request.param.split()], check=True)
    return folder / "secrets"


def test_the_file_is_a_compose_file() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    ran = subprocess.run(
        [*command, COMPOSE / "compose.yaml"], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_security_linter_has_only_known_remarks(tmp_path: Path) -> None:
    # A copy, because the linter has a remark on every mount from a checkout below /root.
    folder = shutil.copytree(COMPOSE, tmp_path / "compose")
    command = [tool("compose-lint"), "--format", "json", str(folder / "compose.yaml")]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    remarks = {(row["rule_id"], row["service"]) for row in _findings(json.loads(ran.stdout))}
    # CL-0019: digests cannot be known before the images are fetched; docs/howto/compose.md says how to pin them.
    known = {("CL-0007", name) for name in WRITABLE}
    # CL-0018: root, but without any capability; the reason is beside the service.
    known.add(("CL-0018", "falkordb"))
    assert {remark for remark in remarks if remark[0] != "CL-0019"} == known


def _findings(report: Any) -> Iterator[dict[str, Any]]:
    if isinstance(report, dict):
        if "rule_id" in report and "service" in report:
            yield report
        for value in report.values():
            yield from _findings(value)
    elif isinstance(report, list):
        for value in report:
            yield from _findings(value)


@pytest.mark.parametrize("name", OURS)
def test_variables_of_our_services_are_settings(name: str) -> None:
    known = ALWAYS_SET | file_variables().keys()
    if name == "vectors":
        known = role().VECTORS.keys() | {"APEX_EDGE_PASSWORD_FILE"}
    given = environment(OURS[name])
    assert not {
        variable for variable in given if variable not in known and not TRACING.fullmatch(variable)
    }


def test_the_reference_names_every_setting_that_is_given() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    for service in OURS.values():
        for variable in environment(service):
            setting = file_variables().get(variable, variable.removeprefix("APEX_").lower())
            if setting in Settings.model_fields:
                assert f"| `{setting}` |" in page


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - OURS.keys()))
def test_variables_of_other_services_are_known(name: str) -> None:
    given = environment(SERVICES[name])
    unknown = {v for v in given if not re.fullmatch(THIRD_PARTY.get(name, "(?!)"), v)}
    assert not unknown


@pytest.mark.parametrize("name", ["gateway", "worker", "bulk", "migrate", "cli"])
def test_the_settings_of_a_service_load(
    name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment(SERVICES[name]).items():
        if variable.startswith("APEX_"):
            default = VARIABLE.sub(lambda match: (match[2] or "").lstrip(":-"), value)
            here = default.replace("/run/secrets", str(secrets))
            monkeypatch.setenv(variable, here.replace("/etc/apex", str(COMPOSE)))
    settings = load_settings()
    if name in ("gateway", "worker", "bulk"):
        shared = set(SERVICES[name]["networks"])
        for url in (settings.documents, settings.graph, settings.vectors, settings.cache):
            host = urlsplit(url).hostname
            assert host in SERVICES
            assert shared & set(SERVICES[host]["networks"])
        assert settings.temporal == "temporal:7233/apex"


def test_passwords_are_the_same_on_both_sides(secrets: Path) -> None:
    def content(name: str) -> str:
        return (secrets / name).read_text().strip()

    assert urlsplit(content("documents")).password == content("apex_db_password")
    assert urlsplit(content("cache")).password == content("cache_password")
    assert content("cache.conf") == f"requirepass {content('cache_password')}"
    password = urlsplit(content("graph")).password
    assert content("neo4j_auth") == f"neo4j/{password}"
    assert content("falkordb.conf") == f"requirepass {password}"
    assert yaml.safe_load(content("qdrant.yaml"))["service"]["api_key"] == content("qdrant_api_key")
    made = {file.name: file.read_text() for file in secrets.iterdir()}
    assert len({made[name] for name in made if name.endswith("password")}) == 7


def test_a_second_run_keeps_the_passwords(secrets: Path) -> None:
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    engines = ["neo4j", "qdrant"] if "neo4j" in before["graph"] else ["falkordb", "edge"]
    subprocess.run(["sh", secrets.parent / "secrets.sh", *engines], check=True)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == before
    assert (secrets.stat().st_mode & 0o777) == 0o700


def test_secrets_are_files_that_the_script_makes_and_that_are_ignored(secrets: Path) -> None:
    for name, secret in compose()["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
        assert (secrets / name).stat().st_size > 1
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "deploy/compose/secrets/" in ignored


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_reads_only_secrets_and_files_that_it_was_given(name: str) -> None:
    service = SERVICES[name]
    secrets, configs = named(service.get("secrets", [])), named(service.get("configs", []))
    assert secrets.keys() <= compose()["secrets"].keys()
    assert configs.keys() <= compose()["configs"].keys()
    targets = {*secrets.values(), *configs.values()}
    mounts = [str(volume).split(":")[1] for volume in service.get("volumes", [])]
    # Scripts and configurations that are mounted may name secrets too.
    texts = [json.dumps([service.get(key) for key in ("command", "entrypoint", "environment")])]
    for config in configs:
        file = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", compose()["configs"][config]["file"])
        assert (COMPOSE / file).is_file()
        texts.append((COMPOSE / file).read_text(encoding="utf-8"))
    for path in re.findall(r"/(?:run/secrets|etc/apex)/[\w.]+", " ".join(texts)):
        assert path in targets or path in mounts, f"{name} reads {path}"


def test_volumes_are_declared_used_and_lead_to_files() -> None:
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), source
                assert volume.endswith(":ro")
            else:
                used.add(source)
    assert used == compose()["volumes"].keys()


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    image = VARIABLE.sub(lambda match: (match[2] or "").lstrip(":-"), SERVICES[name]["image"])
    _, _, tag = image.partition(":")
    assert re.match(r"v?\d+\.\d+\.?\d*", tag) and "latest" not in tag


def test_the_image_of_apex_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"] for service in OURS.values()} == {
        f"${{APEX_IMAGE:-apex-memory:{version}}}"
    }
    assert f"APEX_IMAGE=apex-memory:{version}\n" in (COMPOSE / ".env").read_text()
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert f"ARG VERSION={version}\n" in dockerfile


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_and_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name not in WRITABLE)
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert "privileged" not in service and "network_mode" not in service
    assert service["networks"] and "default" not in service["networks"]
    assert "healthcheck" in service or name in OURS or name == "otel-collector"


def test_only_the_gateway_and_pages_are_published_and_on_loopback() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports.keys() == PUBLISHED
    for entries in ports.values():
        assert len(entries) == 1 and entries[0].startswith("127.0.0.1:")
    gateway = ports["gateway"][0].rpartition(":")[2]
    assert gateway == str(Settings.model_fields["port"].default)


def test_stores_have_no_way_out() -> None:
    networks = compose()["networks"]
    inner = {name for name, network in networks.items() if (network or {}).get("internal")}
    assert inner == {"data", "orchestration", "temporal-data", "monitoring"}
    stores = ("postgres", "valkey", "qdrant", "neo4j", "falkordb", "vectors", "temporal")
    for name in stores:
        assert set(SERVICES[name]["networks"]) <= inner
    # Neither the page of Temporal nor that of Grafana reaches a store.
    for name in ("temporal-ui", "grafana", "prometheus", "otel-collector"):
        assert not {"data", "temporal-data"} & set(SERVICES[name]["networks"])


def test_services_wait_only_for_services_that_exist_and_share_a_network() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES and "profiles" not in SERVICES[other]
            assert how["condition"] in ("service_healthy", "service_completed_successfully")


def test_up_can_wait_for_every_service() -> None:
    """`docker compose up --wait` fails for a job that ends, and for a disabled health check, unless another waits for the end."""
    awaited = {
        other
        for service in SERVICES.values()
        for other, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    for name in ("worker", "bulk"):
        assert "temporal-namespace" in SERVICES[name]["depends_on"]  # they end without it
    by_themselves = {"cli", "simulator", "smoke"}  # run with other commands
    for name, service in SERVICES.items():
        ends = service["restart"] != "unless-stopped"
        if ends or service.get("healthcheck", {}).get("disable"):
            assert name in awaited | by_themselves, name


def test_profiles_choose_one_graph_and_one_vector_store() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert [profiles[name] for name in ("neo4j", "falkordb", "qdrant", "vectors")] == [
        ["neo4j"],
        ["falkordb"],
        ["qdrant"],
        ["edge"],
    ]
    chosen = re.search(r"^COMPOSE_PROFILES=(.*)$", (COMPOSE / ".env").read_text(), re.MULTILINE)
    assert chosen and chosen[1] == "neo4j,qdrant,monitoring"


def test_every_variable_of_the_project_has_a_default_and_a_row_in_the_docs() -> None:
    text = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "howto" / "compose.md").read_text(encoding="utf-8")
    for name, default in VARIABLE.findall(text):
        assert default, f"${{{name}}} has no default"
        assert f"`{name}`" in page, f"docs/howto/compose.md does not name {name}"


def test_prometheus_scrapes_every_process_at_its_port() -> None:
    settings = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    [discovery] = settings["scrape_configs"][0]["dns_sd_configs"]
    assert f"0.0.0.0:{discovery['port']}" == role().VECTORS["APEX_EDGE_METRICS"]
    assert discovery["port"] == 9464
    server = (DEPLOY / "temporal" / "server.yaml").read_text()
    assert f"listenAddress: 0.0.0.0:{discovery['port']}" in server
    for name in discovery["names"]:
        assert "monitoring" in SERVICES[name]["networks"]


def test_traces_go_to_the_collector() -> None:
    settings = yaml.safe_load((COMPOSE / "otel.yaml").read_text())
    port = settings["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    endpoint = environment(SERVICES["gateway"])["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert endpoint.endswith(f"-http://otel-collector:{port}}}")


def test_the_dynamic_settings_of_temporal_are_those_of_the_code() -> None:
    folder = DEPLOY / "temporal"
    assert (folder / "dynamic.yaml").read_text() == dynamic_config_file()
    single = (folder / "dynamic-single-node.yaml").read_text()
    assert single == dynamic_config_file(single_node=True)


def test_the_smoke_test_has_the_settings_of_its_simulator() -> None:
    tables = tomllib.loads((COMPOSE / "smoke" / "apex.toml").read_text())["sources"]
    command = SERVICES["simulator"]["command"]
    registry.load(tables)  # the sources accept them
    world = World.make(shipments=2, start=yesterday())
    clock = Clock(world.start)
    # EDI needs SFTP and folders.
    simulators = [k(world, clock, Chaos()) for k in simulator_classes() if k.name != "edi"]
    expected = SimulatorServer("http://simulator:8470", simulators).settings()
    for name, table in tables.items():
        table.pop("poll_seconds", None)
        for values in (table, expected[name]):
            values.pop("since", None)  # a date before the simulated day
    assert tables == expected
    started = {command[at + 1] for at, word in enumerate(command) if word == "--only"}
    assert started == expected.keys()


def test_stand_ins_take_the_place_of_images_and_of_nothing_else() -> None:
    """What `make test-deploy` runs where public images cannot be pulled is this project, with the same settings."""
    override = standins.override()
    not_chosen = {"falkordb"}  # Neo4j is the default
    assert override.keys() | standins.left_out() == SERVICES.keys() - OURS.keys() - not_chosen
    images = {entry["image"] for entry in override.values() if "image" in entry}
    assert images == {f"apex-test/{target}" for target in standins.TARGETS}
    for name, entry in override.items():
        expected = {"profiles"} if name in standins.left_out() else {"image"}
        assert entry.keys() - ({"healthcheck"} if name == "neo4j" else set()) == expected
