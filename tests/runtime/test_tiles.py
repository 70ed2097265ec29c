"""Frames cover a cube, share what they should, and join without a seam."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.signature import Plane, Signature
from runtime.tiles import FramePlan, Tile, Tiling, frame_plan, ramp, shares, starts


@st.composite
def lengths(draw: st.DrawFn, longest: int = 400) -> tuple[int, int, int]:
    """Length, piece, and an overlap shorter than the piece."""
    piece = draw(st.integers(1, 130))
    return draw(st.integers(1, longest)), piece, draw(st.integers(0, piece - 1))


@settings(deadline=None, max_examples=300)
@given(lengths())
def test_pieces_cover_everything_and_share_at_least_the_overlap(case: tuple[int, int, int]) -> None:
    length, piece, overlap = case
    first = starts(length, piece, overlap)
    assert first[0] == 0 and list(first) == sorted(set(first))
    if length <= piece:
        assert first == (0,)
        return
    assert first[-1] == length - piece
    assert all(start + piece - following >= overlap for start, following in pairwise(first))
    # No more pieces than it takes: one fewer could not cover it.
    assert (len(first) - 1) * (piece - overlap) + overlap < length


@pytest.mark.parametrize(
    ("length", "piece", "overlap", "expected"),
    [
        (64, 64, 16, (0,)),
        (65, 64, 16, (0, 1)),
        (112, 64, 16, (0, 48)),
        (113, 64, 16, (0, 24, 49)),
        (40, 31, 7, (0, 9)),
        (128, 64, 0, (0, 64)),
        (3, 1, 0, (0, 1, 2)),
        (1, 64, 63, (0,)),
    ],
)
def test_places_of_pieces(length: int, piece: int, overlap: int, expected: tuple[int, ...]) -> None:
    assert starts(length, piece, overlap) == expected


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 200), st.integers(0, 200))
def test_ramps_rise_and_fall_alike_and_are_never_zero(piece: int, overlap: int) -> None:
    weights = ramp(piece, overlap)
    assert weights.shape == (piece,) and weights.dtype == np.float32
    assert (weights > 0).all() and (weights <= 1).all()
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-6)
    assert (np.diff(weights[: (piece + 1) // 2]) >= 0).all()
    if 2 * overlap < piece:
        assert (weights[overlap : piece - overlap] == 1).all()


def test_ramps_of_neighbours_that_share_just_the_overlap_sum_to_one() -> None:
    for overlap in (1, 2, 7, 16, 32):
        weights = ramp(80, overlap)
        np.testing.assert_allclose(weights[-overlap:] + weights[:overlap], 1, atol=1e-6)


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    frame = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    cube = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    return Tiling(cube, frame, draw(st.integers(0, min(frame) - 1)))


@settings(deadline=None, max_examples=200)
@given(tilings())
def test_tiles_lie_inside_the_cube_and_their_shares_add_up_to_one_in_every_pixel(tiling: Tiling) -> None:
    lines, samples = tiling.cube
    total = np.zeros(tiling.cube)
    for tile, share in zip(tiling.tiles(), tiling.shares(), strict=True):
        assert 0 <= tile.line <= lines - tile.lines and 0 <= tile.sample <= samples - tile.samples
        assert (tile.lines, tile.samples) == (min(tiling.frame[0], lines), min(tiling.frame[1], samples))
        assert share.shape == (tile.lines, tile.samples) and share.dtype == np.float32 and (share > 0).all()
        total[tile.line : tile.line + tile.lines, tile.sample : tile.sample + tile.samples] += share
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert len(set(tiling.tiles())) == len(tiling.tiles())


def test_a_side_that_is_not_cut_is_not_faded_out() -> None:
    tiling = Tiling((64, 100), (64, 64), 16)
    assert len(tiling.shares()) == 2
    for share, (_, samples) in zip(tiling.shares(), shares(100, 64, 16), strict=True):
        np.testing.assert_array_equal(share, np.broadcast_to(samples, (64, 64)))
    np.testing.assert_array_equal(Tiling((64, 64), (64, 64), 16).shares(), 1)


def test_a_frame_is_cut_out_as_it_is() -> None:
    cube = np.random.default_rng(0).random((3, 40, 50), np.float32)
    tiling = Tiling((40, 50), (16, 32), 4)
    for tile in tiling.tiles():
        frame = tiling.cut(cube, tile)
        assert frame.shape == (1, 3, 16, 32) and frame.dtype == np.float32 and frame.flags.c_contiguous
        np.testing.assert_array_equal(frame[0], cube[:, tile.line : tile.line + 16, tile.sample : tile.sample + 32])
        assert not np.shares_memory(frame, cube)


def test_a_small_cube_is_reflected_up_to_the_frame() -> None:
    cube = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    tiling = Tiling((3, 4), (8, 6), 2)
    frame = tiling.cut(cube, Tile(0, 0, 3, 4))
    assert tiling.tiles() == (Tile(0, 0, 3, 4),)
    lines, samples = [0, 1, 2, 1, 0, 1, 2, 1], [0, 1, 2, 3, 2, 1]
    np.testing.assert_array_equal(frame[0, 0], cube[0][np.ix_(lines, samples)])


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_cubes_of_one_line_or_sample_are_reflected_too(size: tuple[int, int]) -> None:
    cube = np.random.default_rng(0).random((2, *size), np.float32)
    frame = Tiling(size, (8, 8), 3).cut(cube, Tile(0, 0, *size))
    assert frame.shape == (1, 2, 8, 8)
    np.testing.assert_array_equal(frame[0, :, : size[0], : size[1]], cube)
    assert set(frame.ravel()) == set(cube.ravel())


def planned(shape: tuple[int, int, int], bands: int) -> FramePlan:
    return frame_plan(shape, Signature(Plane("frame", bands, 16, 16), Plane("restored", bands, 16, 16)), 4)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 40), st.integers(0, 120))
def test_band_groups_cover_all_bands_and_overlap_by_a_quarter(network: int, more: int) -> None:
    bands = network + more
    groups = planned((bands, 4, 4), network).groups
    assert groups[0][0] == 0 and groups[-1][0] == bands - network
    assert all(share.shape == (network, 1, 1) and (share > 0).all() for _, share in groups)
    for (start, _), (following, _) in pairwise(groups):
        assert 0 < following - start <= network - network // 4
    total = np.zeros(bands)
    for start, share in groups:
        total[start : start + network] += share[:, 0, 0]
    np.testing.assert_allclose(total, 1, atol=1e-6)
    if not more:
        assert len(groups) == 1 and (groups[0][1] == 1).all()


def test_a_plan_runs_every_tile_of_every_group() -> None:
    plan = planned((12, 20, 30), 8)
    assert plan.runs == len(plan.groups) * len(plan.tiling.tiles()) > len(plan.groups) > 1
