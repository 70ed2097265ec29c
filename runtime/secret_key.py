"""Secret keys in minisign's format, what they sign, and the one that this computer signs with what it makes itself."""

import hashlib
import hmac
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, MachineError
from .manifest import Manifest
from .signing import (
    KEY,
    LARGEST_KEY,
    SECRET_BYTES,
    UNTRUSTED,
    Minisig,
    PublicKey,
    base64_text,
    bytes_of,
    dump_minisig,
    hashed,
    key_name,
    text_lines,
)
from .untrusted import TooLargeError, open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DEVICE_KEY = Path("/etc/damp-deploy/device.key")
"""What this computer signs with, where `VARIABLE` names no other one."""
VARIABLE = "DAMP_DEPLOY_DEVICE_KEY"
PLAIN, SCRYPT, BLAKE2B = b"\0\0", b"Sc", b"B2"
OPERATIONS, MEMORY = 1 << 25, 1 << 30
"""What a password costs whoever guesses it, as libsodium counts: some seconds and 1 GiB. Nothing dearer is read."""
LONGEST_PASSWORD, LONGEST_COMMENT = 1024, 1000
SECRET = "keep it where nobody else reads it"


@dataclass(frozen=True)
class SecretKey:
    """A key that signs.

    Attributes:
        id: eight random bytes that signatures name it by.
        seed: the Ed25519 key.
    """

    id: bytes
    seed: bytes = field(repr=False)

    @cached_property
    def public(self) -> PublicKey:
        """What its signatures are checked with."""
        return PublicKey(self.id, self._key.public_key().public_bytes_raw())

    @cached_property
    def _key(self) -> "Ed25519PrivateKey":
        # Only who has a key needs the library.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.seed)

    def minisig(self, data: bytes, comment: str) -> bytes:
        """The file that signs these bytes, and a comment with them."""
        signature = self._key.sign(hashed(data))
        return dump_minisig(Minisig(self.id, signature, comment, self._key.sign(signature + comment.encode())))


def new_key() -> SecretKey:
    """A key that nobody has."""
    return SecretKey(os.urandom(8), os.urandom(32))


def comment_on(file: str, manifest: Manifest, told: str = "") -> str:
    """What is signed together with a file of a bundle: when, what, which network and serial, and what else is told.

    Raises InputError where that is no line of text.
    """
    if len(told) > LONGEST_COMMENT or not told.isprintable():
        remedy = f"give one line of at most {LONGEST_COMMENT} characters"
        raise InputError("is no comment", key="--comment", value=told, remedy=remedy)
    network = "".join(c if c.isprintable() else "?" for c in manifest.network.architecture[:100])
    facts = (
        f"timestamp:{int(time.time())}",
        f"file:{file}",
        "hashed",
        f"network:{network}",
        f"serial:{manifest.serial}",
    )
    return "\t".join((*facts, *([told] if told else [])))


def dump_secret(key: SecretKey, password: str | None) -> bytes:
    """The file of a secret key, as `minisign -G` writes it, or as `minisign -G -W` where there is no password."""
    body = key.id + key.seed + key.public.value
    if password is None:
        head, body = KEY + PLAIN + BLAKE2B + bytes(48), body + bytes(32)
    else:
        salt, costs = os.urandom(32), OPERATIONS.to_bytes(8, "little") + MEMORY.to_bytes(8, "little")
        body = _mixed(body + _checksum(body), password, salt, OPERATIONS, MEMORY)
        head = KEY + SCRYPT + BLAKE2B + salt + costs
    told = f"{UNTRUSTED}minisign {'' if password is None else 'encrypted '}secret key {key_name(key.id)}"
    return f"{told}\n{base64_text(head + body)}\n".encode()


def read_secret(file: Path, password: Callable[[], str] | None, *, private: bool = False) -> SecretKey:
    """Read a secret key.

    Args:
        file: where it is.
        password: asked for it where the key has one; None where nobody can be asked.
        private: refuse a file that others may read or write.

    Raises:
        InputError: it is no such key, or the password is wrong.
    """
    try:
        opened, size = open_regular(file)
        with opened:
            mode, data = os.fstat(opened.fileno()).st_mode, opened.read(LARGEST_KEY + 1)
        if size > LARGEST_KEY or len(data) > LARGEST_KEY:
            raise TooLargeError(size)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file, remedy="give NAME.key") from error
    except TooLargeError as error:
        raise _no_secret(file) from error
    if private and mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode_told = f"0{stat.S_IMODE(mode):o}"
        raise InputError("others may read this secret key", file=file, value=mode_told, remedy=f"chmod 600; {SECRET}")
    return parse_secret(data, password, file=file)


def parse_secret(data: bytes, password: Callable[[], str] | None, *, file: Path) -> SecretKey:
    """The same of its bytes."""
    lines = text_lines(data)
    value = bytes_of(lines[1]) if len(lines) == 2 and lines[0].startswith(UNTRUSTED) else b""
    if len(value) != SECRET_BYTES or value[:2] != KEY or value[4:6] != BLAKE2B or value[2:4] not in (PLAIN, SCRYPT):
        raise _no_secret(file)
    salt, body = value[6:38], value[54:]
    operations, memory = (int.from_bytes(value[at : at + 8], "little") for at in (38, 46))
    if locked := value[2:4] == SCRYPT:
        if password is None:
            remedy = "make one without for a computer where nobody types: `deploy keygen --no-password`"
            raise InputError("this secret key has a password", file=file, remedy=remedy)
        body = _mixed(body, password(), salt, operations, memory, file)
    inner, checksum = body[:72], body[72:]
    # What has no password has no sum either where minisign wrote it.
    right = hmac.compare_digest(checksum, _checksum(inner)) or (not locked and checksum == bytes(32))
    key = SecretKey(inner[:8], inner[8:40])
    if not right or key.public.value != inner[40:]:
        problem = "the password is wrong, or the key is damaged" if locked else "this secret key is damaged"
        raise InputError(problem, file=file, remedy="try again, or take a copy of the key")
    return key


def device_key() -> SecretKey | None:
    """What this computer signs with, or None. Raises InputError where it is there and cannot be used."""
    told = os.environ.get(VARIABLE)
    file = DEVICE_KEY if told is None else Path(told)
    if told is None:
        try:
            file.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            remedy = "let the user who finalises read it, or name another key"
            raise InputError(f"cannot be read: {error.strerror}", file=file, key=VARIABLE, remedy=remedy) from error
    return read_secret(file, None, private=True)


def _checksum(inner: bytes) -> bytes:
    return hashlib.blake2b(KEY + inner, digest_size=32).digest()


def _mixed(body: bytes, password: str, salt: bytes, operations: int, memory: int, file: object = None) -> bytes:
    """Encrypted or decrypted, which is the same. Raises InputError where that costs more than minisign's own keys."""
    if operations > OPERATIONS or memory > MEMORY:
        raise InputError("this secret key asks for too much work", file=file, remedy="make it with minisign's defaults")
    text = password.encode("utf-8", "surrogateescape")
    if not 0 < len(text) <= LONGEST_PASSWORD:
        raise InputError("is no password", key="password", remedy=f"give 1 to {LONGEST_PASSWORD} bytes")
    n, p = _scrypt_cost(operations, memory)
    try:
        stream = hashlib.scrypt(text, salt=salt, n=n, r=8, p=p, maxmem=MEMORY + (1 << 26), dklen=len(body))
    except (ValueError, MemoryError) as error:
        raise MachineError(
            "the password cannot be tried", value=error, remedy=f"free {memory >> 20} MiB of memory"
        ) from error
    return bytes(a ^ b for a, b in zip(body, stream, strict=True))


def _scrypt_cost(operations: int, memory: int) -> tuple[int, int]:
    """N and p as libsodium picks them (`pickparams` of crypto_pwhash_scryptsalsa208sha256), r is 8."""
    operations = max(operations, 32768)
    most = operations // 32 if operations < memory // 32 else memory // 1024
    power = next(power for power in range(1, 64) if 1 << power > most // 2)
    parallel = 1 if operations < memory // 32 else (operations // 4 >> power) // 8
    return 1 << power, max(parallel, 1)


def _no_secret(file: Path) -> InputError:
    return InputError("is no secret key of minisign", file=file, remedy="give NAME.key of `deploy keygen`")
