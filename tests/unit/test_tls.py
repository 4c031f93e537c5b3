"""Settings of TLS, files that cannot be used, and what `apex doctor` says of plain HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from apex_memory.cli import doctor
from apex_memory.config import Settings, load_settings
from apex_memory.engines.cards import ProcessCard, registered, targets
from apex_memory.errors import Misconfigured
from apex_memory.gateway.__main__ import _warn_of_plain_http, _warn_of_strangers
from apex_memory.tls import ClientTls, ServerTls
from tests.certificates import Authority


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tls_certificate_file": "a.pem"}, "tls_key_file"),
        ({"tls_key_file": "a.key"}, "tls_certificate_file"),
        ({"client_certificate_file": "a.pem"}, "client_key_file"),
        ({"tls_client_ca_file": "ca.pem"}, "tls_certificate_file"),
    ],
)
def test_settings_that_belong_together(given: Mapping[str, Any], named: str) -> None:
    with pytest.raises(Misconfigured, match=named):
        load_settings(**given)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, other = authority.issue(), authority.issue("other")
    locked = authority.issue("locked", passphrase=b"secret")
    missing = tmp_path / "missing.pem"
    with pytest.raises(Misconfigured, match=r"ca_file: .*missing"):
        ClientTls(missing).context()
    with pytest.raises(Misconfigured, match=r"ca_file: "):
        ClientTls(server.key_file).context()
    with pytest.raises(Misconfigured, match=r"tls_certificate_file: .*key values mismatch"):
        ServerTls(server.certificate_file, other.key_file)
    with pytest.raises(Misconfigured, match=r"tls_certificate_file: .*passphrase"):
        ServerTls(locked.certificate_file, locked.key_file)
    with pytest.raises(Misconfigured, match=r"tls_client_ca_file: "):
        ServerTls(server.certificate_file, server.key_file, missing)


def test_a_renewal_is_tried_until_it_succeeds(tmp_path: Path) -> None:
    """Where the clock of a file system is coarse, a key that is completed late has the time and size of the half one."""
    authority = Authority(tmp_path)
    first = authority.issue(days=5)
    tls = ServerTls(first.certificate_file, first.key_file)
    former_key, former_expiry = first.key_file.read_bytes(), tls.expires_at
    authority.issue(days=50)
    new_key = first.key_file.read_bytes()
    assert len(new_key) == len(former_key)
    first.key_file.write_bytes(former_key)
    times = first.key_file.stat()
    with pytest.raises(Misconfigured, match="key values mismatch"):
        tls.renew()
    assert not tls.renew(), "said once"
    assert tls.expires_at == former_expiry
    first.key_file.write_bytes(new_key)
    os.utime(first.key_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tls.renew()
    assert tls.expires_at > former_expiry
    assert not tls.renew()


def test_a_listener_beyond_loopback_without_tls_is_named(tmp_path: Path) -> None:
    def named(url: str, **given: Any) -> bool:
        return bool(list(doctor._plain_http(Settings(**given), url)))

    pair = {"tls_certificate_file": tmp_path / "a", "tls_key_file": tmp_path / "b"}
    assert named("http://127.0.0.1:8460", host="0.0.0.0")
    assert named("http://apex.example.com:8460")
    assert not named("http://127.0.0.1:8460")
    assert not named("http://[::1]:8460")
    assert not named("https://apex.example.com", host="0.0.0.0", **pair)


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_the_log_warns_of_plain_http(host: str, warned: bool) -> None:
    with capture_logs() as logs:
        _warn_of_plain_http(Settings(host=host))
    assert bool(logs) is warned


@pytest.mark.parametrize(
    ("url", "without_key", "warned"),
    [
        ("https://apex.example.com", True, True),
        ("https://apex.example.com", False, False),
        ("http://10.1.2.3:8460", True, False),
        ("", True, False),
    ],
)
def test_a_public_gateway_that_admits_local_callers_without_a_key_is_named(
    tmp_path: Path, url: str, without_key: bool, warned: bool
) -> None:
    settings = Settings(data_dir=tmp_path, url=url, local_without_key=without_key)
    with capture_logs() as logs:
        _warn_of_strangers(settings)
    assert bool(logs) is warned
    assert not list(doctor._strangers(settings)), "its gateway is elsewhere"
    with registered(tmp_path, ProcessCard(process="gateway", pid=os.getpid(), metrics="")):
        assert bool(list(doctor._strangers(settings))) is warned


def test_prometheus_scrapes_a_gateway_with_a_certificate_by_https() -> None:
    cards = [
        ProcessCard(process="gateway", pid=1, metrics="https://127.0.0.1:8460/metrics"),
        ProcessCard(process="worker", pid=2, metrics="http://127.0.0.1:9464/metrics"),
    ]
    text = targets(cards)
    assert text.count("__scheme__") == 1 and '"__scheme__": "https"' in text
