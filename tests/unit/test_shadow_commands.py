"""`apex rollout report` and `diff` on a terminal of 80 columns, and in a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from apex_memory.cli import output, rollout_shadow
from apex_memory.cli.rollout_shadow import side_by_side
from apex_memory.gateway.routes.shadows import _BOTH, _REPORT

EVENT = _BOTH["event"]


class Api:
    """A gateway that gives the examples of the API."""

    def __init__(self, both: dict[str, Any]) -> None:
        self._both = both

    def resolve(self, id: str) -> dict[str, str]:
        return {"event": EVENT}

    def call(self, method: str, path: str, **_: Any) -> Any:
        return self._both if path.endswith("/diff") else _REPORT


def given_api(monkeypatch: pytest.MonkeyPatch, both: dict[str, Any], *, terminal: bool) -> None:
    @contextmanager
    def opened() -> Iterator[Api]:
        yield Api(both)

    monkeypatch.setattr(rollout_shadow, "gateway", opened)
    monkeypatch.setenv("COLUMNS", "80")
    for module in (output, rollout_shadow):
        monkeypatch.setattr(module, "is_terminal", lambda **_: terminal)


def differing() -> dict[str, Any]:
    live = {
        **_BOTH["live"],
        "text": "\n".join(f"line {n} of a shipment that is late at the dock" for n in range(30)),
        "metadata": {"channel": "mail", "long": "x" * 300},
    }
    shadow = {
        **live,
        "text": live["text"].replace("line 20 of", "row 20 of") + "\n運送会社 " * 40,
        "metadata": {"channel": "sms", "long": "x" * 300},
    }
    return {**_BOTH, "live": live, "shadow": shadow}


def test_a_diff_fits_into_80_columns_and_shows_what_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_api(monkeypatch, differing(), terminal=True)
    rollout_shadow.diff(EVENT)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert any("line 20 of" in line and "row 20 of" in line for line in lines), "side by side"
    assert any("channel: mail" in line and "channel: sms" in line for line in lines)
    assert not any("line 10 of" in line for line in lines), "equal stretches are left out"


def test_a_diff_in_a_pipe_is_unified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_api(monkeypatch, differing(), terminal=False)
    rollout_shadow.diff(EVENT)
    lines = capsys.readouterr().out.splitlines()
    assert "-line 20 of a shipment that is late at the dock" in lines
    assert "+row 20 of a shipment that is late at the dock" in lines


def test_a_report_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_api(monkeypatch, _BOTH, terminal=True)
    rollout_shadow.report("build")
    out = capsys.readouterr().out
    assert max(map(cell_len, out.splitlines())) <= 80
    assert "1200" in out and "text" in out and EVENT[:8] in out and EVENT not in out


def test_json_is_what_the_gateway_gave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_api(monkeypatch, _BOTH, terminal=False)
    rollout_shadow.diff(EVENT, json=True)
    assert json.loads(capsys.readouterr().out) == _BOTH


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=120))


@given(live=LINES, shadow=LINES, width=st.integers(30, 120))
def test_both_sides_stay_in_their_columns(live: list[str], shadow: list[str], width: int) -> None:
    column = (width - 3) // 2
    for left, mark, right in side_by_side(live, shadow, width):
        assert cell_len(left) == column and cell_len(right) <= column
        assert mark in " |<>"
