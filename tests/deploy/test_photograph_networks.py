"""DFPIR and DPMambaIR go the whole way with seeded weights: built, inspected, checked, run on photographs, streamed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from export.networks import load_checkpoint, network_of, save_checkpoint
from runtime import load_bundle
from runtime.bundle_files import array_bytes, read_manifest
from runtime.errors import BundleError, GateError
from runtime.files import read_cube, write_cube
from runtime.simulation.simulator import simulate_scene
from tests.contracts.bundles import swap
from tests.contracts.command import assert_failed, invoke
from tests.export import dfpir, dpmambair

Capsys = pytest.CaptureFixture[str]
SIDE = 32
PROMPTS = ("derain", "dehaze")


def built(folder: Path, checkpoint: Path, options: dict[str, str] | None = None) -> Path:
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    flags: dict[str, object] = {
        "model.checkpoint": str(checkpoint),
        "input.frame": f"{SIDE}x{SIDE}",
        "input.overlap": 8,
    }
    flags |= {"model.options": options} if options else {}
    build(with_overrides(Config(), flags), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A DFPIR with two prompts: its checkpoint and its bundle."""
    folder = tmp_path_factory.mktemp("dfpir")
    net = dfpir.network(dfpir.SMALL, PROMPTS)
    for number, name in enumerate(PROMPTS):
        net.prompts[name].values[:] = np.random.default_rng(number).standard_normal(dfpir.SMALL.text)
    path = save_checkpoint(network_of(net), folder / "dfpir.safetensors")
    return path, built(folder, path)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A DPMambaIR: its checkpoint and its bundle."""
    folder = tmp_path_factory.mktemp("dpmambair")
    path = save_checkpoint(network_of(dpmambair.dpmambair(dpmambair.TINY)), folder / "dpmambair.safetensors")
    return path, built(folder, path)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """3 x 50 x 70, 8 bits."""
    scene = simulate_scene(2, 3, 50, 70).truth
    picture = np.rint(255 * np.clip(scene / scene.max(), 0, 1)).astype(np.uint8)
    Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_dfpir_restores_a_photograph_by_the_prompt_that_is_said(
    told: tuple[Path, Path], photograph: Path, tmp_path: Path, capsys: Capsys
) -> None:
    checkpoint, bundle = told
    net, made = load_checkpoint(checkpoint), {}
    for name in PROMPTS:
        out = tmp_path / f"{name}.png"
        done = invoke(capsys, "run", bundle, photograph, "--out", out, "--prompt", name, "--json")
        assert done.code == 0 and done.json["prompt"] == name, done.err
        made[name] = read_cube(out).cube
        assert made[name].shape == (3, 50, 70) and made[name].dtype == np.uint8
        about = read_manifest(bundle).prompts[name]
        assert (
            about.tasks
            and len(about.about["sha256"]) == 64
            and about.about["gaps"].keys() == about.about["orders"].keys()
        )
    assert not np.array_equal(*made.values())
    assert_failed(invoke(capsys, "run", bundle, photograph, "--out", tmp_path / "no.png"), 2, "dehaze, derain")
    # A frame by itself, in PyTorch.
    frame = np.random.default_rng(0).random((3, SIDE, SIDE), np.float32)
    with load_bundle(bundle, prompt="dehaze") as loaded, torch.inference_mode():
        found = loaded.restore(frame).cube
        code = torch.from_numpy(net.conditions["dehaze"].constants["perturbation"])
        expected = net(torch.from_numpy(frame)[None], code)[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


def test_a_bundle_is_checked_where_its_codes_are_not(tmp_path: Path, capsys: Capsys) -> None:
    torch.save(dfpir.network(dfpir.SMALL).state_dict(), tmp_path / "dfpir.pth")
    np.save(tmp_path / "derain.npy", dfpir.code("derain"))
    code = {"prompt": "derain", "text_code": str(tmp_path / "derain.npy")}
    bundle = built(tmp_path, tmp_path / "dfpir.pth", code)
    (tmp_path / "derain.npy").unlink()
    assert read_manifest(bundle).network.options == {} and set(read_manifest(bundle).prompts) == {"derain"}
    (tmp_path / "deploy.yaml").write_text("check: {cube: 40x48}")
    flags = ("--checkpoint", tmp_path / "dfpir.pth", "--config", tmp_path / "deploy.yaml", "--json")
    done = invoke(capsys, "check", bundle, *flags)
    assert done.code == 0 and list(done.json["tasks"]) == ["rain"], done.err


def test_what_one_prompt_restored_is_not_gone_on_with_by_another(
    told: tuple[Path, Path], photograph: Path, tmp_path: Path, capsys: Capsys
) -> None:
    folder, out, lines = photograph.parent / "photos", tmp_path / "out", tmp_path / "lines.bil"
    folder.mkdir()
    shutil.copy(photograph, folder)
    run = ("run", told[1], folder, "--out", out, "--prompt")
    assert invoke(capsys, *run, "derain").code == 0
    assert_failed(
        invoke(capsys, *run, "dehaze"), 2, str(out), "another bundle, prompt or option", "prompt derain", "--replace"
    )
    assert "skipped     1" in invoke(capsys, *run, "derain").out
    assert invoke(capsys, *run, "dehaze", "--replace").code == 0
    assert_failed(invoke(capsys, *run, "derain"), 2, "prompt dehaze")
    write_cube(lines, np.random.default_rng(0).random((3, SIDE, SIDE)).astype(np.float32))
    stream = ("stream", told[1], "--source", f"envi:{lines}", "--restored", tmp_path / "restored", "--prompt")
    first = invoke(capsys, *stream, "derain")
    assert first.code == 0 and "prompt      derain" in first.out
    assert "with the prompt derain" in next((tmp_path / "restored").glob("*.hdr")).read_text()
    assert_failed(invoke(capsys, *stream, "dehaze"), 2, "prompt dehaze")


def test_a_dfpirs_graph_neither_sorts_nor_gathers(told: tuple[Path, Path]) -> None:
    graph = onnx.load(told[1] / "graphs/fp32.onnx").graph
    operators = {node.op_type for node in graph.node}
    assert not operators & {"Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Sort"}
    assert sum(node.op_type == "TopK" for node in graph.node) == 4


def test_a_comparison_tells_how_near_scores_were(told: tuple[Path, Path], tmp_path: Path, capsys: Capsys) -> None:
    checkpoint, bundle = told
    (tmp_path / "deploy.yaml").write_text("check: {cube: 40x48}")
    flags = ("--checkpoint", checkpoint, "--config", tmp_path / "deploy.yaml", "--variants", "fp32", "--json")
    done = invoke(capsys, "check", bundle, *flags)
    assert done.code == 0, done.err
    assert set(done.json["gaps"]) == set(done.json["tasks"]) == {"rain", "haze"}
    assert all(0 <= gap < 1 for gap in done.json["gaps"].values()) and "gaps  " in done.err


def test_a_mask_is_chosen_in_float32_whatever_the_precision(told: tuple[Path, Path]) -> None:
    from calibration.typed import nodes_in_half
    from deploy.checking.half import exact_nodes

    checkpoint, bundle = told
    data = (bundle / "graphs/fp32.onnx").read_bytes()
    half = nodes_in_half(data, exact_nodes(data, load_checkpoint(checkpoint)))
    kinds = {node.op_type for node in onnx.load_model_from_string(data).graph.node if node.name in half}
    assert "Conv" in kinds and not kinds & {"TopK", "GreaterOrEqual", "Where", "Softmax"}


def test_an_embedding_is_that_of_the_whole_picture(seeing: tuple[Path, Path], photograph: Path) -> None:
    checkpoint, bundle = seeing
    net = load_checkpoint(checkpoint)
    m = read_manifest(bundle)
    assert m.extractor_graph in m.files and m.signature.embedding is not None
    extract = net.architecture.extractor
    assert extract is not None
    with load_bundle(bundle) as loaded, torch.inference_mode():
        assert loaded.self_test() < 1e-3
        # Of frames side by side, the mean; PyTorch's of the whole differs by the borders between them alone.
        wide = np.random.default_rng(1).random((3, SIDE, 2 * SIDE), np.float32)
        halves = [loaded.prompts.embedding(np.ascontiguousarray(part)) for part in (wide[..., :SIDE], wide[..., SIDE:])]
        np.testing.assert_allclose(loaded.prompts.embedding(wide), np.mean(halves, axis=0), rtol=1e-5, atol=1e-6)
        frame = np.ascontiguousarray(wide[..., :SIDE])
        expected = extract(net.module)(torch.from_numpy(frame)[None]).numpy()
        np.testing.assert_allclose(loaded.prompts.embedding(frame), expected, rtol=1e-4, atol=1e-5)
        restored = loaded.restore(wide)
        np.testing.assert_array_equal(restored.prompts["embedding"], loaded.prompts.embedding(wide)[0])
        assert restored.frames > 1


def test_a_dpmambair_is_checked_run_and_streamed(
    seeing: tuple[Path, Path], photograph: Path, tmp_path: Path, capsys: Capsys
) -> None:
    checkpoint, bundle = seeing
    assert_failed(invoke(capsys, "export-triton", bundle, "--out", tmp_path / "models"), 2, "embedding", "not served")
    (tmp_path / "deploy.yaml").write_text("check: {degradations: [snow, jpeg], cube: 40x48}")
    flags = ("--checkpoint", checkpoint, "--config", tmp_path / "deploy.yaml", "--variants", "fp32", "--json")
    done = invoke(capsys, "check", bundle, *flags)
    assert done.code == 0 and set(done.json["tasks"]) == {"snow", "jpeg"} and done.json["gaps"] == {}, done.err
    done = invoke(capsys, "run", bundle, photograph, "--out", tmp_path / "out.tif", "--json")
    assert done.code == 0 and done.json["prompt"] is None and done.json["frames"] > 1
    lines = np.random.default_rng(0).random((3, 2 * SIDE, SIDE)).astype(np.float32)
    write_cube(tmp_path / "lines.bil", lines)
    stream = (
        "stream",
        bundle,
        "--source",
        f"envi:{tmp_path / 'lines.bil'}",
        "--restored",
        tmp_path / "lines",
        "--json",
    )
    assert invoke(capsys, *stream).json["lines"]["restored"] == 2 * SIDE


def test_photographs_of_a_watched_folder_come_out_as_run_makes_them(
    seeing: tuple[Path, Path], photograph: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """Of one frame each: what is higher has an embedding, and blending, of its own frame by frame."""
    photos, made, run = (tmp_path / name for name in ("photos", "made", "run"))
    photos.mkdir()
    made.mkdir()
    whole = np.asarray(Image.open(photograph))
    for number, lines in enumerate((whole[:SIDE], whole[10 : 10 + SIDE], whole[:24])):
        Image.fromarray(lines).save(photos / f"{number}.png")
    assert invoke(capsys, "run", seeing[1], photos, "--out", run).code == 0
    (tmp_path / "deploy.yaml").write_text("stream: {idle_seconds: 0.6}")
    stream = ("stream", seeing[1], "--config", tmp_path / "deploy.yaml", "--source")
    done = invoke(capsys, *stream, f"watch-photos:{photos}", "--sink", f"pictures:{made}", "--json")
    assert done.code == 0 and done.json["lines"]["restored"] == 2 * SIDE + 24, done.err
    assert sorted(path.name for path in made.iterdir()) == ["000001.png", "000002.png", "000003.png"]
    for number in range(3):
        np.testing.assert_array_equal(
            read_cube(made / f"{number + 1:06}.png").cube, read_cube(run / f"{number}.png").cube
        )
    done = invoke(capsys, *stream, f"watch-photos:{photos}", "--sink", f"pictures:{photos}")
    assert_failed(done, 2, "--sink", "would read what it writes")


def test_a_bundle_whose_extractor_computes_something_else_does_not_fly(
    seeing: tuple[Path, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(seeing[1], tmp_path / "other")
    name = read_manifest(other).golden.arrays["embedding"]
    swap(other, name, array_bytes(np.load(other / name) * np.float32(1.01)))
    with load_bundle(other) as loaded, pytest.raises(GateError, match="embedding"):
        loaded.self_test()
    shutil.copytree(seeing[1], tmp_path / "bundle")
    (tmp_path / "bundle" / "graphs/extractor.onnx").write_bytes(b"")
    with pytest.raises(BundleError):
        load_bundle(tmp_path / "bundle")


@pytest.mark.slow
def test_a_check_asks_for_the_tasks_of_the_bundle_alone(
    told: tuple[Path, Path], tmp_path: Path, capsys: Capsys
) -> None:
    bundle = built(tmp_path, told[0], {"prompt": "dehaze"})
    (tmp_path / "deploy.yaml").write_text("check: {cube: 40x48}")
    done = invoke(capsys, "check", bundle, "--checkpoint", told[0], "--config", tmp_path / "deploy.yaml", "--json")
    assert done.code == 0 and list(done.json["tasks"]) == ["haze"], done.err


@pytest.mark.parametrize("name", PROMPTS)
def test_the_golden_frame_proves_every_prompt(told: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    with load_bundle(told[1]) as loaded:
        manifest = loaded.manifest
        assert loaded.self_test() <= manifest.golden.tolerance
    other, recorded = shutil.copytree(told[1], tmp_path / "other"), manifest.prompts[name].restored
    swap(other, recorded, array_bytes(np.load(other / recorded) * np.float32(1.1)))
    with load_bundle(other) as loaded, pytest.raises(GateError, match="golden"):
        loaded.self_test()


def test_without_a_prompt_there_is_no_build(tmp_path: Path, capsys: Capsys) -> None:
    path = save_checkpoint(network_of(dfpir.network(dfpir.SMALL)), tmp_path / "bare.safetensors")
    done = invoke(capsys, "build", "--checkpoint", path, "--size", "32x32", "--out", tmp_path / "no")
    assert_failed(done, 2, "no prompt was given", "--option text_code=NAME.npy", "clip-vit-base-patch32")
    assert invoke(capsys, "inspect", path).code == 0
    np.save(tmp_path / "derain.npy", np.random.default_rng(0).standard_normal(dfpir.SMALL.text).astype(np.float32))
    options = ("--option", "prompt=derain", "--option", f"text_code={tmp_path / 'derain.npy'}")
    build = ("build", "--checkpoint", path, "--size", "32x32", "--out", tmp_path / "yes")
    assert invoke(capsys, *build, *options).code == 0
    assert list(read_manifest(tmp_path / "yes").prompts) == ["derain"]
