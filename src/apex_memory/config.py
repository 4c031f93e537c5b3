"""Every setting. Only this module reads them: from the environment `APEX_*`, then `apex.toml`, then the defaults.

`docs/reference/settings.md` is generated from this class.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from apex_memory.errors import Misconfigured

EMBEDDED = "embedded:"


class Settings(BaseSettings):
    """One flat table of settings; each source has a table of its own under `[sources.NAME]`."""

    model_config = SettingsConfigDict(
        env_prefix="APEX_", env_nested_delimiter="__", extra="forbid", validate_default=True
    )

    data_dir: Path = Field(
        Path(".apex"),
        description="Where embedded engines keep their data, and `apex up` its state.",
    )
    documents: str = Field(
        EMBEDDED,
        description="PostgreSQL 16 or later: `postgresql://user:password@host/database`, or `embedded:`.",
    )
    graph: str = Field(
        EMBEDDED,
        description="Graph: `falkordb://:password@host:port/graph`, `neo4j://user:password@host:7687/database` (extra `neo4j`), or `embedded:`.",
    )
    vectors: str = Field(
        EMBEDDED,
        description="Vectors: Qdrant server `http://host:6333/collection` (`qdrant_api_key` beside it), or `embedded:`.",
    )
    cache: str = Field(
        EMBEDDED, description="Redis or Valkey: `redis://:password@host:port/0`, or `embedded:`."
    )
    temporal: str = Field(
        EMBEDDED,
        description="Temporal: `host:port/namespace`, or `embedded:` (the dev server).",
    )
    temporal_ui: str = Field(
        "",
        description="Address of the Temporal UI, for links. `embedded:` starts that of the embedded server, as `apex up --ui` does: it has no sign-in, and every user of this machine can end workflows there.",
    )
    qdrant_api_key: SecretStr = Field(SecretStr(""), description="API key of a Qdrant server.")

    host: str = Field(
        "127.0.0.1",
        description="Address that the gateway listens on. Anything but loopback makes Apex reachable from outside.",
    )
    port: int = Field(
        8460,
        ge=0,
        le=65535,
        description="Port of the gateway; 0 chooses a free one. When the port is in use, `apex up` reports it and chooses a free one.",
    )
    api_key: SecretStr = Field(
        SecretStr(""),
        description="API key that the command line sends. Empty: the admin key that `apex up` stores in the data folder.",
    )
    url: str = Field(
        "",
        description="URL of the gateway that the command line uses. Empty: the one that `apex up` started from this data folder.",
    )

    embedder: str = Field(
        "minilm",
        description="`minilm` (384 d), `wordllama` (256 d, about 20 times faster, weaker), `onnx:FOLDER` (a text encoder in ONNX), `hashing` (tests), or the URL of an OpenAI-style server (`http://host/v1`).",
    )
    embedder_model: str = Field("", description="Model name sent to an embedding server.")
    embedder_dimension: int = Field(
        0, ge=0, description="Dimension of an embedding server's vectors (needed for a URL)."
    )
    embedder_key: SecretStr = Field(
        SecretStr(""), description="Bearer key for an embedding server."
    )
    embedder_threads: int = Field(
        0, ge=0, description="Threads of the local model; 0 means the number of processors."
    )

    batch_max: int = Field(256, ge=1, le=500, description="Most events in one batch.")
    batch_seconds: float = Field(
        2,
        gt=0,
        description="How long preparing a batch should take (seconds): batches are smaller when embedding is slow.",
    )
    prepare_seconds: float = Field(
        300,
        gt=0,
        description="Longest that preparing a group of events may take (seconds), before it is tried in smaller groups.",
    )
    lease_seconds: float = Field(
        60,
        gt=0,
        description="How long a worker owns a batch (seconds) without renewing its lease. After that another may take it over.",
    )
    retry_attempts: int = Field(4, ge=1, description="Attempts of one store call inside the saga.")
    retry_seconds: float = Field(
        1,
        gt=0,
        description="Wait before the second attempt (seconds); it doubles each time (1, 2, 4) with jitter.",
    )
    call_timeout_seconds: float = Field(
        20, gt=0, description="Longest that a single call to a store may take (seconds)."
    )
    max_attempts: int = Field(
        5,
        ge=1,
        description="Failed attempts (outages not counted) before an event becomes a dead letter. Attempts that time out or end the worker are counted apart, up to the same number.",
    )
    breaker_failures: int = Field(
        5, ge=1, description="Consecutive failures that open a store's circuit breaker."
    )
    breaker_open_seconds: float = Field(
        60,
        gt=0,
        description="How long an open breaker waits (seconds) before it lets one probe through.",
    )
    snapshot_seconds: float = Field(
        20,
        gt=0,
        description="Longest that a reader's snapshot may live (seconds). Must be below `grace_seconds`.",
    )
    grace_seconds: float = Field(
        60,
        gt=0,
        description="How long superseded stages stay in the stores (seconds), for readers that still see them.",
    )
    sweep_seconds: float = Field(
        5,
        gt=0,
        description="Seconds between two passes of the sweeper over expired stages, parked events and lost wakes.",
    )
    collect_seconds: float = Field(
        30,
        gt=0,
        description="Seconds between two passes of the collector, which removes superseded stages.",
    )
    payload_days: float = Field(
        365, gt=0, description="Days that raw payloads are kept for replay."
    )
    tombstone_days: float = Field(
        90,
        gt=0,
        description="Days that the tombstone of a deleted document is kept. Must exceed every source's replay horizon.",
    )

    max_body_bytes: int = Field(
        5_000_000,
        gt=0,
        description="Largest webhook or JSON body in bytes. A source may set a lower limit.",
    )
    max_upload_bytes: int = Field(
        50_000_000, gt=0, description="Largest uploaded document in bytes."
    )
    max_connections: int = Field(
        800,
        ge=1,
        description="Most open connections of the gateway. Stay below the process's limit of open files.",
    )
    max_connections_per_peer: int = Field(
        400,
        ge=1,
        description="Most open connections from one address. A reverse proxy counts as one address.",
    )
    max_header_bytes: int = Field(
        32_768, ge=1_024, description="Largest request line and headers of a request, together."
    )
    max_headers: int = Field(100, ge=10, description="Most headers of a request.")
    header_seconds: float = Field(
        10, gt=0, description="Longest that the headers of a request may take to arrive."
    )
    body_seconds: float = Field(
        120, gt=0, description="Longest that a body sent with an API key may take to arrive."
    )
    webhook_body_seconds: float = Field(
        15, gt=0, description="Longest that the body of a webhook may take to arrive."
    )
    min_body_rate: int = Field(
        1_000, ge=0, description="Least bytes per second of a body, measured over five seconds."
    )
    keyed_body_memory: int = Field(
        256_000_000,
        gt=0,
        description="Memory for the bodies of requests with an API key, in bytes, all together.",
    )
    webhook_body_memory: int = Field(
        128_000_000,
        gt=0,
        description="Memory for the bodies of webhooks, in bytes, all together. One address gets a quarter of it.",
    )
    reader_processes: int = Field(
        2,
        ge=1,
        le=64,
        description="Processes of a worker that read files: PDF, Office, mail, HTML.",
    )
    reader_seconds: float = Field(
        60, gt=0, description="Longest that reading the files of one event may take (seconds)."
    )
    reader_cpu_seconds: float = Field(
        30,
        ge=1,
        description="Most processor time for reading the files of one event (seconds, rounded up).",
    )
    reader_memory_bytes: int = Field(
        2_147_483_648,
        ge=536_870_912,
        description="Address space of a process that reads files, in bytes. It is more than the memory that it uses.",
    )
    reader_max_files: int = Field(
        1_000, ge=1, description="Most files, attachments and members of archives in one event."
    )
    reader_nesting: int = Field(
        10, ge=0, description="Most levels of mails and archives inside one another."
    )
    reader_mime_nesting: int = Field(
        100, ge=1, description="Most levels of parts inside one another in a mail."
    )
    reader_unpacked_bytes: int = Field(
        250_000_000,
        ge=1_000_000,
        description="Most bytes that the archives and Office files of one event may unpack to.",
    )
    reader_compression_ratio: int = Field(
        250,
        ge=10,
        description="Most that a member of an archive larger than 1 MB may grow when it is unpacked.",
    )
    chunk_chars: int = Field(900, ge=100, description="Most characters of one chunk.")
    bm25_average_words: float = Field(
        60,
        gt=0,
        description="Average number of words of a chunk, for the length normalisation of BM25.",
    )

    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Key that seals secrets and tokens in PostgreSQL: 32 bytes in base64 (`apex secrets key` makes one).",
    )
    secret_key_file: Path | None = Field(
        None,
        description="File with such keys, one a line: the first seals, all open. Empty: `secret.key` in the data folder, which `apex up` creates.",
    )
    reading_days: float = Field(
        30,
        gt=0,
        description="Days that raw readings of streams are kept; the documents of their windows stay.",
    )
    backfill_events_per_second: float = Field(
        50, gt=0, description="Most events a second that a backfill or a replay lands."
    )
    source_path: Path | None = Field(
        None,
        description="Folder with further sources: files NAME.py, or packages with a source.py.",
    )
    sources: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="A table for each source: `[sources.frontapp]`, see the page of the source.",
    )
    log_format: Literal["console", "json"] = Field("console", description="`json` for machines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )

    @field_validator("graph", "vectors", "cache", "documents")
    @classmethod
    def _known_scheme(cls, value: str, info: Any) -> str:
        schemes = {
            "documents": ("postgresql://", "postgres://"),
            "graph": ("falkordb://", "falkordbs://", "neo4j", "bolt"),
            "vectors": ("http://", "https://", "edge://"),
            "cache": ("redis://", "rediss://", "valkey://", "valkeys://"),
        }[info.field_name]
        if value != EMBEDDED and not value.startswith(schemes):
            raise ValueError(
                f"must be `embedded:` or start with {' or '.join(s for s in schemes if s != 'edge://')}"
            )
        return value

    @field_validator("temporal_ui")
    @classmethod
    def _ui_of_the_embedded_server(cls, value: str, info: Any) -> str:
        if value == EMBEDDED and info.data.get("temporal") != EMBEDDED:
            raise ValueError(
                "`embedded:` is the UI of the embedded server; give the address of the UI of your server"
            )
        return value

    @field_validator("grace_seconds")
    @classmethod
    def _grace_above_snapshot(cls, value: float, info: Any) -> float:
        if value <= info.data.get("snapshot_seconds", 0):
            raise ValueError(
                "must be above snapshot_seconds, or a reader could lose what it is reading"
            )
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, settings_file())


def settings_file() -> Path:
    """The settings file: `$APEX_SETTINGS_FILE`, or `apex.toml` in the working folder."""
    return Path(os.environ.get("APEX_SETTINGS_FILE", "apex.toml"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the beginning of a remedy that names the most similar known name, or an empty string."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"perhaps you mean {similar[0]}; " if similar else ""


def load_settings(**overrides: Any) -> Settings:
    """Read settings from overrides, environment and file. Raises `Misconfigured`, which names the setting."""
    known = {f"APEX_{name.upper()}" for name in Settings.model_fields} | {"APEX_SETTINGS_FILE"}
    for name in os.environ:
        if name.startswith("APEX_") and name not in known and not name.startswith("APEX_SOURCES__"):
            raise Misconfigured(
                f"{name}: unknown setting",
                remedy=f"{did_you_mean(name, known)}see docs/reference/settings.md, or unset it",
            )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        if first["type"] == "extra_forbidden":
            raise Misconfigured(
                f"{name}: unknown setting",
                remedy=f"{did_you_mean(name, Settings.model_fields)}see docs/reference/settings.md, or remove it",
            ) from None
        raise Misconfigured(
            f"{name}: {first['msg']}", remedy="see docs/reference/settings.md"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(
            f"{settings_file()}: {error}", remedy="correct the TOML syntax there"
        ) from None
