"""Which code carries which workflow: each build is a version of the worker deployment `apex`.

A workflow is pinned to the build it began on; drains move to the current build when they hand over.
After an upgrade of a single worker nobody is left to carry the old build's workflows: they are ended,
which loses nothing, and the next wake or schedule starts them on the new one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from importlib.resources.abc import Traversable

from temporalio.api.enums.v1 import PendingWorkflowTaskState, WorkflowExecutionStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client, WorkflowExecution
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

DEPLOYMENT = "apex"
UNCLAIMED_SECONDS = (
    5.0  # a workflow task that no worker took for so long has none: longer than the sticky time-out
)
RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
UNCLAIMED = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED

NOT_YET = (  # how the server says that it has not seen the build, or is asked too often
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)


def build_id() -> str:
    """Version and hash of the package's source files: any change of code is another build."""
    digest = hashlib.sha256()
    for file in _sources(resources.files("apex_memory")):
        digest.update(file.name.encode() + b"\x00" + file.read_bytes() + b"\x00")
    return f"{version('apex-memory')}-{digest.hexdigest()[:10]}"


def _sources(folder: Traversable) -> list[Traversable]:
    found: list[Traversable] = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            found += _sources(item)
        elif item.name.endswith(".py"):
            found.append(item)
    return found


@dataclass(frozen=True)
class Deployment:
    """One build, as Temporal sees it."""

    client: Client
    build: str

    @property
    def config(self) -> WorkerDeploymentConfig:
        return WorkerDeploymentConfig(
            WorkerDeploymentVersion(DEPLOYMENT, self.build),
            use_worker_versioning=True,
            default_versioning_behavior=VersioningBehavior.PINNED,
        )

    async def current(self) -> str | None:
        """The build that new workflows begin on; None before the first was made so."""
        try:
            found = await self.client.workflow_service.describe_worker_deployment(
                DescribeWorkerDeploymentRequest(
                    namespace=self.client.namespace, deployment_name=DEPLOYMENT
                )
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        routing = found.worker_deployment_info.routing_config
        return routing.current_deployment_version.build_id or None

    async def make_current(self) -> None:
        """New workflows begin on this build. Waits until the server has seen its worker, which takes a moment."""
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace=self.client.namespace,
            deployment_name=DEPLOYMENT,
            build_id=self.build,
            ignore_missing_task_queues=True,
        )
        while True:
            try:
                await self.client.workflow_service.set_worker_deployment_current_version(request)
                return
            except RPCError as error:
                if error.status not in NOT_YET:
                    raise
            await asyncio.sleep(0.25)

    async def end_abandoned(self, seconds: float = UNCLAIMED_SECONDS) -> list[WorkflowExecution]:
        """End workflows of other builds that no worker carries any more; answers them.

        Each is hinted at with a signal. A living worker takes the task at once (and a drain then moves to the
        current build); where the task is still unclaimed after `seconds`, there is none.
        """
        nudged = [item async for item in self._others()]
        if not nudged:
            return []
        for item in nudged:
            await self._nudge(item)
        await asyncio.sleep(seconds)
        return await self._end(nudged)

    async def _others(self) -> AsyncIterator[WorkflowExecution]:
        """Running workflows that another build began."""
        query = (
            f"ExecutionStatus = 'Running' AND TemporalWorkerDeployment = '{DEPLOYMENT}' "
            f"AND TemporalWorkerDeploymentVersion != '{DEPLOYMENT}:{self.build}'"
        )
        async for item in self.client.list_workflows(query):
            yield item

    async def _end(self, nudged: Sequence[WorkflowExecution]) -> list[WorkflowExecution]:
        ended = []
        for item in nudged:
            handle = self.client.get_workflow_handle(item.id, run_id=item.run_id)
            with _gone():
                found = (await handle.describe()).raw_description
                if (
                    found.workflow_execution_info.status == RUNNING
                    and found.pending_workflow_task.state == UNCLAIMED
                ):
                    await handle.terminate(
                        reason=f"no worker of its build is left; {self.build} goes on"
                    )
                    ended.append(item)
        return ended

    async def _nudge(self, item: WorkflowExecution) -> None:
        with _gone():
            await self.client.get_workflow_handle(item.id, run_id=item.run_id).signal("wake")


@contextmanager
def _gone() -> Iterator[None]:
    """Let pass that a workflow ended by itself meanwhile."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
