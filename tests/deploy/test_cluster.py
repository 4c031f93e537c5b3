"""The chart on a real API server with real controllers: install, candidate, upgrade, failed upgrades, rollback, uninstall.

No container runs, because there is no kubelet: see `tests/deploy/cluster.py`. What needs one is tested as a container, or not
at all, see docs/howto/kubernetes.md.
"""

from __future__ import annotations

import copy
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.generate.chart import CHART
from tests.deploy.cluster import Api, Kubelet, build, cluster, refusal, until
from tests.deploy.manifests import HERE, VALUES, Object, rendered

pytestmark = pytest.mark.deploy("go", "etcd", "openssl")

DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
JOBS = "/apis/batch/v1/namespaces/{}/jobs"


@pytest.fixture(scope="module")
def programs() -> Path:
    return build()


@pytest.fixture(scope="module")
def api(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with cluster(programs, tmp_path_factory.mktemp("cluster")) as api:
        yield api


@pytest.fixture
def kubelet(api: Api) -> Iterator[Kubelet]:
    with Kubelet(api) as kubelet:
        yield kubelet


class Release:
    """The release `apex` in a namespace of its own, which admits only pods of the profile `restricted`."""

    def __init__(self, api: Api, programs: Path, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self._helm = str(programs / "helm")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        api.call(
            "POST",
            "/api/v1/namespaces",
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": namespace, "labels": labels},
            },
        )
        until(lambda: self.items("/api/v1/namespaces/{}/serviceaccounts"), "the namespace is ready")

    def helm(self, *arguments: str, fails: bool = False) -> str:
        command = [self._helm, "--kubeconfig", str(self.api.kubeconfig), *arguments]
        command += ["--namespace", self.namespace]
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400)
        assert (ran.returncode != 0) == fails, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def change(
        self, command: str, values: str, *more: str, seconds: int = 180, fails: bool = False
    ) -> str:
        """Install or upgrade, and wait for the result."""
        given = ["--values", str(HERE / "values" / f"{values}.yaml"), *more]
        waiting = ["--wait", "--timeout", f"{seconds}s"]
        return self.helm(command, "apex", str(CHART), *given, *waiting, fails=fails)

    def items(self, path: str) -> dict[str, Object]:
        return self.api.items(path.format(self.namespace))

    def images(self) -> dict[str, str]:
        """Return the tag of the image of every Deployment."""
        return {
            name: item["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[2]
            for name, item in self.items(DEPLOYMENTS).items()
        }

    def ready(self) -> dict[str, int]:
        return {
            name: item["status"].get("readyReplicas", 0)
            for name, item in self.items(DEPLOYMENTS).items()
        }


@pytest.mark.parametrize("name", VALUES)
def test_the_server_takes_every_object(api: Api, programs: Path, name: str) -> None:
    release = Release(api, programs, f"objects-{name}")
    for item in rendered(name):
        place = _place(api, item, release.namespace)
        api.call("POST", f"{place}?dryRun=All&fieldValidation=Strict", item)


def _place(api: Api, item: Object, namespace: str) -> str:
    """Return the path under which objects of this kind are made."""
    group = f"/apis/{item['apiVersion']}" if "/" in item["apiVersion"] else "/api/v1"
    [plural] = [
        resource["name"]
        for resource in api.get(group)["resources"]
        if resource["kind"] == item["kind"] and "/" not in resource["name"]
    ]
    return f"{group}/namespaces/{namespace}/{plural}"


def _with_ramp(steps: Any) -> Object:
    [item] = [item for item in rendered("controller") if item["kind"] == "WorkerDeployment"]
    item = copy.deepcopy(item)
    if steps is None:
        del item["spec"]["rollout"]["steps"]
    else:
        item["spec"]["rollout"]["steps"] = steps
    return item


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (None, "steps are required"),
        ([{"rampPercentage": 140, "pauseDuration": "10m"}], "less than or equal to 99"),
        ([{"rampPercentage": 10, "pauseDuration": "1s"}], "at least 30s"),
    ],
)
def test_the_server_refuses_a_wrong_ramp(api: Api, steps: Any, reason: str) -> None:
    item = _with_ramp(steps)
    with pytest.raises(urllib.error.HTTPError) as raised:
        api.call("POST", f"{_place(api, item, 'default')}?dryRun=All", item)
    assert reason in refusal(raised.value)


def test_the_server_refuses_a_pod_with_more_rights(api: Api, programs: Path) -> None:
    """The profile `restricted` is what the release's namespaces admit: a planted fault shows that it acts."""
    release = Release(api, programs, "planted")
    [item] = [
        i
        for i in rendered("minimal")
        if i["metadata"]["name"] == "apex-gateway" and i["kind"] == "Deployment"
    ]
    spec = copy.deepcopy(item["spec"]["template"]["spec"])
    spec.pop("serviceAccountName")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    api.call("POST", f"/api/v1/namespaces/{release.namespace}/pods?dryRun=All", pod)
    spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(urllib.error.HTTPError) as raised:
        api.call("POST", f"/api/v1/namespaces/{release.namespace}/pods?dryRun=All", pod)
    assert "allowPrivilegeEscalation" in refusal(raised.value)


def test_install_candidate_upgrade_rollback_uninstall(
    api: Api, programs: Path, kubelet: Kubelet
) -> None:
    release = Release(api, programs, "memory")
    release.change("install", "minimal")
    assert release.images() == {
        "apex-gateway": "0.2.0",
        "apex-worker": "0.2.0",
        "apex-bulk": "0.2.0",
    }
    assert release.ready() == {"apex-gateway": 2, "apex-worker": 2, "apex-bulk": 1}
    migrated = release.items(JOBS)["apex-migrate"]["status"]["completionTime"]
    for item in release.items(DEPLOYMENTS).values():
        assert migrated <= item["metadata"]["creationTimestamp"]

    before = release.items(DEPLOYMENTS)
    release.change("upgrade", "minimal", "--set", "candidate.tag=0.3.0")
    assert release.images()["apex-worker-candidate"] == "0.3.0"
    for name, item in before.items():  # what runs is left alone
        assert (
            release.items(DEPLOYMENTS)[name]["metadata"]["generation"]
            == item["metadata"]["generation"]
        )

    release.change("upgrade", "minimal", "--set", "image.tag=0.3.0")
    assert set(release.images().values()) == {"0.3.0"} and len(release.images()) == 3
    assert release.ready() == {"apex-gateway": 2, "apex-worker": 2, "apex-bulk": 1}

    release.helm("rollback", "apex", "1", "--wait", "--timeout", "180s")
    assert set(release.images().values()) == {"0.2.0"}
    assert release.ready() == {"apex-gateway": 2, "apex-worker": 2, "apex-bulk": 1}

    release.helm("uninstall", "apex", "--wait", "--timeout", "180s")
    assert not release.items(DEPLOYMENTS)
    assert not release.items("/api/v1/namespaces/{}/services")


def test_pods_that_do_not_become_ready_do_not_replace_those_that_are(
    api: Api, programs: Path, kubelet: Kubelet
) -> None:
    release = Release(api, programs, "unready")
    release.change("install", "minimal", "--set", "migrate.enabled=false")
    kubelet.broken.add("0.4.0")
    new = ["--set", "migrate.enabled=false,image.tag=0.4.0", "--rollback-on-failure"]
    release.change("upgrade", "minimal", *new, seconds=20, fails=True)
    assert set(release.images().values()) == {"0.2.0"}
    until(
        lambda: release.ready() == {"apex-gateway": 2, "apex-worker": 2, "apex-bulk": 1},
        "the former pods are ready",
    )


def test_nothing_changes_when_the_migration_fails(
    api: Api, programs: Path, kubelet: Kubelet
) -> None:
    release = Release(api, programs, "unmigrated")
    release.change("install", "minimal")
    before = release.items(DEPLOYMENTS)
    kubelet.broken.add("0.5.0")
    new = ["--set", "image.tag=0.5.0", "--set", "migrate.deadlineSeconds=30"]
    result = release.change("upgrade", "minimal", *new, fails=True)
    assert "pre-upgrade hooks failed" in result
    for name, item in before.items():
        assert (
            release.items(DEPLOYMENTS)[name]["metadata"]["generation"]
            == item["metadata"]["generation"]
        )


def test_everything_at_once(api: Api, programs: Path, kubelet: Kubelet) -> None:
    release = Release(api, programs, "production")
    # What a cluster has of its own.
    priority = {"metadata": {"name": "business"}, "value": 1000}
    api.call("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", priority)
    release.change("install", "production")
    assert release.images()["apex-shadow"] == "0.3.0"
    sets = release.items("/apis/apps/v1/namespaces/{}/statefulsets")
    assert sets["apex-vectors"]["status"]["readyReplicas"] == 1
    claims = release.items("/api/v1/namespaces/{}/persistentvolumeclaims")
    assert claims["data-apex-vectors-0"]["spec"]["storageClassName"] == "fast"
    # Without metrics an autoscaler keeps at least its minimum.
    until(lambda: release.ready()["apex-worker"] == 2, "the autoscaler has acted")
    budgets = release.items("/apis/policy/v1/namespaces/{}/poddisruptionbudgets")
    until(
        lambda: (
            release.items("/apis/policy/v1/namespaces/{}/poddisruptionbudgets")["apex-gateway"][
                "status"
            ].get("disruptionsAllowed")
            == 1
        ),
        "one pod of the gateway may be disrupted",
    )
    assert budgets.keys() == {"apex-gateway", "apex-worker", "apex-bulk"}


def test_workers_under_the_controller(api: Api, programs: Path, kubelet: Kubelet) -> None:
    release = Release(api, programs, "controlled")
    place = "/apis/temporal.io/v1alpha1/namespaces/{}/workerdeployments"
    release.change("install", "controller")
    assert release.images() == {"apex-gateway": "0.2.0"}
    release.change("upgrade", "controller", "--set", "image.tag=0.3.0")
    spec = release.items(place)["apex-worker"]["spec"]
    assert {item["image"] for item in spec["template"]["spec"]["containers"]} == {
        "apex-memory:0.3.0"
    }
    release.helm("rollback", "apex", "1", "--wait", "--timeout", "180s")
    spec = release.items(place)["apex-worker"]["spec"]
    assert {item["image"] for item in spec["template"]["spec"]["containers"]} == {
        "apex-memory:0.2.0"
    }


def test_the_notes_name_objects_that_exist(api: Api, programs: Path) -> None:
    release = Release(api, programs, "notes")
    given = ["--values", str(HERE / "values" / "minimal.yaml"), "--dry-run=client"]
    notes = release.helm("install", "apex", str(CHART), *given)
    assert "service/apex-gateway 8460:8460" in notes
    assert "get secret apex-memory -o jsonpath='{.data.admin_key}'" in notes
