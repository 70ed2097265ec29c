"""Keys, signatures and archives on the command line; every command that opens a bundle asks who signed it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deploy.finalizing.finalize import Device, finalize
from export.tensorrt.build import EngineMade
from runtime import bundle_files, secret_key, trust
from runtime.bundle_files import MANIFEST_SIGNED, sign_bundle, verified_bundle
from runtime.engines import open_engine
from runtime.errors import BundleError, InputError
from runtime.made import MADE
from runtime.manifest import MANIFEST
from runtime.secret_key import SecretKey, dump_secret, new_key, read_secret
from runtime.signing import key_name
from runtime.trust import read_keyring
from tests.contracts.bundles import for_a_board, give_engine, reseal
from tests.contracts.command import assert_failed, assert_json_error, invoke
from tests.contracts.signed import keyring, minisign, needs_minisign, write_keys

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "calm")


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this computer is asked, and passwords cost little."""
    monkeypatch.setattr(trust, "KEYRING", tmp_path / "etc" / "trusted")
    monkeypatch.setattr(secret_key, "DEVICE_KEY", tmp_path / "etc" / "device.key")
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.setattr(secret_key, "OPERATIONS", 1 << 16)
    monkeypatch.setattr(secret_key, "MEMORY", 1 << 24)


@pytest.fixture
def bundle(doubling: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(doubling, tmp_path / "bundle"))


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    """ground.key and ground.pub."""
    return write_keys(tmp_path)


# deploy keygen


def test_a_pair_of_keys_is_made(capsys: Capture, tmp_path: Path) -> None:
    done = invoke(capsys, "keygen", "--out", "a", "--no-password", "--json")
    assert done.code == 0 and done.json["password"] is False
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    key = read_secret(tmp_path / "a.key", None, private=True)
    assert read_keyring(tmp_path / "a.pub").keys[0].value == key.public.value
    assert done.json["key"] in (tmp_path / "a.pub").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.key", "a.pub"]


@needs_minisign
def test_a_pair_with_a_password_is_minisigns_too(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wörd\nmore\n")
    assert invoke(capsys, "keygen", "--out", "a", "--password-file", "password").code == 0
    (tmp_path / "data").write_bytes(b"x")
    assert minisign("-Sm", "data", "-s", "a.key", said="wörd\n").returncode == 0
    assert minisign("-Vm", "data", "-p", "a.pub").returncode == 0


@pytest.mark.parametrize("there", ["a.key", "a.pub"])
def test_keys_are_never_replaced(capsys: Capture, tmp_path: Path, there: str) -> None:
    (tmp_path / there).symlink_to("nowhere")
    error = assert_json_error(invoke(capsys, "keygen", "--out", "a", "--no-password", "--json"), 2)
    assert error["file"] == there and [p.name for p in tmp_path.iterdir()] == [there]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("--out",)),
        (("--out", "a"), ("password", "--password-file", "--no-password")),
        (("--out", "a", "--password-file", "missing"), ("missing",)),
        (("--out", "a", "--password-file", "empty"), ("empty", "--password-file", "holds no password", "first line")),
        (("--out", "a", "--password-file", "empty", "--no-password"), ("no password to read",)),
        (("--out", "nowhere/a", "--no-password"), ("nowhere/a.key", "No such file")),
    ],
)
def test_keys_that_cannot_be_made_are_told(
    capsys: Capture, tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (tmp_path / "empty").touch()
    assert_failed(invoke(capsys, "keygen", *words), 2, *parts)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


# deploy sign, deploy verify


def test_a_bundle_is_signed_and_verified(capsys: Capture, bundle: Path, key: SecretKey) -> None:
    signed = invoke(capsys, "sign", bundle, "--key", "ground.key", "--comment", "for flight 12", "--json")
    assert signed.code == 0 and signed.json["serial"] == 0 and signed.json["files"] == 5
    done = invoke(capsys, "verify", bundle, "--trust", "ground.pub", "--json")
    assert done.code == 0 and done.json["trusted"] and done.json["warnings"] == []
    told = done.json["signed"]
    assert told["key"] == signed.json["key"] and told["by"] == "ground.pub"
    assert [part.partition(":")[0] for part in told["comment"].split("\t")[:5]] == [
        "timestamp", "file", "hashed", "network", "serial",
    ]  # fmt: skip
    assert told["comment"].endswith("\tfor flight 12")
    assert set(done.json["files"]) == set(verified_bundle(bundle).manifest.files)
    people = invoke(capsys, "verify", bundle, "--trust", "ground.pub")
    assert f"signed by {told['key']}" in people.out and "for flight 12" in people.out and "serial 0" in people.out


@needs_minisign
def test_minisign_agrees(capsys: Capture, bundle: Path, key: SecretKey) -> None:
    assert invoke(capsys, "sign", bundle, "--key", "ground.key").code == 0
    assert minisign("-Vm", bundle / MANIFEST, "-p", "ground.pub").returncode == 0
    (bundle / MANIFEST_SIGNED).unlink()
    assert minisign("-Sm", bundle / MANIFEST, "-s", "ground.key", "-t", "by hand").returncode == 0
    assert invoke(capsys, "verify", bundle, "--trust", "ground.pub", "--json").json["signed"]["comment"] == "by hand"


def test_a_key_with_a_password_signs(capsys: Capture, bundle: Path, key: SecretKey, tmp_path: Path) -> None:
    (tmp_path / "locked.key").write_bytes(dump_secret(key, "word"))
    for text, code in (("word\n", 0), ("word\r\n", 0), ("sword", 2)):
        (tmp_path / "password").write_text(text)
        done = invoke(capsys, "sign", bundle, "--key", "locked.key", "--password-file", "password")
        assert done.code == code
    assert_failed(invoke(capsys, "sign", bundle, "--key", "locked.key"), 2, "nobody can be asked")
    assert_failed(invoke(capsys, "sign", bundle, "--key", "ground.pub"), 2, "ground.pub", "is no secret key")
    assert_failed(invoke(capsys, "sign", bundle, "--key", "missing"), 2, "missing", "No such file")


def test_without_a_keyring_you_are_told_that_nobody_asked(capsys: Capture, bundle: Path, key: SecretKey) -> None:
    done = invoke(capsys, "verify", bundle, "--json")
    assert done.code == 0 and done.json["signed"] is None and not done.json["trusted"]
    assert "no keyring" in done.json["warnings"][0]
    sign_bundle(bundle, key)
    done = invoke(capsys, "verify", bundle)
    assert done.code == 0 and "not verified: no keyring" in done.out and "no keyring" in done.err


def test_inspect_tells_who_signed_it(capsys: Capture, bundle: Path, key: SecretKey) -> None:
    assert "not signed" in invoke(capsys, "inspect", bundle).out
    sign_bundle(bundle, key, "told")
    done = invoke(capsys, "inspect", bundle)
    assert "not verified: no keyring" in done.out and "nobody asked who made this bundle" in done.err
    people = invoke(capsys, "inspect", bundle, "--trust", "ground.pub").out
    assert "signed by" in people and "serial:0, told)" in people
    done = invoke(capsys, "inspect", bundle, "--trust", "ground.pub", "--json")
    assert done.json["signed"]["by"] == "ground.pub" and done.json["unlisted"] == []


# Everything that opens a bundle


OPENERS = {
    "run": ("run", "bundle", "cube.npy", "--out", "out.npy"),
    "stream": ("stream", "bundle", "--source", "sim:", "--restored", "lines", "--duration", "1"),
    "check": ("check", "bundle", "--checkpoint", "damp-nano"),
    "evaluate": ("evaluate", "bundle", "--data", "cubes", "--out", "tables"),
    "bench": ("bench", "bundle"),
    "inspect": ("inspect", "bundle"),
    "inspect a cube": ("inspect", "cube.npy", "--bundle", "bundle"),
    "export-triton": ("export-triton", "bundle", "--out", "models"),
    "finalize": ("finalize", "bundle"),
    "finalize there": ("finalize", "bundle", "--remote", "nobody@nowhere.invalid"),
    "verify": ("verify", "bundle"),
    "verify an archive": ("verify", "bundle.damp"),
    "pack": ("pack", "bundle", "--out", "again.damp"),
    "unpack": ("unpack", "bundle.damp", "--out", "back"),
}


@pytest.mark.parametrize("how", ["flag", "environment", "computer"])
@pytest.mark.parametrize("name", OPENERS)
def test_whatever_opens_a_bundle_asks_who_signed_it(
    capsys: Capture, bundle: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    np.save("cube.npy", np.random.default_rng(0).random((16, 16, 3), np.float32))
    (tmp_path / "cubes").mkdir()
    shutil.copy("cube.npy", "cubes")
    invoke(capsys, "pack", bundle, "--out", "bundle.damp")
    before = sorted(p.name for p in tmp_path.iterdir())
    words = OPENERS[name]
    if how == "flag":
        words = (*words, "--trust", "ground.pub")
    elif how == "environment":
        monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "ground.pub"))
    else:
        trust.KEYRING.mkdir(parents=True)
        shutil.copy("ground.pub", trust.KEYRING)
        before = sorted([*before, "etc"])
    error = assert_json_error(invoke(capsys, *words, "--json"), 2)
    assert error["message"] == "is not signed" and error["file"].endswith(MANIFEST)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (trust.VARIABLE in os.environ) == (how == "environment")


@pytest.mark.parametrize("name", ["run", "inspect", "bench", "verify", "pack"])
def test_a_signed_bundle_is_opened(capsys: Capture, bundle: Path, key: SecretKey, name: str) -> None:
    np.save("cube.npy", np.random.default_rng(0).random((16, 16, 3), np.float32))
    sign_bundle(bundle, key)
    assert invoke(capsys, *OPENERS[name], "--trust", "ground.pub", "--json").code == 0


def test_a_graph_that_is_right_on_the_golden_frame_alone_is_not_opened(
    capsys: Capture, bundle: Path, key: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knows how a manifest is sealed can give it any graph, but not a signature."""
    np.save("cube.npy", np.random.default_rng(0).random((16, 16, 3), np.float32))
    sign_bundle(bundle, key)
    reseal(bundle, lambda content: content["network"].update(about="another graph"))
    monkeypatch.setattr("runtime.bundle.open_engine", lambda *words: pytest.fail("the graph was opened"))
    error = assert_json_error(invoke(capsys, *OPENERS["run"], "--trust", "ground.pub", "--json"), 2)
    assert "altered after it was signed" in error["message"] and error["file"] == "bundle/manifest.json"


@pytest.mark.parametrize(
    ("keyring_of", "parts"),
    [
        ("", ("names no keyring",)),
        ("missing", ("missing", "not there")),
        ("ground.key", ("ground.key", "holds a secret key", "move it away")),
        ("bundle", ("bundle/", "is")),
        (".", ("",)),
    ],
)
def test_a_keyring_that_is_none_is_told(
    capsys: Capture, bundle: Path, key: SecretKey, keyring_of: str, parts: tuple[str, ...]
) -> None:
    assert_failed(invoke(capsys, "verify", bundle, "--trust", keyring_of), 2, *parts)


def test_who_has_no_library_is_told_what_to_install(
    capsys: Capture, bundle: Path, key: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(bundle, key)
    for name in ("cryptography.exceptions", "cryptography"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    error = assert_json_error(invoke(capsys, "verify", bundle, "--trust", "ground.pub", "--json"), 3)
    assert "damp-deploy[signing]" in error["remedy"]
    assert invoke(capsys, "verify", bundle).code == 0


# deploy pack, deploy unpack


def test_a_bundle_travels_as_one_file(capsys: Capture, bundle: Path, key: SecretKey, tmp_path: Path) -> None:
    sign_bundle(bundle, key)
    packed = invoke(capsys, "pack", bundle, "--out", "b.damp", "--json")
    assert packed.code == 0 and packed.json["bytes"] == (tmp_path / "b.damp").stat().st_size
    assert invoke(capsys, "verify", "b.damp", "--trust", "ground.pub", "--json").json["trusted"]
    done = invoke(capsys, "unpack", "b.damp", "--out", "back", "--trust", "ground.pub", "--json")
    assert done.code == 0 and done.json["replaced_serial"] is None
    assert verified_bundle("back").manifest == verified_bundle(bundle).manifest
    for words in (("pack", bundle, "--out", "b.damp"), ("unpack", "b.damp", "--out", "back")):
        assert_failed(invoke(capsys, *words), 2, "exists already", "--replace")
        assert invoke(capsys, *words, "--replace").code == 0
    assert_failed(invoke(capsys, "pack", bundle, "--out", "back", "--replace"), 2, "is a folder")
    assert_failed(invoke(capsys, "unpack", "b.damp", "--out", "b.damp", "--replace"), 2, "b.damp")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").touch()
    assert_failed(invoke(capsys, "unpack", "b.damp", "--out", "photos", "--replace"), 2, "photos", "is not a bundle")


def test_an_archive_that_is_refused_is_named(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "b.damp").write_bytes(b"x" * 5000)
    for words in (("unpack", "b.damp", "--out", "back"), ("verify", "b.damp")):
        error = assert_json_error(invoke(capsys, *words, "--json"), 2)
        assert error["file"] == "b.damp"
    assert_failed(invoke(capsys, "verify", "missing.damp"), 2, "missing.damp", "No such file")


def test_an_older_bundle_in_the_place_of_a_newer_one_is_told(capsys: Capture, bundle: Path, tmp_path: Path) -> None:
    invoke(capsys, "pack", bundle, "--out", "old.damp")
    reseal(bundle, lambda content: content.update(serial=7))
    done = invoke(capsys, "unpack", "old.damp", "--out", "bundle", "--replace", "--json")
    assert done.code == 0 and done.json["replaced_serial"] == 7
    assert any("serial 7" in told for told in done.json["warnings"])


# deploy finalize


@pytest.fixture
def board(tmp_path: Path, key: SecretKey) -> Path:
    """A bundle whose engine is built on its target, signed by the ground."""
    folder = for_a_board(tmp_path / "board")
    sign_bundle(folder, key)
    return folder


def device(folder: Path) -> Device:
    """A board whose engine is the graph itself."""
    manifest = verified_bundle(folder, trust.NO_KEYRING).manifest
    graph = (folder / manifest.graphs["fp32"]).read_bytes()
    made = EngineMade(b"engine", b"[]", b"log", "10.3.0", 1.0, 10, False)
    return Device(
        lambda request: "10.3.0",
        lambda: "8.7",
        lambda *words: made,
        lambda name, program, spec, options: open_engine("onnxruntime", graph, spec),
        lambda: None,
    )


def test_what_a_target_makes_is_signed_by_it(
    board: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_keys(tmp_path, "device")
    monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "device.key"))
    ring = keyring(tmp_path / "ring", key, own)
    done = finalize(board, device=device(board), trust=ring)
    told = verified_bundle(board, ring)
    assert told.made_signed is not None and told.made_signed.key == done["signed"]
    assert told.signed is not None and told.signed.key != done["signed"]
    finalize(board, device=device(board), trust=ring, rebuild=True)
    assert verified_bundle(board, ring).made_signed


@pytest.mark.parametrize("how", ["nobody", "another key", "altered", "damaged"])
def test_an_engine_that_is_not_to_be_taken_is_built_again(
    board: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    own = write_keys(tmp_path, "device")
    ring, orin = keyring(tmp_path / "ring", key, own), device(board)
    # What an earlier key of the computer signed, or none.
    earlier = {"nobody": None, "another key": new_key()}.get(how, own)
    if earlier is not None:
        (tmp_path / "earlier.key").write_bytes(dump_secret(earlier, None))
        (tmp_path / "earlier.key").chmod(0o600)
        monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "earlier.key"))
    finalize(board, device=orin, trust=trust.NO_KEYRING)
    made, plan = board / MADE, next(board.glob("engine/*.plan"))
    if how == "altered":
        made.write_bytes(made.read_bytes().replace(b"log", b"lag"))
    if how == "damaged":
        plan.write_bytes(b"another")
    monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "device.key"))
    with pytest.raises(BundleError) as caught:
        finalize(board, device=orin, trust=ring)
    assert how in ("altered", "damaged") or "`deploy finalize --rebuild`" in caught.value.remedy
    # Stopped at any moment, the same command goes on.
    write = bundle_files.write_bytes
    for stop in range(10):

        def stopping(path: Path, data: bytes, left: list[int] = [stop]) -> None:  # noqa: B006
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(bundle_files, "write_bytes", stopping)
            with suppress(KeyboardInterrupt):
                finalize(board, device=orin, trust=ring, rebuild=True)
                break
    assert stop == 6, "three files of the engine, its record and two signatures"
    finalize(board, device=orin, trust=ring, rebuild=True)
    told = verified_bundle(board, ring)
    assert told.made_signed is not None and told.made_signed.key == key_name(own.id)


def test_what_the_ground_made_is_read_before_an_engine_is_built_again(
    board: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_keys(tmp_path, "device")
    monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "device.key"))
    orin = device(board)
    finalize(board, device=orin, trust=trust.NO_KEYRING)
    with pytest.raises(BundleError, match="not trusted here"):
        finalize(board, device=orin, trust=keyring(tmp_path / "ring", own), rebuild=True)
    (board / "graphs/fp32.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        finalize(board, device=orin, trust=keyring(tmp_path / "both", key, own), rebuild=True)


def test_without_a_key_of_its_own_a_target_that_has_a_keyring_builds_nothing(
    board: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = keyring(tmp_path / "ring", key)
    with pytest.raises(InputError, match="has no key to sign its engine with"):
        finalize(board, device=device(board), trust=ring)
    write_keys(tmp_path, "device")
    monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "device.key"))
    with pytest.raises(InputError, match="own key is not in the keyring"):
        finalize(board, device=device(board), trust=ring)
    (tmp_path / "device.key").chmod(0o644)
    with pytest.raises(InputError, match="others may read"):
        finalize(board, device=device(board), trust=ring)
    assert not verified_bundle(board, ring).made


def test_without_a_keyring_a_target_needs_no_key(board: Path) -> None:
    assert finalize(board, device=device(board))["signed"] is None
    assert verified_bundle(board).made


def test_what_is_built_and_finalised_at_once_cannot_be_signed_yet(capsys: Capture, key: SecretKey) -> None:
    trust.KEYRING.mkdir(parents=True)
    shutil.copy("ground.pub", trust.KEYRING)
    words = ("build", "--checkpoint", "damp-nano", "--target", "jetson-orin", "--remote", "nobody@nowhere.invalid")
    assert_failed(invoke(capsys, *words), 2, "--remote", "is not signed yet", "deploy sign")


def test_serial_boards_and_version_are_told_by_who_builds(
    capsys: Capture, tiny_checkpoint: Path, tmp_path: Path, key: SecretKey
) -> None:
    trust.KEYRING.mkdir(parents=True)
    shutil.copy("ground.pub", trust.KEYRING)
    (tmp_path / "deploy.yaml").write_text(
        'output:\n  serial: 3\n  compatible: [jetson-orin, "nvidia,p3768"]\n  minimum_runtime: "0.1"\n'
    )
    words = ("build", "--checkpoint", tiny_checkpoint, "--config", "deploy.yaml", "--size", "64x64", "--out", "built")
    assert invoke(capsys, *words).code == 0
    told = json.loads((tmp_path / "built" / MANIFEST).read_bytes())
    assert (told["serial"], told["compatible"], told["minimum_runtime"]) == (3, ["jetson-orin", "nvidia,p3768"], "0.1")
    assert invoke(capsys, *words, "--replace", "--serial", "4").code == 0
    assert json.loads((tmp_path / "built" / MANIFEST).read_bytes())["serial"] == 4
    assert_failed(invoke(capsys, *words, "--replace", "--serial", "-1"), 2, "--serial")


def test_an_engine_of_the_ground_is_signed_with_its_bundle(capsys: Capture, board: Path, key: SecretKey) -> None:
    give_engine(board)
    assert_failed(invoke(capsys, "verify", board, "--trust", "ground.pub"), 2, "made.json", "is not signed")
    assert invoke(capsys, "sign", board, "--key", "ground.key").code == 0
    done = invoke(capsys, "verify", board, "--trust", "ground.pub")
    assert done.code == 0 and done.out.count("signed by") == 2


# deploy doctor


def test_doctor_tells_what_this_computer_trusts(
    capsys: Capture, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(code: int = 0) -> tuple[dict[str, str], str, dict[str, object]]:
        done = invoke(capsys, "doctor", "--json")
        assert done.code == code, done.err
        found = {one["name"]: one for one in done.json.get("findings", [])}
        parts = ("keyring", "signatures", "device key")
        return {name: found[name]["outcome"] for name in parts if found}, done.err, done.json.get("trust", {})

    outcomes, said, facts = told()
    assert outcomes == {"keyring": "absent", "signatures": "ok", "device key": "absent"}
    assert "none: bundles need no signature" in said
    assert facts == {
        "keyring": None, "keys": 0, "signature_needed": False, "device_key": None, "cryptography": True
    }  # fmt: skip
    trust.KEYRING.mkdir(parents=True)
    shutil.copy("ground.pub", trust.KEYRING)
    own = write_keys(tmp_path, "device")
    monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "device.key"))
    outcomes, said, _ = told()
    assert outcomes["device key"] == "absent" and "not in the keyring" in said
    shutil.copy("device.pub", trust.KEYRING)
    outcomes, said, facts = told()
    assert set(outcomes.values()) == {"ok"}
    assert f"{trust.KEYRING}: 2 keys, one of which must have signed a bundle" in said and key_name(own.id) in said
    assert facts == {
        "keyring": str(trust.KEYRING), "keys": 2, "signature_needed": True, "device_key": key_name(own.id),
        "cryptography": True,
    }  # fmt: skip
    (tmp_path / "device.key").chmod(0o644)
    assert "others may read" in told(3)[1]
    (trust.KEYRING / "readme").touch()
    assert "readme: is no public key" in told(3)[1]


def test_doctor_tells_that_nothing_checks_signatures(
    capsys: Capture, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_keys(tmp_path, "device")
    monkeypatch.setenv(secret_key.VARIABLE, str(tmp_path / "device.key"))
    for name in ("cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography"):
        monkeypatch.setitem(sys.modules, name, None)
    done = invoke(capsys, "doctor", "--json")
    assert done.code == 0 and done.json["trust"]["cryptography"] is False
    assert done.err.count("damp-deploy[signing]") == 3
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "ground.pub"))
    assert_failed(invoke(capsys, "doctor"), 3, "signatures", "damp-deploy[signing]")
