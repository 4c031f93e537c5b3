"""The smoke test: one round trip through a worker to every store."""

from __future__ import annotations

import uuid
from datetime import timedelta

from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError

from apex_memory.errors import Unavailable
from apex_memory.flows.maintenance.messages import SmokeTestReport
from apex_memory.flows.temporal.queues import REALTIME


async def run_smoke_test(client: Client) -> tuple[str, SmokeTestReport]:
    """Run one workflow through a worker to every store. Return its id and its result.

    Raises `Unavailable` when Temporal does not respond, or when no worker finishes the workflow within 15 s.
    """
    id = f"hello:{uuid.uuid4()}"
    try:
        report = await client.execute_workflow(
            "Hello",
            id=id,
            task_queue=REALTIME,
            result_type=SmokeTestReport,
            static_summary="Smoke test",
            execution_timeout=timedelta(seconds=15),
        )
    except RPCError as error:
        raise Unavailable("temporal", f"smoke test failed ({error.status.name})") from error
    except RuntimeError as error:  # raised by a lazy client that cannot connect
        raise Unavailable("temporal", "smoke test failed: no connection") from error
    except WorkflowFailureError as error:
        raise Unavailable(
            "temporal",
            f"{id} did not finish: {error.cause}",
            remedy="check that the worker runs: `apex status`",
        ) from error
    return id, report
