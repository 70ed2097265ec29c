"""What subcommands share: options of the network, and the remedy for what is not installed."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.answers import missing_package
from deploy.commands.options import network_options
from export.networks import ARCHITECTURES, save_checkpoint
from runtime.bundle_files import read_manifest
from runtime.errors import InputError
from tests.contracts.command import assert_failed, assert_json_error, invoke
from tests.contracts.stranger import STRANGER, stranger


@pytest.mark.parametrize(
    ("module", "needs", "extra", "other"),
    [
        ("export.tensorrt.build", "onnx", "damp-deploy[tensorrt]", "export"),
        ("export.tensorrt.lint", "onnx", "[rtx]", "export"),
        ("export.onnx", "onnx", "damp-deploy[export]", "tensorrt"),
        ("torch", "torch", "damp-deploy[export]", "tensorrt"),
    ],
)
def test_the_remedy_brings_no_more_than_is_needed(
    monkeypatch: pytest.MonkeyPatch, module: str, needs: str, extra: str, other: str
) -> None:
    for name in [name for name in sys.modules if name == module or name.startswith("export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, needs, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module(module)
    missing = missing_package(caught.value)
    assert missing is not None and missing.exit_code == 3 and f"{needs} is not installed" in missing.one_line()
    assert extra in str(missing.remedy) and other not in str(missing.remedy)


def test_a_package_that_nobody_knows_is_a_bug_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module("runtime.nothing_of_this_name")
    assert missing_package(caught.value) is None


# Options of the network


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ((), {}),
        (("top_k=1",), {"top_k": 1}),
        (
            ("gain=0.5", "name=a b", "fast=true", "slow=False"),
            {"gain": 0.5, "name": "a b", "fast": True, "slow": False},
        ),
        (("rate=1e-3", "yes=yes", "text='1'", "sum=a=b"), {"rate": 1e-3, "yes": "yes", "text": "1", "sum": "a=b"}),
        (("top_k=1", "top_k=1"), {"top_k": 1}),
    ],
)
def test_values_are_scalars_as_in_a_configuration(texts: tuple[str, ...], told: dict[str, Any]) -> None:
    found = network_options(texts)
    assert found == told and [type(v) for v in found.values()] == [type(v) for v in told.values()]
    assert network_options(texts, 1) == {"top_k": 1, **told}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "=",
            "=1",
            "top_k",
            "top_k=",
            "top_k= ",
            "top_k=~",
            "top_k=null",
            "top_k=[1]",
            "top_k={a: 1}",
            "top_k=.nan",
        ),
        *("top_k=.inf", "top_k=a: b", "top_k=1\nother: 2", "top_k=&a 1", "top_k=!!int 1", "top k=1", "-k=1", "top_k='"),
        *("top_k=- 1", "top_k=\x00", "ä=1", "k" * 65 + "=1"),
    ],
)
def test_what_is_no_option_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"^--option: not an option of a network") as caught:
        network_options((text,))
    assert caught.value.value == text and caught.value.exit_code == 2 and str(caught.value).isprintable()


def test_two_values_of_one_option_are_refused() -> None:
    for texts, top_k, parts in (
        (("top_k=2",), 1, ("top_k is given two values with --top-k", "1 and 2")),
        (("gain=1", "gain=2"), 1, ("gain is given two values", "1 and 2")),
    ):
        with pytest.raises(InputError, match=r"^--option: ") as caught:
            network_options(texts, top_k)
        assert all(part in str(caught.value) for part in parts)


COMMANDS = ("build", "check", "evaluate", "sensitivity")


@pytest.fixture
def unmixer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a network whose one option is `gain`, in the present folder."""
    monkeypatch.setitem(ARCHITECTURES, STRANGER.id, STRANGER)
    monkeypatch.chdir(tmp_path)
    return save_checkpoint(stranger(), Path("unmixer.safetensors"), scale=1000, about="seeded weights")


def test_every_command_that_loads_a_network_takes_them(capsys: pytest.CaptureFixture[str], unmixer: Path) -> None:
    Path("cubes").mkdir()
    np.save("cubes/cube.npy", np.random.default_rng(0).random((16, 16, 5), np.float32))
    recipe = ("--checkpoint", unmixer, "--size", "16x16", "--overlap", 0, "--out", "bundle")
    Path("deploy.yaml").write_text("model: {options: {gain: 3}}\n")
    done = invoke(capsys, "build", *recipe, "--config", "deploy.yaml")
    assert done.code == 0 and read_manifest("bundle").network.options == {"gain": 3.0}, done.err
    done = invoke(capsys, "build", *recipe, "--config", "deploy.yaml", "--option", "gain=0.5", "--replace")
    assert done.code == 0 and read_manifest("bundle").network.options == {"gain": 0.5}, done.err
    # The bundle's own are the checkpoint's, unless others are asked for.
    done = invoke(capsys, "check", "bundle", "--checkpoint", unmixer, "--json")
    assert done.code == 0, done.err
    done = invoke(capsys, "check", "bundle", "--checkpoint", unmixer, "--option", "gain=2")
    assert_failed(done, 2, "built from another network", "gain", "it has 0.5, the checkpoint 2.0")
    evaluated = ("evaluate", unmixer, "--data", "cubes", "--tasks", "still", "--out", "out", "--json")
    frame = ("--size", "16x16")
    plain, other = (invoke(capsys, *evaluated, *frame, *asked).json for asked in ((), ("--option", "gain=0.5")))
    assert "--size 16x16 --option gain=0.5 --seed 0" in Path("out/evaluation.md").read_text()
    own = invoke(capsys, "evaluate", "bundle", *evaluated[2:]).json
    psnr = [told["tasks"]["still"]["model"]["psnr"] for told in (plain, other, own)]
    assert psnr[0] != psnr[1] == pytest.approx(psnr[2], abs=1e-3)


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_and_malformed_ones_are_refused(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, command: str, unmixer: Path
) -> None:
    given = {
        "build": ("--checkpoint", unmixer, "--out", "bundle"),
        "check": (tiny_bundle, "--checkpoint", unmixer),
        "evaluate": (unmixer, "--data", ".", "--out", "out"),
        "sensitivity": ("--checkpoint", unmixer, "--calibration", "simulated"),
    }[command]
    np.save("cube.npy", np.zeros((64, 64, 5), np.float32))
    error = assert_json_error(invoke(capsys, command, *given, "--option", "nothing=1", "--json"), 2)
    assert error["kind"] == "CheckpointError" and error["key"] in ("nothing", "top_k"), error
    assert "a unmixer network has no such option" in error["message"] and error["remedy"] == "it has gain"
    assert_failed(invoke(capsys, command, *given, "--option", "gain"), 2, "--option", "'gain'", "KEY=VALUE")
    assert_failed(invoke(capsys, command, *given, "--top-k", 1, "--option", "top_k=2"), 2, "two values with --top-k")
    assert_failed(invoke(capsys, command, *given, "--option"), 2, "--option", "requires an argument")
    assert not Path("bundle").exists()
