"""The picture of the architecture, drawn from the import contracts in `pyproject.toml`.

Rows are the layers of the contract, highest first: a module imports from rows below its own only. The text of a box is the
first sentence of the module's docstring. A contract that forbids an external package becomes a mark on the boxes that may
import it.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.generate.svg import Box, Picture, wrapped

_WIDTH, _MARGIN, _GAP = 960, 20, 10  # px
_TEXT_LINES = 4  # most lines of a docstring in a box


@dataclass(frozen=True, slots=True)
class Contracts:
    """What the picture needs of the import contracts."""

    package: str
    layers: list[list[str]]
    """Rows of module names without the package, highest first."""
    forbidden: dict[str, set[str]]
    """External package → module names that must not import it."""
    names: list[str]


def read_contracts(root: Path) -> Contracts:
    """Read the import contracts of the project at `root`. Raise `ValueError` if there is no contract of layers."""
    settings: Mapping[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    linter = settings["tool"]["importlinter"]
    package = linter["root_package"]
    layered = [contract for contract in linter["contracts"] if contract["type"] == "layers"]
    if not layered:
        raise ValueError("pyproject.toml: no import contract of type `layers`")
    forbidden: dict[str, set[str]] = {}
    for contract in linter["contracts"]:
        if contract["type"] != "forbidden":
            continue
        sources = {_short(name, package) for name in contract["source_modules"]}
        for name in contract["forbidden_modules"]:
            if not name.startswith(f"{package}."):
                forbidden.setdefault(name, set()).update(sources)
    return Contracts(
        package=package,
        layers=[_row(layer, package) for layer in layered[0]["layers"]],
        forbidden=forbidden,
        names=[contract["name"] for contract in linter["contracts"]],
    )


def architecture_picture(root: Path) -> str:
    """Return the SVG of the layers of the project at `root`."""
    contracts = read_contracts(root)
    rows = [_boxes(row, contracts, root) for row in contracts.layers]
    heights = [_row_height(row) for row in rows]
    height = sum(heights) + _GAP * (len(rows) - 1) + 2 * _MARGIN + 20 * len(contracts.names) + 24
    picture = Picture(_WIDTH, height, "The layers of Apex Memory: imports go down only")
    y = float(_MARGIN)
    for row, row_height in zip(rows, heights, strict=True):
        _draw_row(picture, row, y, row_height)
        y += row_height + _GAP
    y += 18
    picture.text(_MARGIN, y, "Import contracts, checked by make imports:", kind="title")
    for name in contracts.names:
        y += 20
        picture.text(_MARGIN, y, f"•  {name}.")
    return picture.render()


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    lines: list[str]
    kind: str


def _short(name: str, package: str) -> str:
    return name.removeprefix(f"{package}.")


def _row(layer: str, package: str) -> list[str]:
    """The modules of one layer. `|` separates siblings that must not import each other, `:` siblings that may."""
    names = layer.replace(":", "|").split("|")
    return [_short(name.strip(" ()"), package) for name in names]


def _boxes(row: Sequence[str], contracts: Contracts, root: Path) -> list[_Module]:
    inner = _box_width(len(row)) - 16
    modules = []
    for name in row:
        lines = wrapped(
            _first_sentence(root / "src" / contracts.package, name), inner, most=_TEXT_LINES
        )
        allowed = [
            package
            for package, sources in contracts.forbidden.items()
            if name not in sources and _imports(root / "src" / contracts.package, name, package)
        ]
        if allowed:
            lines = [*lines, f"imports {', '.join(sorted(allowed))}"]
        modules.append(_Module(name, lines, "band" if allowed else "accent"))
    return modules


def _box_width(count: int) -> float:
    return (_WIDTH - 2 * _MARGIN - _GAP * (count - 1)) / count


def _row_height(row: Sequence[_Module]) -> int:
    return 34 + 15 * max(len(module.lines) for module in row)


def _draw_row(picture: Picture, row: Sequence[_Module], y: float, height: float) -> None:
    width = _box_width(len(row))
    for index, module in enumerate(row):
        x = _MARGIN + index * (width + _GAP)
        picture.box(Box(x, y, width, height, module.name, module.lines, module.kind))


def _files(package: Path, name: str) -> list[Path]:
    """The Python files of a module or package, the one with its docstring first."""
    path = package.joinpath(*name.split("."))
    if path.is_dir():
        return [path / "__init__.py", *sorted(path.rglob("*.py"))]
    return [path.with_suffix(".py")]


def _first_sentence(package: Path, name: str) -> str:
    docstring = ast.get_docstring(ast.parse(_files(package, name)[0].read_text("utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = paragraph.split(". ")[0].rstrip(".")
    return sentence.replace("`", "")


def _imports(package: Path, name: str, external: str) -> bool:
    """Whether a file of the module imports the external package."""
    for file in _files(package, name):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module or ""]
            else:
                continue
            if any(item.split(".")[0] == external for item in imported):
                return True
    return False
