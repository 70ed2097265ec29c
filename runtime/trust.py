"""Whose bundles this computer takes: a keyring of public keys, and what it says of a file and its signature."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError, InputError, UntrustedError
from .signing import LARGEST_KEY, MINISIG, PublicKey, key_name, mistake, parse_minisigs, parse_public
from .untrusted import TooLargeError, read_untrusted

KEYRING = Path("/etc/damp-deploy/trusted")
"""The keyring of the computer, where neither `--trust` nor `VARIABLE` names another one."""
VARIABLE = "DAMP_DEPLOY_TRUST"


@dataclass(frozen=True)
class Signed:
    """Who signed a file.

    Attributes:
        key: id of the key that the signature names.
        comment: what was signed with it; None where there is no keyring, so that nothing was checked.
        by: file of the key in the keyring; None there too.
    """

    key: str
    comment: str | None = None
    by: str | None = None

    @property
    def trusted(self) -> bool:
        """Whether the signature was checked, with a key of the keyring."""
        return self.by is not None


@dataclass(frozen=True)
class Trust:
    """The keys of a keyring.

    Attributes:
        keys: none where there is no keyring: then nothing needs a signature.
        place: where they lie.
    """

    keys: tuple[PublicKey, ...] = ()
    place: str = ""

    def signed(self, data: bytes, minisig: bytes | None, *, file: Path, most: int = 1) -> Signed | None:
        """Who signed the file with these bytes; None where nobody did and nobody needs to.

        Args:
            data: of the file.
            minisig: bytes of the file beside it.
            file: its name, for errors.
            most: signatures that may be there; one that is right is enough.

        Raises:
            BundleError: the signature is no signature, or is not of these bytes.
            UntrustedError: there is a keyring, and none of its keys signed them.
        """
        if minisig is None:
            if not self.keys:
                return None
            remedy = f"sign it with `deploy sign`: only what the keys in {self.place} signed is taken here"
            raise UntrustedError("is not signed", file=file, remedy=remedy)
        beside = file.with_name(file.name + MINISIG)
        found = parse_minisigs(minisig, most=most, file=beside)
        if not self.keys:
            return Signed(key_name(found[0].key))
        known = [(made, key) for made in found for key in self.keys if key.id == made.key]
        if not known:
            raise UntrustedError(
                "is signed by a key that is not trusted here",
                file=file,
                value=", ".join(key_name(made.key) for made in found),
                remedy=f"sign it with a key of {self.place}, or put the public key of that one there",
            )
        problems = []
        for made, key in known:
            problem = mistake(data, made, key)
            if problem is None:
                return Signed(key_name(made.key), made.comment, key.name)
            problems.append(problem)
        raise BundleError(problems[0], file=file, value=key_name(known[0][0].key), remedy="copy or sign it again")


NO_KEYRING = Trust()
"""Nothing needs a signature: for what this process itself has just made, or is about to sign."""


def trust_here() -> Trust:
    """The keyring of `--trust` or `VARIABLE`, else the computer's own, else none. Raises InputError."""
    told = os.environ.get(VARIABLE)
    if told is None:
        return read_keyring(KEYRING, required=False)
    if not told:
        raise InputError("names no keyring", key=VARIABLE, value=told, remedy="give a .pub, a folder of such, or none")
    return read_keyring(Path(told))


@contextmanager
def trusting(place: str) -> Iterator[None]:
    """Let this process, its threads and what it starts take that keyring."""
    # An environment reaches all of them, whoever opens a bundle there, and beats what was in it.
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = place
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def read_keyring(place: Path, *, required: bool = True) -> Trust:
    """The public keys of a file, or of a folder that holds nothing else.

    Args:
        place: the file or folder.
        required: whether it must be there.

    Raises:
        InputError: it is not there, holds no key or something else, or cannot be read: never taken for none.
    """
    try:
        place.lstat()
    except FileNotFoundError as error:
        if not required:
            return NO_KEYRING
        raise _unusable(place, "it is not there") from error
    except OSError as error:
        raise _unusable(place, error.strerror or str(error)) from error
    try:
        is_folder = stat.S_ISDIR(place.stat().st_mode)
        files = sorted(place.iterdir()) if is_folder else [place]
    except OSError as error:
        raise _unusable(place, error.strerror or str(error)) from error
    if not files:
        raise _unusable(place, "it holds no key")
    return Trust(tuple(_key(file) for file in files), str(place))


def _key(file: Path) -> PublicKey:
    try:
        return parse_public(read_untrusted(file, LARGEST_KEY), file.name, file=file)
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from error
    except TooLargeError as error:
        raise _unusable(file, "it is too large for a public key") from error


def _unusable(place: Path, why: str) -> InputError:
    return InputError(
        f"the keyring cannot be used: {why}",
        file=place,
        remedy="give a .pub, or a folder of .pub files and nothing else",
    )
