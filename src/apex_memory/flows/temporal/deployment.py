"""Which build runs which workflow: each build is a version of the worker deployment `apex`.

A workflow is pinned to the build on which it began; drains move to the current build when they continue as new.
After an upgrade of a single worker no worker of the old build is left to run its workflows: they are terminated,
which loses nothing, and the next wake or schedule starts them on the new build.
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
# A workflow task that is unclaimed for so long has no worker. Longer than the sticky time-out.
UNCLAIMED_SECONDS = 5.0
RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
UNCLAIMED = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED

NOT_YET = (  # the server has not seen the build yet, or limits the rate of requests
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)


def build_id() -> str:
    """Return the version and a hash of the package's source files: any change of code is another build."""
    digest = hashlib.sha256()
    for file in _sources(resources.files("apex_memory")):
        digest.update(file.name.encode() + b"\x00" + file.read_bytes() + b"\x00")
    return f"{version('apex-memory')}-{digest.hexdigest()[:10]}"


def _sources(folder: Traversable) -> list[Traversable]:
    files: list[Traversable] = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            files += _sources(item)
        elif item.name.endswith(".py"):
            files.append(item)
    return files


@dataclass(frozen=True)
class Deployment:
    """One build as a version of the worker deployment."""

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
        """Return the build on which new workflows begin; None before the first activation."""
        try:
            description = await self.client.workflow_service.describe_worker_deployment(
                DescribeWorkerDeploymentRequest(
                    namespace=self.client.namespace, deployment_name=DEPLOYMENT
                )
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        routing = description.worker_deployment_info.routing_config
        return routing.current_deployment_version.build_id or None

    async def make_current(self) -> None:
        """Make new workflows begin on this build. Waits until the server has seen its worker, which takes a moment."""
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

    async def terminate_abandoned(
        self, seconds: float = UNCLAIMED_SECONDS
    ) -> list[WorkflowExecution]:
        """Terminate workflows of other builds that no worker runs any more. Return them.

        Each workflow gets a signal. A worker of its build takes the task at once (and a drain then moves to the
        current build); a task that is still unclaimed after `seconds` has no worker.
        """
        candidates = [item async for item in self._of_other_builds()]
        if not candidates:
            return []
        for item in candidates:
            await self._signal(item)
        await asyncio.sleep(seconds)
        return await self._terminate_unclaimed(candidates)

    async def _of_other_builds(self) -> AsyncIterator[WorkflowExecution]:
        """Yield running workflows that began on another build."""
        query = (
            f"ExecutionStatus = 'Running' AND TemporalWorkerDeployment = '{DEPLOYMENT}' "
            f"AND TemporalWorkerDeploymentVersion != '{DEPLOYMENT}:{self.build}'"
        )
        async for item in self.client.list_workflows(query):
            yield item

    async def _terminate_unclaimed(
        self, candidates: Sequence[WorkflowExecution]
    ) -> list[WorkflowExecution]:
        terminated = []
        for item in candidates:
            handle = self.client.get_workflow_handle(item.id, run_id=item.run_id)
            with _ignore_ended():
                description = (await handle.describe()).raw_description
                if (
                    description.workflow_execution_info.status == RUNNING
                    and description.pending_workflow_task.state == UNCLAIMED
                ):
                    await handle.terminate(
                        reason=f"no worker of its build is left; {self.build} continues"
                    )
                    terminated.append(item)
        return terminated

    async def _signal(self, item: WorkflowExecution) -> None:
        with _ignore_ended():
            await self.client.get_workflow_handle(item.id, run_id=item.run_id).signal("wake")


@contextmanager
def _ignore_ended() -> Iterator[None]:
    """Ignore that a workflow ended meanwhile."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
