"""The gateway over TLS, as a process of its own: handshakes with real certificates, renewal, certificates of clients."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from apex_memory.cli.doctor import Finding, examine
from apex_memory.cli.up import _until_tls
from apex_memory.client import Apex, Unavailable
from apex_memory.config import Settings
from apex_memory.credentials.api_keys import create_key
from apex_memory.engines.base import free_port
from apex_memory.stores.postgres import Postgres
from apex_memory.tls import ClientTls
from tests.certificates import Authority, Certificate
from tests.e2e.conftest import MakeSettings
from tests.e2e.test_api_process import process
from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway with a certificate of `authority`, an admin key, and the file of its log."""

    port: int
    key: str
    log: Path
    authority: Authority
    settings: Settings

    def client(self, tls: ClientTls, host: str = "127.0.0.1") -> Apex:
        return Apex(f"https://{host}:{self.port}", self.key, tls=tls, patience=0)

    @property
    def trusted(self) -> ClientTls:
        return ClientTls(self.authority.ca_file)

    def serial(self) -> int:
        """Return the serial number of the certificate that a new connection sees."""
        pem = ssl.get_server_certificate(
            ("127.0.0.1", self.port), ca_certs=str(self.authority.ca_file)
        )
        return x509.load_pem_x509_certificate(pem.encode()).serial_number


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def serving(
    make_settings: MakeSettings, authority: Authority, certificate: Certificate, **more: Any
) -> AsyncIterator[Served]:
    """Run `python -m apex_memory.gateway` with this certificate until the end of the block."""
    given = {
        "tls_certificate_file": certificate.certificate_file,
        "tls_key_file": certificate.key_file,
        **more,
    }
    settings = make_settings(temporal=f"127.0.0.1:{free_port()}/apex", **given)
    db = Postgres(settings.documents)
    await db.open()
    key = await create_key(db, "test", ["admin"])
    await db.close()
    port, log = free_port(), settings.data_dir / "gateway.log"
    with process(settings, port, log, tuple(given)) as running:

        def listens() -> bool:
            assert running.poll() is None, log.read_text()
            with socket.socket() as line:
                return line.connect_ex(("127.0.0.1", port)) == 0

        await until(listens, log.read_text, seconds=60)
        yield Served(port, key.key, log, authority, settings)


async def test_only_who_trusts_its_authority_connects(
    make_settings: MakeSettings, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    async with serving(make_settings, authority, authority.issue()) as served:
        with served.client(served.trusted) as memory:
            assert memory.own_key().scopes == ("admin",)
        for tls in (ClientTls(stranger.ca_file), ClientTls()):
            with served.client(tls) as memory, pytest.raises(Unavailable) as refused:
                memory.own_key()
            assert "no connection with TLS" in str(refused.value)
            assert "ca_file" in refused.value.remedy
        plain = Apex(f"http://127.0.0.1:{served.port}", served.key, patience=0)
        with plain as memory, pytest.raises(Unavailable):
            memory.own_key()
        assert served.key not in served.log.read_text()


async def test_a_certificate_for_another_name_is_refused(
    make_settings: MakeSettings, authority: Authority
) -> None:
    certificate = authority.issue("server", "apex.example.com", "localhost")
    async with serving(make_settings, authority, certificate) as served:
        with served.client(served.trusted, "localhost") as memory:
            assert memory.own_key().scopes == ("admin",)
        with served.client(served.trusted) as memory, pytest.raises(Unavailable) as refused:
            memory.own_key()
        assert "IP address mismatch" in str(refused.value)


async def test_a_renewed_certificate_is_shown_without_a_restart(
    make_settings: MakeSettings, authority: Authority
) -> None:
    first = authority.issue()
    async with serving(make_settings, authority, first) as served:
        with served.client(served.trusted) as memory:
            assert memory.own_key().scopes == ("admin",)
            assert served.serial() == first.serial

            former_key = first.key_file.read_bytes()
            second = authority.issue()
            new_key = second.key_file.read_bytes()
            second.key_file.write_bytes(former_key)  # a renewal that is half written
            await until(lambda: "certificate not renewed" in served.log.read_text())
            assert served.serial() == first.serial

            second.key_file.write_bytes(new_key)
            await until(lambda: served.serial() == second.serial)
            assert memory.own_key().scopes == ("admin",), "the open connection works on"
        assert served.log.read_text().count("certificate not renewed") <= 2


async def test_with_a_client_ca_every_caller_shows_a_certificate(
    make_settings: MakeSettings, authority: Authority, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    known, unknown = clients.issue("known", "agent"), authority.issue("unknown", "agent")
    async with serving(
        make_settings, authority, authority.issue(), tls_client_ca_file=clients.ca_file
    ) as served:
        shown = ClientTls(authority.ca_file, known.certificate_file, known.key_file)
        with served.client(shown) as memory:
            assert memory.own_key().scopes == ("admin",)
        async with asyncio.timeout(5):
            await _until_tls(
                "127.0.0.1", served.port
            )  # how `apex up`, without one, sees that it runs
        wrong = ClientTls(authority.ca_file, unknown.certificate_file, unknown.key_file)
        for tls in (served.trusted, wrong):
            with served.client(tls) as memory, pytest.raises(Unavailable) as refused:
                memory.own_key()
            assert "client_certificate_file" in refused.value.remedy


def point_at(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands of this process use the gateway, with its certificate files and its authority."""
    monkeypatch.setenv("APEX_SETTINGS_FILE", "/dev/null")
    for name in ("data_dir", "tls_certificate_file", "tls_key_file"):
        monkeypatch.setenv(f"APEX_{name.upper()}", str(getattr(served.settings, name)))
    monkeypatch.setenv("APEX_URL", f"https://127.0.0.1:{served.port}")
    monkeypatch.setenv("APEX_API_KEY", served.key)
    monkeypatch.setenv("APEX_CA_FILE", str(served.authority.ca_file))


async def test_doctor_uses_the_ca_and_names_the_expiry(
    make_settings: MakeSettings, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(make_settings, authority, authority.issue(days=5)) as served:
        point_at(served, monkeypatch)
        monkeypatch.delenv("APEX_CA_FILE")
        assert (await _findings())["gateway"].state == "bad"
        monkeypatch.setenv("APEX_CA_FILE", str(authority.ca_file))
        findings = await _findings()
        assert findings["gateway"].state == "good"
        assert findings["certificate"].state == findings["certificate file"].state == "note"
        assert "plain HTTP" not in findings


async def test_doctor_names_a_certificate_that_is_not_in_use(
    make_settings: MakeSettings, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = authority.issue(days=20)
    async with serving(make_settings, authority, first) as served:
        point_at(served, monkeypatch)
        findings = await _findings()
        assert findings["certificate"].state == findings["certificate file"].state == "good"
        former_key = first.key_file.read_bytes()
        authority.issue(days=90)
        first.key_file.write_bytes(former_key)  # the renewal wrote no key
        findings = await _findings()
        assert findings["certificate file"].state == "good"
        assert findings["certificate"].state == "bad"
        assert str(first.certificate_file) in findings["certificate"].detail


async def test_a_client_that_begins_no_handshake_is_disconnected(
    make_settings: MakeSettings, authority: Authority
) -> None:
    async with serving(make_settings, authority, authority.issue(), header_seconds=1) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        with served.client(served.trusted) as memory:
            assert memory.own_key().scopes == ("admin",)


async def _findings() -> dict[str, Finding]:
    return {finding.what: finding for finding in await asyncio.to_thread(lambda: [*examine()])}
