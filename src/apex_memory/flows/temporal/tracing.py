"""Temporal's own spans: of signals, workflows and activities. The library calls this part experimental, so it is all here.

A workflow is replayed when its worker lost it. Its spans would be exported again each time; the provider of this
module knows when a workflow replays, and takes the ids of spans from the workflow's own random numbers.
"""

from __future__ import annotations

from typing import Any

from temporalio.plugin import SimplePlugin

from apex_memory.telemetry import traces


def replay_safe_provider(**options: Any) -> Any:
    """Return a tracer provider for a process that runs workflows, with the SDK's own arguments."""
    # Not at the top: it needs the extra `otel`.
    from temporalio.contrib.opentelemetry import create_tracer_provider

    return create_tracer_provider(**options)


def plugins() -> list[SimplePlugin]:
    """Return the plugins of a client, whose workers inherit them; none while traces are off."""
    if not traces.enabled():
        return []
    from temporalio.contrib.opentelemetry import OpenTelemetryPlugin

    return [OpenTelemetryPlugin(add_temporal_spans=True)]
