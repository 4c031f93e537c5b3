"""The connection to Temporal, from an address in the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.converter import DataConverter
from temporalio.runtime import (
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
from temporalio.service import RetryConfig, RPCError, TLSConfig

from apex_memory.config import Settings
from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.flows.temporal.codec import converter_of
from apex_memory.flows.temporal.tracing import plugins
from apex_memory.sealing import Keyring

ADDRESS = re.compile(r"(?P<target>[^/\s]+:\d+)/(?P<namespace>[\w.-]+)")


async def connect_by(settings: Settings, keys: Keyring, **options: Any) -> Client:
    """Return a client for the server in the settings, with its TLS, its API key and the payload codec.

    `options` are those of `connect`. Raises `Misconfigured` where payloads are to be sealed and `keys` has none.
    """
    key = settings.temporal_api_key.get_secret_value()
    return await connect(
        settings.temporal,
        tls=tls_of(settings),
        api_key=key or None,
        data_converter=converter_of(settings, keys),
        **options,
    )


def tls_of(settings: Settings) -> TLSConfig | bool:
    """Return how to encrypt the connection. Raises `Misconfigured` for a file that cannot be read."""
    config = TLSConfig(
        server_root_ca_cert=_content("temporal_tls_ca_file", settings.temporal_tls_ca_file),
        domain=settings.temporal_tls_server_name or None,
        client_cert=_content("temporal_client_cert_file", settings.temporal_client_cert_file),
        client_private_key=_content("temporal_client_key_file", settings.temporal_client_key_file),
    )
    if config != TLSConfig():
        return config
    return settings.temporal_tls or bool(settings.temporal_api_key.get_secret_value())


def _content(setting: str, file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise Misconfigured(
            f"{setting}: cannot read {file} ({error.strerror})", remedy="check its path and owner"
        ) from error


async def connect(
    address: str,
    *,
    lazy: bool = False,
    patience: float = 5,
    runtime: Runtime | None = None,
    tls: TLSConfig | bool = False,
    api_key: str | None = None,
    data_converter: DataConverter = DataConverter.default,
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
            tls=tls,
            api_key=api_key,
            data_converter=data_converter,
            runtime=runtime or quiet_runtime(),
            plugins=plugins(),
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
