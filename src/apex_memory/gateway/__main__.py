"""The gateway's process: `python -m apex_memory.gateway`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.metadata import version

import uvicorn
from fastapi import FastAPI

from apex_memory.build import build_id
from apex_memory.config import Settings, load_settings
from apex_memory.engines.cards import ProcessCard, registered
from apex_memory.errors import ApexError, Misconfigured
from apex_memory.gateway.application import create_app
from apex_memory.gateway.dependencies import Gateway
from apex_memory.gateway.protocol import limited_protocol
from apex_memory.gc_tuning import collect_garbage_seldom
from apex_memory.host_names import is_loopback
from apex_memory.inbox import reused_ids
from apex_memory.telemetry import BUILD_INFO, configure_logging, logger
from apex_memory.telemetry.export import exporting
from apex_memory.telemetry.exposition import Address, exposed
from apex_memory.tls import ServerTls

STUCK_TICKS = 100  # ten seconds, in which threads that were given up may still end
SHUTDOWN_SECONDS = 10  # for requests under way; below the time a supervisor gives


def main() -> int:
    """Serve until SIGTERM or SIGINT.

    Return the exit code: 0 after an orderly stop, 1 when the server could not start or a part of it failed, 2 for
    settings or an address that cannot work.
    """
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        with exporting("gateway"), _bind(settings) as bound, ExitStack() as stack:
            tls = _tls(settings)
            api = create_app(settings, tls=tls)
            config = _config(settings, api, tls)
            server = _Server(config, api, tls, handshake_seconds=settings.header_seconds)
            url = _url(bound, settings.scheme)
            logger(component="gateway").info("listening", url=url)
            _warn_of_plain_http(settings)
            _warn_of_strangers(settings)
            _show_metrics(settings, url, stack)
            for number in (signal.SIGTERM, signal.SIGINT):
                # uvicorn shuts down on the signal, then raises it again for the process: that repetition is ignored.
                signal.signal(number, lambda *_: None)
            server.run(sockets=[bound])
    except ApexError as error:
        print(f"{error}\n{error.remedy}".rstrip(), file=sys.stderr)
        return 2
    if server.failed:
        logger(component="gateway").error(
            f"{server.failed} failed for good; the gateway ends",
            remedy="its supervisor starts it again; the log says where it failed: report it",
        )
    return 0 if server.started and not server.failed else 1


def _tls(settings: Settings) -> ServerTls | None:
    """Return the certificate of the settings; None for plain HTTP. Raises `Misconfigured` for files that cannot be used."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    return ServerTls(
        settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file
    )


def _warn_of_plain_http(settings: Settings) -> None:
    if settings.scheme == "http" and not is_loopback(settings.host):
        logger(component="gateway").warning(
            "plain HTTP beyond loopback: keys and content can be read on the network",
            remedy="set tls_certificate_file and tls_key_file, or let only a reverse proxy with TLS reach this port",
        )


def _warn_of_strangers(settings: Settings) -> None:
    if settings.admits_strangers:
        logger(component="gateway").warning(
            "a proxy on this machine can make callers from the internet look local: /ops and /metrics need no key then",
            remedy="set local_without_key = false",
        )


def _show_metrics(settings: Settings, url: str, stack: ExitStack) -> None:
    """Expose the metrics at the further address of the settings, if any, and register where they are."""
    build = settings.build_id or build_id()
    BUILD_INFO.labels(version("apex-memory"), build).set(1)
    metrics = f"{url}/metrics"
    if settings.gateway_metrics:
        address = Address.parse(settings.gateway_metrics)
        metrics = stack.enter_context(exposed(address, process="gateway")).url
    card = ProcessCard(process="gateway", pid=os.getpid(), build=build, metrics=metrics)
    with suppress(OSError):  # no data folder is needed where all stores are elsewhere
        stack.enter_context(registered(settings.data_dir, card))


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        api: FastAPI,
        tls: ServerTls | None,
        *,
        handshake_seconds: float,
    ) -> None:
        super().__init__(config)
        self.failed = ""
        """What failed for good: a loop beside the requests, or the threads that read them. The server ends for it."""
        self._stuck_ticks = 0
        self._api = api
        self._tls = tls
        self._handshake_seconds = handshake_seconds

    async def on_tick(self, counter: int) -> bool:
        """Look for a renewed certificate once a second, and end when a loop has failed for good, or threads are stuck.

        uvicorn calls this ten times a second.
        """
        gateway: Gateway = self._api.state.gateway
        if gateway.background.failed:
            self.failed = gateway.background.failed
        is_stuck = gateway.reading.stuck or reused_ids.threads.stuck
        self._stuck_ticks = self._stuck_ticks + 1 if is_stuck else 0
        if self._stuck_ticks >= STUCK_TICKS:
            self.failed = "the reading of requests"
        if self.failed:
            self.should_exit = True
        if self._tls and counter % 10 == 0:
            log = logger(component="gateway")
            try:
                if self._tls.renew():
                    log.info("certificate renewed")
            except Misconfigured as error:
                log.error(
                    "certificate not renewed, the former one stays in use",
                    reason=str(error),
                    remedy=error.remedy,
                )
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn has no limit for handshakes, and asyncio's is a minute: with TLS the listeners are made here.
        await super().startup(sockets=[] if self._tls else sockets)
        if self._tls:
            for listener in sockets or ():
                self.servers.append(await self._listen(listener, self._tls))
        collect_garbage_seldom()

    async def _listen(self, listener: socket.socket, tls: ServerTls) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            self._new_protocol,
            sock=listener,
            ssl=tls.context,
            ssl_handshake_timeout=self._handshake_seconds,
            backlog=self.config.backlog,
        )

    def _new_protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def _config(settings: Settings, api: FastAPI, tls: ServerTls | None) -> uvicorn.Config:
    return uvicorn.Config(
        api,
        lifespan="on",
        loop="auto" if sys.platform == "win32" else "uvloop",
        ws="none",
        http=limited_protocol(settings),
        ssl_context_factory=(lambda *_: tls.context) if tls else None,
        access_log=False,  # `RequestMiddleware` writes the access log, without query strings
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,  # above the idle time of most proxies would be better still for them
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _bind(settings: Settings) -> socket.socket:
    """Return the bound socket, so that the log shows the port chosen for 0, and a port in use is a clear error."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle only where the protocol is named: otherwise each response waits 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, settings.port))
    except OSError as error:
        bound.close()
        raise Misconfigured(
            f"host, port: cannot listen on {settings.host}:{settings.port} ({error.strerror})",
            remedy="stop the program that uses the port, or set another port",
        ) from None
    return bound


def _url(bound: socket.socket, scheme: str) -> str:
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
