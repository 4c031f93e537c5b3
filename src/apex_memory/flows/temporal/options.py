"""Time-outs and retries of activities."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy

# Longest that one workflow task may take. It includes the replay of the run's history after a worker lost its cache:
# the default of 10 s is too short for that on a machine that is slowed to a tenth.
TASK_TIMEOUT = timedelta(seconds=60)

RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=30),
)
# After this time the server gives the batch of a killed worker to another.
SHORT: dict[str, Any] = {"start_to_close_timeout": timedelta(seconds=10), "retry_policy": RETRY}
# Embedding a batch of long documents takes minutes: the heartbeat, not the time-out, detects a lost worker.
LONG: dict[str, Any] = {
    "start_to_close_timeout": timedelta(hours=1),
    "heartbeat_timeout": timedelta(seconds=10),
    "retry_policy": RETRY,
}
