"""Restoring cubes of any size with something that restores a frame: exact blending, metrics of the whole, refusals."""

from __future__ import annotations

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
from runtime.tiles import Tiling, starts

Float32 = NDArray[np.float32]
LAYERS, EXPERTS = 2, 4


class Recorder:
    """Restores a frame by a function of it, and keeps what it was given."""

    def __init__(self, function: Any = lambda frame, number: frame) -> None:
        self.function = function
        self.frames: list[Float32] = []
        self.metrics: list[Float32] = []

    def __call__(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32]:
        number = len(self.frames)
        self.frames.append(frame)
        self.metrics.append(metrics)
        return self.function(frame, number), np.full((LAYERS, EXPERTS), number, np.float32)


def cube_of(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).random(shape, np.float32)


def restored_by(infer: Any, cube: Float32, bands: int = 3, frame: tuple[int, int] = (16, 16), **more: Any) -> Restored:
    usual = {"bands": bands, "frame": frame, "overlap": 4, "prompts": Prompts("paper6")}
    return restore_cube(cube, infer, **{**usual, **more})


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
    restored = restored_by(Recorder(), cube, bands, frame, overlap=overlap, metrics=np.zeros(6))
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


@pytest.mark.parametrize("form", [np.arange(6.0), np.arange(6), np.arange(6.0)[None], list(range(6)), [[*range(6)]]])
def test_given_metrics_are_used_instead(form: Any) -> None:
    recorder = Recorder()
    restored = restored_by(recorder, cube_of(40, 20, 16), bands=31, metrics=form)
    assert all(np.array_equal(metrics, np.arange(6.0)[None]) for metrics in recorder.metrics)
    assert restored.metrics.shape == (2, 6) and restored.metrics.dtype == np.float32
    single = restored_by(Recorder(), cube_of(3, 4, 4), metrics=form)
    np.testing.assert_array_equal(single.metrics, np.arange(6.0))


def test_metrics_may_be_given_per_band_group() -> None:
    given_metrics = np.arange(12.0).reshape(2, 6)
    recorder = Recorder()
    restored = restored_by(recorder, cube_of(40, 8, 8), bands=31, metrics=given_metrics)
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
        with pytest.raises(CubeError, match=r"metrics: the metrics do not fit the network.*\[6\] or \[1, 6\]"):
            restored_by(Recorder(), cube, metrics=wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_metrics_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(CubeError, match="metrics: the metrics are not finite"):
        restored_by(Recorder(), cube_of(3, 8, 8), metrics=[0, 0, value, 0, 0, 0])


# Gates, progress, refusals


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
        restored_by(recorder, cube, metrics=np.zeros(6))
    assert not recorder.frames


def test_an_error_of_the_engine_is_passed_on() -> None:
    def fails(frame: Float32, number: int) -> Float32:
        raise CubeError("no") if number else ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        restored_by(Recorder(fails), cube_of(3, 8, 8))
