"""How tests are spread over workers, and which need an engine: the machinery of tests/parallel.py and tests/needs.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import starts_process

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from tests import parallel
from tests.parallel import ALONE, publish_groups, pytest_configure_node, pytest_xdist_make_scheduler

parallel.PART = 2

def pytest_collection_modifyitems(config, items):
    for item in items:
        if "alone" in item.name:
            item.add_marker(pytest.mark.xdist_group(ALONE))
    publish_groups(config, items)
"""
TESTS = """
import os, time, pathlib, pytest

def note(name):
    with pathlib.Path("notes").open("a") as file:
        file.write(f"{name} {os.environ['PYTEST_XDIST_WORKER']} {time.monotonic()}\\n")

@pytest.mark.parametrize("n", range(3))
def test_alone(n):
    note("alone")

@pytest.mark.xdist_group("shared")
@pytest.mark.parametrize("n", range(4))
def test_grouped(n):
    note("grouped")

@pytest.mark.parametrize("n", range(12))
def test_together(n):
    time.sleep(0.02)  # so that both workers get some
    note(f"pair{n // 2}")

@pytest.mark.engine
def test_on_an_engine():
    note("engine")

@pytest.mark.long
@pytest.mark.xdist_group("long")
def test_long():
    note("long")
"""


@pytest.mark.parametrize("workers", ["1", "2", "3"])
def test_what_runs_alone_runs_after_everything_else_in_one_worker(
    tmp_path: Path, workers: str
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        workers,
        "--dist",
        "loadgroup",
        "-p",
        "no:randomly",  # so that the parts are known
        str(tmp_path),
    ]
    ran = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "21 passed" in ran.stdout, ran.stdout + ran.stderr
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    used: dict[str, set[str]] = {}
    for name, worker, _ in notes:
        used.setdefault(name, set()).add(worker)
    assert [name for name, _, _ in notes[18:]] == ["alone"] * 3
    assert len(used["alone"]) == len(used["grouped"]) == 1
    for name, before in (("long", []), ("engine", ["long"])):
        [by] = used[name]
        order = [noted for noted, worker, _ in notes if worker == by]
        assert set(order[: order.index(name)]) <= set(before), "they go first"
    pairs = [workers for name, workers in used.items() if name.startswith("pair")]
    assert [len(workers) for workers in pairs] == [1] * 6, "tests of a part stay in one worker"
    assert len(used["grouped"].union(*pairs)) == int(workers)


def helper() -> None:
    subprocess.run(["true"], check=True)


def test_a_test_that_starts_a_process_by_a_helper_is_recognised() -> None:
    def calls_a_helper() -> None:
        helper()

    def starts_nothing() -> None:
        assert ROOT

    assert starts_process(calls_a_helper)
    assert not starts_process(starts_nothing)
