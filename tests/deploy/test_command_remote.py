"""Finalising over ssh, against a real sshd: what comes back is verified like a stranger's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.bundle import read_manifest, verified_bundle
from runtime.engines.tensorrt_libraries import tensorrt_version
from tests.contracts.command import Done, invoke
from tests.contracts.device import CONFIG, TARGET
from tests.contracts.sshd import SSHD, running_sshd
from tests.deploy.test_command_engines import contents

ROOT = Path(__file__).parents[2]
DEVICE = f"env PYTHONPATH='{ROOT}' '{sys.executable}' -m tests.contracts.device"
Capture = pytest.CaptureFixture[str]

pytestmark = [
    pytest.mark.skipif(tensorrt_version("tensorrt-rtx") is None, reason="the extra `rtx` is not installed"),
    pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="OpenSSH is not installed"),
]


@pytest.fixture(scope="module")
def ssh_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as config:
        yield config


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without its engine. To be read."""
    from deploy.build import build
    from deploy.config import load_config, with_overrides

    folder = tmp_path_factory.mktemp("built")
    (folder / "deploy.yaml").write_text(CONFIG)
    flags = {"model.checkpoint": str(tiny_checkpoint), "target": TARGET, "input.frame": "64x64", "input.overlap": 16}
    build(with_overrides(load_config(folder / "deploy.yaml"), flags), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def finalize(capsys: Capture, bundle: Path, config: Path, host: str = "device", command: str = DEVICE) -> Done:
    options = ("--remote", host, "--remote-command", command, "--ssh-config", config, "--json")
    return invoke(capsys, "finalize", bundle, *options)


def test_the_engine_is_built_there_and_fetched_back(capsys: Capture, bundle: Path, ssh_config: Path) -> None:
    before = contents(bundle)
    done = finalize(capsys, bundle, ssh_config)
    assert done.code == 0 and done.json["remote"] == "device" and 0 < done.json["golden_difference"] < 0.05
    assert "device: builder    tensorrt-rtx" in done.err
    manifest, _ = verified_bundle(bundle)
    assert manifest.engine is not None and manifest.deferred is None
    after = contents(bundle)
    assert {n: d for n, d in after.items() if n in before and n != "manifest.json"} == {
        n: d for n, d in before.items() if n != "manifest.json"
    }
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    assert not list(Path("/tmp").glob("damp-deploy-*/bundle"))


def test_build_does_all_of_it(capsys: Capture, tiny_checkpoint: Path, tmp_path: Path, ssh_config: Path) -> None:
    (tmp_path / "deploy.yaml").write_text(CONFIG + f"target: {TARGET}\n")
    options = ("--size", "64x64", "--overlap", "16", "--config", tmp_path / "deploy.yaml", "--out", tmp_path / "b")
    there = ("--remote", "device", "--remote-command", DEVICE, "--ssh-config", ssh_config)
    done = invoke(capsys, "build", "--checkpoint", tiny_checkpoint, *options, *there, "--json")
    assert done.code == 0 and done.json["deferred"] is None and (tmp_path / "b" / done.json["engine"]).is_file()


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("spoilt", 1, "does not restore the golden frame"),
        ("tampered", 2, "is not the one that was sent"),
        ("link", 2, "no plain file"),
    ],
)
def test_what_goes_wrong_there_changes_nothing_here(
    capsys: Capture, bundle: Path, ssh_config: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: int, says: str
) -> None:
    before = contents(bundle)
    monkeypatch.setenv("DEVICE_FAULT", fault)
    done = finalize(capsys, bundle, ssh_config)
    assert done.code == code and says in done.json["error"]["message"]
    assert contents(bundle) == before and [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    assert read_manifest(bundle).deferred


def test_unreachable_and_unknown_hosts_are_told_in_one_line(capsys: Capture, bundle: Path, ssh_config: Path) -> None:
    unknown = finalize(capsys, bundle, ssh_config, host="stranger")
    assert unknown.code == 3 and "cannot be reached" in unknown.json["error"]["message"]
    assert "host key" in unknown.json["error"]["remedy"]
    absent = finalize(capsys, bundle, ssh_config, command="no-such-program")
    assert absent.code == 3 and "no-such-program" in absent.json["error"]["message"]
    for host in ("-oProxyCommand=touch /tmp/x", "", "a b", "a;b"):
        refused = finalize(capsys, bundle, ssh_config, host=host)
        assert refused.code == 2 and refused.json["error"]["key"] == "--remote"
