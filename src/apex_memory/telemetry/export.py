"""The export of traces: OpenTelemetry's SDK, set up from its own standard environment variables and nothing else.

Traces are on where OTEL_EXPORTER_OTLP_ENDPOINT (or its variant for traces) names a receiver, or OTEL_TRACES_EXPORTER
an exporter. OTEL_SDK_DISABLED=true turns them off. The SDK itself reads the rest: OTEL_TRACES_SAMPLER,
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*. The specification is
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace

from apex_memory.errors import Misconfigured, require_extra
from apex_memory.telemetry import traces
from apex_memory.telemetry.logs import logger

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# For the last spans, below the time that a supervisor gives a process to end.
SHUTDOWN_SECONDS = 3.0
REPEATED_SECONDS = 60.0  # between two log messages about a receiver that does not respond
INSTALLS = {
    "otlp_proto_http": "pip install 'apex-memory[otel]', or set OTEL_SDK_DISABLED=true",
    "otlp_proto_grpc": "pip install opentelemetry-exporter-otlp-proto-grpc, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
}
SDK_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
)


class Provider(Protocol):
    """What is used of a tracer provider, the SDK's own or one that wraps it."""

    def add_span_processor(self, span_processor: SpanProcessor) -> None: ...

    def shutdown(self) -> None: ...


MakeProvider = Callable[..., Any]
"""Makes the provider, with the arguments of the SDK's `TracerProvider`. A worker needs one that is safe when workflows replay."""


def wanted(environment: Mapping[str, str]) -> str:
    """Return the variable by which the environment turns traces on; empty where they are off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    exporter = environment.get(EXPORTER, "").strip()
    if exporter:
        return "" if exporter.lower() == "none" else EXPORTER
    return next((name for name in ENDPOINTS if environment.get(name, "").strip()), "")


def check_tracing(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `Misconfigured` where the environment turns traces on and something that they need is missing."""
    variable = wanted(environment)
    if variable:
        feature = f"{variable} is set, so traces are to be exported"
        require_extra(
            "opentelemetry.sdk",
            extra="otel",
            feature=feature,
            otherwise="set OTEL_SDK_DISABLED=true",
        )
        _exporter_class(environment)


@contextmanager
def exporting(process: str, make_provider: MakeProvider | None = None) -> Iterator[None]:
    """Export the traces of this process inside the block, where the environment turns them on.

    `process` is its name, as in `apex status`. Raises `Misconfigured` as `check_tracing` does. A receiver that does
    not respond costs nothing but the spans: the queue is bounded, and the end of the process waits a few seconds.
    """
    if not wanted(os.environ):
        yield
        return
    check_tracing()
    # Not at the top: the SDK is an extra, and takes 0.1 s to load.
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    for name in SDK_LOGGERS:
        logging.getLogger(name).addFilter(_RepeatedSeldom())
    exporter = _exporter_class(os.environ)()
    provider = (make_provider or TracerProvider)(
        resource=_resource(process),
        shutdown_on_exit=False,
        # Events of spans are the texts and the stacks of exceptions, which may quote what came from outside.
        span_limits=SpanLimits(max_events=0),
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    traces.set_tracer(trace.get_tracer("apex_memory", version("apex-memory")))
    logger(component="traces").info(
        "traces are exported", process=process, exporter=type(exporter).__name__
    )
    try:
        yield
    finally:
        traces.set_tracer(None)
        _shut_down(provider, exporter)


def _resource(process: str) -> Resource:
    """Return what the process says of itself. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = Resource(
        {
            "service.name": f"apex-{process}",
            "service.namespace": "apex",
            "service.version": version("apex-memory"),
            "service.instance.id": str(uuid.uuid4()),
            "apex.process": process,
        }
    )
    # The environment again at the end: what it names goes before what the process says.
    return Resource.create().merge(own).merge(OTELResourceDetector().detect())


def _exporter_class(environment: Mapping[str, str]) -> Callable[[], SpanExporter]:
    """Return the exporter that the environment names. Raises `Misconfigured` if it is not installed."""
    name = environment.get(EXPORTER, "").strip().lower() or "otlp"
    if name == "otlp":
        protocol = next(
            (environment[key].strip() for key in PROTOCOLS if environment.get(key)), "http/protobuf"
        )
        name = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}.get(protocol, "")
        if not name:
            raise Misconfigured(
                f"OTEL_EXPORTER_OTLP_PROTOCOL: `{protocol}` is not supported",
                remedy="set it to http/protobuf, which the extra `otel` brings, or to grpc",
            )
    installed = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not installed:
        raise Misconfigured(
            f"{EXPORTER}: the exporter `{name}` is not installed",
            remedy=INSTALLS.get(name, "set it to otlp, console or none"),
        )
    exporter: Callable[[], SpanExporter] = installed[0].load()
    return exporter


def _shut_down(provider: Provider, exporter: SpanExporter) -> None:
    """Send the last spans, but do not wait for a receiver that does not respond."""
    ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_SECONDS)
    if ending.is_alive():
        exporter.shutdown()


class _RepeatedSeldom(logging.Filter):
    """Lets a message of the SDK pass once a minute: with a receiver that is down it logs every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._logged_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = str(record.msg)
        if record.created - self._logged_at.get(key, 0) < REPEATED_SECONDS:
            return False
        self._logged_at[key] = record.created
        return True
