"""The way to Temporal: an address in the settings becomes a client."""

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
    """A client for `host:port/namespace`. It connects again by itself whenever Temporal comes back.

    With `lazy` nothing is sent before the first call. A call that finds nobody is repeated for `patience`
    seconds. Raises `Misconfigured` for an address that is none, and, unless lazy, `Unavailable` when nobody
    answers there.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise Misconfigured(
            f"temporal: `{address}` is no address", remedy="write `host:port/namespace`"
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
    except (
        RuntimeError,
        RPCError,
    ) as error:  # the library raises a bare RuntimeError for "no connection"
        raise Unavailable("temporal", f"nobody answers at {match['target']}") from error


def quiet_runtime(metrics: PrometheusConfig | None = None) -> Runtime:
    """The library's threads; one a process. It logs errors alone: every outage is told by our own callers."""
    quiet = LoggingConfig(TelemetryFilter(core_level="ERROR", other_level="ERROR"))
    return Runtime(telemetry=TelemetryConfig(logging=quiet, metrics=metrics))
