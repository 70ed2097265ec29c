"""Bundles: restored cubes of every size and type, every damage found, nothing believed that a seal only repeats."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import runtime
from runtime.bundle import load_bundle
from runtime.bundle_files import (
    array_bytes,
    install_bundle,
    install_engine,
    read_manifest,
    unlisted_files,
    verified_bundle,
)
from runtime.durable import swap as exchange
from runtime.errors import BundleError, CubeError, GateError, MachineError
from runtime.made import MADE, Made
from runtime.manifest import MANIFEST, Manifest, dump, parse
from runtime.metrics import prompt_metrics
from runtime.tiles import Tiling
from tests.contracts.bundles import (
    GOLDEN,
    SPEC,
    for_a_board,
    give_engine,
    known_bundle,
    prove_another,
    rebind,
    reseal,
    sealed,
    swap,
)
from tests.contracts.coded import CODE, CODE_FILE, CODED, coded_bundle, decoded
from tests.contracts.graphs import damp_like, known_graph
from tests.contracts.killing import killed


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that gives cubes back as they are. To be read."""
    return known_bundle(tmp_path_factory.mktemp("identity") / "bundle")


@pytest.fixture
def altered(identity: Path, tmp_path: Path) -> Path:
    """A copy of `identity` to alter."""
    return Path(shutil.copytree(identity, tmp_path / "bundle"))


def cube_of(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, np.float32)


def refused(bundle: Path, match: str = ".") -> BundleError:
    with pytest.raises(BundleError, match=match) as caught:
        load_bundle(bundle).close()
    error = caught.value
    assert error.exit_code == 2 and str(error).isprintable() and error.remedy
    return error


# What a bundle restores


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (64, 64), (65, 64), (100, 190), (64, 1)])
def test_the_network_restores_cubes_of_every_size(tiny_bundle: Path, size: tuple[int, int]) -> None:
    cube = cube_of(31, *size)
    told: list[tuple[int, int]] = []
    with load_bundle(tiny_bundle) as bundle:
        restored = bundle.restore(cube, progress=lambda done, total: told.append((done, total)))
        layers, experts = bundle.engine.signature.ports.outputs["routing"]
    assert restored.cube.shape == cube.shape and restored.cube.dtype == np.float32
    assert np.isfinite(restored.cube).all() and not np.array_equal(restored.cube, cube)
    np.testing.assert_array_equal(restored.metrics, prompt_metrics(cube, "paper6"))
    tiles = len(Tiling(size, (64, 64), 16).tiles())
    assert told == [(n, tiles) for n in range(1, tiles + 1)]
    assert restored.gates.shape == ((1, tiles) if tiles > 1 else ()) + (layers, experts)
    assert ((restored.gates > 0).sum(axis=-1) == 1).all()
    assert restored.saturated == 0


def test_a_cube_of_one_frame_is_what_the_engine_gives(tiny_bundle: Path) -> None:
    cube = cube_of(31, 64, 64)
    with load_bundle(tiny_bundle) as bundle:
        restored = bundle.restore(cube)
        expected = bundle.engine.infer({"frame": cube[None], "metrics": prompt_metrics(cube, "paper6")[None]})
    np.testing.assert_array_equal(restored.cube, expected["restored"][0])
    np.testing.assert_array_equal(restored.gates, expected["routing"])


def test_a_small_cube_is_restored_as_its_reflection(tiny_bundle: Path) -> None:
    cube = cube_of(31, 40, 50)
    with load_bundle(tiny_bundle) as bundle:
        restored = bundle.restore(cube)
        frame = np.pad(cube, ((0, 0), (0, 24), (0, 14)), mode="reflect")
        expected = bundle.engine.infer({"frame": frame[None], "metrics": prompt_metrics(cube, "paper6")[None]})
    np.testing.assert_array_equal(restored.cube, expected["restored"][0, :, :40, :50])


def test_more_bands_than_the_network_are_restored_in_groups(tiny_bundle: Path) -> None:
    cube = cube_of(40, 65, 64)
    with load_bundle(tiny_bundle) as bundle:
        restored = bundle.restore(cube)
        routing = bundle.engine.signature.ports.outputs["routing"]
        first = bundle.restore(cube[:31])
    assert restored.cube.shape == cube.shape and np.isfinite(restored.cube).all()
    assert restored.metrics.shape == (2, 6)
    assert restored.gates.shape == (2, 2, *routing)
    np.testing.assert_array_equal(restored.metrics[0], first.metrics)
    np.testing.assert_array_equal(restored.gates[:1], first.gates)
    # The first bands lie in the first group alone.
    np.testing.assert_allclose(restored.cube[:9], first.cube[:9], atol=1e-6)


def test_metrics_can_be_given_and_steer_the_network(tiny_bundle: Path) -> None:
    cube = cube_of(31, 64, 64)
    with load_bundle(tiny_bundle) as bundle:
        own = bundle.restore(cube)
        forms = (own.metrics, own.metrics[None], own.metrics.tolist(), {"metrics": own.metrics})
        same = [bundle.restore(cube, metrics) for metrics in forms]
        other = bundle.restore(cube, own.metrics + 3)
        for wrong in (np.zeros(15), np.zeros((2, 6)), np.zeros((6, 1)), "x", {"metrics": np.zeros(5)}):
            with pytest.raises(CubeError, match="metrics"):
                bundle.restore(cube, wrong)
        with pytest.raises(CubeError, match=r"no such prompt.*it takes metrics"):
            bundle.restore(cube, {"code": np.zeros(6)})
    for again in same:
        np.testing.assert_array_equal(again.cube, own.cube)
    assert not np.array_equal(other.cube, own.cube)
    np.testing.assert_array_equal(other.metrics, own.metrics + 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_floats_come_back_in_their_type(identity: Path, dtype: Any) -> None:
    cube = (cube_of(3, 20, 20) - 0.5).astype(dtype)
    with load_bundle(identity) as bundle:
        restored = bundle.restore(cube)
        assert restored.cube.dtype == cube.dtype and restored.saturated == 0
        np.testing.assert_allclose(restored.cube, cube, atol=1e-6 if np.dtype(dtype).itemsize > 2 else 1e-3)
        scaled = bundle.restore(cube, scale=2)
        assert scaled.scale == 2 and scaled.cube.dtype == cube.dtype
        np.testing.assert_allclose(scaled.cube, cube, atol=1e-6 if np.dtype(dtype).itemsize > 2 else 1e-3)


@pytest.mark.parametrize(("dtype", "scale"), [("u1", 255), ("i2", 10000), ("u2", 65535), ("i4", 1e6), (">i2", 4095)])
def test_integers_come_back_in_their_type_and_scale(identity: Path, dtype: str, scale: float) -> None:
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -1_000_000), min(limits.max, 2_000_000)
    cube = np.random.default_rng(0).integers(low, high, (3, 20, 20), endpoint=True).astype(dtype)
    kept = cube.copy()
    with load_bundle(identity) as bundle:
        restored = bundle.restore(cube, scale=scale)
    assert restored.cube.dtype == cube.dtype and restored.saturated == 0
    np.testing.assert_array_equal(restored.cube, cube)
    np.testing.assert_array_equal(cube, kept)
    np.testing.assert_array_equal(restored.metrics, prompt_metrics((cube / scale).astype(np.float32), "paper6"))


@pytest.mark.parametrize(("dtype", "gain"), [("u1", 2.0), ("i2", 2.0), ("u2", -1.0), ("i2", -3.0)])
def test_what_the_type_cannot_hold_is_counted(tmp_path: Path, dtype: str, gain: float) -> None:
    limits = np.iinfo(dtype)
    cube = np.random.default_rng(0).integers(limits.min, limits.max, (3, 8, 16), endpoint=True).astype(dtype)
    expected = cube.astype(np.int64) * int(gain)
    with load_bundle(known_bundle(tmp_path / "b", gain)) as bundle:
        restored = bundle.restore(cube, scale=1000)
    assert restored.saturated == int(((expected < limits.min) | (expected > limits.max)).sum()) > 0
    np.testing.assert_array_equal(restored.cube, np.clip(expected, limits.min, limits.max))


def test_scale_of_the_bundle_is_used_unless_another_is_given(tmp_path: Path) -> None:
    cube = np.full((3, 8, 16), 50, np.uint8)
    with load_bundle(known_bundle(tmp_path / "b", 1.0, offset=0.5, scale=100)) as bundle:
        assert (bundle.restore(cube).cube == 100).all()
        assert (bundle.restore(cube, scale=20).cube == 60).all()
        with pytest.raises(CubeError, match="scale"):
            bundle.restore(cube, scale=-1)


def test_integers_without_any_scale_are_refused(identity: Path) -> None:
    with load_bundle(identity) as bundle, pytest.raises(CubeError, match="a cube of integers needs a scale"):
        bundle.restore(np.ones((3, 8, 16), np.uint16))


@pytest.mark.parametrize(
    ("cube", "match"),
    [
        (np.zeros((8, 16), np.float32), "three axes"),
        (np.zeros((1, 3, 8, 16), np.float32), "three axes"),
        (np.zeros((3, 0, 16), np.float32), "three axes"),
        (np.float32(1), "three axes"),
        ([1.0, 2.0], "three axes"),
        ("cube", "three axes"),
        (np.zeros((2, 8, 16), np.float32), "fewer bands"),
        (np.full((3, 8, 16), np.nan, np.float32), "no band holds data"),
        (np.full((3, 8, 16), 1e300), "the numbers reach 1e\\+300"),
        (np.zeros((3, 8, 16), bool), "real numbers"),
        (np.zeros((3, 8, 16), complex), "real numbers"),
        (np.zeros((3, 8, 16), object), "real numbers"),
    ],
)
def test_what_is_no_cube_is_refused(identity: Path, cube: Any, match: str) -> None:
    with load_bundle(identity) as bundle:
        with pytest.raises(CubeError, match=match) as caught:
            bundle.restore(cube)
        assert caught.value.exit_code == 2
        # And the bundle still works.
        assert bundle.restore(np.zeros((3, 8, 16), np.float32)).cube.shape == (3, 8, 16)


def test_strided_cubes_are_restored_as_their_copies(identity: Path) -> None:
    wide = cube_of(20, 30, 6)
    cube = wide.transpose(2, 0, 1)[::2, ::-1]
    with load_bundle(identity) as bundle:
        np.testing.assert_array_equal(bundle.restore(cube).cube, bundle.restore(cube.copy()).cube)


# A network of other planes, with a constant, without metrics and experts, whose frames have one place


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of it, with a scale of 100. To be read."""
    return coded_bundle(tmp_path_factory.mktemp("coded") / "bundle", scale=100)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int16])
@pytest.mark.parametrize("unit", [True, False])
def test_what_is_of_other_planes_comes_out_in_the_unit_range(coded: Path, dtype: Any, unit: bool) -> None:
    whole = np.random.default_rng(0).integers(0, 100, (3, 8, 16))
    cube = (whole / 100 if np.dtype(dtype).kind == "f" else whole).astype(dtype)
    kept = cube.copy()
    with load_bundle(coded) as bundle:
        restored = bundle.restore(cube, unit=unit)
        assert bundle.self_test() == 0
    expected = decoded((whole / 100).astype(np.float32))
    assert restored.cube.dtype == np.float32 and restored.cube.shape == (5, 8, 16)
    np.testing.assert_allclose(restored.cube, expected, atol=1e-6)
    assert (restored.scale, restored.metrics_by) == (None if np.dtype(dtype).kind == "f" else 100, "none")
    assert (restored.saturated, restored.missing, restored.moved, restored.side) == (0, 0, 0, {})
    np.testing.assert_array_equal(cube, kept)


def test_what_is_of_other_planes_is_clipped_where_asked(coded: Path) -> None:
    cube = 2 * cube_of(3, 8, 16) - 0.5
    with load_bundle(coded) as bundle:
        plain, clipped = bundle.restore(cube).cube, bundle.restore(cube, clip=True).cube
    assert plain.min() < 0 and plain.max() > 1
    np.testing.assert_array_equal(clipped, plain.clip(0, 1))


def test_another_scale_is_the_measured_planes(coded: Path) -> None:
    cube = np.full((3, 8, 16), 50, np.uint16)
    with load_bundle(coded) as bundle:
        restored = bundle.restore(cube, scale=200)
    assert restored.scale == 200
    np.testing.assert_allclose(restored.cube, decoded(np.full((3, 8, 16), 0.25, np.float32)), atol=1e-6)


@pytest.mark.parametrize(("dtype", "mark"), [(np.uint16, 0), (np.int16, -9999), (np.float32, np.nan)])
def test_missing_pixels_have_no_place_in_other_planes(coded: Path, dtype: Any, mark: float) -> None:
    cube = np.full((3, 8, 16), 1, dtype)
    with load_bundle(coded) as bundle:
        assert bundle.restore(cube, ignore_value=mark).cube.shape == (5, 8, 16)
        cube[1, 2, 3] = cube[0, 5, 5] = mark
        with pytest.raises(CubeError, match=r"cube: .*no place for its missing pixels .*found 2") as caught:
            bundle.restore(cube, ignore_value=mark)
    assert caught.value.exit_code == 2 and "bad_pixels" in str(caught.value)


def test_a_constant_is_the_bundles_unless_another_is_given(coded: Path) -> None:
    cube = cube_of(3, 8, 16)
    with load_bundle(coded) as bundle:
        np.testing.assert_array_equal(bundle.restore(cube).prompts["code"], CODE[0])
        other = bundle.restore(cube, {"code": CODE + 1})
        for wrong, match in (({"metrics": np.zeros(6)}, "it takes code"), (np.zeros(6), "takes no metrics")):
            with pytest.raises(CubeError, match=match):
                bundle.restore(cube, wrong)
    np.testing.assert_allclose(other.cube, decoded(cube, CODE + 1), atol=1e-6)
    np.testing.assert_array_equal(other.prompts["code"], CODE[0] + 1)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((3, 8, 17), "one size"),
        ((3, 7, 16), "one size"),
        ((4, 8, 16), "more bands than the network, which does not restore them in groups"),
        ((2, 8, 16), "fewer bands"),
    ],
)
def test_frames_of_other_sizes_and_bands_are_refused(coded: Path, shape: tuple[int, ...], match: str) -> None:
    for dtype in (np.float32, np.uint8):
        with load_bundle(coded) as bundle, pytest.raises(CubeError, match=match):
            bundle.restore(np.ones(shape, dtype))


def test_the_constant_of_a_bundle_is_not_believed(coded: Path, tmp_path: Path) -> None:
    altered, trap = Path(shutil.copytree(coded, tmp_path / "bundle")), tmp_path / "sprung"
    for data in bad_arrays("code", CODE + 1, trap).values():
        swap(altered, CODE_FILE, data)
        assert refused(altered, "the array is").file == str(altered / CODE_FILE)
    assert not trap.exists()
    swap(altered, CODE_FILE, array_bytes(CODE + 1))
    with load_bundle(altered) as bundle:
        np.testing.assert_array_equal(bundle.restore(cube_of(3, 8, 16)).prompts["code"], CODE[0] + 1)
    reseal(altered, lambda content: content["files"].pop(CODE_FILE))
    refused(altered, "does not list a file it needs")


def test_every_damage_to_a_constant_is_found(coded: Path, tmp_path: Path) -> None:
    altered, chance = Path(shutil.copytree(coded, tmp_path / "bundle")), random.Random(3)
    for damage in DAMAGES:
        damage(altered / CODE_FILE, chance)
        assert refused(altered).file == str(altered / CODE_FILE)
        put_back(coded, altered)
    load_bundle(altered).close()


def test_its_manifest_comes_back_as_it_was_written(coded: Path) -> None:
    data = (coded / MANIFEST).read_bytes()
    manifest = parse(data, Manifest, file="m")
    assert dump(manifest) == data == sealed(json.loads(data)) and manifest.signature == CODED
    assert set(manifest.golden.arrays) == {"shot", "code", "restored"} and CODE_FILE in manifest.files


# The manifest


def test_a_manifest_comes_back_as_it_was_written(tiny_bundle: Path, identity: Path) -> None:
    for bundle in (tiny_bundle, identity):
        data = (bundle / MANIFEST).read_bytes()
        manifest = parse(data, Manifest, file="m")
        assert dump(manifest) == data == sealed(json.loads(data))
        assert parse(dump(manifest), Manifest, file="m") == manifest == read_manifest(bundle)
        assert set(manifest.files) == {
            str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()
        } - {MANIFEST}
        for name, record in manifest.files.items():
            content = (bundle / name).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (record.sha256, record.bytes)


def test_a_manifest_says_what_was_built(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    m = read_manifest(tiny_bundle)
    assert m.signature == damp_like(31, 64, 64, "paper6", layers=2, experts=4)
    assert (m.schema_version, m.overlap, m.network.architecture) == (3, 16, "damp")
    assert (m.scale, m.scale_from) == (65535, "model") and m.wavelengths == list(map(float, range(400, 701, 10)))
    assert (m.target.name, m.target.engine, m.precision.chosen) == ("cpu", "onnxruntime", "fp32")
    assert m.network.checkpoint_sha256 == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert m.network.configuration["dim"] == 8 and m.network.about == "seeded weights"
    assert {"damp-deploy", "python", "torch", "onnxruntime"} <= set(m.tools)
    assert m.evidence["export"]["difference"] <= m.evidence["export"]["limit"]
    text = (tiny_bundle / MANIFEST).read_text()
    assert str(tiny_checkpoint.parent) not in text and str(Path.home()) not in text


def test_every_flipped_byte_of_a_manifest_is_found(identity: Path) -> None:
    whole, chance = (identity / MANIFEST).read_bytes(), random.Random(1)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        with pytest.raises(BundleError) as caught:
            parse(bytes(data), Manifest, file="m")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"3",
        b"{" * 100_000,
        b'{"schema_version": 3}',
        b'{"schema_version": 3, "seal": "' + b"0" * 64 + b'"}',
        b'{"schema_version": 3, "x": NaN}',
        b'{"schema_version": 3, "x": 1' + b"0" * 6000 + b"}",
        b"\xff\xfe{}",
        b" " * (5 << 20),
    ],
    ids=range(12),
)
def test_what_is_no_manifest_is_refused(altered: Path, data: bytes) -> None:
    (altered / MANIFEST).write_bytes(data)
    refused(altered)


def test_the_same_content_in_other_words_is_refused(altered: Path) -> None:
    data = (altered / MANIFEST).read_bytes()
    content = json.loads(data)
    first = data.index(b'"created"')
    for other in (
        json.dumps(content).encode(),
        json.dumps(content, indent=2, sort_keys=True).encode(),
        data + b"\n",
        data[:-1],
        b" " + data,
        data[:first] + b'"created": "never",\n ' + data[first:],
        data.replace(b'"known"', b'"\\u006bnown"'),
    ):
        assert other != data
        (altered / MANIFEST).write_bytes(other)
        refused(altered, "altered or damaged")


Change = Callable[[dict[str, Any]], object]
OUTSIDE = (
    "../secret",
    "/etc/hostname",
    "graphs/../../secret",
    "./graphs/fp32.onnx",
    "graphs//fp32.onnx",
    "a\\b",
    "",
    "a\0b",
)
OTHER_GRAPH = "not the one that the manifest describes"


def planes(content: dict[str, Any], **change: Any) -> None:
    """Alter both."""
    for name in ("measured", "restored"):
        content["signature"][name].update(change)


def prompt(content: dict[str, Any], **change: Any) -> None:
    content["signature"]["prompts"][0].update(change)


def constant(c: dict[str, Any], file: str) -> None:
    """The prompt is an array of the bundle, the golden one too."""
    prompt(c, kind="constant", of=file)
    c["golden"]["arrays"]["metrics"] = file


WRONG: dict[str, tuple[Change, str]] = {
    **{f"file {p!r}": (lambda c, p=p: c["files"].update({p: c["files"].popitem()[1]}), "inside") for p in OUTSIDE},
    **{f"graph {p!r}": (lambda c, p=p: c["graphs"].update(fp32=p), "inside") for p in OUTSIDE},
    **{f"golden {p!r}": (lambda c, p=p: c["golden"]["arrays"].update(frame=p), "inside") for p in OUTSIDE},
    "unknown version": (
        lambda c: c.update(schema_version=4),
        r"schema_version: .*version is not known here \(found 4\).*reads version 3",
    ),
    "older version": (lambda c: c.update(schema_version=1), r"version is not known here \(found 1\)"),
    "version of text": (lambda c: c.update(schema_version="2"), "version is not known"),
    "version of truth": (lambda c: c.update(schema_version=True), "schema_version"),
    "version with a point": (lambda c: c.update(schema_version=2.0), "schema_version"),
    "no version": (lambda c: c.pop("schema_version"), "version is not known"),
    "no engine": (lambda c: c["target"].pop("engine"), r"target\.engine"),
    "unknown engine": (lambda c: c["target"].update(engine="magic"), r"unknown engine \(found 'magic'\)"),
    "engine of nothing": (lambda c: c["target"].update(engine=None), r"target\.engine"),
    "engine by module": (lambda c: c["target"].update(engine="os"), "unknown engine"),
    "no threads": (lambda c: c["target"].update(threads=0), r"target\.threads"),
    "a million threads": (lambda c: c["target"].update(threads=1_000_000), r"target\.threads"),
    "more bands": (lambda c: (planes(c, bands=4), c.update(wavelengths=None)), OTHER_GRAPH),
    "no bands": (lambda c: planes(c, bands=0), r"signature\.measured\.bands"),
    "bands of text": (lambda c: planes(c, bands="3"), r"signature\.measured\.bands"),
    "bands with a point": (lambda c: planes(c, bands=3.0), r"signature\.measured\.bands"),
    "bands of truth": (lambda c: planes(c, bands=True), r"signature\.measured\.bands"),
    "too many bands": (lambda c: planes(c, bands=10**9), r"signature\.measured\.bands"),
    "bands of one plane": (lambda c: c["signature"]["measured"].update(bands=4), "as many bands as they went in"),
    "wavelengths of what is measured": (
        lambda c: (c["signature"]["restored"].update(bands=4), c["signature"].update(band_groups=False)),
        "3 wavelengths for 4 bands",
    ),
    **{
        f"wavelengths {told}": (
            lambda c, told=told: c.update(wavelengths=told),
            "wavelengths: .*must increase strictly",
        )
        for told in ([500.0, 400.0, 300.0], [400.0, 500.0, 500.0], [-1.0, 400.0, 500.0], [0.0, 400.0, 500.0])
    },
    "more lines": (lambda c: planes(c, lines=16), OTHER_GRAPH),
    "lines of one plane": (lambda c: c["signature"]["restored"].update(lines=16), "as large as they went in"),
    "more experts": (lambda c: c["signature"]["side"][0].update(shape=[2, 5]), OTHER_GRAPH),
    "more layers": (lambda c: c["signature"]["side"][0].update(shape=[1, 4]), OTHER_GRAPH),
    "routing of one axis": (lambda c: c["signature"]["side"][0].update(shape=[8]), "two axes"),
    "no routing": (lambda c: c["signature"].update(side=[]), "golden arrays are others than the signature's tensors"),
    "no routing at all": (
        lambda c: (c["signature"].update(side=[]), c["golden"]["arrays"].pop("routing")),
        "other inputs or outputs than frame, metrics, restored",
    ),
    "other names": (
        lambda c: (
            c["signature"]["side"][0].update(name="gates"),
            c["golden"]["arrays"].update(gates=c["golden"]["arrays"].pop("routing")),
        ),
        OTHER_GRAPH,
    ),
    "other outputs": (lambda c: c["signature"]["side"][0].update(kind="depth"), r"signature\.side\.0\.kind"),
    "more metrics": (lambda c: prompt(c, shape=[1, 15]), r"metric set 'paper6' does not have shape \(1, 15\)"),
    "other metrics": (lambda c: prompt(c, of="reference15"), r"'reference15' does not have shape \(1, 6\)"),
    "unknown metrics": (lambda c: prompt(c, of="\x1b[31m"), r"does not have shape \(1, 6\)"),
    "no prompts": (lambda c: c["signature"].update(prompts=[]), "golden arrays are others"),
    "constant not listed": (lambda c: constant(c, "prompts/none.npy"), "a file it needs"),
    "constant of another name than the golden one": (
        lambda c: prompt(c, kind="constant", of="golden/frame.npy"),
        "another than the network's own",
    ),
    "constant outside": (lambda c: prompt(c, kind="constant", of="../secret"), "inside the bundle"),
    "constant that is no array": (
        lambda c: constant(c, "graphs/fp32.onnx"),
        r"graphs/fp32\.onnx: the array is damaged",
    ),
    "constant of another shape": (
        lambda c: constant(c, "golden/routing.npy"),
        r"golden/routing\.npy: the array is not what the manifest describes",
    ),
    "frames with one place that overlap": (lambda c: c["signature"].update(tiling="fixed"), "one place only"),
    "no signature": (lambda c: c.pop("signature"), "signature"),
    "unknown key of the signature": (lambda c: c["signature"].update(bands=3), r"signature\.bands"),
    "overlap of a whole frame": (lambda c: c.update(overlap=8), "overlap"),
    "negative overlap": (lambda c: c.update(overlap=-1), "overlap"),
    "no scale": (lambda c: c.update(scale=0), "scale"),
    "negative scale": (lambda c: c.update(scale=-1.5), "scale"),
    "no tolerance": (lambda c: c["golden"].update(tolerance=0), r"golden\.tolerance"),
    "any tolerance": (lambda c: c["golden"].update(tolerance=2), r"golden\.tolerance"),
    "unknown key": (lambda c: c.update(run="rm"), "run"),
    "missing key": (lambda c: c.pop("golden"), "golden"),
    "unknown precision": (lambda c: c["precision"].update(chosen="fp64"), "a file it needs"),
    "no graph": (lambda c: c.update(graphs={}), "a file it needs"),
    "graph not listed": (lambda c: c["graphs"].update(fp32="graphs/other.onnx"), "graphs/other.onnx.*|a file it needs"),
    "golden not listed": (lambda c: c["golden"]["arrays"].update(routing="golden/none.npy"), "a file it needs"),
    "golden tensor that is not there": (
        lambda c: c["golden"]["arrays"].update(more="golden/frame.npy"),
        "golden arrays are others",
    ),
    "short hash": (lambda c: c["files"]["graphs/fp32.onnx"].update(sha256="00"), "sha256"),
    "other hash": (lambda c: c["files"]["graphs/fp32.onnx"].update(sha256="0" * 64), "SHA-256 differs"),
    "fewer bytes": (lambda c: c["files"]["graphs/fp32.onnx"].update(bytes=1), "larger than it can be"),
    "more bytes": (lambda c: c["files"]["graphs/fp32.onnx"].update(bytes=1 << 60), "bytes"),
    "negative bytes": (lambda c: c["files"]["graphs/fp32.onnx"].update(bytes=-1), "bytes"),
    "file that is not there": (lambda c: c["files"].update(more=c["files"]["golden/routing.npy"]), "cannot be read"),
    "half a character": (lambda c: c["network"].update(about="\ud800"), "altered or damaged"),
    "graph that is an array": (lambda c: c["graphs"].update(fp32="golden/routing.npy"), "the graph"),
}


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


FREE = {
    "evidence": lambda c: c["evidence"],
    "options": lambda c: c["network"]["options"],
    "configuration": lambda c: c["network"]["configuration"],
}
BEYOND = {
    "deep": (nested(20), "nested too deep"),
    "as deep as JSON is read": (nested(150), "nested too deep"),
    "many": ([0] * 200_000, "too many values"),
    "large": (10**4000, "too large"),
    "large and negative": (-(2**63), "too large"),
}


@pytest.mark.parametrize("beyond", BEYOND)
@pytest.mark.parametrize("place", FREE)
def test_what_is_free_in_a_manifest_has_bounds(altered: Path, place: str, beyond: str) -> None:
    held, match = BEYOND[beyond]
    reseal(altered, lambda content: FREE[place](content).update(here=held))
    refused(altered, match)


def test_what_is_free_in_a_manifest_is_taken_within_bounds(altered: Path) -> None:
    within = {"deep": nested(10), "many": [0.5] * 50_000, "large": 2**63 - 1}
    reseal(altered, lambda content: content["evidence"].update(within))
    assert verified_bundle(altered).manifest.evidence["large"] == 2**63 - 1


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_that_is_wrong_is_refused_although_it_is_sealed(altered: Path, name: str) -> None:
    change, match = WRONG[name]
    (altered.parent / "secret").write_bytes(b"secret")
    reseal(altered, change)
    with watching() as seen:
        refused(altered, match)
    assert not [path for path in seen if not inside(path, altered)]


def test_a_manifest_that_is_sealed_anew_without_a_change_is_accepted(altered: Path) -> None:
    reseal(altered, lambda content: None)
    load_bundle(altered).close()


# What was made of a bundle where it flies


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine. To be read."""
    return give_engine(for_a_board(tmp_path_factory.mktemp("made") / "bundle"))


@pytest.fixture
def remade(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` to alter."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def test_what_was_made_comes_back_as_it_was_written(made: Path) -> None:
    data, manifest = (made / MADE).read_bytes(), (made / MANIFEST).read_bytes()
    contents = verified_bundle(made)
    assert contents.made is not None and contents.made == parse(data, Made, file="m")
    assert dump(contents.made) == data == sealed(json.loads(data))
    assert contents.made.manifest_sha256 == hashlib.sha256(manifest).hexdigest()
    assert contents.choice == contents.made.choice and contents.choice.tolerance == contents.manifest.golden.tolerance
    assert set(contents.made.files) == {"engine/1.plan", "engine/1.layers.json", "engine/1.log"}
    assert contents.files == {
        path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()
    }
    assert unlisted_files(made, contents) == ()


def test_the_ground_alone_says_what_is_not_built(made: Path, tmp_path: Path) -> None:
    bundle = for_a_board(tmp_path / "bundle")
    ground = (bundle / MANIFEST).read_bytes()
    contents = verified_bundle(bundle)
    assert contents.made is None and contents.choice.engine is None and contents.choice.precision == "fp32"
    with pytest.raises(MachineError, match=r"not built yet \(found 'built on the board'\).*deploy finalize"):
        load_bundle(bundle)
    with load_bundle(bundle, engine="onnxruntime") as loaded:
        assert loaded.self_test() == 0 and loaded.contents.made is None
    give_engine(bundle)
    assert (bundle / MANIFEST).read_bytes() == ground and (bundle / MADE).read_bytes() != b""
    with load_bundle(bundle, engine="onnxruntime") as loaded:
        assert loaded.self_test() == 0 and loaded.choice == loaded.contents.choice


def test_an_engine_that_was_lost_is_none(remade: Path) -> None:
    reseal(remade, lambda content: content.update(deferred=None))
    (remade / MADE).unlink()
    refused(remade, "engine files only, and there is none")


def test_every_flipped_byte_of_what_was_made_is_found(remade: Path) -> None:
    whole, chance = (remade / MADE).read_bytes(), random.Random(4)
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        (remade / MADE).write_bytes(data)
        assert refused(remade).file == str(remade / MADE)


def engine_of(content: dict[str, Any], **change: Any) -> None:
    content["choice"]["engine"].update(change)


def named(content: dict[str, Any], name: str) -> None:
    """Call the log by another name."""
    content["files"][name] = content["files"].pop("engine/1.log")
    engine_of(content, log=name)


WRONG_MADE: dict[str, tuple[Change, str]] = {
    "deep proof": (lambda c: c["proof"].update(nested(20)), "nested too deep"),
    **{f"file {p!r}": (lambda c, p=p: named(c, p), "inside") for p in OUTSIDE},
    "unknown version": (
        lambda c: c.update(schema_version=2),
        r"version is not known here \(found 2\).*reads version 1",
    ),
    "no version": (lambda c: c.pop("schema_version"), "version is not known"),
    "another manifest": (lambda c: c.update(manifest_sha256="0" * 64), "made for another manifest"),
    "no manifest": (lambda c: c.pop("manifest_sha256"), "manifest_sha256"),
    "another precision": (lambda c: c["choice"].update(precision="fp16"), "does not allow"),
    "another tolerance": (lambda c: c["choice"].update(tolerance=1e-3), "does not allow"),
    "no engine": (lambda c: c["choice"].update(engine=None), "files of one engine"),
    "another GPU": (lambda c: engine_of(c, sm="8.9"), "for another target"),
    "another builder": (lambda c: engine_of(c, builder="tensorrt-rtx"), "for another target"),
    "another graph": (lambda c: engine_of(c, graph_sha256="0" * 64), "from another graph"),
    "unknown key": (lambda c: c.update(run="rm"), "run"),
    "more files": (lambda c: c["files"].update(more=c["files"]["engine/1.log"]), "files of one engine"),
    "fewer files": (lambda c: c["files"].pop("engine/1.log"), "files of one engine"),
    "a file of the manifest's": (lambda c: named(c, "graphs/fp32.onnx"), "files of one engine"),
    "the manifest itself": (lambda c: named(c, MANIFEST), "files of one engine"),
    "itself": (lambda c: named(c, MADE), "is listed like"),
    "other hash": (lambda c: c["files"]["engine/1.log"].update(sha256="0" * 64), "SHA-256 differs"),
    "half a character": (lambda c: c["choice"].update(why="\ud800"), "altered or damaged"),
}


@pytest.mark.parametrize("name", WRONG_MADE)
def test_what_was_made_is_not_believed_although_it_is_sealed(remade: Path, name: str) -> None:
    change, match = WRONG_MADE[name]
    reseal(remade, change, MADE)
    error = refused(remade, match)
    assert error.file == str(remade / ("engine/1.log" if name == "other hash" else MADE))


def test_what_was_made_of_another_bundle_is_refused_and_not_installed(remade: Path, made: Path) -> None:
    contents = verified_bundle(made)
    assert contents.made is not None
    reseal(remade, lambda content: content.update(scale=2.0, scale_from="flag"))
    assert refused(remade, "made for another manifest").file == str(remade / MADE)
    rebind(remade)
    before = (remade / MADE).read_bytes()
    with pytest.raises(BundleError, match="another bundle than the one that the engine is for"):
        install_engine(
            remade, contents, contents.choice, {}, {name: contents.files[name] for name in contents.made.files}
        )
    assert (remade / MADE).read_bytes() == before and verified_bundle(remade).made is not None


def test_a_rival_has_its_own_tolerance(remade: Path) -> None:
    def rivals(content: dict[str, Any]) -> None:
        content["graphs"]["fp16"] = content["graphs"]["fp32"]
        content["precision"]["rivals"] = {"fp16": 0.25}

    reseal(remade, rivals)
    rebind(remade)
    reseal(remade, lambda content: content["choice"].update(precision="fp16"), MADE)
    refused(remade, "does not allow")
    reseal(remade, lambda content: content["choice"].update(tolerance=0.25), MADE)
    assert verified_bundle(remade).choice.tolerance == 0.25
    reseal(remade, lambda content: content["graphs"].pop("fp16"))
    refused(remade, "a file it needs")


def test_a_new_engine_takes_the_place_of_the_one_before_and_of_nothing_else(remade: Path) -> None:
    kept = {path: path.read_bytes() for path in remade.rglob("*") if path.is_file() and "engine" not in path.parts}
    give_engine(remade, b"another", "engine/2")
    assert names_in(remade / "engine") == ["2.layers.json", "2.log", "2.plan"]
    assert all(path.read_bytes() == data for path, data in kept.items() if path.name != MADE)
    give_engine(remade, b"another", "engine/2")
    assert verified_bundle(remade).files["engine/2.plan"] == b"another"


# Damage


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.choice((0, len(data) - 1, chance.randrange(len(data))))])


def extend(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.choice((b"\0", b"\n", b"more")))


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def link(path: Path, chance: random.Random) -> None:
    """The very content, behind a link."""
    moved = path.rename(path.with_name(path.name + ".moved"))
    path.symlink_to(moved)


def dangling_link(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def folder_instead(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(chance.choice(("/dev/zero", "/dev/null", "/dev/stdin")))


DAMAGES = (flip, truncate, extend, delete, link, dangling_link, folder_instead, pipe, device)


def put_back(whole: Path, damaged: Path) -> None:
    shutil.rmtree(damaged)
    shutil.copytree(whole, damaged)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_to_every_file_is_found(identity: Path, altered: Path, damage: Any) -> None:
    names = sorted(str(path.relative_to(identity)) for path in identity.rglob("*") if path.is_file())
    assert len(names) == 6 and MANIFEST in names
    chance = random.Random(damage.__name__)
    for name in names * 2:
        damage(altered / name, chance)
        assert refused(altered).file == str(altered / name) or (damage is delete and name == MANIFEST)
        put_back(identity, altered)
    load_bundle(altered).close()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_to_what_was_made_is_found(made: Path, remade: Path, damage: Any) -> None:
    chance = random.Random(damage.__name__)
    for name in (MADE, "engine/1.plan", "engine/1.layers.json", "engine/1.log"):
        damage(remade / name, chance)
        # Without a record nothing was built.
        if damage is not delete or name != MADE:
            assert refused(remade).file == str(remade / name)
        put_back(made, remade)


def test_flips_in_a_networks_bundle_are_found(tiny_bundle: Path, tmp_path: Path) -> None:
    altered, chance = shutil.copytree(tiny_bundle, tmp_path / "bundle"), random.Random(2)
    files = sorted(path for path in altered.rglob("*") if path.is_file())
    for path in files * 3:
        data = path.read_bytes()
        chance.choice((flip, truncate, extend))(path, chance)
        assert refused(altered).file == str(path)
        path.write_bytes(data)
    load_bundle(altered).close()


@pytest.mark.parametrize("inner", ["graphs", "golden"])
def test_a_folder_behind_a_link_is_not_entered(altered: Path, inner: str) -> None:
    outside = (altered / inner).rename(altered.parent / "outside")
    (altered / inner).symlink_to(outside)
    with watching() as seen:
        refused(altered, "link")
    assert not [path for path in seen if not inside(path, altered)]


def test_a_bundle_itself_may_lie_behind_a_link(identity: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(identity)
    load_bundle(tmp_path / "current").close()


def test_what_is_no_bundle_is_told(identity: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no manifest.json" in str(refused(tmp_path / "empty"))
    for wrong in (tmp_path / "nothing", identity / MANIFEST, identity / "golden" / "frame.npy", Path("/dev/null")):
        assert "no such bundle" in str(refused(wrong))


def test_files_that_the_manifest_does_not_list_are_left_alone(altered: Path) -> None:
    (altered / "notes.txt").write_text("mine")
    os.mkfifo(altered / "pipe")
    with watching() as seen:
        load_bundle(altered).close()
    assert not any(path.endswith(("notes.txt", "pipe")) for path in seen)


def test_loading_opens_nothing_outside_the_folder_and_runs_nothing(identity: Path) -> None:
    load_bundle(identity).close()
    with watching() as seen, load_bundle(identity) as bundle:
        bundle.self_test()
    assert {path for path in seen if inside(path, identity)} >= {str(identity / name) for name in bundle.manifest.files}
    assert not [path for path in seen if not inside(path, identity)]


Seen = list[str]
_watchers: list[Seen] = []


RUNNING = ("os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.system", "pickle.find_class")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watchers:
        return
    # A number is a file that was opened, and seen, before.
    if event == "open" and not isinstance(arguments[0], int):
        _watchers[-1].append(os.fsdecode(arguments[0]))
    elif event in RUNNING:
        _watchers[-1].append(event)


sys.addaudithook(_hook)


@contextmanager
def watching() -> Iterator[Seen]:
    """What this process opens and runs meanwhile, by Python's audit events."""
    seen: Seen = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def inside(path: str, folder: Path) -> bool:
    # The kernel's own tables and Python's own modules are no files of anybody's.
    ours = (str(folder), "/proc/", "/sys/", sys.prefix, sys.base_prefix, str(Path(runtime.__file__).parents[1]))
    return path.startswith(ours)


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    with watching() as seen:
        (tmp_path / "a").write_bytes(b"")
        os.close(os.open(tmp_path / "a", os.O_RDONLY))
        pickle.loads(pickle.dumps(Path))
    assert seen == [str(tmp_path / "a")] * 2 + ["pickle.find_class"]
    assert not inside(seen[0], tmp_path / "b") and inside(seen[0], tmp_path)


# The self-test


def test_the_golden_frame_is_restored_as_recorded(tiny_bundle: Path) -> None:
    with load_bundle(tiny_bundle) as bundle:
        difference = bundle.self_test()
        assert 0 <= difference <= bundle.manifest.golden.tolerance
        assert difference == bundle.self_test()


def golden(bundle: Path, name: str) -> NDArray[np.float32]:
    return np.asarray(np.load(bundle / f"golden/{name}.npy"))


def test_another_golden_output_fails_the_self_test(tiny_bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    expected = golden(altered, "restored")
    expected[0, 0, 0, 0] += 2 * read_manifest(altered).golden.tolerance * np.ptp(expected)
    swap(altered, "golden/restored.npy", array_bytes(expected))
    with load_bundle(altered) as bundle, pytest.raises(GateError, match="does not restore the golden frame") as caught:
        bundle.self_test()
    assert caught.value.exit_code == 1 and "do not fly" in caught.value.remedy


def test_a_proof_may_have_a_frame_of_its_own(tmp_path: Path) -> None:
    bundle = prove_another(known_bundle(tmp_path / "bundle"), 1)
    frames = [np.load(bundle / proof["frame"]) for proof in read_manifest(bundle).proofs]
    assert len(frames) == 2 and not np.array_equal(*frames)
    with load_bundle(bundle) as loaded:
        assert loaded.self_test() <= loaded.manifest.golden.tolerance and len(loaded.answers) == 2
    swap(bundle, "golden/2/frame.npy", array_bytes(frames[0]))
    with load_bundle(bundle) as loaded, pytest.raises(GateError, match="does not restore the golden frame"):
        loaded.self_test()


def test_a_proof_of_quality_has_the_frame_that_its_truth_is_of(tmp_path: Path) -> None:
    bundle = prove_another(known_bundle(tmp_path / "bundle"), 1)
    reseal(bundle, lambda content: content["golden"].update(truth="golden/restored.npy"))
    with pytest.raises(BundleError, match="golden arrays are others"):
        read_manifest(bundle)


def test_other_experts_fail_the_self_test(tiny_bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    swap(altered, "golden/routing.npy", array_bytes(golden(altered, "routing")[:, ::-1]))
    with load_bundle(altered) as bundle, pytest.raises(GateError, match="same experts"):
        bundle.self_test()


def test_another_graph_fails_the_self_test(altered: Path) -> None:
    swap(altered, "graphs/fp32.onnx", known_graph(SPEC, gain=1.001))
    with load_bundle(altered) as bundle, pytest.raises(GateError, match="golden"):
        bundle.self_test()


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def bad_arrays(name: str, good: NDArray[np.float32], trap: Path) -> dict[str, bytes]:
    holed = good.copy()
    holed.flat[-1] = np.nan
    objects = io.BytesIO()
    np.save(objects, np.array([Trap(trap)], object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, good)
    whole = array_bytes(good)
    liar = io.BytesIO()
    np.lib.format.write_array_header_1_0(liar, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    return {
        "nan": array_bytes(holed),
        "infinite": array_bytes(holed * np.float32(np.inf)),
        "doubles": array_bytes(good.astype(np.float64)),
        "text": array_bytes(np.array(["x"])),
        "shape": array_bytes(good[..., 1:]),
        "axes": array_bytes(good[0]),
        "empty": b"",
        "noise": bytes(range(256)),
        "truncated": whole[:-1],
        "header": whole[:30],
        "archive": archive.getvalue(),
        "half an archive": archive.getvalue()[:40],
        "objects": objects.getvalue(),
        "pickle": pickle.dumps(Trap(trap)),
        "liar": liar.getvalue(),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_arrays_are_not_believed(altered: Path, name: str, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    for data in bad_arrays(name, golden(altered, name), trap).values():
        swap(altered, f"golden/{name}.npy", data)
        with load_bundle(altered) as bundle, pytest.raises(BundleError, match="the array is") as caught:
            bundle.self_test()
        assert str(caught.value).isprintable() and caught.value.file == str(altered / f"golden/{name}.npy")
    assert not trap.exists()


# Writing


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_files_are_whole_and_plain(identity: Path) -> None:
    for path in identity.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0 or path.is_dir()
        assert not path.is_symlink() and not path.name.startswith(".")


def test_a_bundle_is_put_in_its_place(identity: Path, tmp_path: Path) -> None:
    shutil.copytree(identity, tmp_path / "new")
    install_bundle(tmp_path / "new", tmp_path / "bundle", replace=True)
    load_bundle(tmp_path / "bundle").close()
    assert names_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_bundle_takes_the_place_of_an_older_one(
    identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr("runtime.bundle_files.swap", lambda one, other: False)
    known_bundle(tmp_path / "bundle", gain=2.0)
    (tmp_path / ".bundle.old").mkdir()
    (tmp_path / ".bundle.old" / "left over").write_bytes(b"")
    shutil.copytree(identity, tmp_path / "new")
    install_bundle(tmp_path / "new", tmp_path / "bundle", replace=True)
    assert (tmp_path / "bundle" / MANIFEST).read_bytes() == (identity / MANIFEST).read_bytes()
    assert set(names_in(tmp_path)) - {".bundle.old"} == {"bundle"}


def test_a_swap_exchanges_folders_at_once(identity: Path, tmp_path: Path) -> None:
    known_bundle(tmp_path / "bundle", gain=2.0)
    (tmp_path / "new").mkdir()
    assert exchange(tmp_path / "new", tmp_path / "bundle"), "this system cannot swap folders"
    assert (tmp_path / "new" / MANIFEST).is_file() and not any((tmp_path / "bundle").iterdir())
    assert not exchange(tmp_path / "absent", tmp_path / "bundle")


def test_a_bundle_that_cannot_take_its_place_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.bundle_files.swap", lambda one, other: False)
    known_bundle(tmp_path / "bundle", gain=2.0)
    with pytest.raises(BundleError, match="cannot be written"):
        install_bundle(tmp_path / "absent", tmp_path / "bundle", replace=True)
    load_bundle(tmp_path / "bundle").close()
    assert names_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize("link", [False, True])
def test_a_bundle_is_whole_wherever_its_installation_was_killed(
    identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    monkeypatch.setattr("runtime.bundle_files.swap", lambda one, other: False)
    gone = code = 0
    for kill_at in range(100):
        folder = tmp_path / str(kill_at)
        known_bundle(folder / "bundle", gain=2.0)
        shutil.copytree(identity, folder / "new")
        if link:
            (folder / "link").symlink_to("bundle")
        out = folder / ("link" if link else "bundle")
        known = [(folder / name / MANIFEST).read_bytes() for name in ("bundle", "new")]
        code = killed(kill_at, partial(install_bundle, folder / "new", out, replace=True))
        gone += not out.exists()
        assert dump(read_manifest(out)) in known
        verified_bundle(out)
        shutil.copytree(identity, folder / "newer")
        install_bundle(folder / "newer", out, replace=True)
        assert set(names_in(folder)) - {"new", "link"} == {"bundle"}
        if code == 0:
            break
    assert code == 0 and gone


def test_behind_a_link_the_bundle_is_replaced_and_the_link_stays(identity: Path, tmp_path: Path) -> None:
    known_bundle(tmp_path / "a", gain=2.0)
    (tmp_path / "current").symlink_to("a")
    for _ in range(2):
        shutil.copytree(identity, tmp_path / "new")
        install_bundle(tmp_path / "new", tmp_path / "current", replace=True)
        assert (tmp_path / "current").is_symlink() and names_in(tmp_path) == ["a", "current"]
        assert (tmp_path / "a" / MANIFEST).read_bytes() == (identity / MANIFEST).read_bytes()


def test_threads_are_the_targets_unless_others_are_asked_for(identity: Path) -> None:
    with load_bundle(identity) as bundle:
        assert "1 threads" in bundle.engine.describe()["device"]
    with load_bundle(identity, threads=2) as bundle:
        assert "2 threads" in bundle.engine.describe()["device"]


def test_doubts_about_numbers_are_warnings_in_python(identity: Path) -> None:
    cube = cube_of(3, 24, 20)
    cube[:, :3] = -9999
    with load_bundle(identity) as bundle:
        with pytest.warns(UserWarning, match=r"60 pixels hold -9999"):
            restored = bundle.restore(cube)
        np.testing.assert_array_equal(restored.cube[:, :3], cube[:, :3])
        assert restored.meaning is not None and restored.missing == 60
        told = bundle.restore(cube, ignore_value=-9999)
    np.testing.assert_array_equal(told.cube, restored.cube)
