"""Connections to the stores over TLS: a trusted authority is accepted, another one and a missing client certificate are not.

The embedded PostgreSQL, Valkey, FalkorDB and Temporal are built or run without TLS, so a proxy ends it before them; so does one before
stand-ins for Qdrant and Neo4j.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from temporalio.client import Client

from apex_memory.config import Settings
from apex_memory.errors import Misconfigured, Unavailable
from apex_memory.flows.temporal.attributes import ensure_attributes
from apex_memory.flows.temporal.client import connect_by
from apex_memory.sealing import Keyring
from apex_memory.stores.base import GraphStore
from apex_memory.stores.cache import Cache
from apex_memory.stores.graph import open_graph
from apex_memory.stores.objects import open_objects
from apex_memory.stores.postgres import Postgres
from apex_memory.stores.schema import migrate
from apex_memory.stores.vectors import open_vectors
from apex_memory.tls import ClientTls
from tests.bucket import BucketServer
from tests.certificates import Authority, Certificate
from tests.conftest import PASSWORD

SSL_REQUEST = bytes.fromhex("00000008 04d2162f")  # of PostgreSQL's protocol 3
BOLT = bytes.fromhex("6060b017")  # the first bytes of a Bolt connection


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> ClientTls:
    return ClientTls(Authority(tmp_path, "stranger").ca_file)


def client_tls(authority: Authority, shown: Certificate | None = None) -> ClientTls:
    if shown is None:
        return ClientTls(authority.ca_file)
    return ClientTls(authority.ca_file, shown.certificate_file, shown.key_file)


@asynccontextmanager
async def ending_tls(
    authority: Authority,
    target: str,
    *,
    clients: bool = False,
    postgres: bool = False,
    protocols: Sequence[str] = (),
) -> AsyncIterator[int]:
    """Serve TLS and pass its content on to `host:port`; with `clients` demand a certificate. Yield the port.

    With `postgres` TLS begins after PostgreSQL's request for it.
    """
    certificate = authority.issue("proxy")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certificate_file, certificate.key_file)
    if protocols:
        context.set_alpn_protocols(protocols)
    if clients:
        context.load_verify_locations(authority.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    host, _, port = target.rpartition(":")

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if postgres:
            assert await reader.readexactly(8) == SSL_REQUEST
            writer.write(b"S")
            await writer.start_tls(context)
        beyond_reader, beyond_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pipe(reader, beyond_writer), pipe(beyond_reader, writer))

    first = None if postgres else context
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=first)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def through(url: str, scheme: str, port: int) -> str:
    """Return a URL with this scheme, and the port of a proxy."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition(":")[0]
    return urlunsplit(parts._replace(scheme=scheme, netloc=f"{address}:{port}"))


async def test_the_cache_over_tls(
    valkey_url: str, authority: Authority, stranger: ClientTls
) -> None:
    target = urlsplit(valkey_url).netloc.rpartition("@")[2]
    async with ending_tls(authority, target) as port:
        url = through(valkey_url, "rediss", port)
        trusting = Cache(url, timeout=5, tls=client_tls(authority))
        await trusting.put_many({"tls": b"1"}, 5)
        assert await trusting.get_many(["tls"]) == {"tls": b"1"}
        await trusting.close()
        for tls in (stranger, ClientTls()):
            refusing = Cache(url, timeout=5, tls=tls)
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED") as refused:
                await refusing.ping()
            assert "ca_file" in refused.value.remedy
            await refusing.close()


async def test_the_parameters_of_a_redis_url_come_first(
    valkey_url: str, authority: Authority, stranger: ClientTls
) -> None:
    target = urlsplit(valkey_url).netloc.rpartition("@")[2]
    async with ending_tls(authority, target) as port:
        url = through(valkey_url, "valkeys", port) + f"?ssl_ca_certs={authority.ca_file}"
        cache = Cache(url, timeout=5, tls=stranger)
        await cache.ping()
        await cache.close()


async def test_falkordb_over_tls_with_client_certificates(
    falkordb_url: str, authority: Authority, stranger: ClientTls
) -> None:
    target = urlsplit(falkordb_url).netloc.rpartition("@")[2]
    async with ending_tls(authority, target, clients=True) as port:
        url = through(falkordb_url, "falkordbs", port)
        graph = open_graph(url, timeout=5, tls=client_tls(authority, authority.issue("client")))
        assert "FalkorDB" in await graph.version()
        await graph.close()
        for tls in (stranger, client_tls(authority)):
            graph = open_graph(url, timeout=5, tls=tls)
            with pytest.raises(Unavailable):
                await graph.ping()
            await graph.close()


async def test_a_bucket_over_tls(authority: Authority, stranger: ClientTls) -> None:
    server = BucketServer()
    await server.start()
    try:
        async with ending_tls(authority, server.url.removeprefix("http://")) as port:
            given = server.settings(payload_store_endpoint=f"https://localhost:{port}")
            trusting = open_objects(Settings(**given, ca_file=authority.ca_file))
            assert trusting
            await trusting.ping()
            for ca_file in (stranger.ca_file, None):
                refusing = open_objects(Settings(**given, ca_file=ca_file))
                assert refusing
                with pytest.raises(Unavailable):
                    await refusing.ping()
    finally:
        await server.kill()


def test_a_ca_file_that_cannot_be_used_is_named(authority: Authority) -> None:
    wrong = authority.issue().key_file
    with pytest.raises(Misconfigured, match="ca_file"):
        open_objects(Settings(payload_store="s3://bucket", ca_file=wrong))


async def test_qdrant_over_tls(authority: Authority, stranger: ClientTls) -> None:
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        body = b'{"title": "qdrant - vector search engine", "version": "1.99.0"}'
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        port = await stack.enter_async_context(ending_tls(authority, target))
        for tls in (client_tls(authority), stranger):
            vectors = open_vectors(
                f"https://127.0.0.1:{port}/apex",
                4,
                timeout=5,
                bm25_average_words=60,
                api_key="qdrant-key",
                tls=tls,
            )
            stack.push_async_callback(vectors.close)
            if tls is stranger:
                with pytest.raises(Unavailable, match="no TLS") as refused:
                    await vectors.version()
                assert "ca_file" in refused.value.remedy
            else:
                assert await vectors.version() == "Qdrant 1.99.0"
    assert len(requests) == 1 and b"api-key: qdrant-key" in requests[0].lower()


@asynccontextmanager
async def closed(graph: GraphStore) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await graph.close()


@pytest.mark.parametrize("scheme", ["bolt+s", "neo4j+s"])
async def test_neo4j_over_tls(scheme: str, authority: Authority, stranger: ClientTls) -> None:
    """The driver's first bytes arrive only where it trusts the certificate. The server is tested in `tests/servers`."""
    greetings: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            greetings.append(await reader.readexactly(4))
        writer.close()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(listen, "127.0.0.1", 0))
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        port = await stack.enter_async_context(ending_tls(authority, target))
        url = f"{scheme}://user:secret@127.0.0.1:{port}/neo4j"
        graph = open_graph(url, timeout=5, tls=stranger)
        async with closed(graph):
            with pytest.raises(Unavailable) as refused:
                await graph.ping()
        if (
            scheme == "bolt+s"
        ):  # a driver that looks for the leader does not tell why no server responds
            assert "local issuer certificate" in str(refused.value)
            assert "ca_file" in refused.value.remedy
        assert not greetings
        graph = open_graph(url, timeout=5, tls=client_tls(authority))
        async with closed(graph):
            with pytest.raises(Unavailable):
                await graph.ping()  # the listener speaks no Bolt
        assert greetings and set(greetings) == {BOLT}


async def test_postgresql_over_tls(
    database_url: str, authority: Authority, stranger: ClientTls
) -> None:
    shown = authority.issue("client")
    target = urlsplit(database_url).netloc.rpartition("@")[2]
    async with ending_tls(authority, target, clients=True, postgres=True) as port:
        url = through(database_url, "postgresql", port) + "?sslmode=verify-full"

        def documents(tls: ClientTls) -> str:
            return Settings(
                documents=url,
                ca_file=tls.ca_file,
                client_certificate_file=tls.certificate_file,
                client_key_file=tls.key_file,
            ).documents

        trusted = documents(client_tls(authority, shown))
        await migrate(trusted)
        db = Postgres(trusted)
        await db.open()
        async with db.connection() as connection:
            assert connection.pgconn.ssl_in_use
        await db.ping()
        await db.close()

        with pytest.raises(Unavailable, match="certificate verify failed") as refused:
            await migrate(documents(stranger))
        assert "ca_file" in refused.value.remedy and PASSWORD not in str(refused.value)
        with pytest.raises(Unavailable):
            await migrate(documents(client_tls(authority)))
    with pytest.raises(Unavailable, match="does not support SSL"):
        await migrate(f"{database_url}?sslmode=require")


def test_the_files_join_a_postgresql_url_that_demands_tls(tmp_path: Path) -> None:
    ca = tmp_path / "my ca.pem"

    def documents(url: str) -> str:
        return Settings(documents=url, ca_file=ca).documents

    plain = "postgresql://apex:pw@db/apex"
    assert documents(plain) == plain
    assert documents(f"{plain}?sslmode=prefer") == f"{plain}?sslmode=prefer"
    demanding = f"{plain}?connect_timeout=3&sslmode=verify-full"
    assert documents(demanding).startswith(f"{demanding}&sslrootcert=%2F")
    assert documents(demanding).endswith("my+ca.pem") is False, "libpq knows no + for a space"
    own = f"{plain}?sslmode=require&sslrootcert=/other.pem"
    assert documents(own) == own
    assert documents(documents(demanding)) == documents(demanding)
    behind_a_pooler = Settings(documents=plain, documents_direct=demanding, ca_file=ca)
    assert behind_a_pooler.documents_direct == documents(demanding)
    assert behind_a_pooler.documents == plain


async def test_temporal_over_tls_with_client_certificates(
    temporal_address: str, authority: Authority, stranger: ClientTls
) -> None:
    """By mTLS as on Temporal Cloud; the search attributes are there before the second worker comes."""
    target, _, namespace = temporal_address.partition("/")
    shown = authority.issue("worker")
    right: dict[str, Any] = {
        "temporal_tls_ca_file": authority.ca_file,
        "temporal_client_cert_file": shown.certificate_file,
        "temporal_client_key_file": shown.key_file,
        "temporal_tls_server_name": "localhost",
    }
    wrong: list[dict[str, Any]] = [
        {"temporal_client_cert_file": None, "temporal_client_key_file": None},
        {"temporal_tls_ca_file": stranger.ca_file},
        {"temporal_tls_server_name": "another.example"},
    ]
    async with ending_tls(authority, target, clients=True, protocols=["h2"]) as port:

        async def connected(**settings: Any) -> Client:
            settings |= {"temporal": f"127.0.0.1:{port}/{namespace}", "temporal_payloads": "plain"}
            return await connect_by(Settings(**settings), Keyring([]), patience=2)

        client = await connected(**right)
        await ensure_attributes(client)
        await ensure_attributes(client)
        counted = await client.count_workflows("ApexSource = 'none' AND ApexPriority = 'P0'")
        assert counted.count == 0
        for change in wrong:
            with pytest.raises(Unavailable, match="no server responds"):
                await connected(**(right | change))
