"""Signatures of the ground, checked where it flies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.bundle import load_bundle
from runtime.bundle_files import verified_bundle
from runtime.errors import DeployError
from runtime.manifest import MANIFEST
from runtime.trust import read_keyring
from tests.conftest import FLIGHT_BUNDLES
from tests.contracts.command import assert_failed, invoke

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def signed(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle that the ground signed, and its public key."""
    from tests.flight_bundles import sign_copy

    return sign_copy(tiny_bundle, FLIGHT_BUNDLES or tmp_path_factory.mktemp("signed"))


def test_a_signature_of_the_ground_is_known(signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, public = signed
    done = invoke(capsys, "verify", bundle, "--trust", public, "--json")
    assert done.code == 0, done.err
    assert done.json["trusted"] is True
    with load_bundle(bundle, trust=read_keyring(public)) as opened:
        assert opened.self_test() <= opened.choice.tolerance


def test_what_nobody_signed_is_refused(
    signed: tuple[Path, Path], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_failed(invoke(capsys, "verify", tiny_bundle, "--trust", signed[1]), 2, "sign")


def test_one_altered_number_breaks_the_signature(signed: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(signed[0], tmp_path / "altered"))
    manifest = copy / MANIFEST
    serial = verified_bundle(copy).manifest.serial
    altered = manifest.read_bytes().replace(str(serial).encode(), str(serial + 1).encode())
    manifest.chmod(0o644)
    manifest.write_bytes(altered)
    with pytest.raises(DeployError, match="sign"):
        load_bundle(copy, trust=read_keyring(signed[1]))
