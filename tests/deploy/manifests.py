"""Objects that the chart renders: read, checked against schemas, and held to the policies that every pod must keep."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from docs.generate.chart import CHART, KUBERNETES
from tests.deploy.programs import BUILT

HERE = Path(__file__).parent
VALUES = sorted(file.stem for file in (HERE / "values").glob("*.yaml"))

Object = dict[str, Any]


def helm() -> str | None:
    """Return the path of helm: what `make test-deploy` has built, or one on the path; none where there is none."""
    built = BUILT / "helm"
    return str(built) if built.exists() else shutil.which("helm")


def objects(text: str) -> list[Object]:
    """Return the objects of a rendered chart."""
    return [item for item in yaml.safe_load_all(text) if item]


@cache
def rendered(name: str) -> list[Object]:
    """Return the committed rendering of a value set."""
    return objects((HERE / "rendered" / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def custom_schemas() -> dict[str, Object]:
    """Return the schemas of kinds that Kubernetes itself does not have, by kind."""
    schemas = {}
    for file in (HERE / "schemas").glob("*.yaml"):
        schema = yaml.safe_load(file.read_text(encoding="utf-8"))
        schemas[schema["properties"]["kind"]["enum"][0]] = schema
    return schemas


def check_schema(item: Object) -> None:
    """Raise `jsonschema.ValidationError` for a field that Kubernetes, or a custom kind, does not know or refuses."""
    schema = custom_schemas().get(item["kind"])
    if schema is None:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
        return
    jsonschema.Draft202012Validator(schema).validate(item)
    if item["kind"] == "WorkerDeployment":
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "template"}}
        kubernetes_validate.validate(
            template | {"template": item["spec"]["template"]}, KUBERNETES, strict=True
        )


def pod_specs(items: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield kind and name of every object that makes pods, and the specification of its pods."""
    for item in items:
        template = item.get("spec", {}).get("template", {})
        if "containers" in template.get("spec", {}):
            yield f"{item['kind']}/{item['metadata']['name']}", template["spec"]


def pod_labels(items: list[Object]) -> list[dict[str, str]]:
    """Return the labels of the pods of every object that makes pods."""
    return [
        item["spec"]["template"]["metadata"]["labels"]
        for item in items
        if "containers" in item.get("spec", {}).get("template", {}).get("spec", {})
    ]


SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
CREDENTIALS = re.compile(r"://[^/\s]*:[^/\s]+@")


def violations(items: list[Object]) -> set[str]:
    """Return which policies of the chart its objects break. Empty when they keep all."""
    broken = set()
    for item in items:
        if item["kind"] in ("Secret", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
            broken.add("the chart makes neither secrets nor rights")
    for name, spec in pod_specs(items):
        broken |= _of_pod(spec)
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            broken |= _of_container(container, is_job=name.startswith("Job/"))
    if CREDENTIALS.search(yaml.safe_dump(items)):
        broken.add("no address has a password")
    return broken


def _of_pod(spec: Object) -> set[str]:
    broken = set()
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) < 1000:
        broken.add("no pod runs as root")
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        broken.add("every pod has the seccomp profile of the runtime")
    if spec.get("automountServiceAccountToken") is not False:
        broken.add("no pod has a token of Kubernetes")
    if spec.get("enableServiceLinks") is not False:
        broken.add("no pod gets variables of Services, which Apex would refuse")
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        broken.add("no pod shares what its node has")
    if any("hostPath" in volume for volume in spec.get("volumes", [])):
        broken.add("no pod shares what its node has")
    if any("sizeLimit" not in v.get("emptyDir", {"sizeLimit": 1}) for v in spec.get("volumes", [])):
        broken.add("temporary volumes have limits")
    return broken


def _of_container(container: Object, *, is_job: bool) -> set[str]:
    broken = set()
    context = container.get("securityContext", {})
    if context.get("readOnlyRootFilesystem") is not True:
        broken.add("root file systems are read-only")
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        broken.add("no container gains privileges")
    if context.get("capabilities") != {"drop": ["ALL"]}:
        broken.add("no container has capabilities")
    if not re.search(r":v?\d+\.\d+|@sha256:[0-9a-f]{64}$", container["image"]):
        broken.add("images are pinned")
    for amounts in ("requests", "limits"):
        if not {"cpu", "memory"} <= container.get("resources", {}).get(amounts, {}).keys():
            broken.add("every container has requests and limits")
    probes = {"startupProbe", "livenessProbe", "readinessProbe"}
    # A shadow serves nothing that could be asked; Kubernetes restarts it when it ends.
    if not is_job and container["name"] != "shadow" and not probes <= container.keys():
        broken.add("every process has probes")
    for variable in container.get("env", []):
        secret = SECRET_NAME.search(variable["name"]) and not variable["name"].endswith("_FILE")
        if secret and "value" in variable:
            broken.add("no secret is a value")
    return broken


def chart_version() -> str:
    """Return the version of the chart, which is also that of the image."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"]
    return str(chart["version"])
