"""Settings of the connection to Temporal and of the worker deployment, also from Temporal's own variables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesResponse
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from apex_memory.config import Settings, load_settings
from apex_memory.errors import Misconfigured
from apex_memory.flows.temporal.attributes import ensure_attributes
from apex_memory.flows.temporal.client import tls_of


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "temporal.example:7233")
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "apex.acme")
    monkeypatch.setenv("TEMPORAL_DEPLOYMENT_NAME", "memory/apex-worker")
    monkeypatch.setenv("TEMPORAL_WORKER_BUILD_ID", "v0.3.0-1a2b")
    monkeypatch.setenv("TEMPORAL_TLS", "true")
    monkeypatch.setenv("TEMPORAL_API_KEY", "key")
    return monkeypatch


def test_variables_of_the_worker_controller_are_settings(variables: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    assert settings.temporal == "temporal.example:7233/apex.acme"
    assert settings.deployment_name == "memory/apex-worker"
    assert settings.build_id == "v0.3.0-1a2b"
    assert settings.temporal_api_key.get_secret_value() == "key"
    assert tls_of(settings) is True


def test_variables_come_before_the_file_and_after_our_own(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "apex.toml"
    file.write_text('temporal = "file.example:7233/apex"\nbuild_id = "file"\n')
    variables.setenv("APEX_SETTINGS_FILE", str(file))
    variables.setenv("APEX_DEPLOYMENT_NAME", "ours")
    settings = load_settings()
    assert settings.temporal == "temporal.example:7233/apex.acme"
    assert settings.build_id == "v0.3.0-1a2b"
    assert settings.deployment_name == "ours"


def test_variables_of_another_server_do_not_reach_the_one_that_is_set(
    variables: pytest.MonkeyPatch,
) -> None:
    """`apex up` gives its children `APEX_TEMPORAL`: a key or TLS for another server must not break them."""
    variables.setenv("APEX_TEMPORAL", "127.0.0.1:7233/apex")
    settings = load_settings()
    assert settings.temporal == "127.0.0.1:7233/apex"
    assert tls_of(settings) is False
    assert settings.temporal_api_key.get_secret_value() == ""
    assert settings.build_id == "v0.3.0-1a2b"


def test_a_namespace_that_is_not_set_is_the_default_one(variables: pytest.MonkeyPatch) -> None:
    variables.delenv("TEMPORAL_NAMESPACE")
    assert load_settings().temporal == "temporal.example:7233/default"


def test_without_variables_nothing_changes() -> None:
    settings = load_settings()
    assert settings.temporal == "embedded:"
    assert (settings.deployment_name, settings.build_id) == ("apex", "")
    assert settings.routing == "self"
    assert tls_of(settings) is False


def test_certificates_are_read_from_their_files(tmp_path: Path) -> None:
    for name in ("ca", "certificate", "key"):
        (tmp_path / name).write_text(name)
    settings = Settings(
        temporal_tls_ca_file=tmp_path / "ca",
        temporal_client_cert_file=tmp_path / "certificate",
        temporal_client_key_file=tmp_path / "key",
        temporal_tls_server_name="temporal.internal",
    )
    assert tls_of(settings) == TLSConfig(
        server_root_ca_cert=b"ca",
        domain="temporal.internal",
        client_cert=b"certificate",
        client_private_key=b"key",
    )


def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    settings = Settings(temporal_tls_ca_file=tmp_path / "none")
    with pytest.raises(Misconfigured, match="temporal_tls_ca_file"):
        tls_of(settings)


@pytest.mark.parametrize(
    "setting",
    [
        {"temporal_client_cert_file": "certificate"},
        {"temporal_client_key_file": "key"},
        {"deployment_name": "a.b"},
        {"deployment_name": ""},
        {"build_id": "v1' OR '1"},
        {"build_id": "x" * 64},
        {"routing": "both"},
    ],
)
def test_wrong_settings_are_refused_by_name(setting: dict[str, str]) -> None:
    with pytest.raises(Misconfigured, match=next(iter(setting)).replace("cert", "(cert|key)")):
        load_settings(**setting)


class Operator:
    """The operator service of a namespace, for a key that may do only some things."""

    def __init__(self, *, lists: bool, names: Sequence[str] = ()) -> None:
        self._lists = lists
        self._names = names

    async def list_search_attributes(self, request: Any) -> ListSearchAttributesResponse:
        if not self._lists:
            raise RPCError("Request unauthorized.", RPCStatusCode.PERMISSION_DENIED, b"")
        keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        return ListSearchAttributesResponse(custom_attributes=dict.fromkeys(self._names, keyword))

    async def add_search_attributes(self, request: Any) -> None:
        raise RPCError("Request unauthorized.", RPCStatusCode.PERMISSION_DENIED, b"")


def namespace(operator: Operator) -> Client:
    return cast(Client, SimpleNamespace(namespace="apex.acme", operator_service=operator))


async def test_search_attributes_that_were_made_beforehand_are_enough() -> None:
    """As on Temporal Cloud, where an API key of a worker adds none, and may not even list them."""
    names = ("ApexSource", "ApexPriority", "ApexOutcome")
    await ensure_attributes(namespace(Operator(lists=True, names=names)))
    with capture_logs() as logs:
        await ensure_attributes(namespace(Operator(lists=False)))
    assert logs[0]["names"] == list(names)


async def test_search_attributes_that_are_missing_are_named() -> None:
    with pytest.raises(Misconfigured, match="ApexOutcome") as refused:
        await ensure_attributes(namespace(Operator(lists=True, names=("ApexSource",))))
    assert "ApexSource" not in str(refused.value) and "Keyword" in refused.value.remedy


def test_an_api_key_turns_tls_on() -> None:
    """So that it never goes over a plain connection by mistake."""
    assert tls_of(Settings(temporal_api_key=SecretStr("key"))) is True
    assert tls_of(Settings()) is False
