"""What stands in the locks: packages with versions, hashes, and who needs them; and what is known of the installed ones."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKS = {
    "default": ROOT / "requirements.lock",
    "image": ROOT / "deploy" / "docker" / "requirements.lock",
}
"""The locks of what is installed: by `make demo`, and in the image."""
ALL_EXTRAS = ROOT / "requirements-dev.lock"
OWN = "apex-memory"

_PACKAGE = re.compile(r"([A-Za-z0-9._-]+)==(\S+)(?: ; (.+?))? \\$")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_NEEDED_BY = re.compile(r"    # (?:via |  )([A-Za-z0-9._-]+)(?: \(.+\))?$")
_PROGRAM = b"\x7fELF"


@dataclass(slots=True)
class Package:
    """A package of a lock at one version. A lock may have two versions, for different systems."""

    name: str
    version: str
    marker: str
    """Where it is installed, as PEP 508 writes it; empty: everywhere."""
    hashes: list[str] = field(default_factory=list)
    needed_by: list[str] = field(default_factory=list)

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(path: Path) -> list[Package]:
    """Return the packages of a lock that uv wrote, in its order. Raises `ValueError` for a line that it does not know."""
    packages: list[Package] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _PACKAGE.match(line):
            packages.append(Package(normal(match[1]), match[2], match[3] or ""))
        elif packages and (match := _HASH.search(line)):
            packages[-1].hashes.append(match[1])
        elif packages and (match := _NEEDED_BY.match(line)):
            packages[-1].needed_by.append(normal(match[1]))
        elif line and not line.lstrip().startswith("#"):
            raise ValueError(f"{path.name}: a line that is no package: {line[:80]}")
    return packages


def packages_of_extras() -> list[Package]:
    """Return the packages that the project's extras name, at the versions of the tests: some are in no other lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    names = {normal(_NAME.match(item)[0]) for items in extras for item in items}  # type: ignore[index]
    return [package for package in read_lock(ALL_EXTRAS) if package.name in names]


def normal(name: str) -> str:
    """Return a package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str) -> metadata.Distribution | None:
    """Return the installed distribution of a package, whatever its version."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def programs(distribution: metadata.Distribution) -> Iterator[str]:
    """Yield the files of a distribution that are programs for Linux, by name. Libraries (`.so`) are not."""
    for file in distribution.files or ():
        if ".so" in file.name or file.suffix == ".py":
            continue
        path = Path(str(file.locate()))
        if path.is_file():
            with path.open("rb") as content:
                if content.read(len(_PROGRAM)) == _PROGRAM:
                    yield file.name
