"""Cubes restored by rows of frames: no split changes a byte, and what cannot be restored stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.bundle import Bundle, load_bundle, meaning_for
from runtime.by_lines.rows import Block, Row, restore_lines
from runtime.by_lines.survey import Survey, survey
from runtime.errors import CubeError
from runtime.meaning import Asked
from runtime.metrics import prompt_metrics
from runtime.products.contract import Seen
from runtime.stated import Stated
from runtime.tiles import starts
from tests.contracts.bundles import known_bundle
from tests.contracts.product import Memory

GAIN, OFFSET = 0.5, 0.25


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with load_bundle(known_bundle(tmp_path_factory.mktemp("known") / "bundle", GAIN, OFFSET)) as loaded:
        yield loaded


def scene(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, np.float32)


def surveyed(bundle: Bundle, reader: Memory, asked: Asked | None = None) -> Survey:
    return survey(reader, partial(meaning_for, bundle.manifest), asked or Asked(by_wavelength=True))


def restored(
    bundle: Bundle, reader: Memory, start: int = 0, stop: int | None = None, **how: Any
) -> tuple[NDArray[Any], NDArray[np.uint8], list[Row], list[Block]]:
    steps = list(restore_lines(bundle, reader, surveyed(bundle, reader), start, stop, **how))
    blocks = [step for step in steps if isinstance(step, Block)]
    rows = [step for step in steps if isinstance(step, Row)]
    cube = np.concatenate([block.cube for block in blocks], axis=1)
    return cube, np.concatenate([block.quality.seen for block in blocks]), rows, blocks


@pytest.mark.parametrize("lines", [5, 8, 9, 13, 40])
@pytest.mark.parametrize("samples", [7, 16, 30])
@pytest.mark.parametrize("bands", [3, 7])
def test_every_line_is_restored_once_in_order(bundle: Bundle, lines: int, samples: int, bands: int) -> None:
    cube = scene(bands, lines, samples)
    out, seen, rows, blocks = restored(bundle, Memory(cube))
    np.testing.assert_allclose(out, GAIN * cube + OFFSET, atol=1e-6)
    assert out.dtype == cube.dtype and (seen == Seen.RESTORED).all()
    assert [block.start for block in blocks] == [row.line for row in rows] == list(starts(lines, 8, 4))


@pytest.mark.parametrize("cuts", [(1,), (4, 5, 6), (8, 16, 24), (3, 29), (39,)])
def test_no_split_changes_a_byte(bundle: Bundle, cuts: tuple[int, ...]) -> None:
    cube = (scene(7, 40, 30) * 9000).astype(np.int16)
    cube[:, 11:14, 3:9] = -9999
    reader = Memory(cube, Stated(scale=10000.0, marks=(-9999.0,)))
    whole, seen, rows, _ = restored(bundle, reader)
    ends = (0, *cuts, 40)
    parts = [restored(bundle, reader, start, stop) for start, stop in pairwise(ends)]
    assert np.concatenate([part[0] for part in parts], axis=1).tobytes() == whole.tobytes()
    assert np.concatenate([part[1] for part in parts]).tobytes() == seen.tobytes()
    assert {row.line: row for part in parts for row in part[2]} == {row.line: row for row in rows}


def test_metrics_are_of_a_row_and_of_each_band_group(bundle: Bundle) -> None:
    cube = scene(3, 20, 30)
    _, _, rows, _ = restored(bundle, Memory(cube))
    for row in rows:
        expected = prompt_metrics(cube[:, row.line : row.line + 8], bundle.prompts.signature.metrics.of)  # type: ignore[union-attr]
        np.testing.assert_allclose(row.metrics, expected, rtol=1e-5)


def test_memory_is_that_of_a_row(bundle: Bundle) -> None:
    reader = Memory(scene(3, 400, 16))
    found = surveyed(bundle, reader)
    reader.most = 0
    assert sum(isinstance(step, Block) for step in restore_lines(bundle, reader, found)) > 50
    assert reader.most == 8


def test_missing_pixels_stay_and_the_network_sees_the_mean(bundle: Bundle) -> None:
    cube = scene(3, 20, 30)
    cube[:, 2:5, 4:9] = -9999
    out, seen, _, blocks = restored(bundle, Memory(cube, Stated(marks=(-9999.0,))))
    gone = cube[0] == -9999
    assert (out[:, gone] == -9999).all() and (seen[gone] == Seen.MISSING).all()
    np.testing.assert_allclose(out[:, ~gone], GAIN * cube[:, ~gone] + OFFSET, atol=1e-6)
    assert sum(block.missing for block in blocks) == int(gone.sum())


def test_a_mask_tells_missing_pixels_whatever_they_hold(bundle: Bundle) -> None:
    cube = scene(3, 20, 30)
    mask = np.zeros((20, 30), np.bool_)
    mask[10:, :4] = True
    cube[:, mask] = np.nan
    out, seen, _, _ = restored(bundle, Memory(cube, mask=mask))
    assert np.isnan(out[:, mask]).all() and (seen[mask] == Seen.MISSING).all()
    np.testing.assert_allclose(out[:, ~mask], GAIN * cube[:, ~mask] + OFFSET, atol=1e-6)


def test_rows_without_a_pixel_and_tiles_without_one_are_not_run(bundle: Bundle) -> None:
    cube = scene(3, 40, 40)
    cube[:, 8:30] = -9999
    cube[:, :8, :20] = -9999
    out, seen, rows, _ = restored(bundle, Memory(cube, Stated(marks=(-9999.0,))))
    gone = cube[0] == -9999
    assert (
        [row.passed for row in rows].count("every pixel is missing") == len([1 for row in rows if not row.frames]) > 0
    )
    assert (out[:, gone] == -9999).all() and (seen[gone] == Seen.MISSING).all()
    assert np.isfinite(out).all()
    assert (seen[~gone] & Seen.RESTORED).all()


def test_bands_are_seen_in_the_order_of_their_wavelengths(bundle: Bundle) -> None:
    cube = scene(7, 20, 30)
    cube = np.sort(cube, axis=0)
    falling = Stated(wavelengths=tuple(np.linspace(900, 400, 7).tolist()))
    turned = Memory(cube[::-1].copy(), falling)
    plain = Memory(cube, replace(falling, wavelengths=falling.wavelengths[::-1]))  # type: ignore[index]
    out, _, rows, _ = restored(bundle, turned)
    straight, _, same, _ = restored(bundle, plain)
    assert out[::-1].tobytes() == straight.tobytes() and rows == same


def test_bad_bands_come_back_as_they_were(bundle: Bundle) -> None:
    cube = scene(7, 20, 30)
    cube[4] = -9999
    out, seen, _, _ = restored(bundle, Memory(cube, Stated(marks=(-9999.0,), bad=(2,))))
    assert out[4].tobytes() == cube[4].tobytes() and out[2].tobytes() == cube[2].tobytes()
    assert (seen == Seen.RESTORED).all()
    np.testing.assert_allclose(out[[0, 1, 3, 5, 6]], GAIN * cube[[0, 1, 3, 5, 6]] + OFFSET, atol=1e-6)


def test_radiance_is_scaled_by_its_brightest_band(bundle: Bundle) -> None:
    cube = scene(3, 20, 30) * np.array([20, 5, 1], np.float32)[:, None, None]
    reader = Memory(cube, quantity="radiance")
    found = surveyed(bundle, reader)
    assert found.meaning.scale_from == "brightest band" and 19 < found.meaning.conversion.scale <= 20
    out, _, _, _ = restored(bundle, reader)
    np.testing.assert_allclose(out, GAIN * cube + OFFSET * found.meaning.conversion.scale, rtol=1e-4, atol=1e-4)


def test_a_large_cube_means_what_a_look_at_all_of_it_says(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.by_lines.survey.SAMPLE_BYTES", 20_000)
    monkeypatch.setattr("runtime.by_lines.survey.BLOCK_BYTES", 5_000)
    cube = scene(7, 400, 30)
    cube[:, 333, 7:9] = -9999
    cube[5, :390] = 0
    reader = Memory(cube, Stated(bad=(1,)))
    found = surveyed(bundle, reader)
    assert [mark.low for mark in found.meaning.marks] == [-9999.0], "a mark in a line that no sample holds"
    assert found.missing == 2 and set(found.meaning.bad) == {1, 5}
    inside = np.delete(cube.reshape(7, -1), [333 * 30 + 7, 333 * 30 + 8], axis=1)
    np.testing.assert_allclose(found.meaning.means[0], inside[0].mean(), rtol=1e-5)  # type: ignore[index]


def test_values_that_are_not_finite_are_refused_wherever_they_lie(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.by_lines.survey.SAMPLE_BYTES", 20_000)
    cube = scene(7, 400, 30)
    cube[3, 333, 7] = np.nan
    with pytest.raises(CubeError, match=r"memory.img.*not finite in 1 pixel, the first in band 4.*--ignore-value nan"):
        surveyed(bundle, Memory(cube))


def test_rows_of_one_value_are_passed_and_told(bundle: Bundle) -> None:
    cube = np.full((3, 30, 30), 0.5, np.float32)
    cube[:, 20:] = scene(3, 10, 30)
    out, seen, rows, _ = restored(bundle, Memory(cube))
    assert [row.passed for row in rows][:2] == ["all values are equal"] * 2 and not rows[-1].passed
    assert (seen[:9] == Seen.PASSED).all() and out[:, :9].tobytes() == cube[:, :9].tobytes()
    assert (seen[20:] == Seen.RESTORED).all() and np.isfinite(out).all()
