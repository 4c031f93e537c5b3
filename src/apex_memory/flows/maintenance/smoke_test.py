"""The smoke test: one round trip through a worker to every store."""

from __future__ import annotations

import uuid
from datetime import timedelta

from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError

from apex_memory.errors import Unavailable
from apex_memory.flows.maintenance.messages import SmokeTestReport
from apex_memory.flows.temporal.queues import REALTIME


async def hello(client: Client) -> tuple[str, SmokeTestReport]:
    """One round trip through a worker to every store: the id of the workflow that did it, and what it saw.

    Raises `Unavailable` when Temporal does not answer, or when no worker takes the work within 15 s.
    """
    id = f"hello:{uuid.uuid4()}"
    try:
        greeting = await client.execute_workflow(
            "Hello",
            id=id,
            task_queue=REALTIME,
            result_type=SmokeTestReport,
            static_summary="Smoke test",
            execution_timeout=timedelta(seconds=15),
        )
    except RPCError as error:
        raise Unavailable("temporal", f"hello failed ({error.status.name})") from error
    except RuntimeError as error:  # how the library says that a lazy client found nobody
        raise Unavailable("temporal", "hello failed: no connection") from error
    except WorkflowFailureError as error:
        raise Unavailable(
            "temporal",
            f"{id} did not finish: {error.cause}",
            remedy="is the worker running? see `apex status`",
        ) from error
    return id, greeting
