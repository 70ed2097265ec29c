"""Restoring cubes of any size with something that restores a frame: exact blending, metrics of the whole, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import CubeError
from runtime.metrics import prompt_metrics
from runtime.prompts import Prompts
from runtime.restore import Restored, restore_cube
from runtime.signature import Plane, Prompt, Signature
from runtime.tiles import Tiling, starts
from tests.contracts.coded import CODE, CODED, decode, decoded
from tests.contracts.graphs import damp_like

Float32 = NDArray[np.float32]
LAYERS, EXPERTS = 2, 4


class Recorder:
    """Restores a frame by a function of it, and keeps what it was given."""

    def __init__(self, function: Any = lambda frame, number: frame) -> None:
        self.function = function
        self.frames: list[Float32] = []
        self.metrics: list[Float32] = []

    def __call__(self, feeds: Mapping[str, Float32]) -> dict[str, Float32]:
        assert list(feeds) == ["frame", "metrics"]
        number = len(self.frames)
        self.frames.append(feeds["frame"])
        self.metrics.append(feeds["metrics"])
        routing = np.full((LAYERS, EXPERTS), number, np.float32)
        return {"restored": self.function(feeds["frame"], number), "routing": routing}


def cube_of(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).random(shape, np.float32)


def restored_by(infer: Any, cube: Float32, bands: int = 3, frame: tuple[int, int] = (16, 16), **more: Any) -> Restored:
    signature = damp_like(bands, *frame, layers=LAYERS, experts=EXPERTS)
    return restore_cube(cube, infer, signature, **{"overlap": 4, "prompts": Prompts(signature), **more})


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, int, int], int, tuple[int, int], int]:
    """Shape of a cube, bands of the network, frame, overlap."""
    bands = draw(st.integers(1, 9))
    frame = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    shape = bands + draw(st.integers(0, 20)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    return shape, bands, frame, draw(st.integers(0, min(frame) // 2))


@settings(deadline=None, max_examples=150)
@given(cases(), st.integers(0, 2**32 - 1))
def test_frames_that_come_back_as_they_were_give_the_cube_back(
    case: tuple[tuple[int, int, int], int, tuple[int, int], int], seed: int
) -> None:
    shape, bands, frame, overlap = case
    cube = cube_of(*shape, seed=seed)
    kept = cube.copy()
    restored = restored_by(Recorder(), cube, bands, frame, overlap=overlap, given=np.zeros(6))
    assert restored.cube.dtype == np.float32
    np.testing.assert_allclose(restored.cube, cube, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(cube, kept)
    assert not np.shares_memory(restored.cube, cube)


@pytest.mark.parametrize("overlap", [0, 1, 15])
def test_an_offset_comes_back_everywhere(overlap: int) -> None:
    cube = cube_of(10, 50, 37)
    restored = restored_by(Recorder(lambda frame, _: 2 * frame - 1), cube, 4, overlap=overlap)
    np.testing.assert_allclose(restored.cube, 2 * cube - 1, rtol=0, atol=2e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_frames_of_different_level_join_without_a_seam(axis: int) -> None:
    overlap, size = 16, [32, 32]
    size[axis] = 150
    levels = Recorder(lambda frame, number: np.full_like(frame, number % 2))
    cube = restored_by(levels, np.zeros((3, *size), np.float32), frame=(32, 32), overlap=overlap).cube
    profile = cube.mean(axis=(0, 2 - axis))
    # From one level to the other over the whole overlap: no step is steeper than a ramp's steepest.
    assert 0.95 < np.ptp(profile) <= 1
    assert np.abs(np.diff(profile)).max() < 1.1 * np.pi / 2 / overlap
    np.testing.assert_array_equal(np.ptp(cube, axis=2 - axis), 0)


def test_without_overlap_there_is_a_seam_to_find() -> None:
    levels = Recorder(lambda frame, number: np.full_like(frame, number % 2))
    cube = restored_by(levels, np.zeros((3, 32, 64), np.float32), frame=(32, 32), overlap=0).cube
    assert np.abs(np.diff(cube[0, 0])).max() == 1


def test_bands_of_groups_of_different_level_join_without_a_step() -> None:
    levels = Recorder(lambda frame, number: np.full_like(frame, number))
    cube = restored_by(levels, np.zeros((56, 8, 8), np.float32), bands=32, frame=(8, 8), overlap=0).cube
    spectrum = cube[:, 0, 0]
    assert spectrum[0] == 0 and spectrum[-1] == 1
    assert 0 < np.diff(spectrum).max() < 1.1 * np.pi / 2 / 8 and np.diff(spectrum).min() >= 0


# Metrics


def test_metrics_are_those_of_the_whole_cube_in_every_frame() -> None:
    cube = cube_of(3, 40, 30)
    recorder = Recorder()
    restored = restored_by(recorder, cube)
    expected = prompt_metrics(cube, "paper6")
    assert len(recorder.frames) == len(Tiling((40, 30), (16, 16), 4).tiles()) > 4
    for metrics in recorder.metrics:
        assert metrics.shape == (1, 6) and metrics.dtype == np.float32
        np.testing.assert_array_equal(metrics[0], expected)
    np.testing.assert_array_equal(restored.metrics, expected)


def test_metrics_of_a_small_cube_do_not_see_the_reflection() -> None:
    cube = cube_of(3, 5, 7)
    recorder = Recorder()
    restored = restored_by(recorder, cube)
    assert recorder.frames[0].shape == (1, 3, 16, 16)
    np.testing.assert_array_equal(restored.metrics, prompt_metrics(cube, "paper6"))
    assert not np.array_equal(restored.metrics, prompt_metrics(recorder.frames[0][0], "paper6"))


def test_metrics_are_taken_per_band_group_over_the_full_extent() -> None:
    cube = cube_of(40, 20, 30)
    recorder = Recorder()
    restored = restored_by(recorder, cube, bands=31)
    tiles = len(Tiling((20, 30), (16, 16), 4).tiles())
    assert restored.metrics.shape == (2, 6)
    for group, start in enumerate(starts(40, 31, 7)):
        expected = prompt_metrics(cube[start : start + 31], "paper6")
        np.testing.assert_array_equal(restored.metrics[group], expected)
        for metrics in recorder.metrics[group * tiles : (group + 1) * tiles]:
            np.testing.assert_array_equal(metrics[0], expected)
    assert not np.array_equal(*restored.metrics)


@pytest.mark.parametrize(
    "form",
    [
        np.arange(6.0),
        np.arange(6),
        np.arange(6.0)[None],
        list(range(6)),
        [[*range(6)]],
        {"metrics": np.arange(6.0)},
        {"metrics": [[*range(6)]]},
    ],
)
def test_given_metrics_are_used_instead(form: Any) -> None:
    recorder = Recorder()
    restored = restored_by(recorder, cube_of(40, 20, 16), bands=31, given=form)
    assert restored.metrics_by == "given"
    assert all(np.array_equal(metrics, np.arange(6.0)[None]) for metrics in recorder.metrics)
    assert restored.metrics.shape == (2, 6) and restored.metrics.dtype == np.float32
    single = restored_by(Recorder(), cube_of(3, 4, 4), given=form)
    np.testing.assert_array_equal(single.metrics, np.arange(6.0))


def test_metrics_may_be_given_per_band_group() -> None:
    given_metrics = np.arange(12.0).reshape(2, 6)
    recorder = Recorder()
    restored = restored_by(recorder, cube_of(40, 8, 8), bands=31, given=given_metrics)
    np.testing.assert_array_equal(np.concatenate(recorder.metrics), given_metrics)
    np.testing.assert_array_equal(restored.metrics, given_metrics)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(5),
        np.zeros(15),
        np.zeros((6, 1)),
        np.zeros((1, 1, 6)),
        np.zeros((3, 6)),
        np.zeros((0, 6)),
        0.0,
        [],
        "metrics",
        ["a"] * 6,
        np.zeros(6, complex),
        np.zeros(6, bool),
        [None] * 6,
    ],
)
def test_metrics_that_do_not_fit_are_refused(wrong: Any) -> None:
    for cube in (cube_of(3, 8, 8), cube_of(5, 8, 8)):
        for given_metrics in (wrong, {"metrics": wrong}):
            with pytest.raises(CubeError, match=r"metrics: the metrics do not fit the network.*\[6\] or \[1, 6\]"):
                restored_by(Recorder(), cube, given=given_metrics)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_metrics_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(CubeError, match="metrics: the metrics are not finite"):
        restored_by(Recorder(), cube_of(3, 8, 8), given=[0, 0, value, 0, 0, 0])


# Routing, progress, refusals


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 16, 16), ()),
        ((3, 1, 1), ()),
        ((3, 17, 16), (1, 2)),
        ((3, 30, 30), (1, 9)),
        ((5, 16, 16), (2, 1)),
        ((5, 17, 16), (2, 2)),
        ((4, 30, 30), (2, 9)),
    ],
)
def test_gates_tell_group_and_tile(shape: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    gates = restored_by(Recorder(), cube_of(*shape)).gates
    assert gates.shape == (*expected, LAYERS, EXPERTS)
    count = int(np.prod(expected, dtype=int))
    order = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, LAYERS, EXPERTS))
    np.testing.assert_array_equal(gates, order.reshape(gates.shape))


def test_progress_counts_every_frame_once() -> None:
    told: list[tuple[int, int]] = []
    restored_by(Recorder(), cube_of(5, 17, 16), progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 4) for n in range(1, 5)]


@pytest.mark.parametrize("bands", [1, 2])
def test_fewer_bands_than_the_network_are_refused(bands: int) -> None:
    recorder = Recorder()
    with pytest.raises(CubeError, match=rf"bands: .*fewer bands.*found {bands}.*restores 3 bands"):
        restored_by(recorder, cube_of(bands, 8, 8))
    assert not recorder.frames


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_refused(value: float) -> None:
    cube = cube_of(3, 8, 8)
    cube[1, 2, 3] = cube[2, 0, 0] = value
    recorder = Recorder()
    with pytest.raises(CubeError, match="cube: 2 values are not finite, the first in band 1"):
        restored_by(recorder, cube, given=np.zeros(6))
    assert not recorder.frames


def test_an_error_of_the_engine_is_passed_on() -> None:
    def fails(frame: Float32, number: int) -> Float32:
        raise CubeError("no") if number else ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        restored_by(Recorder(fails), cube_of(3, 8, 8))


# A network of other planes, with a constant, without metrics and experts, whose frames have one place


def coded(cube: Float32, infer: Any = decode, **more: Any) -> Restored:
    return restore_cube(cube, infer, CODED, **{"overlap": 0, "prompts": Prompts(CODED, {"code": CODE}), **more})


def test_a_network_may_give_other_bands_than_it_takes() -> None:
    cube, told = cube_of(3, 8, 16), []
    kept = cube.copy()
    restored = coded(cube, progress=lambda done, total: told.append((done, total)))
    assert restored.cube.shape == (5, 8, 16) and restored.cube.dtype == np.float32
    np.testing.assert_array_equal(restored.cube, decoded(cube))
    np.testing.assert_array_equal(cube, kept)
    assert told == [(1, 1)] and restored.frames == 1


def test_a_network_without_metrics_and_experts_has_neither() -> None:
    restored = coded(cube_of(3, 8, 16))
    assert restored.metrics_by == "none" and restored.side == {} and list(restored.prompts) == ["code"]
    np.testing.assert_array_equal(restored.prompts["code"], CODE[0])
    for name in ("metrics", "gates"):
        with pytest.raises(KeyError):
            getattr(restored, name)


@pytest.mark.parametrize("form", [CODE + 1, CODE[0] + 1, (CODE[0] + 1).tolist(), (CODE + 1).astype(np.float64)])
def test_a_given_constant_replaces_the_bundles(form: Any) -> None:
    cube = cube_of(3, 8, 16)
    restored = coded(cube, given={"code": form})
    np.testing.assert_array_equal(restored.cube, decoded(cube, CODE + 1))
    np.testing.assert_array_equal(restored.prompts["code"], CODE[0] + 1)
    assert restored.metrics_by == "none"
    np.testing.assert_array_equal(coded(cube, given={}).cube, decoded(cube))


@pytest.mark.parametrize("name", ["metrics", "Code", "shot", "restored", "", "\x1b[31m"])
def test_prompts_of_other_names_are_refused(name: str) -> None:
    with pytest.raises(CubeError, match=r"prompts: the network takes no such prompt .*it takes code") as caught:
        coded(cube_of(3, 8, 16), given={"code": CODE, name: CODE})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("wrong", [CODE[:, 1:], CODE.T, CODE[None], np.zeros((2, 5)), 0.0, "code", [[1], [1, 2]]])
def test_constants_of_other_shapes_are_refused(wrong: Any) -> None:
    with pytest.raises(CubeError, match=r"code: the code (do not fit the network|are not an array)"):
        coded(cube_of(3, 8, 16), given={"code": wrong})


def test_constants_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CubeError, match="code: the code are not finite"):
        coded(cube_of(3, 8, 16), given={"code": CODE * np.float32(np.nan)})


@pytest.mark.parametrize("given_metrics", [np.zeros(6), CODE])
def test_metrics_alone_are_refused_by_a_network_that_takes_none(given_metrics: Any) -> None:
    with pytest.raises(CubeError, match="prompts: the network takes no metrics; leave them out"):
        coded(cube_of(3, 8, 16), given=given_metrics)


@pytest.mark.parametrize("size", [(8, 15), (7, 16), (9, 16), (8, 17), (16, 8), (16, 32), (1, 1)])
def test_frames_that_have_one_place_come_in_one_size(size: tuple[int, int]) -> None:
    asked: list[object] = []
    with pytest.raises(CubeError, match=rf"cube: .*one size.*{size[0]}x{size[1]}.*give 8 lines x 16 samples"):
        coded(cube_of(3, *size), asked.append)
    assert not asked


@pytest.mark.parametrize(
    ("bands", "said"),
    [
        (1, "fewer bands than the network .*found 1.*restores 3 bands"),
        (2, "fewer bands"),
        (4, "more bands than the network, which does not restore them in groups .*found 4.*give the 3 bands"),
        (5, "more bands"),
        (6, "more bands"),
    ],
)
def test_without_groups_another_number_of_bands_is_refused(bands: int, said: str) -> None:
    asked: list[object] = []
    with pytest.raises(CubeError, match=f"bands: .*{said}"):
        coded(cube_of(bands, 8, 16), asked.append)
    assert not asked


def test_a_fixed_frame_may_come_out_in_another_size() -> None:
    """As of a scene that a disperser spreads over more samples than it has."""
    signature = Signature(
        Plane("shot", 1, 8, 20, "coded"), Plane("restored", 5, 8, 16), tiling="fixed", band_groups=False
    )
    made = cube_of(5, 8, 16)
    restored = restore_cube(
        cube_of(1, 8, 20), lambda feeds: {"restored": made[None]}, signature, overlap=0, prompts=Prompts(signature)
    )
    np.testing.assert_array_equal(restored.cube, made)
    assert restored.prompts == {} == restored.side


def test_other_bands_come_out_of_frames_that_may_lie_anywhere() -> None:
    signature = Signature(
        Plane("photo", 3, 16, 16, "rgb"), Plane("restored", 5, 16, 16), (Prompt("code", (4, 5), "constant", "c.npy"),),
        band_groups=False,
    )  # fmt: skip
    code = np.broadcast_to(CODE, (4, 5)).copy()
    seen: list[Float32] = []

    def infer(feeds: Mapping[str, Float32]) -> dict[str, Float32]:
        seen.append(feeds["code"])
        return {"restored": decoded(feeds["photo"][0], feeds["code"])[None]}

    for size in ((16, 16), (40, 37), (5, 7)):
        cube = cube_of(3, *size)
        prompts = Prompts(signature, {"code": code})
        restored = restore_cube(cube, infer, signature, overlap=4, prompts=prompts)
        np.testing.assert_allclose(restored.cube, decoded(cube), atol=2e-6)
        np.testing.assert_array_equal(restored.prompts["code"], code)
    assert all(array.shape == (4, 5) for array in seen) and len(seen) > 6


def test_a_given_prompt_leaves_the_others_as_they_are() -> None:
    prompts = (*damp_like(3, 16, 16).prompts, Prompt("code", (1, 5), "constant", "c.npy"))
    signature = Signature(Plane("frame", 3, 16, 16), Plane("restored", 3, 16, 16), prompts)
    cube, seen = cube_of(5, 16, 16), []

    def infer(feeds: Mapping[str, Float32]) -> dict[str, Float32]:
        seen.append(feeds)
        return {"restored": feeds["frame"]}

    made = Prompts(signature, {"code": CODE})
    for given_prompts, by in (({"code": CODE + 1}, "host"), ({"metrics": np.arange(6.0)}, "given")):
        restored = restore_cube(cube, infer, signature, overlap=0, prompts=made, given=given_prompts)
        assert restored.metrics_by == by and restored.metrics.shape == (2, 6)
        assert restored.prompts["code"].shape == (2, 5)
    own = [prompt_metrics(cube[start : start + 3], "paper6") for start in (0, 2)]
    for feeds, metrics, code in zip(seen, (*own, *[np.arange(6.0)] * 2), [1, 1, 0, 0], strict=True):
        np.testing.assert_array_equal(feeds["metrics"][0], metrics)
        np.testing.assert_array_equal(feeds["code"], CODE + code)
