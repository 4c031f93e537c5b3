"""Which build runs which workflow: each build is a version of Temporal's worker deployment.

A workflow is pinned to the build on which it began; drains move to the current build when they continue as new.
After an upgrade of a single worker no worker of the old build is left to run its workflows: they are terminated,
which loses nothing, and the next wake or schedule starts them on the new build.

Which build is current is decided in PostgreSQL (`rollout/builds.py`), or by another owner of the routing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import (
    PendingWorkflowTaskState,
    TaskQueueType,
    WorkerDeploymentVersionStatus,
    WorkflowExecutionStatus,
)
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DeleteWorkerDeploymentVersionRequest,
    DescribeTaskQueueRequest,
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
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

CALL = timedelta(seconds=10)

NOT_YET = (  # the server has not seen the build yet, or limits the rate of requests
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)


@dataclass(frozen=True, slots=True)
class VersionState:
    """A build as Temporal shows it."""

    build: str
    status: str
    """`inactive`, `current`, `ramping`, `draining` or `drained`."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """The routing of a worker deployment, as Temporal has it. Empty names where there is none."""

    current: str = ""
    ramping: str = ""
    percentage: float = 0
    manager: str = ""
    """Who owns the routing, if anybody claimed it."""
    versions: tuple[VersionState, ...] = ()


@dataclass(frozen=True)
class Deployment:
    """One build as a version of the worker deployment `name`."""

    client: Client
    build: str
    name: str = DEPLOYMENT

    @property
    def config(self) -> WorkerDeploymentConfig:
        return WorkerDeploymentConfig(
            self.version(self.build),
            use_worker_versioning=True,
            default_versioning_behavior=VersioningBehavior.PINNED,
        )

    def version(self, build: str) -> WorkerDeploymentVersion:
        return WorkerDeploymentVersion(self.name, build)

    async def state(self) -> DeploymentState:
        """Return the routing; an empty one while Temporal has seen no worker of the deployment."""
        try:
            description = await self.client.workflow_service.describe_worker_deployment(
                DescribeWorkerDeploymentRequest(
                    namespace=self.client.namespace, deployment_name=self.name
                ),
                retry=True,  # the server allows few requests a second to a deployment
                timeout=CALL,
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return DeploymentState()
            raise
        info = description.worker_deployment_info
        routing = info.routing_config
        return DeploymentState(
            current=routing.current_deployment_version.build_id,
            ramping=routing.ramping_deployment_version.build_id,
            percentage=routing.ramping_version_percentage,
            manager=info.manager_identity,
            versions=tuple(
                VersionState(
                    summary.deployment_version.build_id,
                    _status(summary.status),
                    summary.create_time.ToDatetime(UTC),
                )
                for summary in info.version_summaries
            ),
        )

    async def set_current(self, build: str) -> None:
        """Make new workflows begin on a build. Raises an `RPCError` of `NOT_YET` until the server has seen its worker.

        It leaves a ramp on when the build is current already: see `set_ramp`.
        """
        await self.client.workflow_service.set_worker_deployment_current_version(
            SetWorkerDeploymentCurrentVersionRequest(
                namespace=self.client.namespace,
                deployment_name=self.name,
                build_id=build,
                ignore_missing_task_queues=True,
            ),
            retry=True,
            timeout=CALL,
        )

    async def set_ramp(self, build: str, percentage: int) -> None:
        """Let a share of the workflows, by their ids, begin on a build. An empty `build` ends the ramp."""
        await self.client.workflow_service.set_worker_deployment_ramping_version(
            SetWorkerDeploymentRampingVersionRequest(
                namespace=self.client.namespace,
                deployment_name=self.name,
                build_id=build,
                percentage=percentage if build else 0,
                ignore_missing_task_queues=True,
            ),
            retry=True,
            timeout=CALL,
        )

    async def delete_version(self, build: str) -> None:
        """Remove a build from the deployment. The server refuses one that has pollers or is not drained."""
        await self.client.workflow_service.delete_worker_deployment_version(
            DeleteWorkerDeploymentVersionRequest(
                namespace=self.client.namespace, deployment_version=self.version(build)._to_proto()
            ),
            retry=True,
            timeout=CALL,
        )

    async def pollers(self, queues: Sequence[str]) -> dict[str, int]:
        """Return the number of workers by build that polled these task queues for workflows lately."""
        identities: dict[str, set[str]] = {}
        for queue in queues:
            described = await self.client.workflow_service.describe_task_queue(
                DescribeTaskQueueRequest(
                    namespace=self.client.namespace,
                    task_queue=TaskQueue(name=queue),
                    task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
                ),
                timeout=CALL,
            )
            for poller in described.pollers:
                options = poller.deployment_options
                if options.deployment_name == self.name:
                    identities.setdefault(options.build_id, set()).add(poller.identity)
        return {build: len(names) for build, names in identities.items()}

    async def running(self, build: str) -> int:
        """Return the number of running workflows of a build."""
        counted = await self.client.count_workflows(
            f"ExecutionStatus = 'Running' AND TemporalWorkerDeploymentVersion = '{self.name}:{build}'"
        )
        return counted.count

    async def terminate_abandoned(
        self, seconds: float = UNCLAIMED_SECONDS, *, living: Collection[str] = ()
    ) -> list[WorkflowExecution]:
        """Terminate workflows of other builds that no worker runs any more. Return them.

        Those of the builds `living` are left alone: they have workers. Of the others, each workflow gets a signal. A worker of its build takes the task at once (and a drain then moves to the
        current build); a task that is still unclaimed after `seconds` has no worker.
        """
        candidates = [item async for item in self._of_other_builds(living)]
        if not candidates:
            return []
        for item in candidates:
            await self._signal(item)
        await asyncio.sleep(seconds)
        return await self._terminate_unclaimed(candidates)

    async def terminate_all(self, build: str) -> list[WorkflowExecution]:
        """Terminate every running workflow of a build, and remove the build if the server lets it go. Return them."""
        query = f"ExecutionStatus = 'Running' AND TemporalWorkerDeploymentVersion = '{self.name}:{build}'"
        terminated = []
        async for item in self.client.list_workflows(query):
            handle = self.client.get_workflow_handle(item.id, run_id=item.run_id)
            with _ignore_ended():
                await handle.terminate(reason=f"its build {build} was retired")
                terminated.append(item)
        if not terminated:
            try:
                await self.delete_version(build)
            except RPCError as error:
                if error.status not in NOT_YET:  # it has pollers, or is not drained yet
                    raise
        return terminated

    async def _of_other_builds(self, living: Collection[str]) -> AsyncIterator[WorkflowExecution]:
        """Yield running workflows of builds that are neither this one nor living."""
        query = f"ExecutionStatus = 'Running' AND TemporalWorkerDeployment = '{self.name}'"
        for build in {self.build, *living}:
            query += f" AND TemporalWorkerDeploymentVersion != '{self.name}:{build}'"
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


def _status(status: WorkerDeploymentVersionStatus.ValueType) -> str:
    name = WorkerDeploymentVersionStatus.Name(status)
    return name.removeprefix("WORKER_DEPLOYMENT_VERSION_STATUS_").lower()


@contextmanager
def _ignore_ended() -> Iterator[None]:
    """Ignore that a workflow ended meanwhile."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
