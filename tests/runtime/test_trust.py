"""A keyring: what is one, what is none, and what it takes of bundles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from runtime import bundle_files, secret_key, trust
from runtime.board_names import refuse_other_board
from runtime.bundle import load_bundle
from runtime.bundle_files import (
    MADE_SIGNED,
    MANIFEST_SIGNED,
    install_engine,
    read_manifest,
    sign_bundle,
    verified_bundle,
)
from runtime.errors import BundleError, InputError, MachineError
from runtime.made import MADE
from runtime.manifest import MANIFEST
from runtime.secret_key import SecretKey, comment_on, device_key, new_key
from runtime.trust import NO_KEYRING, Trust, trust_here, trusting
from tests.contracts.bundles import for_a_board, give_engine, known_bundle, rebind, reseal
from tests.contracts.signed import keyring, minisign, needs_minisign, write_keys


@pytest.fixture(autouse=True)
def _nothing_of_this_computer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trust, "KEYRING", tmp_path / "etc" / "trusted")
    monkeypatch.setattr(secret_key, "DEVICE_KEY", tmp_path / "etc" / "device.key")
    monkeypatch.delenv(trust.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nobody signed. To be read."""
    return known_bundle(tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture
def key() -> SecretKey:
    return new_key()


@pytest.fixture
def bundle(plain: Path, tmp_path: Path, key: SecretKey) -> Path:
    """One that `key` signed."""
    folder = Path(shutil.copytree(plain, tmp_path / "bundle"))
    sign_bundle(folder, key, "for tests")
    return folder


@pytest.fixture
def ring(tmp_path: Path, key: SecretKey) -> Trust:
    return keyring(tmp_path / "ring", key)


def refused(bundle: Path, ring: Trust, match: str) -> BundleError:
    """By everything that opens a bundle."""
    told = []
    for way in (verified_bundle, read_manifest, load_bundle):
        with pytest.raises(BundleError, match=match) as caught:
            way(bundle, trust=ring)
        assert caught.value.exit_code == 2 and caught.value.remedy and str(caught.value).isprintable()
        told.append(caught.value)
    return told[0]


# Keyrings


def test_without_a_keyring_nothing_needs_a_signature(plain: Path, bundle: Path) -> None:
    assert trust_here() == NO_KEYRING
    assert verified_bundle(plain).signed is None
    told = verified_bundle(bundle).signed
    assert told is not None and not told.trusted and told.comment is None


def test_a_folder_of_the_computer_without_a_key_lets_nothing_fly(key: SecretKey) -> None:
    """Who takes the last key out, or renames it, does not want everybody's bundles."""
    trust.KEYRING.mkdir(parents=True)
    with pytest.raises(InputError, match="holds no key"):
        trust_here()
    (trust.KEYRING / "readme").write_text("put keys here")
    with pytest.raises(InputError, match="is no public key"):
        trust_here()
    write_keys(trust.KEYRING)
    with pytest.raises(InputError, match="secret key"):
        trust_here()
    (trust.KEYRING / "ground.key").unlink()
    with pytest.raises(InputError, match="is no public key"):
        trust_here()
    (trust.KEYRING / "readme").unlink()
    assert [found.name for found in trust_here().keys] == ["ground.pub"]


def test_what_is_said_beats_the_environment_which_beats_the_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("said", "environment"):
        (tmp_path / name).mkdir()
        write_keys(tmp_path / name, name)
    trust.KEYRING.mkdir(parents=True)
    write_keys(tmp_path, "own")
    shutil.copy(tmp_path / "own.pub", trust.KEYRING)
    for name in ("said", "environment"):
        (tmp_path / name / f"{name}.key").unlink()
    assert trust_here().keys[0].name == "own.pub"
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "environment"))
    assert trust_here().keys[0].name == "environment.pub"
    with trusting(str(tmp_path / "said" / "said.pub")):
        assert trust_here().keys[0].name == "said.pub"
    assert trust_here().keys[0].name == "environment.pub"


def an_empty_folder(place: Path) -> None:
    place.mkdir()


def a_folder_in_a_folder(place: Path) -> None:
    place.mkdir()
    (place / "a.pub").mkdir()


def a_folder_with_a_note(place: Path) -> None:
    keyring(place, new_key())
    (place / "note").write_text("hello")


def a_secret_key(place: Path) -> None:
    write_keys(place.parent, "a")
    (place.parent / "a.key").rename(place)


def a_secret_key_by_the_name_of_a_public_one(place: Path) -> None:
    place.mkdir()
    write_keys(place, "a")
    (place / "a.key").replace(place / "a.pub")


def a_signature(place: Path) -> None:
    place.write_bytes(new_key().minisig(b"x", "y"))


WRONG_KEYRINGS = {
    "missing": (lambda place: None, "not there"),
    "a dangling link": (lambda place: place.symlink_to("nowhere"), "No such file"),
    "empty": (an_empty_folder, "holds no key"),
    "an empty file": (Path.touch, "is no public key"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "large": (lambda place: place.write_bytes(bytes(1 << 16)), "too large"),
    "noise": (lambda place: place.write_bytes(bytes(range(256))), "is no public key"),
    "a folder in it": (a_folder_in_a_folder, "is a folder"),
    "a note in it": (a_folder_with_a_note, "is no public key"),
    "a secret key": (a_secret_key, "holds a secret key"),
    "a secret key named .pub": (a_secret_key_by_the_name_of_a_public_one, "holds a secret key"),
    "a signature": (a_signature, "is no public key"),
}


@pytest.mark.parametrize("name", WRONG_KEYRINGS)
def test_a_keyring_that_was_named_is_used_or_an_error(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, match = WRONG_KEYRINGS[name]
    make(place := tmp_path / "named")
    monkeypatch.setenv(trust.VARIABLE, str(place))
    for way in (trust_here, lambda: verified_bundle(plain), lambda: read_manifest(plain), lambda: load_bundle(plain)):
        with pytest.raises(InputError, match=match) as caught:
            way()
        assert str(caught.value.file).startswith(str(place)) and caught.value.remedy


def test_an_empty_name_is_no_keyring_and_an_error(plain: Path) -> None:
    with trusting(""), pytest.raises(InputError, match="names no keyring"):
        verified_bundle(plain)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_keyring_that_cannot_be_read_is_an_error(plain: Path) -> None:
    trust.KEYRING.mkdir(parents=True)
    trust.KEYRING.parent.chmod(0)
    try:
        with pytest.raises(InputError, match="Permission"):
            verified_bundle(plain)
    finally:
        trust.KEYRING.parent.chmod(0o700)


# Bundles


def test_a_bundle_of_a_trusted_key_is_opened(bundle: Path, ring: Trust, key: SecretKey) -> None:
    with load_bundle(bundle, trust=ring) as loaded:
        told = loaded.contents.signed
    assert told is not None and told.trusted and told.by == "0.pub"
    assert told.comment is not None and told.comment.endswith("\tnetwork:known\tserial:0\tfor tests")
    assert MANIFEST_SIGNED in verified_bundle(bundle).files


@needs_minisign
def test_minisign_checks_a_bundle_without_this_program(bundle: Path, ring: Trust) -> None:
    done = minisign("-Vm", bundle / MANIFEST, "-p", f"{ring.place}/0.pub")
    assert done.returncode == 0 and "serial:0" in done.stdout
    reseal(bundle, lambda content: content.update(overlap=2))
    assert minisign("-Vm", bundle / MANIFEST, "-p", f"{ring.place}/0.pub").returncode


def test_a_bundle_of_another_key_or_of_nobody_is_refused(bundle: Path, plain: Path, tmp_path: Path) -> None:
    ring = keyring(tmp_path / "others", new_key(), new_key())
    assert refused(plain, ring, "is not signed").file == str(plain / MANIFEST)
    assert refused(bundle, ring, "key that is not trusted here").file == str(bundle / MANIFEST)


def test_any_key_of_the_keyring_will_do(bundle: Path, tmp_path: Path, key: SecretKey) -> None:
    assert verified_bundle(bundle, keyring(tmp_path / "several", new_key(), key, new_key())).signed


def test_a_key_that_only_has_the_same_name_is_not_believed(bundle: Path, tmp_path: Path, key: SecretKey) -> None:
    impostor = SecretKey(key.id, new_key().seed)
    refused(bundle, keyring(tmp_path / "impostor", impostor), "altered after it was signed")
    assert verified_bundle(bundle, keyring(tmp_path / "both", impostor, key)).signed


def test_every_flipped_byte_of_what_is_signed_is_found(bundle: Path, ring: Trust) -> None:
    for name in (MANIFEST, MANIFEST_SIGNED):
        data = (bundle / name).read_bytes()
        head = len(data.split(b"\n")[0]) + 1 if name == MANIFEST_SIGNED else 0
        for place in range(head, len(data), 11):
            flipped = bytearray(data)
            flipped[place] ^= 2
            (bundle / name).write_bytes(flipped)
            with pytest.raises(BundleError):
                verified_bundle(bundle, ring)
        (bundle / name).write_bytes(data)
    assert verified_bundle(bundle, ring)


def test_a_manifest_that_was_sealed_anew_is_refused_before_it_is_parsed(
    bundle: Path, ring: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    reseal(bundle, lambda content: content.update(overlap=2))
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it was parsed"))
    monkeypatch.setattr(bundle_files, "parse", lambda *words, **options: pytest.fail("it was parsed"))
    refused(bundle, ring, "altered after it was signed")


def test_what_was_verified_is_what_is_parsed(bundle: Path, ring: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes while it is read is read once."""
    before = verified_bundle(bundle, ring)
    reading, read = bundle_files._taken, []

    def swapped(file: object, most: int, path: Path) -> bytes:
        data = reading(file, most, path)  # type: ignore[arg-type]
        read.append(path.name)
        if path.name == MANIFEST:
            reseal(bundle, lambda content: content.update(overlap=2))
        return data

    monkeypatch.setattr(bundle_files, "_taken", swapped)
    assert verified_bundle(bundle, ring).manifest == before.manifest and read.count(MANIFEST) == 1


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda file: (file.rename(file.with_name("b")), file.symlink_to("b")), "cannot be read"),
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "not a regular file"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "not a regular file"),
    "large": (lambda file: file.write_bytes(bytes(1 << 20)), "larger than"),
    "old form": (lambda file: file.write_text(file.read_text().replace("\nRU", "\nRW")), "old form"),
    "noise": (lambda file: file.write_bytes(bytes(range(256))), "no file of a signature"),
    "twice": (lambda file: file.write_bytes(2 * file.read_bytes()), "no file of a signature"),
    "other comment": (lambda file: file.write_text(file.read_text().replace("serial:0", "serial:9")), "comment"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_signature_that_is_none_is_refused(bundle: Path, ring: Trust, name: str) -> None:
    spoil, match = SPOILT[name]
    spoil(bundle / MANIFEST_SIGNED)
    refused(bundle, ring, match)


def test_a_bundle_is_signed_again_by_who_has_it(bundle: Path, tmp_path: Path) -> None:
    other = new_key()
    (bundle / MANIFEST_SIGNED).write_bytes(b"damaged")
    sign_bundle(bundle, other)
    assert verified_bundle(bundle, keyring(tmp_path / "other", other)).signed


def test_a_damaged_bundle_is_not_signed(bundle: Path, key: SecretKey) -> None:
    (bundle / MANIFEST_SIGNED).unlink()
    (bundle / "golden" / "frame.npy").write_bytes(b"x")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        sign_bundle(bundle, key)
    assert not (bundle / MANIFEST_SIGNED).exists()


@pytest.mark.parametrize("told", ["two\nlines", "\x1b[31m", "x" * 1001])
def test_a_comment_is_one_line_of_text(bundle: Path, key: SecretKey, told: str) -> None:
    with pytest.raises(InputError, match="is no comment"):
        sign_bundle(bundle, key, told)


def test_what_a_network_calls_itself_adds_no_line_to_a_signature(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    network = manifest.network.model_copy(update={"architecture": "a\ntrusted comment: b\t" + "c" * 200})
    told = comment_on(MANIFEST, manifest.model_copy(update={"network": network}))
    assert "\n" not in told and "network:a?trusted comment: b?c" in told and len(told) < 300


# What the target makes


@pytest.fixture
def finalized(tmp_path: Path, key: SecretKey) -> Path:
    """A bundle for a board, signed by the ground, with an engine that nobody signed."""
    bundle = for_a_board(tmp_path / "board")
    sign_bundle(bundle, key)
    return give_engine(bundle)


def remade(bundle: Path, ring: Trust, key: SecretKey, name: str) -> None:
    contents = verified_bundle(bundle, ring)
    assert contents.made is not None
    engine = contents.choice.engine
    assert engine is not None
    files = {f"{name}.plan": name.encode(), f"{name}.layers.json": b"[]", f"{name}.log": b"built"}
    paths = dict(zip(("path", "layers", "log"), files, strict=True))
    choice = contents.choice.model_copy(update={"engine": engine.model_copy(update=paths)})
    install_engine(bundle, contents, choice, {"golden_difference": 0.0}, files, trust=ring, key=key)


def test_an_engine_that_nobody_signed_is_refused_where_there_is_a_keyring(
    finalized: Path, ring: Trust, key: SecretKey, tmp_path: Path
) -> None:
    assert verified_bundle(finalized, NO_KEYRING).made
    with pytest.raises(BundleError, match="is not signed") as caught:
        verified_bundle(finalized, ring)
    assert caught.value.file == str(finalized / MADE)
    device = new_key()
    (finalized / MADE_SIGNED).write_bytes(device.minisig((finalized / MADE).read_bytes(), "told"))
    with pytest.raises(BundleError, match="not trusted here"):
        verified_bundle(finalized, ring)
    both = keyring(tmp_path / "both", key, device)
    contents = verified_bundle(finalized, both)
    assert contents.made_signed is not None and contents.made_signed.by == "1.pub"
    reseal(finalized, lambda content: content["proof"].update(golden_difference=0.0), MADE)
    with pytest.raises(BundleError, match="altered after"):
        verified_bundle(finalized, both)


def test_who_signs_a_bundle_signs_an_engine_that_nobody_else_signed(
    finalized: Path, ring: Trust, key: SecretKey, tmp_path: Path
) -> None:
    sign_bundle(finalized, key)
    assert verified_bundle(finalized, ring).made_signed
    sign_bundle(finalized, other := new_key())
    assert verified_bundle(finalized, keyring(tmp_path / "two", key, other)).made_signed
    with pytest.raises(BundleError, match="not trusted here"):
        verified_bundle(finalized, keyring(tmp_path / "one", other))


def test_a_stop_at_any_moment_leaves_an_engine_that_is_signed(
    finalized: Path, ring: Trust, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(finalized, key)
    write, found = bundle_files.write_bytes, set()
    for stop in range(12):
        copy = Path(shutil.copytree(finalized, tmp_path / f"stop{stop}"))
        for attempt in ("engine/2", "engine/3"):
            written = 0

            def stopping(path: Path, data: bytes, most: int = stop) -> None:
                nonlocal written
                written += 1
                if written > most:
                    raise KeyboardInterrupt
                write(path, data)

            with monkeypatch.context() as patched:
                patched.setattr(bundle_files, "write_bytes", stopping)
                with suppress(KeyboardInterrupt):
                    remade(copy, ring, key, attempt)
            contents = verified_bundle(copy, ring)
            assert contents.made_signed and contents.choice.engine
            found.add(contents.choice.engine.path)
    assert found == {"engine/1.plan", "engine/2.plan", "engine/3.plan"}
    assert (copy / MADE_SIGNED).read_bytes().count(b"untrusted comment") == 1


def test_the_key_of_a_computer_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_key() is None
    monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "device.key"))
    with pytest.raises(InputError, match="cannot be read"):
        device_key()
    made = write_keys(tmp_path, "device")
    assert device_key() == made
    (tmp_path / "device.key").chmod(0o644)
    with pytest.raises(InputError, match="others may read"):
        device_key()


# What a bundle asks of a computer


def test_a_bundle_for_a_newer_program_is_refused(plain: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(plain, tmp_path / "copy"))
    reseal(bundle, lambda content: content.update(minimum_runtime="0.1"))
    assert verified_bundle(bundle).manifest.minimum_runtime == "0.1"
    reseal(bundle, lambda content: content.update(minimum_runtime="0.1.1"))
    assert refused(bundle, NO_KEYRING, "newer version").key == "minimum_runtime"


@pytest.mark.parametrize(
    ("names", "right"),
    [
        ("", True),
        ("jetson-orin", True),
        ("other; jetson-orin", True),
        ("other", False),
        ("jetson", False),
        ("nvidia,p3768;other", True),
        ("other,jetson-orin", False),
    ],
)
def test_a_bundle_is_for_boards_by_name(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, right: bool
) -> None:
    bundle = Path(shutil.copytree(plain, tmp_path / "copy"))
    reseal(bundle, lambda content: content.update(compatible=["jetson-orin", "nvidia,p3768"]))
    monkeypatch.setenv("DAMP_DEPLOY_BOARD", names)
    monkeypatch.setattr("runtime.board_names.DEVICE_TREE", tmp_path / "none")
    monkeypatch.setattr("runtime.board_names.BOARD", tmp_path / "none")
    if right:
        load_bundle(bundle).close()
    else:
        with pytest.raises(MachineError, match="other boards") as caught:
            load_bundle(bundle)
        assert caught.value.key == "compatible"
    # The device tree knows its board too, whatever the owner calls it.
    (tmp_path / "tree").write_bytes(b"nvidia,p3768\0nvidia,tegra234\0")
    monkeypatch.setattr("runtime.board_names.DEVICE_TREE", tmp_path / "tree")
    refuse_other_board(verified_bundle(bundle).manifest, bundle)


@pytest.mark.parametrize(
    "asked",
    [
        {"serial": -1}, {"serial": 1 << 63}, {"serial": 1.0}, {"serial": "1"}, {"serial": True},
        {"compatible": ["a"] * 65}, {"compatible": ["\x1b"]}, {"compatible": [""]}, {"compatible": "a"},
        {"minimum_runtime": "1.x"}, {"minimum_runtime": ">=1"}, {"minimum_runtime": ""},
    ],
)  # fmt: skip
def test_what_a_bundle_may_ask_is_bounded(plain: Path, tmp_path: Path, asked: dict[str, object]) -> None:
    bundle = Path(shutil.copytree(plain, tmp_path / "copy"))
    reseal(bundle, lambda content: content.update(asked))
    refused(bundle, NO_KEYRING, "the manifest (is wrong|holds a number)")


def test_a_manifest_without_what_was_added_is_as_it_was(plain: Path, tmp_path: Path) -> None:
    bundle = for_a_board(tmp_path / "old")
    give_engine(bundle)

    def drop(content: dict[str, object]) -> None:
        for name in ("serial", "compatible", "minimum_runtime"):
            del content[name]

    reseal(bundle, drop)
    rebind(bundle)
    manifest = verified_bundle(bundle).manifest
    assert (manifest.serial, manifest.compatible, manifest.minimum_runtime) == (0, [], None)
