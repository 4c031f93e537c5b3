"""The replay check: whether this build's workflows can go on with recent runs of the running namespace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from temporalio.client import Client, WorkflowHistory
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Replayer

REPLAY_SECONDS = 40.0  # longest that replaying may take, well below the first try of a check; what is left then is not replayed
MOST_FAILURES = 10  # failures that a result lists


@dataclass(slots=True)
class ReplayResult:
    """What a replay came to: histories replayed by workflow type, and failures as `TYPE ID: reason`."""

    replayed: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    complete: bool = True
    """False when the time did not suffice for all of them."""

    @property
    def total(self) -> int:
        return sum(self.replayed.values())


async def replay_recent(
    client: Client,
    workflows: Sequence[type],
    *,
    deployment: str,
    each: int,
    seconds: float = REPLAY_SECONDS,
) -> ReplayResult:
    """Replay the newest `each` runs of every type of workflow, open and closed, against `workflows`.

    An open run of the deployment whose type is none of them is a failure too: this build could not continue it.
    """
    result = ReplayResult()
    types = [workflow.__name__ for workflow in workflows]
    result.failures += await _unknown_types(client, types, deployment)
    replayer = Replayer(workflows=workflows, data_converter=client.data_converter)
    deadline = asyncio.get_running_loop().time() + seconds
    for type in types:
        async for history in _recent(client, type, each):
            if asyncio.get_running_loop().time() > deadline:
                result.complete = False
                return result
            outcome = await replayer.replay_workflow(history, raise_on_replay_failure=False)
            result.replayed[type] = result.replayed.get(type, 0) + 1
            if outcome.replay_failure:
                result.failures.append(
                    f"{type} {history.workflow_id}: {outcome.replay_failure}"[:300]
                )
    return result


async def _recent(client: Client, type: str, each: int) -> AsyncIterator[WorkflowHistory]:
    """Yield the histories of the newest runs of a type. A run whose retention just ended is left out."""
    async for execution in client.list_workflows(f"WorkflowType = '{type}'", limit=each):
        handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
        try:
            yield await handle.fetch_history()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


async def _unknown_types(client: Client, types: Sequence[str], deployment: str) -> list[str]:
    query = f"ExecutionStatus = 'Running' AND TemporalWorkerDeployment = '{deployment}'"
    unknown: dict[str, str] = {}
    async for execution in client.list_workflows(query):
        if execution.workflow_type not in types:
            unknown[execution.workflow_type] = execution.id
    return [f"{type} {id}: this build has no such workflow" for type, id in unknown.items()]
