"""How long activities may take, and how they are retried."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.common import RetryPolicy

RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=30),
)
# A worker that is killed is missed after that long: its batch goes on with another.
SHORT: dict[str, Any] = {"start_to_close_timeout": timedelta(seconds=10), "retry_policy": RETRY}
# Embedding a batch of long documents takes minutes: the heartbeat says whether the step lives, not the clock.
LONG: dict[str, Any] = {
    "start_to_close_timeout": timedelta(hours=1),
    "heartbeat_timeout": timedelta(seconds=10),
    "retry_policy": RETRY,
}
