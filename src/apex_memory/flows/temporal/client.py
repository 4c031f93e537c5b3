"""The connection to Temporal, from an address in the settings."""

from __future__ import annotations

import re

from temporalio.client import Client
from temporalio.runtime import (
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
from temporalio.service import RetryConfig, RPCError

from apex_memory.errors import Misconfigured, Unavailable

ADDRESS = re.compile(r"(?P<target>[^/\s]+:\d+)/(?P<namespace>[\w.-]+)")


async def connect(
    address: str, *, lazy: bool = False, patience: float = 5, runtime: Runtime | None = None
) -> Client:
    """Return a client for `host:port/namespace`. It reconnects automatically.

    With `lazy` nothing is sent before the first call. A call without a connection is retried for `patience`
    seconds. Raises `Misconfigured` for a malformed address and, unless lazy, `Unavailable` when no server responds.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise Misconfigured(
            f"temporal: `{address}` is not an address", remedy="write `host:port/namespace`"
        )
    try:
        return await Client.connect(
            match["target"],
            namespace=match["namespace"],
            lazy=lazy,
            runtime=runtime or quiet_runtime(),
            retry_config=RetryConfig(
                max_elapsed_time_millis=round(patience * 1000),
                max_interval_millis=1000,
                max_retries=1000,
            ),
        )
    except (RuntimeError, RPCError) as error:  # RuntimeError means "no connection"
        raise Unavailable("temporal", f"no server responds at {match['target']}") from error


def quiet_runtime(metrics: PrometheusConfig | None = None) -> Runtime:
    """Return the library's runtime, one per process. It logs only errors: callers log every outage."""
    quiet = LoggingConfig(TelemetryFilter(core_level="ERROR", other_level="ERROR"))
    return Runtime(telemetry=TelemetryConfig(logging=quiet, metrics=metrics))
