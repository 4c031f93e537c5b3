"""Writes a bill of materials for each lock: CycloneDX 1.6 in JSON, `build/sbom/*.cdx.json`. `make sbom`.

The same locks give the same files, so there is no time in them, and the serial number follows from the content.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from docs.generate.licences import UNKNOWN, Rules, licence_of, read_rules
from docs.generate.locks import LOCKS, OWN, ROOT, Package, read_lock

FOLDER = ROOT / "build" / "sbom"
INDEX = "https://pypi.org/project"


def bill(packages: Sequence[Package], rules: Rules, *, version: str) -> dict[str, Any]:
    """Return the bill of an installation of Apex with these packages."""
    own = f"pkg:pypi/{OWN}@{version}"
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": OWN,
                "version": version,
                "purl": own,
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": [_component(package, rules) for package in packages],
        "dependencies": _dependencies(packages, own),
    }
    serial = uuid5(NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {"serialNumber": f"urn:uuid:{serial}", **content}


def _component(package: Package, rules: Rules) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": value} for value in package.hashes]
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
        # One for each file of the release: the hash of a component itself would be that of one of them.
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"{INDEX}/{package.name}/{package.version}/",
                "hashes": hashes,
            }
        ],
    }
    licence = licence_of(package, rules)
    if licence != UNKNOWN:
        component["licenses"] = [{"expression": licence}]
    if package.marker:
        component["properties"] = [{"name": "apex:marker", "value": package.marker}]
    inside = [
        {
            "type": "application",
            "bom-ref": f"{package.purl}#{item.name.replace(' ', '-')}",
            "name": item.name,
            **({"version": item.version} if item.version else {}),
            "licenses": [{"expression": item.licence}],
        }
        for item in rules.inside(package)
    ]
    if inside:
        component["components"] = inside
    return component


def _dependencies(packages: Sequence[Package], own: str) -> list[dict[str, Any]]:
    needs: dict[str, set[str]] = {own: set()}
    refs: dict[str, list[str]] = {OWN: [own]}
    for package in packages:
        refs.setdefault(package.name, []).append(package.purl)
        needs[package.purl] = set()
    for package in packages:
        for needed_by in package.needed_by:
            for ref in refs.get(needed_by, ()):
                needs[ref].add(package.purl)
    return [{"ref": ref, "dependsOn": sorted(needed)} for ref, needed in needs.items()]


def own_version() -> str:
    """Return the version in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        version: str = tomllib.load(file)["project"]["version"]
    return version


def bills() -> dict[str, dict[str, Any]]:
    """Return the bill of each lock by its name."""
    rules, version = read_rules(), own_version()
    return {name: bill(read_lock(lock), rules, version=version) for name, lock in LOCKS.items()}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in bills().items():
        path = FOLDER / f"{OWN}-{name}.cdx.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(content['components'])} packages")


if __name__ == "__main__":
    main()
