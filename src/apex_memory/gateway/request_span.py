"""The span of a request, and the ids that its line in the log gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from apex_memory.telemetry import logs, traces


@contextmanager
def request_span(
    request: Request, name: str, *, trusted: bool, **attributes: Any
) -> Iterator[None]:
    """Handle a request inside a span of this name, which its line in the log names.

    `trusted` is true for a request whose API key has been checked: its `traceparent` is continued then. See
    `traces.caller_context` for why a webhook's is not.
    """
    parent = traces.caller_context(request.headers) if trusted else Context()
    with traces.span(name, parent=parent, kind=SpanKind.SERVER, **attributes):
        logs.bind_trace()
        yield
