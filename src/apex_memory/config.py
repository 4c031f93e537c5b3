"""Every setting. Only this module reads them: from the environment `APEX_*`, then `apex.toml`, then the defaults.

`docs/reference/settings.md` is generated from this class.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from apex_memory.dates import DateOrder
from apex_memory.errors import Misconfigured
from apex_memory.host_names import is_private, split_address
from apex_memory.rollout_settings import RolloutSettings
from apex_memory.tls import ClientTls

EMBEDDED = "embedded:"
IN_DOCUMENTS = "postgresql:"
"""The graph lies in the PostgreSQL of `documents`."""
LOOPBACK = "127.0.0.1:0"
NESTED = ("APEX_SOURCES__", "APEX_ROLLOUT__")
"""Prefixes of environment variables that set a part of a table."""
DEFAULT_NAMESPACE = (
    "default"  # Temporal's, where TEMPORAL_ADDRESS is set without TEMPORAL_NAMESPACE
)

METADATA_MAX_BYTES = 65_536
"""The default of `metadata_max_bytes`."""

VERSION_VARIABLES = {
    "TEMPORAL_DEPLOYMENT_NAME": "deployment_name",
    "TEMPORAL_WORKER_BUILD_ID": "build_id",
}
CONNECTION_VARIABLES = {
    "TEMPORAL_TLS": "temporal_tls",
    "TEMPORAL_TLS_SERVER_NAME": "temporal_tls_server_name",
    "TEMPORAL_TLS_SERVER_CA_CERT_PATH": "temporal_tls_ca_file",
    "TEMPORAL_TLS_CLIENT_CERT_PATH": "temporal_client_cert_file",
    "TEMPORAL_TLS_CLIENT_KEY_PATH": "temporal_client_key_file",
    "TEMPORAL_API_KEY": "temporal_api_key",
}
"""Temporal's own environment variables, and the settings that they give. TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE
together give `temporal`."""

CERTIFICATES = {
    "temporal_client_key_file": "temporal_client_cert_file",
    "tls_key_file": "tls_certificate_file",
    "client_key_file": "client_certificate_file",
}
"""The setting with the certificate for each setting with a private key."""

SSL_MODE = re.compile(r"[?&]sslmode=([\w-]+)")

NOT_FROM_FILES = ("sources", "rollout")
"""Tables. The settings file holds them, and it can be a secret as a whole."""

VERSION_NAME = re.compile(r"[A-Za-z0-9_+./-]*")
"""What a deployment name and a build id may hold. A Kubernetes controller names a deployment `namespace/name`."""


BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9_./-]*)?")


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
        description="PostgreSQL 17 or later: `postgresql://user:password@host/database`, or `embedded:`. Several servers, of which one is the primary: docs/howto/standby.md.",
    )
    documents_direct: str = Field(
        "",
        description="Where `documents` is a pooler in transaction mode (PgBouncer): the address of PostgreSQL itself, for what needs a session: migrations, notices, backups. Empty: `documents` is PostgreSQL itself.",
    )
    documents_standby: str = Field(
        "",
        description="Address of a standby of PostgreSQL, from which gateways read searches while it lags by less than `documents_standby_seconds`. Empty: they read from `documents`. docs/howto/standby.md.",
    )
    documents_standby_seconds: float = Field(
        5,
        gt=0,
        description="How far the standby may lag behind (seconds). Beyond that, or when it does not respond, searches read from `documents`. With `snapshot_seconds` it must stay below `grace_seconds`.",
    )
    graph: str = Field(
        IN_DOCUMENTS,
        description="Graph: `postgresql:` or `postgresql://user:password@host/database` (tables in the PostgreSQL of `documents`, or in that one), `neo4j://user:password@host:7687/database` (extra `neo4j`), `falkordb://:password@host:port/graph`, or `embedded:` (a FalkorDB that `apex up` starts; extra `falkordb`).",
    )
    vectors: str = Field(
        EMBEDDED,
        description="Vectors: Qdrant server `http://host:6333/collection` (`qdrant_api_key` beside it), or `embedded:`.",
    )
    cache: str = Field(
        EMBEDDED,
        description="Redis or Valkey: `redis://:password@host:port/0`, by Sentinels `redis+sentinel://:password@host:26379,host:26379/service/0`, or `embedded:`. docs/howto/cache.md.",
    )
    temporal: str = Field(
        EMBEDDED,
        description="Temporal: `host:port/namespace`, or `embedded:` (the dev server).",
    )
    temporal_ui: str = Field(
        "",
        description="Address of the Temporal UI, for links. `embedded:` starts that of the embedded server, as `apex up --ui` does: it has no sign-in, and every user of this machine can end workflows there.",
    )
    trace_url: str = Field(
        "",
        description="Address of a trace in the trace viewer, for links: `http://localhost:16686/trace/{trace_id}`.",
    )
    temporal_tls: bool = Field(
        False,
        description="Connect to Temporal with TLS. Also on when a certificate, a server name or an API key is set.",
    )
    temporal_tls_server_name: str = Field(
        "", description="Name in the certificate of the Temporal server, where it is not its host."
    )
    temporal_tls_ca_file: Path | None = Field(
        None,
        description="File with the certificate authority of the Temporal server, in PEM. Empty: those of the system.",
    )
    temporal_client_cert_file: Path | None = Field(
        None,
        description="File with the certificate that Apex shows to Temporal (mTLS), in PEM. Needs `temporal_client_key_file`.",
    )
    temporal_client_key_file: Path | None = Field(
        None, description="File with the private key of that certificate, in PEM."
    )
    temporal_api_key: SecretStr = Field(
        SecretStr(""), description="API key for Temporal, for example of Temporal Cloud."
    )
    deployment_name: str = Field(
        "apex",
        min_length=1,
        max_length=63,
        description="Name of Temporal's worker deployment, of which each build is a version.",
    )
    build_id: str = Field(
        "",
        max_length=63,
        description="Id of this build. Empty: the version and a hash of the code, which is another one after any change.",
    )
    routing: Literal["self", "external"] = Field(
        "self",
        description="Who decides which build is current. `self`: `apex builds` and plans. `external`: whoever sets the routing of the worker deployment in Temporal, such as the Kubernetes worker controller; Apex follows it.",
    )
    qdrant_api_key: SecretStr = Field(SecretStr(""), description="API key of a Qdrant server.")
    qdrant_shards: int = Field(
        0,
        ge=0,
        description="Shards of the collection that Apex creates in a Qdrant cluster. 0: as the server does, usually one a node. docs/howto/qdrant.md.",
    )
    qdrant_replication_factor: int = Field(
        0, ge=0, description="Copies of each shard of that collection. 0: as the server does."
    )
    qdrant_write_consistency_factor: int = Field(
        0,
        ge=0,
        description="Copies that must have a write before it counts. 0: as the server does. Above `qdrant_replication_factor` no write would succeed.",
    )

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

    local_without_key: bool = Field(
        True,
        description="Show `/ops` and `/metrics` without a key to callers on the gateway's machine. Set it to false where a reverse proxy runs on that machine: one that names neither itself nor the caller makes strangers look local.",
    )

    tls_certificate_file: Path | None = Field(
        None,
        description="File with the certificate that the gateway shows, in PEM, followed by those between it and the CA. The gateway then speaks HTTPS. A renewed file is used within a second. Needs `tls_key_file`. docs/howto/tls.md.",
    )
    tls_key_file: Path | None = Field(
        None, description="File with the private key of that certificate, in PEM."
    )
    tls_client_ca_file: Path | None = Field(
        None,
        description="File with certificate authorities, in PEM. Every caller of the gateway must show a certificate of theirs (mTLS), those of webhooks and of health probes too.",
    )
    ca_file: Path | None = Field(
        None,
        description="File with the certificate authorities of the servers that Apex connects to, in PEM: the stores, and the gateway for the command line and the Python client. No other authority is trusted for these then. Whether a connection uses TLS says its address: docs/howto/tls.md.",
    )
    client_certificate_file: Path | None = Field(
        None,
        description="File with the certificate that Apex shows to these servers (mTLS), in PEM. Needs `client_key_file`.",
    )
    client_key_file: Path | None = Field(
        None, description="File with the private key of that certificate, in PEM."
    )

    embedder: str = Field(
        "e5-small",
        description="`e5-small` (384 d), `minilm` (384 d, about twice as fast, finds less), `wordllama` (256 d, many times faster, weaker), `onnx:FOLDER` (a text encoder in ONNX), `hashing` (tests), or the URL of an OpenAI-style server (`http://host/v1`). docs/reference/models.md compares them.",
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

    reranker: str = Field(
        "",
        description="URL of a reranker that orders the first 50 candidates of each search: `http://host/rerank` of TEI, or, with `reranker_model`, that of Cohere, Jina or vLLM (`https://host/v1/rerank`). http only within a private network. Empty: none.",
    )
    reranker_model: str = Field(
        "",
        description="Model name sent to a reranker of the kind of Cohere, Jina or vLLM. Empty: the reranker is TEI.",
    )
    reranker_key: SecretStr = Field(SecretStr(""), description="Bearer key for the reranker.")
    reranker_milliseconds: int = Field(
        500,
        gt=0,
        le=5_000,
        description="Longest that a search waits for the reranker (milliseconds). After that it keeps its own order, and says so (`degraded`).",
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
    fallback_seconds: float = Field(
        15,
        gt=0,
        description="How long Temporal may stay away (seconds) before the direct path processes everything. It hands back as soon as Temporal responds.",
    )
    payload_days: float = Field(
        365,
        gt=0,
        description="Days that raw payloads are kept for replay, and the content of files after they were finished.",
    )
    seal_payloads: bool = Field(
        False,
        description="Seal raw payloads in PostgreSQL under data keys, and these under the first key. Both forms are read whatever it says. Set it when every process runs a build that knows it. docs/howto/keys.md.",
    )
    payload_store: str = Field(
        "",
        description="Bucket for large raw payloads, `s3://bucket/prefix` (extra `s3`). Empty: they stay in PostgreSQL. Needs a `secret_key`. Set it when every process runs a build that knows it.",
    )
    payload_store_endpoint: str = Field(
        "",
        description="Address of an S3-compatible service, for example `https://minio.internal:9000`. Empty: AWS.",
    )
    payload_store_region: str = Field(
        "", description="Region of the bucket. Empty: `AWS_REGION`, else `us-east-1`."
    )
    payload_store_key_id: str = Field(
        "",
        description="Access key id for the bucket. Empty: the credentials of the environment (`AWS_ACCESS_KEY_ID`, a web identity, the role of a container or machine).",
    )
    payload_store_secret: SecretStr = Field(
        SecretStr(""), description="Secret access key for `payload_store_key_id`."
    )
    payload_threshold_bytes: int = Field(
        1_000_000,
        ge=1,
        description="Size from which a raw payload goes to `payload_store` (bytes). Without a store it means nothing.",
    )
    payload_store_seconds: float = Field(
        10,
        gt=0,
        description="Longest that one request to `payload_store` may take with its repetitions (seconds).",
    )
    mirror_days: float = Field(
        7,
        gt=0,
        description="Days that the record of a mirrored webhook is kept after its delivery. Its content is removed at once.",
    )
    tombstone_days: float = Field(
        90,
        gt=0,
        description="Days that the tombstone of a deleted document is kept. Must exceed every source's replay horizon.",
    )

    max_body_bytes: int = Field(
        5_000_000,
        gt=0,
        description="Largest webhook or JSON body in bytes. A source may have a limit of its own: documents and conversations 50 MB, EDI 20 MB.",
    )
    max_upload_bytes: int = Field(
        50_000_000, gt=0, description="Largest uploaded document in bytes."
    )
    metadata_max_bytes: int = Field(
        METADATA_MAX_BYTES,
        ge=1_024,
        description="Most bytes of the `metadata` that a caller gives one document or conversation, as JSON.",
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
        3,
        ge=1,
        le=64,
        description="Processes of a worker that read files: PDF, Office, mail, HTML. A batch uses all but one of them.",
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
        10,
        ge=0,
        description="Most levels of mails, archives, packed and signed files inside one another.",
    )
    reader_mime_nesting: int = Field(
        100, ge=1, description="Most levels of parts inside one another in a mail."
    )
    reader_unpacked_bytes: int = Field(
        250_000_000,
        ge=1_000_000,
        description="Most bytes that the archives, packed files and Office files of one event may unpack to.",
    )
    reader_compression_ratio: int = Field(
        250,
        ge=10,
        description="Most that a packed file or member of an archive larger than 1 MB may grow when it is unpacked.",
    )
    shadow_backlog: int = Field(
        10_000,
        ge=1,
        description="Most copies of live events that wait to be compared, for each subject of a rollout. Beyond that the oldest are dropped, and counted.",
    )
    shadow_busy_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Most of the time that a process spends on copies while events wait. Without waiting events nothing holds copies back.",
    )
    shadow_days: float = Field(
        7, gt=0, description="Days that the results of comparisons are kept."
    )
    chunk_chars: int = Field(900, ge=100, description="Most characters of one chunk.")
    date_order: DateOrder = Field(
        "auto",
        description="How texts and questions write a day in numbers: `day` (03/04 is 3 April), `month` (03/04 is March 4), or `auto`: the day is first before dots and dashes (03.04.2024, 03-04-2024), the month before slashes (03/04/2024). Where only one reading is a day, it is taken: 13/02/2024. Documents keep the reading of the time when they were prepared.",
    )
    bm25_average_words: float = Field(
        60,
        gt=0,
        description="Average number of words of a chunk, for the length normalisation of BM25.",
    )

    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Key that seals secrets, tokens and Temporal's histories: 32 bytes in base64 (`apex secrets key` makes one).",
    )
    secret_key_file: Path | None = Field(
        None,
        description="File with such keys, one a line: the first seals, all open. Empty: `secret.key` in the data folder, which `apex up` creates.",
    )
    secret_key_command: str = Field(
        "",
        description="Command that prints such keys, one a line, for example the client of a key service. It is run once at the start of a process, without a shell.",
    )
    temporal_payloads: Literal["sealed", "plain"] = Field(
        "sealed",
        description="How what Apex hands to Temporal is written in its histories. `sealed`: encrypted under the first key. `plain`: readable by everybody who reads Temporal, and by builds that know no codec. Both are read.",
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
    rollout: RolloutSettings = Field(
        default_factory=RolloutSettings,
        description="The table `[rollout]`: steps and gates of rollouts, see below.",
    )
    log_format: Literal["console", "json"] = Field("console", description="`json` for machines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )

    gateway_metrics: str = Field(
        "",
        description="Further address (`host:port`) at which the gateway exposes its metrics, without a key. Empty: only at `/metrics` of its own address, where callers from elsewhere need an admin key.",
    )
    worker_metrics: str = Field(
        LOOPBACK,
        description="Address (`host:port`) at which the worker of the real-time queue exposes its metrics. Port 0 chooses a free one; `apex status` shows it.",
    )
    bulk_metrics: str = Field(
        LOOPBACK,
        description="Address (`host:port`) at which the worker of the bulk queue exposes its metrics.",
    )
    shadow_metrics: str = Field(
        LOOPBACK,
        description="Address (`host:port`) at which a worker that processes copies for a candidate build exposes its metrics. docs/howto/shadow.md.",
    )
    vectors_metrics: str = Field(
        LOOPBACK,
        description="Address (`host:port`) at which the embedded vector server exposes its metrics.",
    )
    supervisor_metrics: str = Field(
        LOOPBACK, description="Address (`host:port`) at which `apex up` exposes its metrics."
    )
    temporal_metrics: str = Field(
        LOOPBACK,
        description="Address (`host:port`) of the metrics of the embedded Temporal server, which listens on loopback only.",
    )
    prometheus_url: str = Field(
        "",
        description="Address of a Prometheus that scrapes this installation (`http://host:9090`), from which `/ops` takes its data. Empty: `/ops` shows the last half an hour, which the gateway keeps in memory.",
    )
    facts_seconds: float = Field(
        10,
        ge=1,
        description="Seconds between two readings of the facts of which metrics come from PostgreSQL (backlog, staleness, sizes). One gateway reads them.",
    )

    @field_validator(
        "gateway_metrics",
        "worker_metrics",
        "bulk_metrics",
        "shadow_metrics",
        "vectors_metrics",
        "supervisor_metrics",
        "temporal_metrics",
    )
    @classmethod
    def _address_for_metrics(cls, value: str, info: Any) -> str:
        if value or info.field_name != "gateway_metrics":
            split_address(value)
        return value

    @field_validator("documents_direct")
    @classmethod
    def _direct_beside_a_pooler(cls, value: str, info: Any) -> str:
        if value and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql:// or postgres://")
        if value and info.data.get("documents") == EMBEDDED:
            raise ValueError("only where `documents` is the address of a pooler")
        return value

    @field_validator("qdrant_write_consistency_factor")
    @classmethod
    def _copies_that_exist(cls, value: int, info: Any) -> int:
        copies = info.data.get("qdrant_replication_factor", 0)
        if value > max(copies, 1):
            raise ValueError("must not be above qdrant_replication_factor")
        return value

    @field_validator("documents_standby")
    @classmethod
    def _standby_of_a_server(cls, value: str, info: Any) -> str:
        if value and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql:// or postgres://")
        if value and info.data.get("documents") == EMBEDDED:
            raise ValueError("only where `documents` is the address of a server")
        return value

    @field_validator("graph", "vectors", "cache", "documents")
    @classmethod
    def _known_scheme(cls, value: str, info: Any) -> str:
        schemes = {
            "documents": ("postgresql://", "postgres://"),
            "graph": (
                "falkordb://",
                "falkordbs://",
                "neo4j",
                "bolt",
                "postgresql://",
                "postgres://",
            ),
            "vectors": ("http://", "https://", "edge://"),
            "cache": (
                "redis://",
                "rediss://",
                "valkey://",
                "valkeys://",
                "redis+sentinel://",
                "rediss+sentinel://",
            ),
        }[info.field_name]
        if value == IN_DOCUMENTS and info.field_name == "graph":
            return value
        if value != EMBEDDED and not value.startswith(schemes):
            raise ValueError(
                f"must be `embedded:` or start with {' or '.join(s for s in schemes if s != 'edge://')}"
            )
        return value

    @field_validator("payload_store")
    @classmethod
    def _names_a_bucket(cls, value: str) -> str:
        if value and not BUCKET.fullmatch(value):
            raise ValueError("must be `s3://bucket` or `s3://bucket/prefix`")
        return value

    @field_validator("payload_store_endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value

    @field_validator("deployment_name", "build_id")
    @classmethod
    def _plain_name(cls, value: str, info: Any) -> str:
        """Refuse what Temporal or its visibility queries would read in another way."""
        if not VERSION_NAME.fullmatch(value):
            raise ValueError("may hold letters, digits and `_`, `-`, `+`, and `.`, `/` inside")
        if info.field_name == "deployment_name" and "." in value:
            raise ValueError("must not hold `.`, which divides a deployment from its build")
        return value

    @field_validator("temporal_client_key_file", "tls_key_file", "client_key_file")
    @classmethod
    def _certificate_with_key(cls, value: Path | None, info: Any) -> Path | None:
        certificate = CERTIFICATES[info.field_name]
        if (value is None) != (info.data.get(certificate) is None):
            raise ValueError(f"{certificate} and {info.field_name} belong together")
        return value

    @field_validator("tls_client_ca_file")
    @classmethod
    def _mtls_over_tls(cls, value: Path | None, info: Any) -> Path | None:
        if value is not None and info.data.get("tls_certificate_file") is None:
            raise ValueError(
                "needs tls_certificate_file: without TLS no caller shows a certificate"
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

    @field_validator("reranker")
    @classmethod
    def _keeps_texts_private(cls, value: str) -> str:
        """Refuse an address to which questions and passages would go unencrypted through the internet."""
        if not value:
            return value
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("must be a URL that starts with https:// or http://")
        _ = url.port  # which raises `ValueError` for one that cannot be
        if url.username or url.password or url.fragment:
            raise ValueError("must name no user, password or fragment; the key is `reranker_key`")
        if url.scheme == "http" and not is_private(url.hostname):
            raise ValueError("must start with https:// unless its host is in a private network")
        return value

    @property
    def admits_strangers(self) -> bool:
        """Whether a proxy on the gateway's machine could make callers from the internet look local, and need no key."""
        host = urlsplit(self.url).hostname
        return self.local_without_key and host is not None and not is_private(host)

    @field_validator("trace_url")
    @classmethod
    def _names_the_trace(cls, value: str) -> str:
        if value and not (value.startswith(("http://", "https://")) and "{trace_id}" in value):
            raise ValueError("must start with http:// or https:// and hold `{trace_id}`")
        return value

    @field_validator("grace_seconds")
    @classmethod
    def _grace_above_snapshot(cls, value: float, info: Any) -> float:
        if value <= info.data.get("snapshot_seconds", 0):
            raise ValueError(
                "must be above snapshot_seconds, or a reader could lose what it is reading"
            )
        return value

    @model_validator(mode="after")
    def _grace_above_standby(self) -> Self:
        """A reader on the standby sees a stage as long after its end as the standby lags."""
        shown = self.snapshot_seconds + self.documents_standby_seconds
        if self.documents_standby and self.grace_seconds <= shown:
            raise ValueError(
                "grace_seconds must be above snapshot_seconds and documents_standby_seconds together, or a reader on the standby could lose what it is reading"
            )
        return self

    @model_validator(mode="after")
    def _files_of_postgres(self) -> Self:
        """Add the files to the URLs of PostgreSQL that demand TLS: every connection of libpq is made from a URL."""
        self.documents = self._with_files(self.documents)
        self.documents_direct = self._with_files(self.documents_direct)
        self.documents_standby = self._with_files(self.documents_standby)
        if self.graph.startswith(("postgresql://", "postgres://")):
            self.graph = self._with_files(self.graph)
        return self

    def _with_files(self, url: str) -> str:
        mode = SSL_MODE.search(url)
        if mode and mode[1] in ("require", "verify-ca", "verify-full"):
            return self.connections_tls.for_postgres(url)
        return url

    @property
    def scheme(self) -> str:
        """`https` where the gateway has a certificate, else `http`."""
        return "https" if self.tls_certificate_file else "http"

    @property
    def connections_tls(self) -> ClientTls:
        """What is trusted and shown where Apex connects: to its gateway and to the stores."""
        return ClientTls(self.ca_file, self.client_certificate_file, self.client_key_file)

    @property
    def session_documents(self) -> str:
        """The address of PostgreSQL for what needs a session of its own."""
        return self.documents_direct or self.documents

    @property
    def graph_url(self) -> str:
        """The address of the graph."""
        return self.session_documents if self.graph == IN_DOCUMENTS else self.graph

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls, settings_file())
        temporal = InitSettingsSource(settings_cls, init_kwargs=temporal_environment())
        from_files = InitSettingsSource(settings_cls, init_kwargs=settings_from_files())
        return init_settings, env_settings, from_files, temporal, file


def file_variables() -> dict[str, str]:
    """Return the variables that name a file with the value of a setting, and that setting: `APEX_DOCUMENTS_FILE`.

    `APEX_SECRET_KEY_FILE` is not among them: `secret_key_file` is a setting of its own.
    """
    return {
        f"APEX_{name.upper()}_FILE": name
        for name in Settings.model_fields
        if f"{name}_file" not in Settings.model_fields and name not in NOT_FROM_FILES
    }


def settings_from_files() -> dict[str, str]:
    """Return the settings whose values stand in files that variables `APEX_…_FILE` name.

    Secrets of containers are files. A line break at the end of a file does not belong to the value. Raises
    `Misconfigured` for a file that cannot be read, and for a setting that is given twice.
    """
    values = {}
    for variable, name in file_variables().items():
        path = os.environ.get(variable)
        if not path:
            continue
        direct = variable.removesuffix("_FILE")
        if direct in os.environ:
            raise Misconfigured(
                f"{variable}: {direct} is set too", remedy="unset one of the two variables"
            )
        try:
            values[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise Misconfigured(
                f"{variable}: cannot read {path} ({reason})",
                remedy="name a file that this user may read",
            ) from None
    return values


def temporal_environment() -> dict[str, str]:
    """Return the settings that Temporal's own environment variables give; see `VERSION_VARIABLES`.

    The Kubernetes worker controller sets them in its pods, and other tools of Temporal read them. A variable `APEX_*`
    takes precedence over them, and they take precedence over the settings file. Where `APEX_TEMPORAL` names the server,
    they describe another one: only the deployment and the build count.
    """
    variables = dict(VERSION_VARIABLES)
    named = bool(os.environ.get("APEX_TEMPORAL_FILE")) or "APEX_TEMPORAL" in os.environ
    if not named:
        variables |= CONNECTION_VARIABLES
    given = {
        setting: os.environ[variable]
        for variable, setting in variables.items()
        if os.environ.get(variable)
    }
    address = os.environ.get("TEMPORAL_ADDRESS")
    if address and not named:
        namespace = os.environ.get("TEMPORAL_NAMESPACE") or DEFAULT_NAMESPACE
        given["temporal"] = f"{address}/{namespace}"
    return given


def settings_file() -> Path:
    """Return the settings file: `$APEX_SETTINGS_FILE`, or `apex.toml` in the working folder."""
    return Path(os.environ.get("APEX_SETTINGS_FILE", "apex.toml"))


def _require_settings_file() -> None:
    """Refuse a file that was named and is not there: the process would run with other settings, without a word."""
    if "APEX_SETTINGS_FILE" in os.environ and not settings_file().exists():
        raise Misconfigured(
            f"APEX_SETTINGS_FILE: {settings_file().absolute()} does not exist",
            remedy="correct the path, or unset it",
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the beginning of a remedy that names the most similar known name, or an empty string."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"perhaps you mean {similar[0]}; " if similar else ""


def load_settings(**overrides: Any) -> Settings:
    """Read settings from overrides, environment and file. Raises `Misconfigured`, which names the setting."""
    known = {f"APEX_{name.upper()}" for name in Settings.model_fields} | {"APEX_SETTINGS_FILE"}
    known |= file_variables().keys()
    for name in os.environ:
        if name.startswith("APEX_") and name not in known and not name.startswith(NESTED):
            raise Misconfigured(
                f"{name}: unknown setting",
                remedy=f"{did_you_mean(name, known)}see docs/reference/settings.md, or unset it",
            )
    _require_settings_file()
    try:
        settings = Settings(**overrides)
    except SettingsError as error:
        named = re.search(r'field "(\w+)"', str(error))
        raise Misconfigured(
            f"{named[1] if named else 'settings'}: a value in the environment is not the JSON that it has to be",
            remedy="write it as JSON, or in a table of the settings file",
        ) from None
    except UnicodeDecodeError:
        raise Misconfigured(
            f"{settings_file()}: it is not UTF-8", remedy="save it as UTF-8"
        ) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        if first["type"] == "extra_forbidden":
            raise Misconfigured(
                f"{name}: unknown setting",
                remedy=f"{did_you_mean(name, Settings.model_fields)}see docs/reference/settings.md, or remove it",
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        raise Misconfigured(f"{name}: {message}", remedy="see docs/reference/settings.md") from None
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(
            f"{settings_file()}: {error}", remedy="correct the TOML syntax there"
        ) from None
    if settings.data_dir.exists() and not settings.data_dir.is_dir():
        raise Misconfigured(
            f"data_dir: {settings.data_dir} is no folder",
            remedy="name a folder, which need not exist",
        )
    return settings
