"""TLS: what the gateway shows to its callers, and what Apex trusts and shows where it connects."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, urlencode

from apex_memory.errors import Misconfigured

STORE_REMEDY = "check ca_file, client_certificate_file and whether its certificate names the host of its URL; see docs/howto/tls.md"
"""The remedy where no connection with TLS to a store can be made."""

State = tuple[tuple[int, int, int], ...]
"""Time of change, inode and size of each file. A mounted secret of Kubernetes changes its inode alone."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Which CA signs the servers that Apex connects to, and the certificate it shows to them (mTLS). All files are PEM.

    Without files a connection trusts what its library trusts by default.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def given(self) -> bool:
        """Whether any file is named."""
        return bool(self.ca_file or self.certificate_file)

    def context(self) -> ssl.SSLContext:
        """Return a context that verifies the server's chain and its name. With `ca_file` no other CA is trusted.

        Raises `Misconfigured` for a file that cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError, named for the reader
            raise _unusable("ca_file", self.ca_file, error) from None
        if self.certificate_file:
            _load(context, "client_certificate_file", self.certificate_file, self.key_file)
        return context

    def verify(self) -> ssl.SSLContext | bool:
        """Return the argument `verify` of an HTTP client."""
        return self.context() if self.given else True

    def for_postgres(self, url: str) -> str:
        """Return a URL of PostgreSQL with these files as its parameters. Those that it has already stay."""
        files = {
            "sslrootcert": self.ca_file,
            "sslcert": self.certificate_file,
            "sslkey": self.key_file,
        }
        missing = {name: file for name, file in files.items() if file and f"{name}=" not in url}
        if not missing:
            return url
        return f"{url}{'&' if '?' in url else '?'}{urlencode(missing, quote_via=quote)}"


NO_FILES = ClientTls()


class ServerTls:
    """The certificate that a server shows, loaded again when its files change. Connections that are open keep theirs.

    With `client_ca_file` every client must show a certificate that one of these CAs signed (mTLS). Raises
    `Misconfigured` for files that cannot be used.
    """

    def __init__(
        self, certificate_file: Path, key_file: Path, client_ca_file: Path | None = None
    ) -> None:
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._loaded = self._state()
        self._refused: State | None = None
        self.context = self._new_context()
        self.expires_at = expiry(certificate_file)
        """When the certificate in use expires (UTC)."""

    def renew(self) -> bool:
        """Load the files into the context in use if they changed since they were loaded. Return whether it did.

        Raises `Misconfigured`, once a change, for files that cannot be used, such as a new certificate whose key is
        not written yet: the former certificate stays in use, and the next call tries again. A CA that is added to
        `client_ca_file` is trusted from then on; one that is removed there is trusted until the server restarts.
        """
        state = self._state()
        if state == self._loaded:
            return False
        try:
            self._new_context()  # a failure inside the context in use would leave it without a key
            expires_at = expiry(self._certificate_file)
            self._fill(self.context)
        except Misconfigured:
            if state == self._refused:
                return False
            self._refused = state
            raise
        self.expires_at = expires_at
        self._loaded, self._refused = state, None
        return True

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._fill(context)
        return context

    def _fill(self, context: ssl.SSLContext) -> None:
        _load(context, "tls_certificate_file", self._certificate_file, self._key_file)
        if self._client_ca_file:
            try:
                context.load_verify_locations(self._client_ca_file)
            except (OSError, ssl.SSLError) as error:
                raise _unusable("tls_client_ca_file", self._client_ca_file, error) from None
            context.verify_mode = ssl.CERT_REQUIRED

    def _state(self) -> State:
        files = (self._certificate_file, self._key_file, self._client_ca_file)
        return tuple(_file_state(file) for file in files if file)


def expiry(certificate_file: Path) -> datetime:
    """Return when the first certificate of a PEM file expires, in UTC. Raises `Misconfigured` for a file without one."""
    # Not at the top: every command imports this module with the settings.
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    except (OSError, ValueError) as error:
        raise _unusable("tls_certificate_file", certificate_file, error) from None
    return certificate.not_valid_after_utc


def tls_reason(error: BaseException) -> str:
    """Return why TLS failed, from an error or its causes; empty where TLS is not the reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError):
            return (cause.reason or str(cause)).lower().replace("_", " ")
        cause = cause.__cause__ or cause.__context__
    return ""


def _load(context: ssl.SSLContext, setting: str, certificate: Path, key: Path | None) -> None:
    def no_password() -> str:
        raise ValueError("the key has a passphrase")  # without this OpenSSL asks the terminal

    try:
        context.load_cert_chain(certificate, key, no_password)
    except (OSError, ValueError) as error:
        raise _unusable(setting, certificate, error) from None


def _file_state(file: Path) -> tuple[int, int, int]:
    try:
        status = file.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def _unusable(setting: str, file: Path | None, error: Exception) -> Misconfigured:
    reason = str(error)
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
    elif isinstance(error, OSError):
        reason = error.strerror or str(error)
    return Misconfigured(
        f"{setting}: cannot use {file} ({reason})",
        remedy="name PEM files that this user may read: a certificate with those between it and the CA, and its key without a passphrase",
    )
