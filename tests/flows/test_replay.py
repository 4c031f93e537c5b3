"""Today's code can go on with every history that was recorded, so an upgrade never strands a running workflow."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from google.protobuf import json_format
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from apex_memory.flows.drain.messages import DrainInput
from apex_memory.flows.temporal.codec import SealingCodec, sealing_converter
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.flows.worker import WORKFLOWS
from apex_memory.sealing import Keyring, new_key, read_keys
from tests.flows.changed import HastyDrain
from tests.flows.payloads import with_payloads

ALL = WORKFLOWS
FILES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def history(file: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(file.stem, file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_history_replays(file: Path) -> None:
    await Replayer(workflows=ALL).replay_workflow(history(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_sealed_history_replays_and_so_does_a_plain_one(file: Path) -> None:
    """Runs that began before the codec was on go on with it, and under a second key."""
    recorded = history(file)
    keys = [new_key(), new_key()]
    before = Replayer(workflows=ALL, data_converter=_sealing(keys[:1]))
    await before.replay_workflow(recorded)
    sealed = await _sealed(recorded, SealingCodec(Keyring(read_keys(keys[:1]))))
    assert sealed.events != recorded.events
    rotated = Replayer(workflows=ALL, data_converter=_sealing([keys[1], keys[0]]))
    await rotated.replay_workflow(sealed)


def _sealing(keys: Sequence[str]) -> DataConverter:
    return sealing_converter(SealingCodec(Keyring(read_keys(keys))))


async def _sealed(plain: WorkflowHistory, codec: SealingCodec) -> WorkflowHistory:
    """Return the history as it would be had its payloads been sealed."""

    async def sealed(payload: Payload) -> Any:
        [sealed] = await codec.encode([payload])
        return json_format.MessageToDict(sealed)

    content = await with_payloads(json.loads(plain.to_json()), sealed)
    return WorkflowHistory.from_json(plain.workflow_id, content)


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


CONTENT_NAMES = {"event_id", "doc_key", "name", "title", "text", "body", "payload", "content", "secret", "token", "password"}  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_w4_histories_hold_ids_and_counts_alone(file: Path) -> None:
    """A source's own event ids can hold addresses and document keys: histories name inbox ids, files and batches only.

    `test_w4_histories_of_what_is_fetched_hold_no_content` looks at what real activities return.
    """
    payloads = _decoded(file)
    assert payloads, "a history without payloads would pass any test"
    for payload in payloads:
        for value in _values(json.loads(payload)):
            assert value not in CONTENT_NAMES, payload
            assert not isinstance(value, str) or len(value) <= 100, payload


def _values(value: Any) -> Iterator[object]:
    """Yield every key and every value in a JSON value that is no list or object itself."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _values(item)
    else:
        yield value


def _decoded(file: Path) -> list[str]:
    """Return every payload of a history, decoded."""
    payloads = re.findall(r'"data": ?"([A-Za-z0-9+/=]+)"', file.read_text(encoding="utf-8"))
    return [base64.b64decode(payload).decode() for payload in payloads]


async def test_o2_a_run_replays_in_a_fraction_of_its_task_time_out() -> None:
    """A worker without a cache replays a run of the greatest length, on a machine of a tenth of this one's speed.

    The process time counts, so that a loaded test machine does not matter.
    """
    longest = max(FILES, key=lambda file: len(history(file).events))
    events = len(history(longest).events)
    began = process_time()
    await Replayer(workflows=ALL).replay_workflow(history(longest))
    per_event = (process_time() - began) / events
    slowed = 10 * per_event * DrainInput("edi", 2).run_events
    assert slowed < TASK_TIMEOUT.total_seconds() / 2, f"{slowed:.1f} s"
