"""Files that are signed, in minisign's format: Ed25519 over the BLAKE2b-512 of a file's bytes, in a file beside it.

`minisign -Vm FILE -p KEY.pub` checks the same without this program. Only what is needed is read: one key, the prehashed
form, both signatures (of the file, and of its signature with the trusted comment).
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from .errors import BundleError, InputError

MINISIG = ".minisig"
"""What the name of a signed file is followed by in the name of the file that signs it."""
LARGEST_MINISIG, LARGEST_KEY = 16 << 10, 4 << 10
"""Bytes of such a file, and of a key: minisign's own comments have at most 8 KiB and 1 KiB."""
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
HASHED, LEGACY, KEY = b"ED", b"Ed", b"Ed"
"""Of signatures over a hash, of those over the file itself, which are refused, and of keys."""
PUBLIC_BYTES, SECRET_BYTES, SIGNED_BYTES = 42, 158, 74


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with.

    Attributes:
        id: eight random bytes that signatures name it by.
        value: the Ed25519 key.
        name: file that it was read from.
    """

    id: bytes
    value: bytes
    name: str = ""


@dataclass(frozen=True)
class Minisig:
    """What a file of a signature says; nothing of it was checked.

    Attributes:
        key: id of the key that made it.
        signature: of the file's hash.
        comment: what was signed with it.
        whole: signature of `signature` and `comment`.
    """

    key: bytes
    signature: bytes
    comment: str
    whole: bytes


def key_name(key: bytes) -> str:
    """The id of a key as minisign writes it: a number, without zeros in front."""
    return f"{int.from_bytes(key, 'little'):X}"


def hashed(data: bytes) -> bytes:
    """What is signed of a file."""
    return hashlib.blake2b(data).digest()


def dump_minisig(made: Minisig) -> bytes:
    """The file of a signature."""
    told = f"{UNTRUSTED}signature from damp-deploy, key {key_name(made.key)}"
    first = base64_text(HASHED + made.key + made.signature)
    return f"{told}\n{first}\n{TRUSTED}{made.comment}\n{base64_text(made.whole)}\n".encode()


def dump_public(key: PublicKey) -> bytes:
    """The file of a public key."""
    return f"{UNTRUSTED}minisign public key {key_name(key.id)}\n{base64_text(KEY + key.id + key.value)}\n".encode()


def parse_minisigs(data: bytes, *, most: int, file: object) -> tuple[Minisig, ...]:
    """The signatures that a file holds, at most `most`. Raises BundleError."""
    lines = text_lines(data)
    groups = [lines[start : start + 4] for start in range(0, len(lines), 4)]
    if len(data) > LARGEST_MINISIG or not 1 <= len(groups) <= most or len(groups[-1]) != 4:
        raise _no_minisig("is no file of a signature as minisign writes it", file)
    return tuple(_parse_minisig(group, file) for group in groups)


def _parse_minisig(lines: list[str], file: object) -> Minisig:
    told, first, comment, last = lines
    signed, whole = bytes_of(first), bytes_of(last)
    if signed[:2] == LEGACY and len(signed) == SIGNED_BYTES:
        raise _no_minisig("is a signature of minisign's old form, which is not taken here", file)
    form = told.startswith(UNTRUSTED) and comment.startswith(TRUSTED)
    if not form or signed[:2] != HASHED or len(signed) != SIGNED_BYTES or len(whole) != 64:
        raise _no_minisig("is no file of a signature as minisign writes it", file)
    return Minisig(signed[2:10], signed[10:], comment.removeprefix(TRUSTED), whole)


def parse_public(data: bytes, name: str, *, file: object) -> PublicKey:
    """Read a public key. Raises InputError, which tells of a secret one."""
    lines = text_lines(data)
    value = bytes_of(lines[1]) if len(lines) == 2 and lines[0].startswith(UNTRUSTED) else b""
    if is_secret(data):
        raise InputError(
            "holds a secret key: whoever reads it here can sign in its owner's name",
            file=file,
            remedy="move it away, put the .pub here, and make a new key where others could read it",
        )
    if len(data) > LARGEST_KEY or len(value) != PUBLIC_BYTES or value[:2] != KEY:
        raise InputError("is no public key of minisign", file=file, remedy="give NAME.pub of `deploy keygen`")
    return PublicKey(value[2:10], value[10:], name)


def is_secret(data: bytes) -> bool:
    """Whether these are the bytes of a secret key."""
    return any(len(value) == SECRET_BYTES and value[:2] == KEY for value in map(bytes_of, text_lines(data)))


def mistake(data: bytes, made: Minisig, key: PublicKey) -> str | None:
    """What is wrong with a signature by that key of these bytes, as a clause; None where nothing is."""
    # Only who has a key needs the library.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(key.value)
    try:
        public.verify(made.signature, hashed(data))
    except InvalidSignature:
        return "was altered after it was signed, or its signature was"
    try:
        public.verify(made.whole, made.signature + made.comment.encode())
    except InvalidSignature:
        return "has a signature whose trusted comment was altered"
    return None


def _no_minisig(problem: str, file: object) -> BundleError:
    return BundleError(problem, file=file, remedy="sign the bundle again with `deploy sign`, or copy it again")


def text_lines(data: bytes) -> list[str]:
    """The lines of a small text file; none where it is no text. Some systems end lines with a carriage return."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return []
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def bytes_of(text: str) -> bytes:
    """What base64 says, in its one canonical spelling; nothing where it is none."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""
    return data if base64_text(data) == text else b""
