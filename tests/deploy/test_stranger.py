"""A network that is nothing like DAMP goes the whole way: built, checked, run, timed, streamed, served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from export.networks import ARCHITECTURES, save_checkpoint
from runtime import load_bundle
from runtime.bundle_files import read_manifest
from runtime.errors import InputError
from runtime.files import read_cube, write_cube
from runtime.prompts import Condition
from runtime.signature import Signature
from runtime.simulation.simulator import simulate_scene
from tests.contracts.command import assert_failed, invoke
from tests.contracts.stranger import CODE, DISPERSER, MIX, STRANGER, disperser, stranger

SIDE = 64
CENTRES = (450.0, 520.0, 590.0, 660.0, 730.0)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, STRANGER.id, STRANGER)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stranger") / "unmixer.safetensors"
    return save_checkpoint(stranger(), path, scale=1000, wavelengths=CENTRES, about="seeded weights")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    out = checkpoint.with_name("bundle")
    build(with_overrides(Config(), {"model.checkpoint": str(checkpoint), "input.frame": f"{SIDE}x{SIDE}"}), out)
    return out


def shots(lines: int = SIDE, samples: int = SIDE) -> np.ndarray:
    """What the instrument measures of a simulated scene, [3, lines, samples] of 1.0 = 1000."""
    truth = simulate_scene(3, 5, lines, samples, CENTRES).truth
    return np.rint(1000 * np.einsum("mb,bls->mls", MIX, truth)).astype(np.uint16)


def test_its_bundle_says_what_it_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = read_manifest(bundle)
    assert (m.signature.measured.bands, m.signature.restored.bands, m.signature.tiling) == (3, 5, "fixed")
    assert m.signature.metrics is None and m.signature.routing is None and m.overlap == 0
    assert m.network.options == {"gain": 1.0} and m.wavelengths == list(CENTRES)
    assert set(m.golden.arrays) == {"shot", "code", "restored"}
    assert m.golden.arrays["code"] == "prompts/code.npy" in m.files and "golden/code.npy" not in m.files
    said = invoke(capsys, "inspect", bundle, "--json").json["manifest"]
    assert said["signature"]["prompts"][0]["kind"] == "constant"
    told = invoke(capsys, "inspect", bundle)
    assert "5 bands x 64 lines x 64 samples" in told.err + told.out and "experts       none" in told.err + told.out


def test_it_restores_and_takes_another_constant(bundle: Path) -> None:
    shot = shots()
    with load_bundle(bundle) as loaded:
        assert loaded.self_test() < 1e-3
        restored, other = loaded.restore(shot), loaded.restore(shot, {"code": 0 * CODE})
    truth = simulate_scene(3, 5, SIDE, SIDE, CENTRES).truth
    assert restored.cube.shape == (5, SIDE, SIDE) and restored.cube.dtype == np.float32
    assert restored.frames == 1 and restored.metrics_by == "none" and restored.side == {}
    np.testing.assert_array_equal(restored.prompts["code"], CODE[0])
    assert np.abs(restored.cube - truth).mean() < 0.2
    assert not np.array_equal(other.cube, restored.cube)


def test_it_runs_on_a_file_of_its_size_alone(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cube(tmp_path / "shot.hdr", shots())
    done = invoke(capsys, "run", bundle, tmp_path / "shot.hdr", "--out", tmp_path / "out.hdr", "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"] == {} and done.json["experts"] == [] and done.json["frames"] == 1
    found = read_cube(tmp_path / "out.hdr")
    assert found.cube.shape == (5, SIDE, SIDE) and found.cube.dtype == np.float32
    assert found.wavelengths == CENTRES
    write_cube(tmp_path / "large.hdr", shots(2 * SIDE))
    done = invoke(capsys, "run", bundle, tmp_path / "large.hdr", "--out", tmp_path / "no.hdr")
    assert_failed(done, 2, "one place only", "64 lines x 64 samples")


def test_it_is_checked_by_its_own_instrument(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    done = invoke(capsys, "check", bundle, "--checkpoint", checkpoint, "--report", page, "--json")
    assert done.code == 0, done.err
    assert set(done.json["tasks"]) == {"still", "dim"}
    assert all(task["input"] is None and task["engine"]["psnr"] > 10 for task in done.json["tasks"].values())
    assert len(done.json["gates"]) == 5 and "routing_agreement" not in done.json["gates"]
    assert {"fp32", "fp16"} <= set(done.json["variants"])
    told = page.read_text() + done.err
    assert "same experts" not in told.lower() and "Experts that the network chose" not in told
    (tmp_path / "deploy.yaml").write_text("check: {degradations: [blur]}")
    done = invoke(capsys, "check", bundle, "--checkpoint", checkpoint, "--config", tmp_path / "deploy.yaml")
    assert_failed(done, 2, "blur", "still, dim")


def test_it_is_evaluated_on_clean_cubes(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cubes").mkdir()
    truth = simulate_scene(5, 5, 80, 70, CENTRES).truth
    write_cube(tmp_path / "cubes" / "one.hdr", truth.astype(np.float32))
    given = ["--data", tmp_path / "cubes", "--out", tmp_path / "out", "--json"]
    assert_failed(invoke(capsys, "evaluate", checkpoint, *given), 2, "one.hdr", "one frame", "256 lines x 256 samples")
    assert_failed(invoke(capsys, "evaluate", bundle, *given, "--size", "64x64"), 2, "--size", "leave it out")
    for model in ((bundle,), (checkpoint, "--size", f"{SIDE}x{SIDE}")):
        done = invoke(capsys, "evaluate", *model, *given)
        assert done.code == 0, done.err
        assert "the middle 64x64 of every scene" in done.err
        assert "the middle 64x64 of every scene" in (tmp_path / "out" / "evaluation.md").read_text()
        for figures in done.json["tasks"].values():
            assert figures["input"] is None and figures["baseline"] is None and figures["model"]["psnr"] > 10


def test_it_is_timed(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "bench", bundle, "--frames", 2, "--warmup", 1, "--checkpoint", checkpoint, "--json")
    assert done.code == 0, done.err
    assert done.json["metrics_by"] == "none" and done.json["pytorch"]["ratio"] > 0


def test_it_streams_whole_frames_and_drops_what_is_none(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = 2 * SIDE + 10
    write_cube(tmp_path / "shots.bil.hdr", np.concatenate([shots(), shots(), shots(10)], axis=1))
    source = f"envi:{tmp_path / 'shots.bil.hdr'}"
    done = invoke(capsys, "stream", bundle, "--source", source, "--restored", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    count = done.json["lines"]
    assert count["in"] == lines and count["restored"] == 2 * SIDE and count["dropped"] == 10 and count["passed"] == 0
    with load_bundle(bundle) as loaded:
        expected = loaded.restore(shots()).cube
    found = read_cube(tmp_path / "out" / "restored.hdr").cube
    assert found.shape == (5, 2 * SIDE, SIDE)
    np.testing.assert_allclose(found, np.concatenate([expected, expected], axis=1), atol=1e-6)


def test_it_is_served_with_its_constant(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "export-triton", bundle, "--out", tmp_path / "models", "--json")
    assert done.code == 0, done.err
    assert done.json["models"] == ["unmixer", "unmixer_metrics", "unmixer_engine"]
    np.testing.assert_array_equal(np.load(tmp_path / "models" / "unmixer_metrics" / "1" / "code.npy"), CODE)
    config = (tmp_path / "models" / "unmixer_engine" / "config.pbtxt").read_text()
    assert 'name: "shot"' in config and 'name: "code"' in config and "routing" not in config


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_is_built_in_lower_precisions(
    precision: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", checkpoint, "--size", f"{SIDE}x{SIDE}", "--out", tmp_path / "bundle"]
    if precision == "fp16":
        options += ["--target", "cuda"]
    else:
        options += ["--precision", "int8", "--calibration", "simulated"]
    done = invoke(capsys, "build", *options, "--json")
    assert done.code == 0, done.err
    assert done.json["precision"]["chosen"] == precision
    with load_bundle(tmp_path / "bundle", engine="onnxruntime") as loaded:
        assert loaded.restore(shots()).cube.shape == (5, SIDE, SIDE)
    done = invoke(capsys, "check", tmp_path / "bundle", "--checkpoint", checkpoint, "--engine", "onnxruntime", "--json")
    assert done.code == 0, done.err


@pytest.mark.parametrize("of", ["golden/shot.npy", "graphs/own.onnx", "engine/own.npy", "report/own.npy", "made.json"])
def test_a_constant_has_a_path_of_its_own(
    of: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def signature(net: nn.Module, lines: int, samples: int) -> Signature:
        said = STRANGER.signature(net, lines, samples)
        return replace(said, prompts=(replace(said.prompts[0], of=of),))

    monkeypatch.setitem(ARCHITECTURES, STRANGER.id, replace(STRANGER, signature=signature))
    options = ["--checkpoint", checkpoint, "--size", f"{SIDE}x{SIDE}", "--out", tmp_path / "bundle"]
    assert_failed(invoke(capsys, "build", *options), 2, "code", of, "prompts/code.npy")
    assert not (tmp_path / "bundle").exists()


def test_small_frames_of_one_place_share_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "build", "--checkpoint", checkpoint, "--size", "32x32", "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    with load_bundle(tmp_path / "bundle") as loaded:
        assert loaded.manifest.overlap == 0


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_one_that_takes_one_frame_goes_the_whole_way(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, DISPERSER.id, DISPERSER)
    monkeypatch.delitem(ARCHITECTURES, STRANGER.id)
    file = save_checkpoint(disperser(), tmp_path / "disperser.safetensors", scale=1000, wavelengths=CENTRES)
    options = ["--checkpoint", file, "--out", tmp_path / "bundle", "--precision", precision]
    options += ["--calibration", "simulated"] if precision == "int8" else []
    assert_failed(invoke(capsys, "build", *options, "--size", "64x64"), 2, "its one frame is 32x40")
    done = invoke(capsys, "build", *options, "--json")
    assert done.code == 0, done.err
    with load_bundle(tmp_path / "bundle") as loaded:
        assert loaded.restore(shots(32, 40)).cube.shape == (5, 32, 32)
    done = invoke(capsys, "check", tmp_path / "bundle", "--checkpoint", file, "--json")
    assert done.code == 0, done.err
    (tmp_path / "cubes").mkdir()
    write_cube(tmp_path / "cubes" / "one.hdr", simulate_scene(5, 5, 48, 44, CENTRES).truth)
    given = ["--data", tmp_path / "cubes", "--out", tmp_path / "out"]
    for model in (tmp_path / "bundle", file):
        done = invoke(capsys, "evaluate", model, *given)
        assert done.code == 0 and "the middle 32x32 of every scene" in done.out


def test_overlap_and_a_graph_of_metrics_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", checkpoint, "--size", f"{SIDE}x{SIDE}", "--out", tmp_path / "bundle"]
    assert_failed(invoke(capsys, "build", *options, "--overlap", 8), 2, "one place only")
    assert_failed(invoke(capsys, "build", *options, "--metrics", "graph"), 2, "takes no metrics")


TOLD = {
    "still_air": Condition({"code": CODE}, ("still",), {"sentence": "nothing moves", "order": [2, 0, 1]}),
    "dusk": Condition({"code": -CODE}, ("dim",)),
}
"""What a network is told of two purposes."""


@pytest.fixture(scope="module")
def of_two(checkpoint: Path, bundle: Path) -> Iterator[Path]:
    """A bundle with both; that with none is built before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, STRANGER.id, replace(STRANGER, conditions=lambda net: TOLD))
        done = build_of(checkpoint, "two")
        yield done


def build_of(checkpoint: Path, name: str) -> Path:
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    out = checkpoint.with_name(name)
    build(with_overrides(Config(), {"model.checkpoint": str(checkpoint), "input.frame": f"{SIDE}x{SIDE}"}), out)
    return out


def test_one_bundle_holds_several_prompts_and_guesses_none(
    of_two: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    m = read_manifest(of_two)
    assert {name: prompt.tasks for name, prompt in m.prompts.items()} == {"still_air": ["still"], "dusk": ["dim"]}
    assert m.prompts["still_air"].about == {"sentence": "nothing moves", "order": [2, 0, 1]}
    # What they share is there once: they differ in a constant, and in what the golden frame becomes.
    assert set(m.files) - set(read_manifest(bundle).files) == {"prompts/dusk/code.npy", "golden/dusk/restored.npy"}
    shot = shots()
    with load_bundle(of_two, prompt="dusk") as loaded:
        assert loaded.self_test() < 1e-3
        dusk, still = loaded.restore(shot), loaded.restore(shot, prompt="still_air")
        given = loaded.restore(shot, {"code": -CODE})
        with pytest.raises(InputError, match=r"no such prompt.*choose from"):
            loaded.restore(shot, prompt="dawn")
    np.testing.assert_array_equal(dusk.cube, given.cube)
    with load_bundle(bundle) as loaded:
        np.testing.assert_array_equal(still.cube, loaded.restore(shot).cube)
        with pytest.raises(InputError, match="leave it out"):
            loaded.restore(shot, prompt="dusk")
    write_cube(tmp_path / "shot.hdr", shot)
    run = ("run", of_two, tmp_path / "shot.hdr", "--out", tmp_path / "out.hdr")
    assert_failed(invoke(capsys, *run), 2, "prompts for several purposes", "dusk, still_air")
    assert_failed(invoke(capsys, *run, "--prompt", "dawn"), 2, "no such prompt", "dusk, still_air")
    assert_failed(invoke(capsys, *run[:1], bundle, *run[2:], "--prompt", "dusk"), 2, "no such prompt", "leave it out")
    done = invoke(capsys, *run, "--prompt", "dusk", "--json")
    assert done.code == 0 and done.json["prompt"] == "dusk" and "prompt      dusk" in done.err
    np.testing.assert_array_equal(read_cube(tmp_path / "out.hdr").cube, dusk.cube)
    told = invoke(capsys, "inspect", of_two)
    assert "still_air, sentence nothing moves" in told.err + told.out and "dusk" in told.err + told.out
    assert_failed(invoke(capsys, "export-triton", of_two, "--out", tmp_path / "models"), 2, "dusk, still_air")
    assert invoke(capsys, "export-triton", of_two, "--out", tmp_path / "models", "--prompt", "dusk").code == 0
    (stored,) = (tmp_path / "models").glob("*/1/code.npy")
    np.testing.assert_array_equal(np.load(stored), -CODE)


def test_each_task_is_measured_with_its_own_prompt(
    of_two: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "check", of_two, "--checkpoint", checkpoint, "--json")
    assert done.code == 0, done.err
    assert all(abs(t["engine"]["psnr"] - t["pytorch"]["psnr"]) < 0.01 for t in done.json["tasks"].values())
    (tmp_path / "cubes").mkdir()
    write_cube(tmp_path / "cubes" / "one.hdr", simulate_scene(5, 5, SIDE, SIDE, CENTRES).truth)
    given = ("evaluate", of_two, "--data", tmp_path / "cubes", "--out", tmp_path / "out", "--json")
    both = invoke(capsys, *given).json["tasks"]
    with pytest.MonkeyPatch.context() as patch:
        swapped = {
            "still_air": replace(TOLD["still_air"], tasks=("dim",)),
            "dusk": replace(TOLD["dusk"], tasks=("still",)),
        }
        patch.setitem(ARCHITECTURES, STRANGER.id, replace(STRANGER, conditions=lambda net: swapped))
        turned = build_of(checkpoint, "turned")
    other = invoke(capsys, *given[:1], turned, *given[2:4], "--out", tmp_path / "turned", "--json").json["tasks"]
    assert set(both) == set(other) == {"still", "dim"}
    assert both["still"]["model"]["psnr"] != other["still"]["model"]["psnr"]


def test_a_streams_prompt_is_said(of_two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cube(tmp_path / "shot.bil", shots())
    stream = ("stream", of_two, "--source", f"envi:{tmp_path / 'shot.bil'}", "--scale", 1000)
    assert_failed(invoke(capsys, *stream, "--restored", tmp_path / "no"), 2, "say which")
    found = {}
    for name in TOLD:
        done = invoke(capsys, *stream, "--restored", tmp_path / name, "--prompt", name, "--json")
        assert done.code == 0, done.err
        found[name] = read_cube(tmp_path / name / "restored.hdr").cube
    assert not np.array_equal(found["dusk"], found["still_air"])
