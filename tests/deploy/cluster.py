"""A Kubernetes API server with its controllers, for tests of the chart: real etcd, kube-apiserver and kube-controller-manager.

Built from their Go modules once a checkout, into `.cache/deploy`. There is no scheduler and no kubelet: `Kubelet` plays the part
of the latter that controllers and Helm see, the states of pods. No container runs.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from apex_memory.engines.base import HOST, free_port
from tests.deploy.manifests import Object, custom_schemas
from tests.deploy.programs import BUILT, CACHE, building

HELM = "helm.sh/helm/v4/cmd/helm@v4.3.1"
KUBERNETES, STAGING = "v1.37.2", "v0.37.2"
PROGRAMS = ("kube-apiserver", "kube-controller-manager")
TOKEN = "admintoken"
READY_SECONDS = 120.0


def build() -> Path:
    """Build helm and the programs of Kubernetes where they are missing, and return their folder. The first time takes long."""
    with building() as go:
        if not (BUILT / "helm").exists():
            subprocess.run(["go", "install", HELM], env=go, check=True)
        missing = [name for name in PROGRAMS if not (BUILT / name).exists()]
        if missing:
            _build_kubernetes(go | {"GOFLAGS": f"{go['GOFLAGS']} -mod=mod"}, missing)
    return BUILT


def _build_kubernetes(go: dict[str, str], programs: list[str]) -> None:
    """Build programs of the module `k8s.io/kubernetes`, whose parts have versions only in a module of one's own."""
    folder = CACHE / "kubernetes"
    folder.mkdir(exist_ok=True)
    (folder / "go.mod").unlink(missing_ok=True)

    def run(*command: str) -> str:
        ran = subprocess.run(
            ["go", *command], cwd=folder, env=go, check=True, stdout=subprocess.PIPE, text=True
        )
        return ran.stdout

    run("mod", "init", "kubetest")
    run("mod", "edit", f"-require=k8s.io/kubernetes@{KUBERNETES}")
    fetched = json.loads(run("mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}"))
    for line in Path(fetched["GoMod"]).read_text(encoding="utf-8").splitlines():
        words = line.split()
        if len(words) >= 2 and words[1] == "v0.0.0":
            run("mod", "edit", f"-replace={words[0]}={words[0]}@{STAGING}")
    prefix = "k8s.io/component-base/version.git"
    minor = KUBERNETES.split(".")[1]
    flags = f"-X {prefix}Version={KUBERNETES} -X {prefix}Major=1 -X {prefix}Minor={minor}"
    for program in programs:
        package = f"k8s.io/kubernetes/cmd/{program}"
        run("build", "-ldflags", flags, "-o", str(BUILT / program), package)


class Api:
    """The API server, as its administrator sees it."""

    def __init__(self, url: str, kubeconfig: Path) -> None:
        self.url = url
        self.kubeconfig = kubeconfig
        self._tls = ssl._create_unverified_context()

    def call(self, method: str, path: str, body: Object | None = None, kind: str = "") -> Object:
        """Return the answer to a request. Raises `urllib.error.HTTPError`, whose body says what was refused."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {TOKEN}",
                "Content-Type": kind or "application/json",
            },
        )
        with urllib.request.urlopen(request, context=self._tls, timeout=30) as response:
            answer: Object = json.loads(response.read() or b"{}")
            return answer

    def get(self, path: str) -> Object:
        return self.call("GET", path)

    def items(self, path: str) -> dict[str, Object]:
        """Return the objects of a list, by name."""
        return {item["metadata"]["name"]: item for item in self.get(path)["items"]}

    def ready(self) -> bool:
        try:
            self.get("/api/v1/namespaces/kube-system")
        except OSError:  # also an HTTP error
            return False
        return True


def until(happened: Callable[[], Any], what: str, seconds: float = READY_SECONDS) -> None:
    """Wait until something has happened; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s: {what}"
        time.sleep(0.3)  # between two looks


def refusal(error: urllib.error.HTTPError) -> str:
    """Return why the API server refused a request."""
    return str(json.loads(error.read())["message"])


class Kubelet:
    """Says of every pod what a kubelet would say: that it runs and is ready, or that it has ended.

    Pods of images in `broken` never become ready, and those of jobs with such an image fail.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet")
        self.broken: set[str] = set()

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            try:
                pods = self._api.get("/api/v1/pods")["items"]
            except OSError:
                continue
            for pod in pods:
                status = self._status(pod)
                if pod["status"]["phase"] == "Pending" and status:
                    self._report(pod, status)

    def _status(self, pod: Object) -> Object | None:
        image = pod["spec"]["containers"][0]["image"]
        broken = image.rpartition(":")[2] in self.broken
        if pod["metadata"].get("ownerReferences", [{}])[0].get("kind") == "Job":
            return {"phase": "Failed" if broken else "Succeeded"}
        if broken:
            return None
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        kinds = ("Ready", "ContainersReady", "Initialized")
        return {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds
            ],
        }

    def _report(self, pod: Object, status: Object) -> None:
        place = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        try:
            self._api.call(
                "PATCH", f"{place}/status", {"status": status}, "application/merge-patch+json"
            )
        except OSError:
            return  # it was removed meanwhile


@contextmanager
def cluster(programs: Path, folder: Path) -> Iterator[Api]:
    """Run etcd, the API server and the controllers on loopback, with the custom kinds of the chart known to it."""
    port = free_port()
    url = f"https://{HOST}:{port}"
    (folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    (folder / "kubeconfig").write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
                "clusters": [
                    {"name": "test", "cluster": {"server": url, "insecure-skip-tls-verify": True}}
                ],
                "users": [{"name": "admin", "user": {"token": TOKEN}}],
            }
        )
    )
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    store, peers = (f"http://{HOST}:{free_port()}" for _ in range(2))
    with ExitStack() as stack:
        stack.enter_context(
            _running(
                folder / "etcd.log",
                "etcd",
                f"--data-dir={folder / 'etcd'}",
                *(f"--{side}-client-urls={store}" for side in ("listen", "advertise")),
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
            )
        )
        stack.enter_context(
            _running(
                folder / "apiserver.log",
                str(programs / "kube-apiserver"),
                f"--etcd-servers={store}",
                f"--bind-address={HOST}",
                f"--advertise-address={HOST}",
                f"--secure-port={port}",
                f"--cert-dir={folder / 'certificates'}",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.0.0.0/24",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--endpoint-reconciler-type=none",
            )
        )
        api = Api(url, folder / "kubeconfig")
        until(api.ready, f"the API server responds, see {folder}/apiserver.log")
        for kind, schema in custom_schemas().items():
            _define(api, kind, schema)
        stack.enter_context(
            _running(
                folder / "controllers.log",
                str(programs / "kube-controller-manager"),
                f"--kubeconfig={folder / 'kubeconfig'}",
                f"--service-account-private-key-file={key}",
                "--leader-elect=false",
                f"--bind-address={HOST}",
                f"--secure-port={free_port()}",
                f"--cert-dir={folder / 'certificates'}",
                "--horizontal-pod-autoscaler-sync-period=2s",
            )
        )
        yield api


@contextmanager
def _running(log: Path, *command: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _define(api: Api, kind: str, schema: Object) -> None:
    """Make a custom kind known."""
    group, version = schema["properties"]["apiVersion"]["enum"][0].split("/")
    plural = f"{kind.lower()}s"
    api.call(
        "POST",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                "versions": [
                    {
                        "name": version,
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": _structural(schema)},
                    }
                ],
            },
        },
    )
    until(
        lambda: plural in [item["name"] for item in _resources(api, group, version)],
        f"{kind} is served",
    )


def _resources(api: Api, group: str, version: str) -> list[Object]:
    try:
        resources: list[Object] = api.get(f"/apis/{group}/{version}")["resources"]
    except urllib.error.HTTPError:
        return []
    return resources


def _structural(schema: Any) -> Any:
    """Return a schema as the API server takes it: it refuses unknown fields by itself."""
    if isinstance(schema, dict):
        return {k: _structural(v) for k, v in schema.items() if k != "additionalProperties"}
    if isinstance(schema, list):
        return [_structural(item) for item in schema]
    return schema
