"""The Helm chart: its values, and what it renders for three value sets, against schemas, policies, settings and the image.

The renderings are committed, so that the gate checks them without Helm. Where a helm is at hand they are also compared with
what it renders now; `make chart` writes them anew.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from apex_memory.config import Settings, file_variables, load_settings
from apex_memory.flows.maintenance.workflows import RolloutGate
from docs.generate.chart import CHART, copies, readme, render, schema, values
from tests.deploy import DEPLOY, ROOT, role
from tests.deploy.manifests import (
    HERE,
    VALUES,
    Object,
    chart_version,
    check_schema,
    helm,
    objects,
    pod_labels,
    pod_specs,
    rendered,
    violations,
)

MOUNTED = "/run/secrets/apex/"


@pytest.fixture
def helm_program() -> str:
    program = helm()
    if program is None:
        pytest.skip("NOT TESTED: needs helm; `make test-deploy` builds it")
    return program


def kinds(name: str, kind: str) -> dict[str, Object]:
    """Return the objects of a kind in a rendering, by name."""
    return {item["metadata"]["name"]: item for item in rendered(name) if item["kind"] == kind}


def containers(name: str) -> Iterator[tuple[str, Object, Object]]:
    """Yield the workload, the specification of its pods, and a container, for every container of a rendering."""
    for workload, spec in pod_specs(rendered(name)):
        for container in spec["containers"]:
            yield workload, spec, container


# --- What is rendered -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_knows_every_field(name: str) -> None:
    for item in rendered(name):
        check_schema(item)


def test_a_field_that_does_not_exist_is_noticed() -> None:
    for name, kind, path in (
        ("minimal", "Deployment", ("spec", "template", "spec")),
        ("controller", "WorkerDeployment", ("spec", "template", "spec")),
        ("controller", "WorkerDeployment", ("spec", "rollout")),
        ("controller", "Connection", ("spec",)),
        ("production", "PodMonitor", ("spec",)),
    ):
        item = copy.deepcopy(next(iter(kinds(name, kind).values())))
        inner = item
        for key in path:
            inner = inner[key]
        inner["replica"] = 1
        with pytest.raises(jsonschema.ValidationError, match="replica"):
            check_schema(item)


@pytest.mark.parametrize("name", VALUES)
def test_the_policies_hold(name: str) -> None:
    assert not violations(rendered(name))


def _pod(change: Callable[[Object], None]) -> Callable[[Object, Object], None]:
    return lambda spec, container: change(spec)


def _container(change: Callable[[Object], None]) -> Callable[[Object, Object], None]:
    return lambda spec, container: change(container)


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        ("no pod runs as root", _pod(lambda s: s["securityContext"].update(runAsUser=0))),
        ("no pod runs as root", _pod(lambda s: s["securityContext"].pop("runAsNonRoot"))),
        (
            "every pod has the seccomp profile of the runtime",
            _pod(lambda s: s["securityContext"].pop("seccompProfile")),
        ),
        (
            "no pod has a token of Kubernetes",
            _pod(lambda s: s.pop("automountServiceAccountToken")),
        ),
        (
            "no pod gets variables of Services, which Apex would refuse",
            _pod(lambda s: s.pop("enableServiceLinks")),
        ),
        ("no pod shares what its node has", _pod(lambda s: s.update(hostNetwork=True))),
        (
            "no pod shares what its node has",
            _pod(lambda s: s["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
        ),
        (
            "temporary volumes have limits",
            _pod(lambda s: s["volumes"].append({"name": "x", "emptyDir": {}})),
        ),
        (
            "root file systems are read-only",
            _container(lambda c: c["securityContext"].pop("readOnlyRootFilesystem")),
        ),
        (
            "no container gains privileges",
            _container(lambda c: c["securityContext"].update(allowPrivilegeEscalation=True)),
        ),
        (
            "no container has capabilities",
            _container(lambda c: c["securityContext"].update(capabilities={"drop": ["NET_RAW"]})),
        ),
        ("images are pinned", _container(lambda c: c.update(image="apex-memory:latest"))),
        ("images are pinned", _container(lambda c: c.update(image="apex-memory"))),
        (
            "every container has requests and limits",
            _container(lambda c: c["resources"]["limits"].pop("memory")),
        ),
        ("every process has probes", _container(lambda c: c.pop("readinessProbe"))),
        (
            "no secret is a value",
            _container(lambda c: c["env"].append({"name": "APEX_API_KEY", "value": "x"})),
        ),
        (
            "no address has a password",
            _container(lambda c: c["env"].append({"name": "X", "value": "bolt://a:b@host"})),
        ),
    ],
)
def test_a_broken_policy_is_noticed(policy: str, fault: Callable[[Object, Object], None]) -> None:
    items = copy.deepcopy(rendered("minimal"))
    spec = next(spec for name, spec in pod_specs(items) if name == "Deployment/apex-gateway")
    fault(spec, spec["containers"][0])
    assert violations(items) == {policy}


@pytest.mark.parametrize("name", VALUES)
def test_variables_are_settings_and_their_files_are_mounted(name: str) -> None:
    known = {f"APEX_{setting.upper()}" for setting in Settings.model_fields}
    known |= file_variables().keys() | {"APEX_SETTINGS_FILE"}
    for workload, spec, container in containers(name):
        of_vectors = role().VECTORS.keys() | {"APEX_EDGE_PASSWORD_FILE"}
        allowed = of_vectors if container["name"] == "vectors" else known
        [secrets] = [volume for volume in spec["volumes"] if volume["name"] == "secrets"]
        files = {item["secret"]["items"][0]["path"] for item in secrets["projected"]["sources"]}
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert MOUNTED.rstrip("/") in mounts
        read = set()
        for variable in container["env"]:
            assert variable["name"] in allowed or variable["name"].startswith(
                ("APEX_SOURCES__", "OTEL_")
            ), f"{workload}: {variable['name']}"
            value = variable.get("value", "")
            if value.startswith(MOUNTED):
                read.add(value.removeprefix(MOUNTED))
            elif variable["name"].endswith("_FILE"):
                assert str(Path(value).parent) in mounts, f"{workload}: {value}"
        # A container reads no file that is not mounted; a pod has no secret that none of its containers reads, except
        # the key for Temporal, which the worker controller passes by itself.
        assert read <= files, workload
        assert files - read <= {"temporal_api_key"}, workload


@pytest.mark.parametrize("name", VALUES)
def test_the_settings_of_a_process_load(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {
        "documents": "postgresql://apex:pw@postgres:5432/apex",
        "documents_direct": "postgresql://apex:pw@postgres:5432/apex?application_name=direct",
        "documents_owner": "postgresql://apex_owner:pw@postgres:5432/apex",
        "graph": "bolt://neo4j:pw@neo4j:7687/neo4j",
        "vectors": "edge://:pw@apex-vectors:8463",
        "cache": "redis://:pw@valkey:6379/0",
        "secret_keys": "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=",
        "admin_key": "apex_1_2",
    }
    for file in ("qdrant_api_key", "temporal_api_key", "ca.crt", "tls.crt", "tls.key"):
        (tmp_path / file).write_text("x\n")
    for file, text in urls.items():
        (tmp_path / file).write_text(f"{text}\n")
    [settings_map] = [
        item for key, item in kinds(name, "ConfigMap").items() if key.endswith("-settings")
    ]
    (tmp_path / "apex.toml").write_text(settings_map["data"]["apex.toml"])
    seen = set()
    for _, _, container in containers(name):
        if container["name"] == "vectors":
            continue
        with monkeypatch.context() as patch:
            for variable in container["env"]:
                value = variable.get("value", "x")
                if value.startswith(("/run/secrets/", "/etc/")):
                    value = str(tmp_path / Path(value).name)
                patch.setenv(variable["name"], value)
            if name == "controller":  # what the worker controller adds
                patch.setenv("TEMPORAL_ADDRESS", "temporal:7233")
                patch.setenv("TEMPORAL_DEPLOYMENT_NAME", "memory/apex-worker")
                patch.setenv("TEMPORAL_WORKER_BUILD_ID", "0-2-0-abcd")
            settings = load_settings()
        seen.add(container["name"])
        owner = name == "production" and container["name"] == "migrate"
        assert settings.documents == urls["documents_owner" if owner else "documents"]
        # The owner's address is PostgreSQL itself; otherwise the migration goes past a pooler as everything else does.
        assert settings.documents_direct == (urls["documents_direct"] if name == "pooler" else "")
        if container["name"] == "migrate":
            continue
        assert (settings.graph, settings.vectors) == (urls["graph"], urls["vectors"])
        assert settings.routing == ("external" if name == "controller" else "self")
        assert settings.temporal.partition(":")[0] not in ("", "embedded")
        if name == "controller":
            assert settings.deployment_name == "memory/apex-worker"
    assert {"gateway", "worker", "bulk", "migrate"} <= seen


@pytest.mark.parametrize("name", VALUES)
def test_roles_and_ports_are_those_of_the_image(name: str) -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    environment = dict(re.findall(r"(APEX_\w+)=(\S+)", text)) | role().VECTORS
    for workload, _, container in containers(name):
        [command] = container["args"]
        assert command in role().ROLES or command == "migrate"
        assert container["name"] == command, f"{workload}: the label `process` is its name"
        given = environment | {v["name"]: v.get("value", "") for v in container["env"]}
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        expected = {
            "gateway": {"http": "APEX_PORT", "metrics": "APEX_GATEWAY_METRICS"},
            "worker": {"metrics": "APEX_WORKER_METRICS"},
            "vectors": {"vectors": "APEX_EDGE_PORT", "metrics": "APEX_EDGE_METRICS"},
            "bulk": {"metrics": "APEX_BULK_METRICS"},
            "shadow": {"metrics": "APEX_SHADOW_METRICS"},
        }.get(command, {})
        if name == "controller" and command == "bulk":  # beside the worker, in one pod
            expected = {"metrics-bulk": "APEX_BULK_METRICS"}
        assert {key: given[variable].rpartition(":")[2] for key, variable in expected.items()} == {
            key: str(port) for key, port in ports.items()
        }
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            how = container.get(probe, {})
            target = (how.get("httpGet") or how.get("tcpSocket") or {}).get("port")
            assert target is None or target in ports or target in ports.values(), workload


@pytest.mark.parametrize("name", VALUES)
def test_selectors_find_pods(name: str) -> None:
    labels = pod_labels(rendered(name))

    def selected(selector: Object) -> bool:
        return any(selector.items() <= pod.items() for pod in labels)

    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        for item in kinds(name, kind).values():
            spec = item["spec"]
            chosen = spec.get("podSelector") or spec["selector"]
            assert selected(chosen.get("matchLabels", chosen)), item["metadata"]["name"]
    for item in kinds(name, "HorizontalPodAutoscaler").values():
        target = item["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in kinds(name, "Deployment")[target]["spec"]


@pytest.mark.parametrize("name", VALUES)
def test_probes_speak_what_the_gateway_speaks(name: str) -> None:
    [gateway] = [item for _, _, item in containers(name) if item["name"] == "gateway"]
    own = "APEX_TLS_CERTIFICATE_FILE" in {variable["name"] for variable in gateway["env"]}
    assert own == (name == "production")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert (gateway[probe]["httpGet"].get("scheme") == "HTTPS") == own


def test_builds_side_by_side_have_pods_of_their_own() -> None:
    deployments = kinds("production", "Deployment")
    current, candidate = deployments["apex-worker"], deployments["apex-worker-candidate"]
    assert current["spec"]["selector"] != candidate["spec"]["selector"]
    images = [
        item["spec"]["template"]["spec"]["containers"][0]["image"] for item in (current, candidate)
    ]
    assert images == ["registry.example/apex-memory:0.2.0", "registry.example/apex-memory:0.3.0"]
    migrate = kinds("production", "Job")["apex-migrate"]["spec"]["template"]["spec"]
    assert migrate["containers"][0]["image"] == images[1]


def test_the_worker_controller_ramps_behind_the_gate() -> None:
    [connection] = kinds("controller", "Connection").values()
    # Without a name the controller would connect in plain text, whatever its workers do.
    assert connection["spec"]["tls"] == {"serverName": "apex.a1b2c.tmprl.cloud"}
    [deployment] = kinds("controller", "WorkerDeployment").values()
    rollout = deployment["spec"]["rollout"]
    assert [step["rampPercentage"] for step in rollout["steps"]] == [10, 50]
    assert rollout["gate"] == {"workflowType": RolloutGate.__name__}
    # A build is one version of one deployment: both queues are served by it.
    names = [item["name"] for item in deployment["spec"]["template"]["spec"]["containers"]]
    assert names == ["worker", "bulk"]
    assert not {"apex-worker", "apex-bulk"} & kinds("controller", "Deployment").keys()
    for _, _, container in containers("controller"):
        # It sets these itself; APEX_TEMPORAL would make Apex ignore its connection.
        given = {variable["name"] for variable in container["env"]}
        if container["name"] in ("worker", "bulk"):
            assert not {"APEX_TEMPORAL", "APEX_DEPLOYMENT_NAME", "APEX_BUILD_ID"} & given


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://localhost:8460"),
        ({"gateway": {"tlsSecret": "apex-gateway"}}, "https://localhost:8460"),
        (
            {"gateway": {"ingress": {"enabled": True, "host": "apex.example"}}},
            "https://apex.example",
        ),
    ],
)
def test_the_notes_name_the_address_that_responds(
    helm_program: str, tmp_path: Path, given: dict[str, Any], url: str
) -> None:
    start = yaml.safe_load((HERE / "values" / "minimal.yaml").read_text())
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(start | given))
    command = [helm_program, "install", "apex", str(CHART), "--dry-run=client"]
    ran = subprocess.run(
        [*command, "--values", str(file)], check=True, capture_output=True, text=True
    )
    assert f"export APEX_URL={url} " in ran.stdout


def test_the_migration_runs_before_anything_else_of_the_chart_exists() -> None:
    job = kinds("minimal", "Job")["apex-migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert "serviceAccountName" not in spec
    assert not [volume for volume in spec["volumes"] if "configMap" in volume]


def test_only_the_gateway_listens_to_the_world_and_the_vectors_call_and_hear_nobody_else() -> None:
    policies = kinds("production", "NetworkPolicy")
    assert policies["apex-base"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    [to_vectors] = policies["apex-vectors"]["spec"]["ingress"]
    assert to_vectors["from"][0].keys() == {"podSelector"}
    [outbound] = policies["apex-outbound"]["spec"]["egress"]
    assert "169.254.169.254/32" in outbound["to"][0]["ipBlock"]["except"]
    # The gateway too: keys of webhooks, large payloads, an embedding server and a reranker are elsewhere.
    chosen = policies["apex-outbound"]["spec"]["podSelector"]["matchExpressions"][0]["values"]
    assert chosen == ["gateway", "worker", "bulk", "shadow"]
    external = {name for name, item in kinds("minimal", "Service").items()}
    assert external == {"apex-gateway"}


# --- Values ---------------------------------------------------------------------------------------------------------


def leaves(properties: Object, defaults: Object, path: str = "") -> Iterator[str]:
    """Yield what is missing in the schema, in the defaults, or has no description."""
    for name in properties.keys() ^ defaults.keys():
        if path + name != "global":
            yield f"{path}{name}: in one of schema and defaults only"
    for name in properties.keys() & defaults.keys():
        entry = properties[name]
        if not entry.get("description"):
            yield f"{path}{name}: no description"
        if "properties" in entry:
            yield from leaves(entry["properties"], defaults[name], f"{path}{name}.")


def test_the_schema_describes_every_value() -> None:
    assert not list(leaves(schema()["properties"], values()))
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.Draft7Validator(schema()).validate(values())


@pytest.mark.parametrize("name", VALUES)
def test_the_value_sets_of_the_tests_are_valid(name: str) -> None:
    given = yaml.safe_load((HERE / "values" / f"{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema()).validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {"image": {"tag": "latest"}},
        {"candidate": {"tag": "latest"}},
        {"image": {"digest": "sha256:abc"}},
        {"secrets": {"documents": {"key": "uri", "value": "postgresql://a:b@c/d"}}},
        {"documents": "postgresql://a:b@c/d"},
        {"extraEnv": [{"name": "APEX_SOURCES__FRONTAPP__API_TOKEN", "value": "x"}]},
        {"worker": {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}},
        {
            "worker": {
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1"}}
            }
        },
        {"workers": {"versioning": "both"}},
        {"workers": {"controller": {"steps": [{"rampPercentage": 140, "pauseDuration": "10m"}]}}},
        {"temporal": {"address": "temporal"}},
        {"gateway": {"replicas": 0}},
        {"networkPolicy": {"storePorts": [0]}},
        {"tracing": {"sampleRatio": 2}},
    ],
    ids=json.dumps,
)
def test_wrong_values_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema()).validate(given)


def test_the_chart_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart_version() == project["version"]


def test_copies_and_readme_are_up_to_date() -> None:
    for path, text in copies().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `make docs`"
    assert (CHART / "README.md").read_text(encoding="utf-8") == readme(), "run `make docs`"


# --- With Helm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_the_renderings_are_what_helm_renders(helm_program: str, name: str) -> None:
    fresh = render(helm_program, HERE / "values" / f"{name}.yaml")
    assert sorted(objects(fresh), key=json.dumps) == sorted(rendered(name), key=json.dumps), (
        "run `make chart`"
    )


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_no_fault(helm_program: str, name: str) -> None:
    command = [helm_program, "lint", "--strict", str(CHART)]
    command += ["--values", str(HERE / "values" / f"{name}.yaml")]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_alerts_and_dashboards_reach_the_operator_as_they_are(
    helm_program: str, tmp_path: Path
) -> None:
    given = yaml.safe_load((HERE / "values" / "minimal.yaml").read_text())
    on = {"enabled": True}
    given["monitoring"] = {"rules": on, "dashboards": on, "podMonitor": on}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(given))
    items = objects(render(helm_program, file))
    for item in items:
        check_schema(item)
    rules = [item["spec"] for item in items if item["kind"] == "PrometheusRule"]
    dashboards = [
        json.loads(text)
        for item in items
        if item["kind"] == "ConfigMap" and "dashboard" in item["metadata"]["name"]
        for text in item["data"].values()
    ]
    for path, text in copies().items():
        if path.suffix == ".json":
            assert json.loads(text) in dashboards
        else:
            assert yaml.safe_load(text) in rules


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"secrets": {"existingSecret": ""}}, "name a Secret that exists"),
        ({"temporal": {"address": ""}}, "name the frontend of a Temporal server"),
        ({"settings": 'graph = "bolt://neo4j:pw@host"'}, "address with a password"),
        (
            {"extraEnv": [{"name": "APEX_DOCUMENTS_DIRECT", "value": "postgresql://a:b@c/d"}]},
            "extraEnv: an address with a password",
        ),
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"replicas": 3}, "replicas"),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host"),
        (
            {"workers": {"versioning": "controller"}, "worker": {"autoscaling": {"enabled": True}}},
            "WorkerResourceTemplate",
        ),
        ({"workers": {"versioning": "controller"}, "candidate": {"tag": "0.3.0"}}, "image.tag"),
        (
            {
                "workers": {"versioning": "controller"},
                "temporal": {
                    "address": "temporal:7233",
                    "tls": {"enabled": True, "authority": {"name": "company-ca"}},
                },
            },
            "the worker controller trusts",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_helm_refuses_values_with_a_reason(
    helm_program: str, tmp_path: Path, given: dict[str, Any], reason: str
) -> None:
    start = yaml.safe_load((HERE / "values" / "minimal.yaml").read_text())
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(start | given))
    with pytest.raises(subprocess.CalledProcessError) as raised:
        render(helm_program, file)
    assert reason in raised.value.stderr
