"""The gate repeats what failed, once and by itself: tests/gate.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import gate

ONCE = """
import pathlib

def test_that_passes():
    pass

def test_that_fails_once():
    mark = pathlib.Path("mark")
    failed = mark.exists()
    mark.touch()
    assert failed
"""
ALWAYS = """
def test_that_fails_always():
    assert False
"""
OPTIONS = ("-q", "-c", "/dev/null", "--rootdir", ".")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run() -> int:
    return gate.run([*OPTIONS, "."], again=OPTIONS)


def test_a_test_that_passes_by_itself_is_named_and_does_not_fail_the_gate(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "test_some.py").write_text(ONCE)
    assert run() == 0
    shown = capfd.readouterr().out
    assert "1 failed, 1 passed" in shown and "FLAKY" in shown
    assert "test_some.py::test_that_fails_once" in shown.partition("FLAKY")[2]


def test_a_test_that_fails_twice_fails_the_gate(folder: Path) -> None:
    (folder / "test_some.py").write_text(ONCE + ALWAYS)
    assert run() == gate.TESTS_FAILED


def test_many_failures_and_errors_of_the_run_are_not_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "test_some.py").write_text(ONCE)
    monkeypatch.setattr(gate, "AGAIN_MAX", 0)
    assert run() == gate.TESTS_FAILED
    monkeypatch.setattr(gate, "AGAIN_MAX", 8)
    (folder / "test_some.py").write_text("import nothing_of_this_name")
    assert run() == 2, "collection failed"
    assert "Once more" not in capfd.readouterr().out
