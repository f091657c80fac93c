"""A public key infrastructure as an operator may have it: a root, what it signed, RSA or EC."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256

from common.trust.certificates import Authority, as_pem
from common.trust.keys import CertificateKey, private_pem

NOW = datetime.now(UTC)


def authority(name: str, above: Authority | None = None) -> Authority:
    """Return an RSA authority, signed by itself or by the one above it."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.certificate.subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=100))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(identity, critical=False)
        .sign(above.key if above else key, SHA256())
    )
    return Authority(certificate, key)


def write_pem(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(as_pem(certificates))
    return path


def write_key(path: Path, key: CertificateKey, passphrase: str | None = None) -> Path:
    path.write_bytes(private_pem(key, passphrase))
    path.chmod(0o600)
    return path
