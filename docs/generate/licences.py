"""Lists every locked package with version and licence, and fails on a licence that `deploy/licences.toml` does not allow.

`make licences`. It reads the metadata of the installed packages, so it runs where the locks are installed.
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from docs.generate.locks import (
    LOCKS,
    ROOT,
    Package,
    installed,
    packages_of_extras,
    programs,
    read_lock,
)

LIST = ROOT / "deploy" / "licences.toml"
UNKNOWN = "unknown"
_LONG = 60  # characters: what is longer is the text of a licence, not its name


@dataclass(frozen=True, slots=True)
class Bundled:
    """A program or library of others inside a package."""

    package: str
    name: str
    licence: str
    version: str = ""
    exception: str = ""
    """Why a licence that is not allowed is accepted here."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The file `deploy/licences.toml`."""

    allowed: frozenset[str]
    words: dict[str, str]
    elsewhere: dict[str, str]
    bundled: tuple[Bundled, ...]

    def inside(self, package: Package) -> list[Bundled]:
        """Return what is known to be inside a package of this version."""
        return [
            item for item in self.bundled if item.package == f"{package.name}=={package.version}"
        ]


def read_rules(content: dict[str, Any] | None = None) -> Rules:
    """Return the rules of the repository, or those of parsed TOML."""
    given = content or tomllib.loads(LIST.read_text(encoding="utf-8"))
    return Rules(
        allowed=frozenset(given["allowed"]),
        words=given["words"],
        elsewhere=given["elsewhere"],
        bundled=tuple(Bundled(**item) for item in given["bundled"]),
    )


def licence_of(package: Package, rules: Rules) -> str:
    """Return the licence of a package as an SPDX expression, or `unknown`.

    Metadata say it in one of three ways: `License-Expression` (PEP 639), `License`, or classifiers.
    """
    distribution = installed(package.name)
    if distribution is None:
        return rules.elsewhere.get(package.name, UNKNOWN)
    return _stated(distribution.metadata, rules)


def _stated(described: metadata.PackageMetadata, rules: Rules) -> str:
    classifiers = [
        value.rpartition(" :: ")[2]
        for value in described.get_all("Classifier") or []
        if value.startswith("License ::")
    ]
    stated = [described[name] for name in ("License-Expression", "License") if name in described]
    stated.append(" AND ".join(rules.words.get(word, word) for word in classifiers))
    for text in stated:
        title = text.strip().partition("\n")[0].strip()  # of a whole licence's text
        words = rules.words.get(title, text.strip())
        if len(words) > _LONG and " AND " not in words:
            continue
        try:
            return str(canonicalize_license_expression(words))
        except InvalidLicenseExpression:
            continue
    return UNKNOWN


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Return whether an SPDX expression is satisfied: one side of OR, both sides of AND."""
    tokens = expression.replace("(", " ( ").replace(")", " ) ").split()

    def either() -> bool:
        result = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            right = both()
            result = result or right
        return result

    def both() -> bool:
        result = term()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            right = term()
            result = result and right
        return result

    def term() -> bool:
        licence = tokens.pop(0)
        if licence == "(":
            result = either()
            tokens.pop(0)  # the closing parenthesis
            return result
        if tokens and tokens[0] == "WITH":  # an exception only permits more
            del tokens[:2]
        return licence in allowed

    return either()


def problems(packages: list[Package], rules: Rules) -> list[str]:
    """Return what is wrong, a sentence for each finding."""
    findings = []
    for package in packages:
        name = f"{package.name} {package.version}"
        licence = licence_of(package, rules)
        if licence == UNKNOWN:
            findings.append(
                f"{name}: its metadata name no licence; add its words to deploy/licences.toml"
            )
        elif not is_allowed(licence, rules.allowed):
            findings.append(f"{name}: {licence} is not allowed in deploy/licences.toml")
        findings += _inside(package, rules)
    return findings


def _inside(package: Package, rules: Rules) -> list[str]:
    name = f"{package.name} {package.version}"
    inside = rules.inside(package)
    findings = [
        f"{name}: {item.name} inside it has {item.licence}, which is neither allowed nor an exception"
        for item in inside
        if not (item.exception or is_allowed(item.licence, rules.allowed))
    ]
    distribution = installed(package.name)
    if inside or distribution is None:
        return findings
    if any(item.package.startswith(f"{package.name}==") for item in rules.bundled):
        return [
            f"{name}: deploy/licences.toml describes another version; look at what this one bundles"
        ]
    if contained := sorted(programs(distribution)):
        return [
            f"{name}: bundles programs ({', '.join(contained[:3])}) that deploy/licences.toml does not list"
        ]
    return findings


def locked_packages() -> list[Package]:
    """Return the packages of all locks and extras, each version once, by name."""
    locked = [package for lock in LOCKS.values() for package in read_lock(lock)]
    packages = {
        (package.name, package.version): package for package in locked + packages_of_extras()
    }
    return [packages[key] for key in sorted(packages)]


def main() -> int:
    """Print the table, and what is wrong; return the exit code."""
    rules = read_rules()
    packages = locked_packages()
    for package in packages:
        print(f"{package.name:42} {package.version:18} {licence_of(package, rules)}")
        for item in rules.inside(package):
            mark = "  (exception)" if item.exception else ""
            print(f"  with {item.name:35} {item.version:18} {item.licence}{mark}")
    findings = problems(packages, rules)
    for problem in findings:
        print(f"✗ {problem}", file=sys.stderr)
    if not findings:
        exceptions = sum(bool(item.exception) for item in rules.bundled)
        print(f"✓ {len(packages)} packages; {exceptions} exceptions in deploy/licences.toml")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
