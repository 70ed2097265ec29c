"""Keys and signatures: minisign's own files are taken and its program takes ours; anything else is refused."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import secret_key
from runtime.errors import BundleError, DeployError, InputError
from runtime.secret_key import SecretKey, dump_secret, new_key, parse_secret, read_secret
from runtime.signing import (
    Minisig,
    dump_minisig,
    dump_public,
    key_name,
    mistake,
    parse_minisigs,
    parse_public,
)
from tests.contracts.signed import minisign, needs_minisign, write_keys

FILE = Path("manifest.json.minisig")


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords that cost little."""
    monkeypatch.setattr(secret_key, "OPERATIONS", 1 << 16)
    monkeypatch.setattr(secret_key, "MEMORY", 1 << 24)


def one(data: bytes) -> Minisig:
    return parse_minisigs(data, most=1, file=FILE)[0]


# minisign itself


@needs_minisign
@pytest.mark.parametrize("password", [None, "a word and ünother"])
def test_minisign_takes_our_keys_and_signatures(tmp_path: Path, cheap: None, password: str | None) -> None:
    key, file = new_key(), tmp_path / "data"
    (tmp_path / "our.key").write_bytes(dump_secret(key, password))
    (tmp_path / "our.pub").write_bytes(dump_public(key.public))
    file.write_bytes(b"some bytes")
    (tmp_path / "data.minisig").write_bytes(key.minisig(b"some bytes", "timestamp:1\tfile:data\thashed\tünd mehr"))
    done = minisign("-Vm", file, "-p", tmp_path / "our.pub")
    assert done.returncode == 0 and "Trusted comment: timestamp:1\tfile:data\thashed\tünd mehr" in done.stdout
    assert minisign("-Sm", file, "-s", tmp_path / "our.key", said=f"{password}\n" * bool(password)).returncode == 0
    made = one((tmp_path / "data.minisig").read_bytes())
    assert mistake(b"some bytes", made, key.public) is None and made.key == key.id
    assert minisign("-R", "-s", tmp_path / "our.key", "-p", tmp_path / "r.pub", said=f"{password}\n").returncode == 0
    assert (tmp_path / "r.pub").read_bytes().splitlines()[1] == dump_public(key.public).splitlines()[1]


def test_a_key_is_named_as_minisign_names_it() -> None:
    assert key_name(bytes.fromhex("c8924ff72170b10b")) == "BB17021F74F92C8"


@needs_minisign
def test_keys_of_minisign_are_taken(tmp_path: Path) -> None:
    plain, public = tmp_path / "plain.key", tmp_path / "plain.pub"
    assert minisign("-GW", "-s", plain, "-p", public).returncode == 0
    key = read_secret(plain, None, private=True)
    assert parse_public(public.read_bytes(), "plain.pub", file=public).value == key.public.value
    assert key_name(key.id) in public.read_text()
    (tmp_path / "data").write_bytes(b"x")
    (tmp_path / "data.minisig").write_bytes(key.minisig(b"x", "c"))
    assert minisign("-Vm", tmp_path / "data", "-p", public).returncode == 0


@needs_minisign
@pytest.mark.slow
def test_a_key_of_minisign_with_a_password_is_taken_at_its_full_cost(tmp_path: Path) -> None:
    locked, public = tmp_path / "locked.key", tmp_path / "locked.pub"
    assert minisign("-G", "-s", locked, "-p", public, said="word\nword\n").returncode == 0
    key = read_secret(locked, lambda: "word")
    assert parse_public(public.read_bytes(), "", file=public).value == key.public.value
    with pytest.raises(InputError, match="password is wrong"):
        read_secret(locked, lambda: "sword")


@needs_minisign
def test_the_old_form_of_minisign_is_refused(tmp_path: Path) -> None:
    write_keys(tmp_path)
    (tmp_path / "data").write_bytes(b"x")
    assert minisign("-Slm", tmp_path / "data", "-s", tmp_path / "ground.key").returncode == 0
    with pytest.raises(BundleError, match="old form"):
        one((tmp_path / "data.minisig").read_bytes())


# Files of signatures


def lines_of(change: Callable[[list[str]], object]) -> bytes:
    lines = new_key().minisig(b"x", "told").decode().splitlines()
    change(lines)
    return ("\n".join(lines) + "\n").encode()


def inner(number: int, change: Callable[[bytearray], object]) -> bytes:
    """The base64 of a line decoded, changed, and encoded again."""

    def changed(lines: list[str]) -> None:
        data = bytearray(base64.b64decode(lines[number]))
        change(data)
        lines[number] = base64.b64encode(data).decode()

    return lines_of(changed)


def put(text: str, number: int) -> Callable[[list[str]], object]:
    return lambda lines: lines.__setitem__(number, text)


NO_SIGNATURES = {
    "empty": lambda: b"",
    "noise": lambda: bytes(range(256)),
    "nothing but lines": lambda: b"\n" * 4,
    "no trusted comment": lambda: lines_of(lambda lines: lines.pop(2)),
    "no global signature": lambda: lines_of(lambda lines: lines.pop()),
    "no untrusted comment": lambda: lines_of(put("signature", 0)),
    "other word for the comment": lambda: lines_of(put("comment: told", 2)),
    "a line behind": lambda: lines_of(lambda lines: lines.append("more")),
    "two of them": lambda: lines_of(lambda lines: lines.extend(lines[:])),
    "old form": lambda: inner(1, lambda data: data.__setitem__(slice(2), b"Ed")),
    "other algorithm": lambda: inner(1, lambda data: data.__setitem__(slice(2), b"RS")),
    "short signature": lambda: inner(1, lambda data: data.pop()),
    "long signature": lambda: inner(1, lambda data: data.append(0)),
    "short global signature": lambda: inner(3, lambda data: data.pop()),
    "no base64": lambda: lines_of(put("RUS!", 1)),
    "blanks in base64": lambda: lines_of(lambda lines: put(f" {lines[1]}", 1)(lines)),
    "base64 that says the same otherwise": lambda: lines_of(lambda lines: put(lines[3][:-3] + "B==", 3)(lines)),
    "not ASCII": lambda: lines_of(put("ü", 1)),
    "not UTF-8": lambda: lines_of(lambda lines: None).replace(b"told", b"\xff"),
    "too long": lambda: lines_of(put("trusted comment: " + "x" * 20_000, 2)),
}


@pytest.mark.parametrize("made", NO_SIGNATURES.values(), ids=NO_SIGNATURES)
def test_what_is_no_file_of_a_signature_is_refused(made: Callable[[], bytes]) -> None:
    with pytest.raises(BundleError) as caught:
        one(made())
    assert caught.value.file == str(FILE) and caught.value.remedy


def test_a_signature_comes_back_as_it_was_written() -> None:
    made = Minisig(bytes(8), bytes(range(64)), "told\tünd", bytes(64))
    assert one(dump_minisig(made)) == made
    assert one(dump_minisig(made).replace(b"\n", b"\r\n")) == made
    assert parse_minisigs(2 * dump_minisig(made), most=2, file=FILE) == (made, made)


def test_everything_that_is_signed_is_looked_at() -> None:
    key, other = new_key(), new_key()
    made = one(key.minisig(b"data", "told"))
    assert mistake(b"data", made, key.public) is None
    assert "altered after it was signed" in str(mistake(b"Data", made, key.public))
    assert "altered after it was signed" in str(mistake(b"data", made, other.public))
    for value in (Minisig(made.key, made.signature, "Told", made.whole), Minisig(*made_parts(made), bytes(64))):
        assert "trusted comment was altered" in str(mistake(b"data", value, key.public))
    for bit in range(0, 512, 7):
        flipped = bytearray(made.signature)
        flipped[bit // 8] ^= 1 << bit % 8
        assert mistake(b"data", Minisig(made.key, bytes(flipped), made.comment, made.whole), key.public)


def made_parts(made: Minisig) -> tuple[bytes, bytes, str]:
    return made.key, made.signature, made.comment


# Keys


def test_a_secret_key_comes_back_with_its_password_alone(cheap: None) -> None:
    key = new_key()
    assert parse_secret(dump_secret(key, None), None, file=FILE) == key
    data = dump_secret(key, "wörd")
    assert parse_secret(data, lambda: "wörd", file=FILE) == key and data != dump_secret(key, "wörd")
    with pytest.raises(InputError, match="password is wrong"):
        parse_secret(data, lambda: "word", file=FILE)
    with pytest.raises(InputError, match="has a password"):
        parse_secret(data, None, file=FILE)
    for word in ("", "x" * 1025):
        with pytest.raises(InputError, match="is no password"):
            dump_secret(key, word)
    assert repr(key.seed) not in repr(key)


def test_every_damage_to_a_secret_key_is_found() -> None:
    written = dump_secret(new_key(), None).decode()
    head, text = written.splitlines()
    value = base64.b64decode(text)
    for place in [0, 1, 2, 4, 5, *range(62, 158, 5)]:
        damaged = bytearray(value)
        damaged[place] ^= 1
        with pytest.raises(InputError, match=r"is no secret key|is damaged|has a password"):
            parse_secret(f"{head}\n{base64.b64encode(damaged).decode()}\n".encode(), None, file=FILE)
    for data in (b"", b"\xff", text.encode(), written.encode()[:-8], written.encode() + b"more\n"):
        with pytest.raises(InputError, match="is no secret key"):
            parse_secret(data, None, file=FILE)


def test_a_key_that_would_cost_more_than_minisigns_is_not_tried(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dump_secret(new_key(), "word")
    monkeypatch.setattr(secret_key, "MEMORY", 1 << 23)
    monkeypatch.setattr(hashlib, "scrypt", lambda *words, **options: pytest.fail("it was tried"))
    with pytest.raises(InputError, match="too much work"):
        parse_secret(data, lambda: "word", file=FILE)


def test_others_may_not_read_a_private_key(tmp_path: Path) -> None:
    write_keys(tmp_path)
    file = tmp_path / "ground.key"
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(InputError, match="others may read") as caught:
            read_secret(file, None, private=True)
        assert caught.value.file == str(file) and isinstance(read_secret(file, None), SecretKey)


@pytest.mark.parametrize("made", ["missing", "folder", "large"])
def test_what_is_no_file_of_a_key_is_refused(tmp_path: Path, made: str) -> None:
    file = tmp_path / "a.key"
    if made == "folder":
        file.mkdir()
    elif made == "large":
        file.write_bytes(bytes(1 << 20))
    with pytest.raises(DeployError) as caught:
        read_secret(file, None)
    assert caught.value.exit_code == 2 and caught.value.file == str(file)
