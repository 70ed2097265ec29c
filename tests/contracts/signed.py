"""Keys for tests, and minisign itself where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.secret_key import SecretKey, dump_secret, new_key
from runtime.signing import dump_public
from runtime.trust import Trust, read_keyring

MINISIGN = shutil.which("minisign")
needs_minisign = pytest.mark.skipif(MINISIGN is None, reason="minisign is not installed")


def minisign(*words: object, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run minisign itself; `said` is what a person types."""
    command = [str(MINISIGN), *map(str, words)]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=60)


def write_keys(folder: Path, name: str = "ground") -> SecretKey:
    """NAME.key, without a password, and NAME.pub."""
    key = new_key()
    (folder / f"{name}.key").write_bytes(dump_secret(key, None))
    (folder / f"{name}.key").chmod(0o600)
    (folder / f"{name}.pub").write_bytes(dump_public(key.public))
    return key


def keyring(folder: Path, *keys: SecretKey) -> Trust:
    """A folder with the public keys of these."""
    folder.mkdir()
    for number, key in enumerate(keys):
        (folder / f"{number}.pub").write_bytes(dump_public(key.public))
    return read_keyring(folder)
