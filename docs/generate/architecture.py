"""The pictures of the architecture, drawn from the import contracts in `pyproject.toml`: one for each contract of layers.

Rows are the layers of the contract, highest first: a module imports from rows below its own only. The text of a box is the
first sentence of the module's docstring. A contract that forbids an external package becomes a mark on the boxes that import
it.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.generate.svg import Box, Picture, wrapped

_WIDTH, _MARGIN, _GAP = 960, 20, 10  # px
_TEXT_LINES = 4  # most lines of a docstring in a box
_ROW_BOXES = 5  # most boxes side by side; a layer of more siblings takes several rows


@dataclass(frozen=True, slots=True)
class Layers:
    """One contract of layers: the container, and rows of module names inside it, highest first."""

    container: str
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Contracts:
    """What the pictures need of the import contracts."""

    package: str
    layers: list[Layers]
    """The contract about the whole package is the first."""
    forbidden: dict[str, set[str]]
    """External package → full names of the modules that must not import it."""
    names: list[str]
    """The contracts' names, which say in a sentence what each is for."""


def read_contracts(root: Path) -> Contracts:
    """Read the import contracts of the project at `root`. Raise `ValueError` if none orders the whole package."""
    settings: Mapping[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    linter = settings["tool"]["importlinter"]
    package = linter["root_package"]
    layers = [
        _layers(contract, package)
        for contract in linter["contracts"]
        if contract["type"] == "layers"
    ]
    layers.sort(key=lambda contract: contract.container != package)
    if not layers or layers[0].container != package:
        raise ValueError(
            "pyproject.toml: no import contract of type `layers` for the whole package"
        )
    forbidden: dict[str, set[str]] = {}
    for contract in linter["contracts"]:
        if contract["type"] != "forbidden":
            continue
        for name in contract["forbidden_modules"]:
            if not name.startswith(f"{package}."):
                forbidden.setdefault(name, set()).update(contract["source_modules"])
    names = [contract["name"] for contract in linter["contracts"]]
    return Contracts(package=package, layers=layers, forbidden=forbidden, names=names)


def architecture_pictures(root: Path) -> dict[str, str]:
    """Return file name → SVG: `architecture.svg` for the package at `root`, `architecture-NAME.svg` for a package inside it."""
    contracts = read_contracts(root)
    pictures = {}
    for layers in contracts.layers:
        inner = layers.container.removeprefix(contracts.package).strip(".")
        name = f"architecture-{inner}.svg" if inner else "architecture.svg"
        notes = [] if inner else contracts.names
        pictures[name] = _picture(layers, contracts, root / "src", notes)
    return pictures


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    lines: list[str]
    kind: str


def _layers(contract: Mapping[str, Any], package: str) -> Layers:
    """A contract without a container names its modules in full, below the root package."""
    container = contract.get("containers", [package])[0]
    rows = []
    for layer in contract["layers"]:
        # `|` separates siblings that must not import each other, `:` siblings that may.
        siblings = layer.replace(":", "|").split("|")
        rows.append([name.strip(" ()").removeprefix(f"{container}.") for name in siblings])
    return Layers(container, rows)


def _picture(layers: Layers, contracts: Contracts, source: Path, notes: Sequence[str]) -> str:
    rows = []
    for names in layers.rows:
        rows += [_modules(part, layers, contracts, source) for part in _parts(names)]
    heights = [_row_height(row) for row in rows]
    height = sum(heights) + _GAP * (len(rows) - 1) + 2 * _MARGIN
    height += 24 + 20 * len(notes) if notes else 0
    picture = Picture(_WIDTH, height, f"The layers of {layers.container}: imports go down only")
    y = float(_MARGIN)
    for row, row_height in zip(rows, heights, strict=True):
        _draw_row(picture, row, y, row_height)
        y += row_height + _GAP
    y += 18
    if notes:
        picture.text(_MARGIN, y, "Import contracts, checked by make imports:", kind="title")
    for note in notes:
        y += 20
        picture.text(_MARGIN, y, f"•  {note}.")
    return picture.render()


def _parts(row: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(row), _ROW_BOXES):
        yield row[start : start + _ROW_BOXES]


def _modules(
    row: Sequence[str], layers: Layers, contracts: Contracts, source: Path
) -> list[_Module]:
    inner = _box_width(len(row)) - 16
    modules = []
    for name in row:
        full = f"{layers.container}.{name}"
        files = _files(source, full)
        lines = wrapped(_first_sentence(files[0]), inner, most=_TEXT_LINES)
        external = [
            package
            for package, excluded in contracts.forbidden.items()
            if full not in excluded and any(_imports(file, package) for file in files)
        ]
        if external:
            lines = [*lines, f"imports {', '.join(sorted(external))}"]
        modules.append(_Module(name, lines, "band" if external else "accent"))
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


def _files(source: Path, module: str) -> list[Path]:
    """Return the Python files of a module or package, the one with its docstring first."""
    path = source.joinpath(*module.split("."))
    if path.is_dir():
        return [path / "__init__.py", *sorted(path.rglob("*.py"))]
    return [path.with_suffix(".py")]


def _first_sentence(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("`", "")


def _imports(file: Path, external: str) -> bool:
    """Return whether the file imports the external package."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        if any(name.split(".")[0] == external for name in names):
            return True
    return False
