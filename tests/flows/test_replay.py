"""Today's code can go on with every history that was recorded, so an upgrade never strands a running workflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from apex_memory.flows.worker import WORKFLOWS
from tests.flows.changed import HastyDrain

ALL = WORKFLOWS
FILES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def history(file: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(file.stem, file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_history_replays(file: Path) -> None:
    await Replayer(workflows=ALL).replay_workflow(history(file))


def test_every_workflow_has_a_history() -> None:
    recorded = {file.stem.partition("-")[0] for file in FILES}
    assert recorded == {workflow.__name__.lower() for workflow in ALL}


async def test_a_changed_workflow_does_not_replay() -> None:
    burst = next(file for file in FILES if file.stem == "drain-burst")
    with pytest.raises(NondeterminismError):
        await Replayer(workflows=[HastyDrain]).replay_workflow(history(burst))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_histories_name_no_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "stackTrace" not in text
    assert "@" not in text
