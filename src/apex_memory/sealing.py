"""Keys, and AES-256-GCM under them: what the vault, Temporal's payloads and stored texts are sealed with.

An installation has an ordered list of keys. The first seals, and each opens what it sealed, so that one key can
replace another while everything stays readable. No key is ever stored beside what it seals.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from apex_memory.errors import Misconfigured

KEY_BYTES = 32
NONCE_BYTES = 12
SEAL_BYTES = NONCE_BYTES + 16  # that a seal adds: nonce and tag


class BrokenSeal(Misconfigured):
    """A value is not what was sealed under the key that it names."""


def new_key() -> str:
    """Return a new random key as text, for `secret_key` or a line of the key file."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def read_keys(texts: Sequence[str]) -> list[bytes]:
    """Decode keys. Empty lines are skipped. Raises `Misconfigured` for a text that is not a key."""
    keys = []
    for text in filter(None, (line.strip() for line in texts)):
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise Misconfigured(
                "secret_key: expected 32 bytes in base64",
                remedy="make a key with `apex secrets key`, or `openssl rand -base64 32`",
            )
        keys.append(key)
    return keys


def key_id(key: bytes) -> str:
    """Return twelve hex digits that name a key without revealing it."""
    return hashlib.sha256(b"apex secret key" + key).hexdigest()[:12]


class Keyring:
    """The keys of an installation, in their order. A ring without keys opens and seals nothing."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._use({key_id(key): key for key in keys})

    def _use(self, keys: dict[str, bytes]) -> None:
        self._keys = keys
        self._ciphers = {id: AESGCM(key) for id, key in keys.items()}
        self._first = next(iter(keys), "")

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys, in their order."""
        return tuple(self._ciphers)

    @property
    def first(self) -> str:
        """The id of the key that seals; empty without keys."""
        return self._first

    def for_purpose(self, purpose: str) -> Keyring:
        """Return a ring of keys that are derived from these for one purpose (HKDF-SHA256, RFC 5869), under the same ids.

        Nothing that is sealed for one purpose opens for another, and nonces of one purpose do not use up those of
        another: random nonces of 96 bits are safe for 2**32 values a key (NIST SP 800-38D, 8.3).
        """
        ring = Keyring(())
        ring._use({id: _derived(key, purpose) for id, key in self._keys.items()})
        return ring

    def seal(self, value: bytes, *, bound: bytes) -> bytes:
        """Return nonce, ciphertext and tag under the first key. `bound` must be given again to open it.

        Raises `Misconfigured` without keys.
        """
        self.require_key()
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._ciphers[self._first].encrypt(nonce, value, bound)

    def digest(self, value: bytes) -> bytes:
        """Return HMAC-SHA256 of a value under the first key: the same for equal values, and meaningless without the key.

        Raises `Misconfigured` without keys.
        """
        self.require_key()
        return self.digests(value)[0]

    def digests(self, value: bytes) -> list[bytes]:
        """Return HMAC-SHA256 of a value under each key, in their order."""
        return [hmac.digest(key, value, "sha256") for key in self._keys.values()]

    def open(self, id: str, sealed: bytes, *, bound: bytes, subject: str) -> bytes:
        """Return what was sealed under the key `id`. `subject` names it in errors.

        Raises `Misconfigured` when the key is not configured, and `BrokenSeal` when the value is not what was sealed.
        """
        self.require_known(id, subject=subject)
        try:
            return self._ciphers[id].decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):  # ValueError: shorter than a nonce
            raise BrokenSeal(
                f"{subject} does not match its seal: it was changed outside Apex",
                remedy="restore it from a backup, or set it again",
            ) from None

    def require_known(self, id: str, *, subject: str) -> None:
        """Raise `Misconfigured` when the key `id`, under which `subject` is sealed, is not configured."""
        if id not in self._ciphers:
            raise Misconfigured(
                f"{subject} is sealed under a key that is not configured ({id})",
                remedy="add that key to secret_key_file, behind the first line",
            )

    def require_key(self) -> None:
        """Raise `Misconfigured` without keys."""
        if not self._ciphers:
            raise Misconfigured(
                "secret_key: not set, so nothing can be sealed",
                remedy="set APEX_SECRET_KEY, secret_key_file or secret_key_command; `apex secrets key` makes a key",
            )


def _derived(key: bytes, purpose: str) -> bytes:
    info = f"apex memory: {purpose}".encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)
