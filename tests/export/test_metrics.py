"""The prompt metrics in torch and as a graph: within their tolerances of NumPy's, which define them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from calibration.degradations import DEGRADATIONS, bandloss, blur
from export.metrics import PromptMetrics
from export.metrics_graph import compare_metrics, export_metrics
from export.onnx import Graph
from runtime.engines import EngineOptions, open_metrics
from runtime.engines.onnx_guard import OPSETS, check_onnx
from runtime.errors import GateError, InputError
from runtime.metrics import METRIC_SETS, prompt_metrics
from runtime.prompts import beyond, differences
from runtime.signature import Signature
from runtime.simulation.simulator import simulate_scene
from tests.contracts.graphs import damp_like
from tests.runtime.test_metrics import defined_spectrum

Float32 = NDArray[np.float32]
SETS = ("paper6", "log6")
TASKS = (None, *DEGRADATIONS)
SHAPE = (12, 256, 255)


def computed(metric_set: str, *cubes: Float32) -> Float32:
    with torch.inference_mode():
        return PromptMetrics(metric_set, *cubes[0].shape)(torch.from_numpy(np.stack(cubes))).numpy()


def assert_near(found: Float32, expected: Float32, metric_set: str) -> None:
    assert not beyond(differences(found, expected, metric_set)), (found, expected)


def worn(clean: Float32, task: str | None) -> Float32:
    return clean if task is None else DEGRADATIONS[task](clean, np.random.default_rng(1))


# Against NumPy


@pytest.mark.parametrize("metric_set", SETS)
@pytest.mark.parametrize("shape", [(31, 96, 128), (12, 63, 65), (3, 64, 64), (4, 65, 30)], ids=str)
def test_metrics_of_damaged_scenes_are_numpys(metric_set: str, shape: tuple[int, int, int]) -> None:
    clean = simulate_scene(3, *shape).truth
    cubes = [worn(clean, task) for task in TASKS]
    for found, cube in zip(computed(metric_set, *cubes), cubes, strict=True):
        assert_near(found, prompt_metrics(cube, metric_set), metric_set)


@pytest.mark.data
@pytest.mark.parametrize(("name", "scale"), [
    pytest.param("cave/fake_and_real_beers", 65535, marks=pytest.mark.slow), ("aviris-abu/abu-beach-1", 10000),
])  # fmt: skip
def test_metrics_of_damaged_real_cubes_are_numpys(name: str, scale: float, data_dir: Path) -> None:
    with np.load(data_dir / f"{name}.npz") as archive:
        clean = np.maximum(archive["cube"].transpose(2, 0, 1)[:31] / np.float32(scale), 0)
    modules = {metric_set: PromptMetrics(metric_set, *clean.shape) for metric_set in SETS}
    for task in TASKS:
        cube = worn(clean, task)
        for metric_set, module in modules.items():
            with torch.inference_mode():
                found = module(torch.from_numpy(cube)[None])[0].numpy()
            assert_near(found, prompt_metrics(cube, metric_set), metric_set)


def special(lines: int = 63, samples: int = 65) -> Float32:
    """A scene some bands of which are lost, constant beside another constant one, or equal."""
    cube = simulate_scene(4, 12, lines, samples).truth.copy()
    cube[[0, 3, 4]] = 0
    cube[6], cube[7], cube[8] = 0.3, 0.7123, 1.0
    cube[10] = cube[9]
    return cube


@pytest.mark.parametrize("metric_set", SETS)
def test_constant_lost_and_equal_bands_are_as_in_numpy(metric_set: str) -> None:
    assert_near(computed(metric_set, special())[0], prompt_metrics(special(), metric_set), metric_set)


@pytest.mark.parametrize("metric_set", SETS)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -0.25])
def test_a_constant_cube_is_as_in_numpy_but_for_its_flatness(metric_set: str, value: float) -> None:
    cube = np.full((5, 128, 128), value, np.float32)
    found, expected = computed(metric_set, cube)[0], prompt_metrics(cube, metric_set)
    flatness = next(at for at, name in enumerate(METRIC_SETS[metric_set]) if "flatness" in name)
    if value:
        # Of rounding alone, in NumPy too.
        assert (np.array([found[flatness], expected[flatness]]) < (1e-4 if metric_set == "paper6" else -4)).all()
        found[flatness] = expected[flatness]
    assert_near(found, expected, metric_set)


def test_flatness_after_a_blur_is_nearer_to_float64_than_numpys() -> None:
    for seed in range(3):
        cube = blur(simulate_scene(seed, 6, 128, 128).truth, np.random.default_rng(0), size=15)
        exact = defined_spectrum(cube.astype(np.float64))[1]
        errors = [abs(m[1] / exact - 1) for m in (computed("paper6", cube)[0], prompt_metrics(cube, "paper6"))]
        assert errors[0] < errors[1] / 1.5, errors


# Form


@pytest.mark.parametrize("metric_set", SETS)
def test_a_batch_is_its_cubes(metric_set: str) -> None:
    clean = simulate_scene(5, 6, 63, 65).truth
    cubes = [worn(clean, task) for task in (None, "noise", "blur", "bandloss")]
    found = computed(metric_set, *cubes)
    assert found.shape == (4, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([computed(metric_set, cube) for cube in cubes]), rtol=1e-5)


def test_other_types_are_computed_in_float32() -> None:
    cube = torch.from_numpy(simulate_scene(5, 6, 64, 64).truth)[None]
    module = PromptMetrics("log6", 6, 64, 64)
    with torch.inference_mode():
        expected = module(cube.bfloat16().float())
        assert module(cube.double()).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module(cube.bfloat16()), expected)


def test_nothing_is_made_on_another_device_or_stored_in_a_checkpoint() -> None:
    module = PromptMetrics("log6", 6, 63, 65)
    assert not module.state_dict()
    cube = torch.from_numpy(simulate_scene(5, 6, 63, 65).truth)[None]
    expected = module(cube)
    # What names no device would be made on the default one.
    with torch.device("meta"):
        assert torch.equal(module(cube), expected)


def test_sets_that_need_numpy_and_cubes_of_few_bands_are_refused() -> None:
    with pytest.raises(InputError, match="in NumPy alone") as caught:
        PromptMetrics("reference15", 31, 64, 64)
    assert caught.value.key == "metric_set" and "curvature_max" in caught.value.remedy
    with pytest.raises(InputError, match="too few bands") as caught:
        PromptMetrics("paper6", 2, 64, 64)
    assert caught.value.key == "bands"


# The graph


Exported = tuple[Signature, PromptMetrics, Graph]


@pytest.fixture(scope="module", params=SETS)
def exported(request: pytest.FixtureRequest) -> Exported:
    module, signature = PromptMetrics(request.param, *SHAPE), damp_like(*SHAPE, metrics=request.param)
    return signature, module, export_metrics(module, signature)


def set_of(signature: Signature) -> str:
    assert signature.metrics is not None
    return signature.metrics.of


def test_the_graph_computes_what_the_module_does(exported: Exported) -> None:
    signature, module, graph = exported
    scene = special(*SHAPE[1:])
    with open_metrics("onnxruntime", graph.data, signature, EngineOptions(1)) as session:
        cubes = [worn(simulate_scene(6, *scene.shape).truth, task) for task in TASKS]
        for cube in (*cubes, scene, np.zeros_like(scene), bandloss(scene, np.random.default_rng(0), rate=1.0)):
            (found,) = session.compute(cube[None])
            with torch.inference_mode():
                assert_near(found[0], module(torch.from_numpy(cube)[None])[0].numpy(), set_of(signature))


def test_the_graph_is_one_that_every_engine_reads(exported: Exported) -> None:
    _, _, graph = exported
    check_onnx(graph.data)
    model = onnx.load_model_from_string(graph.data)
    assert graph.opset == OPSETS.start and graph.nodes == len(model.graph.node)
    assert {tensor.data_type for tensor in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert all(node.name.startswith("metrics/") for node in model.graph.node)
    assert not model.metadata_props and str(Path(__file__).parents[2]).encode() not in graph.data


def test_the_graph_is_held_against_numpy_before_it_is_written(exported: Exported) -> None:
    signature, _, graph = exported
    names = METRIC_SETS[set_of(signature)]
    frames = [worn(simulate_scene(6, *SHAPE).truth, task)[None] for task in ("noise", "blur")]
    apart = compare_metrics(graph, signature, frames)
    assert list(apart) == list(names) and not beyond(apart) and max(apart.values()) > 0
    model = onnx.load_model_from_string(graph.data)
    window = next(t for t in model.graph.initializer if "far" in t.name)
    window.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(window) * np.float32(1.001), window.name))
    wrong = replace(graph, data=model.SerializeToString())
    with pytest.raises(GateError, match="does not compute what NumPy does") as caught:
        compare_metrics(wrong, signature, frames)
    assert caught.value.key == names[0] and "--metrics host" in caught.value.remedy
