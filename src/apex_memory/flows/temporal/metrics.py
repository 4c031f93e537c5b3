"""The metrics of Temporal's library, among those of this process.

The library has an endpoint of its own. It stays on loopback, and each scrape of the process reads it, so that a process is
one target.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from temporalio.runtime import PrometheusConfig, Runtime

from apex_memory.engines.base import HOST, free_port
from apex_memory.flows.temporal.client import quiet_runtime

SECONDS = 2.0  # longest that a scrape waits for the library


class LibraryMetrics(Collector):
    """Reads the library's endpoint and returns its metrics; none while it does not respond."""

    def __init__(self, url: str) -> None:
        self._url = url

    def collect(self) -> Iterator[Metric]:
        try:
            with urlopen(self._url, timeout=SECONDS) as response:  # noqa: S310 (http on loopback)
                text = response.read().decode()
        except (URLError, OSError):
            return
        for family in text_string_to_metric_families(text):
            family.documentation = family.documentation or "A metric of Temporal's library."
            yield family

    def describe(self) -> list[Metric]:
        """Nothing is known before the first call."""
        return []


def measured_runtime() -> Runtime:
    """Return the library's runtime for this process, with its metrics in the process's registry.

    Names follow the conventions of Prometheus (`_total`, seconds), which the library leaves off by default.
    """
    port = free_port()
    runtime = quiet_runtime(
        PrometheusConfig(
            bind_address=f"{HOST}:{port}",
            counters_total_suffix=True,
            unit_suffix=True,
            durations_as_seconds=True,
        )
    )
    REGISTRY.register(LibraryMetrics(f"http://{HOST}:{port}/metrics"))
    return runtime
