"""What makes metrics: a bundle's graph for parts that are its frame, NumPy for all others, and which it was is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.degradations import DEGRADATIONS
from runtime.bundle import Bundle, load_bundle
from runtime.bundle_files import read_manifest
from runtime.engines import available_engines
from runtime.errors import BundleError, CubeError, GateError, MachineError
from runtime.manifest import Manifest, dump, parse
from runtime.metrics import METRIC_SETS, prompt_metrics
from runtime.prompts import LEAST, Condition, Prompts, beyond, differences
from runtime.signature import Plane, Prompt, Signature
from runtime.simulation.simulator import simulate_scene
from tests.contracts.bundles import METRICS_GRAPH, SPEC, known_bundle, reseal, sealed, swap
from tests.contracts.coded import CODE, CODED
from tests.contracts.graphs import damp_like, known_graph, known_metrics

Float32 = NDArray[np.float32]
NAMES = METRIC_SETS["paper6"]


@pytest.fixture(scope="module")
def measuring(metrics_bundle: Path) -> Iterator[Bundle]:
    with load_bundle(metrics_bundle, threads=1) as bundle:
        yield bundle


def scene(*shape: int) -> Float32:
    return simulate_scene(7, *shape).truth


# The graph and NumPy


@pytest.mark.parametrize("task", DEGRADATIONS)
def test_the_graph_of_a_bundle_gives_numpys_metrics(measuring: Bundle, task: str) -> None:
    frame = DEGRADATIONS[task](scene(31, 64, 64), np.random.default_rng(2))
    assert measuring.prompts.by(frame.shape) == "graph"
    found = measuring.prompts.metrics(frame)
    assert found.shape == (6,) and found.dtype == np.float32
    assert not beyond(differences(found, prompt_metrics(frame, "paper6"), "paper6"))
    (made,) = measuring.prompts(frame).items()
    assert made[0] == "metrics"
    np.testing.assert_array_equal(made[1], found[None])


@pytest.mark.parametrize("shape", [(31, 65, 64), (31, 64, 128), (31, 40, 50), (31, 1, 64), (30, 64, 64)], ids=str)
def test_parts_of_other_sizes_are_numpys(measuring: Bundle, shape: tuple[int, int, int]) -> None:
    part = scene(*shape)
    assert measuring.prompts.by(part.shape) == "host"
    np.testing.assert_array_equal(measuring.prompts.metrics(part), prompt_metrics(part, "paper6"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_values_that_have_no_metrics_are_refused_in_numpys_words(measuring: Bundle, value: float) -> None:
    frame = scene(31, 64, 64).copy()
    frame[3, 4, 5] = value
    with pytest.raises(CubeError) as numpys:
        prompt_metrics(frame, "paper6")
    with pytest.raises(CubeError) as graphs:
        measuring.prompts(frame)
    assert graphs.value.one_line() == numpys.value.one_line()


def test_without_a_graph_everything_is_numpys() -> None:
    prompts, part = Prompts(damp_like(3, 16, 16, "reference15")), scene(3, 16, 16)
    assert prompts.by(part.shape) == "host" and prompts.told == "NumPy on the host" and len(prompts.names) == 15
    np.testing.assert_array_equal(prompts.metrics(part), prompt_metrics(part, "reference15"))
    np.testing.assert_array_equal(prompts(part)["metrics"], prompts.metrics(part)[None])
    prompts.close()


def test_on_the_host_no_graph_is_asked(measuring: Bundle) -> None:
    frame, host = scene(31, 64, 64), measuring.prompts.on_host()
    assert host.by(frame.shape) == "host" and host.told == "NumPy on the host"
    np.testing.assert_array_equal(host.metrics(frame), prompt_metrics(frame, "paper6"))
    host.close()
    assert measuring.prompts.metrics(frame).shape == (6,), "its graph is not the other's to close"


def test_constants_are_what_they_are_and_metrics_none() -> None:
    prompts = Prompts(CODED, {"code": CODE, "another": CODE})
    for shape in ((3, 8, 16), (3, 5, 7)):
        part = scene(*shape)
        (made,) = prompts(part).items()
        assert made[0] == "code" and made[1] is CODE
        assert prompts.by(part.shape) == "none" and prompts.metrics(part).shape == (0,)
    assert (prompts.told, prompts.names) == ("none", ()) and prompts.on_host()(part)["code"] is CODE
    prompts.close()
    for wrong in ({}, {"another": CODE}, None):
        with pytest.raises(KeyError, match="code"):
            Prompts(CODED, wrong)


class Mean:
    """An extractor that is nothing but the mean by shares, by how many there were of it."""

    def compute(self, *inputs: Float32) -> tuple[Float32, ...]:
        frame, share = inputs
        return (np.array([[(frame * share).sum() / share.sum() / 3, 1.0]], np.float32),)

    def close(self) -> None: ...


@pytest.mark.parametrize("size", [(8, 16), (16, 32), (11, 20), (5, 7), (8, 17)], ids=str)
def test_every_pixel_counts_once_in_an_embedding(size: tuple[int, int]) -> None:
    told = Prompt("embedding", (1, 2), "embedding", "extractor")
    frame = Plane("frame", 3, 8, 16, "rgb")
    prompts = Prompts(Signature(frame, replace(frame, name="restored"), (told,)), extractor=Mean())
    part = scene(3, *size)
    np.testing.assert_allclose(prompts(part)["embedding"], [[part.mean(), 1]], rtol=1e-6)


def test_a_task_is_measured_with_the_condition_that_names_it() -> None:
    conditions = {n: Condition({"code": CODE, "another": CODE}, t) for n, t in {"any": (), "derain": ("rain",)}.items()}
    prompts = Prompts(CODED, conditions=conditions)
    assert [prompts.for_task(task).chosen for task in ("rain", "haze")] == ["derain", "any"]


def test_differences_are_shares_and_of_logarithms_absolute() -> None:
    expected = np.array([0.5, 0.25, 0.0, 1.0, 1.0, 1.0], np.float32)
    found = np.array([0.75, 0.25, 1e-3, 1.0, 1.0, np.nan], np.float32)
    apart = differences(found, expected, "paper6")
    assert list(apart) == list(NAMES)
    assert list(apart.values()) == pytest.approx([0.5, 0, 1e-3 / LEAST, 0, 0, math.nan], nan_ok=True)
    assert set(beyond(apart)) == {"high_frequency_ratio", "curvature_mean", "adjacent_correlation_mean"}
    assert differences(expected - 3, expected, "log6") == pytest.approx(dict.fromkeys(METRIC_SETS["log6"], 3))
    assert beyond({"spectral_flatness": 0.19, "gradient_std": 1.9e-5}) == {}


# Cubes


def test_the_restored_cube_says_what_computed_its_metrics(measuring: Bundle, tiny_bundle: Path) -> None:
    frame = scene(31, 64, 64)
    restored = measuring.restore(frame)
    assert restored.metrics_by == "graph"
    np.testing.assert_array_equal(restored.metrics, measuring.prompts.metrics(frame))
    larger = measuring.restore(scene(31, 65, 64))
    assert larger.metrics_by == "host"
    np.testing.assert_array_equal(larger.metrics, prompt_metrics(scene(31, 65, 64), "paper6"))
    given = measuring.restore(frame, np.arange(6.0))
    assert given.metrics_by == "given" and given.metrics.tolist() == list(range(6))
    with load_bundle(tiny_bundle, threads=1) as bundle:
        np.testing.assert_allclose(restored.cube, bundle.restore(frame, restored.metrics).cube, atol=1e-5)
        assert bundle.restore(frame).metrics_by == "host"


def test_every_band_group_of_one_frame_is_the_graphs(measuring: Bundle) -> None:
    cube = scene(40, 64, 64)
    restored = measuring.restore(cube)
    assert restored.metrics_by == "graph" and restored.metrics.shape == (2, 6)
    np.testing.assert_array_equal(restored.metrics, [measuring.prompts.metrics(part) for part in (cube[:31], cube[9:])])


# Bundles


def told(bundle: Path, **options: Any) -> str:
    with load_bundle(bundle, **options) as loaded:
        return loaded.prompts.told


def test_a_manifest_names_its_metrics_graph_and_one_without_reads_as_before(tmp_path: Path) -> None:
    manifest = read_manifest(known_bundle(tmp_path / "bundle", metrics_graph=known_metrics()))
    assert manifest.schema_version == 3 and manifest.metrics_graph == METRICS_GRAPH in manifest.files
    assert parse(dump(manifest), Manifest, file="m") == manifest
    content = manifest.model_dump(mode="json")
    del content["metrics_graph"]
    assert parse(sealed(content), Manifest, file="m") == manifest.model_copy(update={"metrics_graph": None})


def test_another_engine_computes_them_too_or_it_is_told_that_numpy_does(tmp_path: Path) -> None:
    bundle = known_bundle(tmp_path / "bundle", metrics_graph=known_metrics())
    assert told(bundle) == "a graph in onnxruntime, CPU, 1 threads; of other sizes than 8x16 NumPy on the host"
    reseal(bundle, lambda content: content["target"].update(engine="onnxruntime-cuda"))
    assert told(bundle, engine="onnxruntime").startswith("a graph in onnxruntime,")
    if available_engines()["openvino"] is not None:
        assert told(bundle, engine="openvino") == "NumPy on the host"


def test_the_self_test_refuses_a_graph_that_is_not_numpys(metrics_bundle: Path, tmp_path: Path) -> None:
    with load_bundle(metrics_bundle, threads=1) as bundle:
        bundle.self_test()
    with (
        load_bundle(known_bundle(tmp_path / "bundle", metrics_graph=known_metrics()), threads=1) as bundle,
        pytest.raises(GateError, match="does not compute the golden frame's metrics as NumPy does") as caught,
    ):
        bundle.self_test()
    assert caught.value.key in NAMES and "--metrics host" in str(caught.value) and caught.value.exit_code == 1


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (lambda b: flip(b / METRICS_GRAPH), "SHA-256 differs"),
    "missing": (lambda b: (b / METRICS_GRAPH).unlink(), "cannot be read"),
    "not listed": (lambda b: reseal(b, lambda c: c["files"].pop(METRICS_GRAPH)), "does not list a file it needs"),
    "outside": (lambda b: reseal(b, lambda c: c.update(metrics_graph="../metrics.onnx")), "inside the bundle"),
    "of other metrics": (
        lambda b: reseal(b, lambda c: c["signature"]["prompts"][0].update(of="reference15", shape=[1, 15])),
        "no graph computes the metrics of this network",
    ),
    "of none": (
        lambda b: reseal(b, lambda c: (c["signature"].update(prompts=[]), c["golden"]["arrays"].pop("metrics"))),
        "no graph computes the metrics of this network",
    ),
    "another graph": (
        lambda b: swap(b, METRICS_GRAPH, known_graph(SPEC)),
        "other inputs or outputs than frame, metrics",
    ),
    "no graph": (lambda b: swap(b, METRICS_GRAPH, b"graph"), "the graph is damaged"),
}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", WRONG)
def test_a_metrics_graph_that_is_not_the_one_that_was_built_is_refused(tmp_path: Path, name: str) -> None:
    bundle = known_bundle(tmp_path / "bundle", metrics_graph=known_metrics())
    change, match = WRONG[name]
    change(bundle)
    with pytest.raises(BundleError, match=match):
        load_bundle(bundle).close()


def test_a_closed_bundle_computes_no_metrics(tmp_path: Path) -> None:
    bundle = load_bundle(known_bundle(tmp_path / "bundle", metrics_graph=known_metrics()))
    frame = np.ones(SPEC.measured.shape[1:], np.float32)
    assert bundle.prompts.metrics(frame).tolist() == [1] * 6
    bundle.close()
    with pytest.raises(MachineError, match="the engine is closed"):
        bundle.prompts.metrics(frame)
