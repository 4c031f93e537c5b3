"""Certificate authorities and certificates for tests, in PEM files."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from apex_memory.model import now

NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files with a certificate and its key."""

    certificate_file: Path
    key_file: Path
    serial: int


class Authority:
    """A certificate authority whose certificate is in `ca_file`, below `folder`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca_file = folder / f"{name}.pem"
        builder = _builder(self._name, self._name, self._key.public_key(), days=30)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = builder.add_extension(usage, True).sign(self._key, hashes.SHA256())
        self.ca_file.write_bytes(_pem(certificate))

    def issue(
        self, file: str = "server", *names: str, days: float = 20, passphrase: bytes = b""
    ) -> Certificate:
        """Write a certificate for these host names and addresses, localhost without any, over one of the same file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)])
        builder = _builder(subject, self._name, key.public_key(), days=days)
        alternatives = x509.SubjectAlternativeName([_general(name) for name in names or NAMES])
        builder = builder.add_extension(alternatives, False)
        certificate = builder.sign(self._key, hashes.SHA256())
        written = Certificate(
            self._folder / f"{file}.crt", self._folder / f"{file}.key", certificate.serial_number
        )
        written.certificate_file.write_bytes(_pem(certificate))
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase)
        written.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
        )
        written.key_file.chmod(0o600)
        return written


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=2))
        .not_valid_after(now() + timedelta(days=days))
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
