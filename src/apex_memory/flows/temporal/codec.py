"""Encryption of what Apex hands to Temporal: arguments, results, errors, memos and heartbeats.

No module that a workflow file imports may import this one: the sandbox imports such modules anew for each workflow,
and `cryptography` cannot be imported twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
)

from apex_memory.config import Settings
from apex_memory.errors import Misconfigured
from apex_memory.sealing import Keyring

PURPOSE = "payloads of Temporal"
ENCODING = b"binary/encrypted"
KEY_ID = "encryption-key-id"


class SealingCodec(PayloadCodec):
    """Seals payloads with AES-256-GCM, and opens what any of the keys sealed.

    A payload without the mark of this codec is read as it is, so that histories of earlier builds replay. The key id
    stands in the metadata and is bound into the seal. Raises `Misconfigured` for a payload whose key is not
    configured.
    """

    def __init__(self, keys: Keyring, *, seals: bool = True) -> None:
        self._keys = keys.for_purpose(PURPOSE)
        self._seals = seals

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        if not self._seals:
            return list(payloads)
        return [self._sealed(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._opened(payload) for payload in payloads]

    def _sealed(self, payload: Payload) -> Payload:
        id = self._keys.first.encode()
        sealed = self._keys.seal(payload.SerializeToString(), bound=id)
        return Payload(metadata={"encoding": ENCODING, KEY_ID: id}, data=sealed)

    def _opened(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            return payload
        id = payload.metadata.get(KEY_ID, b"")
        content = self._keys.open(
            id.decode("ascii", "replace"), payload.data, bound=id, subject="a payload in Temporal"
        )
        return Payload.FromString(content)


def converter_of(settings: Settings, keys: Keyring) -> DataConverter:
    """Return the data converter that all clients and workers of this installation use.

    Raises `Misconfigured` where payloads are to be sealed and no key is configured.
    """
    if settings.temporal_payloads == "plain":
        return replace(DataConverter.default, payload_codec=SealingCodec(keys, seals=False))
    if not keys.ids:
        raise Misconfigured(
            "temporal_payloads: no key to seal them with",
            remedy="set secret_key, secret_key_file or secret_key_command (`apex secrets key` makes a key), the same in every process; or temporal_payloads to `plain`",
        )
    return sealing_converter(SealingCodec(keys))


def sealing_converter(codec: SealingCodec) -> DataConverter:
    """Return the converter with this codec. Messages and traces of errors are sealed too."""
    return replace(
        DataConverter.default,
        payload_codec=codec,
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
