"""How a process exposes its metrics: `/metrics` on an address of its own, for Prometheus to scrape.

The format is what the scraper asks for: OpenMetrics, which also carries exemplars, or the older text format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, disable_created_metrics, make_wsgi_app, start_http_server
from prometheus_client.exposition import choose_encoder

from apex_memory.errors import Misconfigured
from apex_memory.host_names import host_name, is_loopback, split_address
from apex_memory.telemetry.logs import logger

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

PATH = "/metrics"

# The time at which each counter was created would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process listens for scrapes. A port of 0 chooses a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in `host:port`. Raises `ValueError`."""
        return cls(*split_address(text))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self}{PATH}"


@contextmanager
def exposed(address: Address, *, process: str) -> Iterator[Address]:
    """Expose the metrics of this process inside the block; yield the address, with the port that was chosen.

    Another port is chosen, and logged, when the port is in use: two builds of a worker run side by side with the same
    settings. Raises `Misconfigured` for an address that this machine does not have.
    """
    try:
        server, thread = start_http_server(address.port, address.host)
    except OSError:
        try:
            server, thread = start_http_server(0, address.host)
        except OSError as error:
            raise Misconfigured(
                f"metrics of {process}: cannot listen on {address.host} ({error.strerror})",
                remedy="set an address of this machine, such as 127.0.0.1:0",
            ) from None
        logger(component="metrics").warning(
            "the port for metrics is in use; another one is used",
            process=process,
            wanted=address.port,
            port=server.server_port,
        )
    application = make_wsgi_app()
    if is_loopback(address.host):
        application = for_this_machine(application)
    server.set_app(application)
    try:
        yield Address(address.host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def exposition(accept: str) -> tuple[bytes, str]:
    """Return the metrics of this process and their content type, in the format that an `Accept` header asks for."""
    encode, content_type = choose_encoder(accept)
    return encode(REGISTRY), content_type


def for_this_machine(metrics: WSGIApplication) -> WSGIApplication:
    """Return the application, with 421 for requests whose Host is not a name of this machine (see `host_names`)."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_loopback(host_name(environ.get("HTTP_HOST", ""))):
            return metrics(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
        return [b"these metrics are for this machine\n"]

    return application
