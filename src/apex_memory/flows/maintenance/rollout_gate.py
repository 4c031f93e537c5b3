"""Starts `RolloutGate` on a build."""

from __future__ import annotations

import uuid
from datetime import timedelta

from temporalio.client import WorkflowFailureError
from temporalio.common import PinnedVersioningOverride
from temporalio.exceptions import ApplicationError, TimeoutError
from temporalio.service import RPCError

from apex_memory.errors import Unavailable
from apex_memory.flows.maintenance.messages import RolloutGateInput
from apex_memory.flows.temporal.deployment import Deployment
from apex_memory.flows.temporal.options import TASK_TIMEOUT
from apex_memory.flows.temporal.queues import REALTIME
from apex_memory.telemetry import logger

TRY_SECONDS = (60.0, 240.0)
"""Longest that each try may take: a task that got lost on its way to the worker costs a minute, and a slow machine has four."""
CHECK_SECONDS = sum(TRY_SECONDS)
REMEDY = "check that a worker of the build runs: `apex builds list`; the log of that worker says what it waits for"


async def run_rollout_gate(deployment: Deployment, build: str, histories: int) -> str:
    """Run the gate on a worker of this build; it records its result in the table `builds`. Return its workflow id.

    Raises `Unavailable` when Temporal does not respond, or when no worker of the build finishes it in `CHECK_SECONDS`.
    """
    for seconds in TRY_SECONDS:
        id = f"rollout-gate:{build}:{uuid.uuid4().hex[:8]}"
        try:
            await deployment.client.execute_workflow(
                "RolloutGate",
                RolloutGateInput(histories),
                id=id,
                task_queue=REALTIME,
                versioning_override=PinnedVersioningOverride(deployment.version(build)),
                static_summary=f"Check of build {build}",
                execution_timeout=timedelta(seconds=seconds),
                task_timeout=TASK_TIMEOUT,
            )
        except RPCError as error:
            raise Unavailable(
                "temporal", f"check of {build} failed ({error.status.name})"
            ) from error
        except RuntimeError as error:  # raised by a lazy client that cannot connect
            raise Unavailable("temporal", f"check of {build} failed: no connection") from error
        except WorkflowFailureError as error:
            if isinstance(error.cause, TimeoutError):
                logger(build=build).warning("build_check_timed_out", workflow=id, seconds=seconds)
                continue
            if not isinstance(error.cause, ApplicationError):
                raise Unavailable(
                    "temporal", f"{id} did not finish: {error.cause}", remedy=REMEDY
                ) from error
        return id
    raise Unavailable(
        "temporal",
        f"the check of {build} did not finish in {CHECK_SECONDS:g} s",
        remedy=REMEDY,
    )
