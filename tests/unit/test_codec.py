"""The payload codec of Temporal: what it seals, what it opens, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ApplicationError

from apex_memory.config import Settings
from apex_memory.errors import Misconfigured
from apex_memory.flows.temporal.codec import ENCODING, KEY_ID, SealingCodec, converter_of
from apex_memory.sealing import Keyring, new_key, read_keys

OLD, NEW = new_key(), new_key()
WORKFLOWS = ("drain.workflow", "fetch.workflows", "maintenance.workflows")


def ring(*keys: str) -> Keyring:
    return Keyring(read_keys(keys))


def text(value: bytes) -> Payload:
    return Payload(metadata={"encoding": b"json/plain"}, data=value)


@given(st.lists(st.binary(max_size=300), max_size=5))
async def test_payloads_come_back_and_cannot_be_read_meanwhile(values: list[bytes]) -> None:
    codec = SealingCodec(ring(OLD))
    payloads = [text(b"plain text " + value) for value in values]
    sealed = await codec.encode(payloads)
    assert await codec.decode(sealed) == payloads
    for payload in sealed:
        assert payload.metadata["encoding"] == ENCODING
        assert b"plain text" not in payload.SerializeToString()


async def test_equal_payloads_are_sealed_differently() -> None:
    first, second = await SealingCodec(ring(OLD)).encode([text(b"1"), text(b"1")])
    assert first.data != second.data


async def test_what_is_not_marked_is_read_as_it_is() -> None:
    payloads = [text(b"1"), Payload(metadata={"encoding": b"binary/null"})]
    assert await SealingCodec(ring(OLD)).decode(payloads) == payloads
    assert await SealingCodec(ring()).decode(payloads) == payloads


async def test_a_rotation_opens_both_and_seals_with_the_first() -> None:
    [of_old] = await SealingCodec(ring(OLD)).encode([text(b"1")])
    both = SealingCodec(ring(NEW, OLD))
    [of_both] = await both.encode([text(b"2")])
    assert of_both.metadata[KEY_ID].decode() == ring(NEW).first
    assert await both.decode([of_old, of_both]) == [text(b"1"), text(b"2")]
    with pytest.raises(Misconfigured, match="not configured"):
        await SealingCodec(ring(NEW)).decode([of_old])


async def test_a_changed_payload_or_another_key_id_is_refused() -> None:
    codec = SealingCodec(ring(OLD, NEW))
    [sealed] = await codec.encode([text(b"1")])
    for change in (
        {"data": sealed.data[:-1] + bytes([sealed.data[-1] ^ 1])},
        {"data": b"short"},
        {"metadata": {"encoding": ENCODING, KEY_ID: ring(NEW).first.encode()}},
    ):
        fields: dict[str, Any] = {"metadata": dict(sealed.metadata), "data": sealed.data} | change
        with pytest.raises(Misconfigured, match="does not match its seal"):
            await codec.decode([Payload(**fields)])


async def test_a_secret_does_not_open_as_a_payload() -> None:
    """Keys are derived for each purpose: what another part of Apex sealed is no payload."""
    keys = ring(OLD)
    id = keys.first.encode()
    sealed = keys.seal(text(b"1").SerializeToString(), bound=id)
    payload = Payload(metadata={"encoding": ENCODING, KEY_ID: id}, data=sealed)
    with pytest.raises(Misconfigured, match="does not match its seal"):
        await SealingCodec(keys).decode([payload])


async def test_messages_and_traces_of_errors_are_sealed() -> None:
    converter = converter_of(Settings(), ring(OLD))
    failure = Failure()
    try:
        raise ApplicationError("the words of a customer")
    except ApplicationError as error:
        await converter.encode_failure(error, failure)
    assert b"customer" not in failure.SerializeToString()
    assert b"test_codec" not in failure.SerializeToString(), "the stack trace"
    plain = converter_of(Settings(temporal_payloads="plain"), ring(OLD))
    assert "customer" in str(await plain.decode_failure(failure))


async def test_plain_writes_plain_and_reads_both() -> None:
    converter = converter_of(Settings(temporal_payloads="plain"), ring(OLD))
    assert [payload.data for payload in await converter.encode([1])] == [b"1"]
    sealed = await converter_of(Settings(), ring(OLD)).encode([2])
    assert await converter.decode(sealed, [int]) == [2]


def test_without_a_key_the_setting_is_refused() -> None:
    with pytest.raises(Misconfigured, match="temporal_payloads") as refused:
        converter_of(Settings(), ring())
    assert "apex secrets key" in refused.value.remedy
    converter_of(Settings(temporal_payloads="plain"), ring())


@pytest.mark.parametrize("module", WORKFLOWS)
def test_no_workflow_file_imports_the_codec(module: str) -> None:
    """Payloads are opened before a workflow sees them. What it imports besides passes through the sandbox, `cryptography` too."""
    code = f"import sys, apex_memory.flows.{module}; print('apex_memory.flows.temporal.codec' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert shown.stdout.split() == ["False"]
