"""Who may reach a scheduler: whoever does runs code on every worker, so it is this computer alone, or TLS."""

import ipaddress
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from distributed.security import Security

from runtime.errors import InputError


@dataclass(frozen=True)
class Tls:
    """Files of PEM: the authority that signed everybody's certificate, this computer's certificate, and its key."""

    ca: Path
    cert: Path
    key: Path


def tls_of(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """What `--tls-ca`, `--tls-cert` and `--tls-key` say; None of none of them.

    Raises:
        InputError: one is missing, cannot be read, or others than its owner may read the key.
    """
    given = {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key}
    if not any(given.values()):
        return None
    for name, path in given.items():
        if path is None:
            raise InputError("TLS asks for three files", key=name, remedy="give --tls-ca, --tls-cert and --tls-key")
        try:
            with path.open("rb"):
                status = path.stat()
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}", file=path, key=name, remedy="check the path"
            ) from error
        if name == "--tls-key" and status.st_mode & 0o077:
            raise InputError(
                "others may read this key", file=path, key=name, value=stat.filemode(status.st_mode),
                remedy=f"chmod 600 {path}",
            )  # fmt: skip
    assert ca is not None and cert is not None and key is not None, "each was looked at"
    return Tls(ca, cert, key)


def security_of(address: str, tls: Tls | None, *, insecure: bool) -> Security:
    """What a driver brings to a scheduler of somebody's.

    Raises:
        InputError: the address is none, or others could reach it without a certificate and nobody said `--insecure`.
    """
    split = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        host, port = split.hostname, split.port
    except ValueError:
        host, port = None, None
    if not host or port is None or split.scheme not in ("tcp", "tls"):
        remedy = "give one as tls://HOST:8786, or tcp://127.0.0.1:8786"
        raise InputError("is no address of a scheduler", key="--scheduler", value=address, remedy=remedy)
    if split.scheme == "tls":
        if tls is None:
            remedy = "give --tls-ca, --tls-cert and --tls-key"
            raise InputError("asks for certificates", key="--scheduler", value=address, remedy=remedy)
        files = {"tls_ca_file": str(tls.ca), "tls_client_cert": str(tls.cert), "tls_client_key": str(tls.key)}
        return Security(require_encryption=True, **files)
    if tls is not None:
        raise InputError(
            "is without TLS", key="--scheduler", value=address, remedy="say tls://, or leave --tls-... out"
        )
    if not insecure and not _loopback(host):
        raise InputError(
            "whoever reaches this scheduler runs code on every worker, and nothing keeps others out",
            key="--scheduler",
            value=address,
            remedy="use tls:// with certificates (docs/archives.md), or say --insecure to mean it",
        )
    return Security()


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
