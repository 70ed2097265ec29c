"""What is missing is restored where a bundle says that its network is given no holes: cubes, lines and products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import runtime
from runtime.bundle import Bundle, load_bundle
from runtime.by_lines.product import judged
from runtime.by_lines.rows import Block, restore_lines
from runtime.files import read_cube, write_cube
from runtime.lines import Broken, LineFormat, Missing
from runtime.meaning import Asked
from runtime.metrics import prompt_metrics
from runtime.signature import Plane, Signature
from runtime.sources import Source, SourceOptions, open_source
from runtime.stated import Stated
from runtime.stream.pipeline import StreamOptions
from tests.contracts.bundles import known_bundle, reseal
from tests.contracts.product import Memory
from tests.runtime.stream.lines import Script

BANDS, LINES, SAMPLES = 3, 8, 16
"""One frame."""
MARK = -9999.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bundle that gives back what it is given, and is to be given no holes."""
    folder = known_bundle(tmp_path_factory.mktemp("fills") / "bundle")
    reseal(folder, lambda content: content["signature"].update(fills=True))
    with load_bundle(folder) as loaded:
        yield loaded


def scene(bands: int = BANDS, lines: int = LINES, samples: int = SAMPLES) -> NDArray[np.float32]:
    y, x = np.mgrid[:lines, :samples]
    ramp = np.linspace(1, 1.5, bands)[:, None, None]
    return (ramp * (0.3 + 0.1 * np.sin(x / 3) * np.cos(y / 4))).astype(np.float32)


def with_holes(cube: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values here and there marked, two of the pixel's three at most, and one pixel whole."""
    rng = np.random.default_rng(1)
    holes = rng.random(cube.shape) < 0.2
    line, sample = np.indices(cube.shape[1:])
    holes[rng.integers(len(cube), size=cube.shape[1:]), line, sample] = False
    marked = np.where(holes, np.float32(MARK), cube)
    marked[:, 2, 3] = MARK
    holes[:, 2, 3] = False
    return marked, holes


def in_range(made: NDArray[Any], cube: NDArray[Any]) -> None:
    assert np.abs(made - cube).max() < 0.05


def test_only_cubes_that_come_back_as_they_went_in_are_filled() -> None:
    Signature(Plane("frame", 3, 8, 16), Plane("restored", 3, 8, 16), fills=True)
    with pytest.raises(ValueError, match="what is filled is a cube"):
        Signature(Plane("frame", 3, 8, 16, "rgb"), Plane("restored", 3, 8, 16, "rgb"), band_groups=False, fills=True)


def test_scattered_values_are_restored_and_lone_pixels_stay(bundle: Bundle) -> None:
    cube = scene()
    marked, holes = with_holes(cube)
    made = bundle.restore(marked, ignore_value=MARK)
    assert made.missing == 1 and made.made_up == holes.sum()
    assert (made.cube[:, 2, 3] == MARK).all()
    rest = np.ones(cube.shape[1:], bool)
    rest[2, 3] = False
    in_range(made.cube[:, rest], cube[:, rest])
    known = rest & ~holes
    np.testing.assert_array_equal(made.cube[known], cube[known])


def test_metrics_see_zeros_where_nothing_is_known(bundle: Bundle) -> None:
    cube = scene()
    holes = (np.arange(cube.size) % 5 == 0).reshape(cube.shape)
    made = bundle.restore(np.where(holes, np.float32(MARK), cube), ignore_value=MARK)
    seen = np.where(holes, np.float32(0), cube)
    np.testing.assert_allclose(made.metrics, prompt_metrics(seen, bundle.prompts.signature.metrics.of), rtol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [MARK, np.nan])
def test_a_lost_band_is_restored_and_one_that_the_file_calls_bad_stays(bundle: Bundle, value: float) -> None:
    cube = scene()
    lost = cube.copy()
    lost[1] = value
    made = bundle.restore(lost, ignore_value=value)
    assert made.made_up == LINES * SAMPLES and made.missing == 0
    in_range(made.cube, cube)
    meaning = bundle.meaning(lost, Stated(bad=(1,)), Asked(None, (value,)))
    listed = bundle.restore(lost, meaning=meaning)
    np.testing.assert_array_equal(listed.cube, lost)
    assert listed.made_up == 0 and listed.meaning is not None and set(listed.meaning.bad) == {1}


def test_bands_are_filled_by_their_wavelengths_and_in_groups(bundle: Bundle) -> None:
    cube = scene(7, 20, 40)
    lost = cube.copy()
    lost[3] = MARK
    centres = (400.0, 410.0, 430.0, 480.0, 490.0, 500.0, 520.0)
    meaning = bundle.meaning(lost, Stated(wavelengths=centres), Asked(None, (MARK,)))
    made = bundle.restore(lost, meaning=meaning)
    np.testing.assert_allclose(np.delete(made.cube, 3, axis=0), np.delete(cube, 3, axis=0), atol=1e-6)
    assert ((lost[2] <= made.cube[3]) & (made.cube[3] <= lost[4])).all()


def test_a_bundle_that_does_not_say_so_leaves_what_is_missing(tmp_path: Path) -> None:
    marked, _ = with_holes(scene())
    with load_bundle(known_bundle(tmp_path / "bundle")) as plain:
        made = plain.restore(marked, ignore_value=MARK)
    np.testing.assert_array_equal(made.cube[marked == MARK], MARK)
    assert made.made_up == 0


def test_numbers_come_back_in_their_type(bundle: Bundle) -> None:
    cube = np.rint(scene() * 10000).astype(np.int16)
    marked, holes = with_holes(cube.astype(np.float32))
    made = bundle.restore(marked.astype(np.int16), ignore_value=MARK, scale=10000)
    assert made.cube.dtype == np.int16 and np.abs(made.cube[holes] - cube[holes]).max() < 500
    assert (made.cube[:, 2, 3] == MARK).all()


@pytest.mark.parametrize("lines", [8, 21])
def test_products_are_restored_as_cubes_are(bundle: Bundle, lines: int) -> None:
    cube = scene(lines=lines, samples=30)
    marked, holes = with_holes(cube)
    reader = Memory(marked, stated=Stated(marks=(MARK,)))
    found = judged(bundle.manifest, reader, Asked())
    blocks = [step for step in restore_lines(bundle, reader, found) if isinstance(step, Block)]
    made = np.concatenate([block.cube for block in blocks], axis=1)
    assert (made[:, 2, 3] == MARK).all() and sum(block.missing for block in blocks) == 1
    in_range(made[holes], cube[holes])
    known = ~holes
    known[:, 2, 3] = False
    np.testing.assert_allclose(made[known], cube[known], atol=1e-6)


def streamed(bundle: Bundle, cube: NDArray[np.float32], tmp_path: Path, **asked: Any) -> tuple[NDArray[Any], Any]:
    format = LineFormat(*cube.shape[::2], cube.dtype, ignore_value=MARK)
    source = Script([np.ascontiguousarray(cube[:, n]) for n in range(cube.shape[1])], format)
    with source:
        stream = runtime.open_stream(
            bundle, source, restored=tmp_path / "out", options=StreamOptions(policy="block"), **asked
        )
        result = stream.run()
    assert result.failures == {}
    return read_cube(tmp_path / "out" / "restored.hdr").cube, result


def test_lines_are_restored_as_cubes_are(bundle: Bundle, tmp_path: Path) -> None:
    cube = scene(lines=24)
    marked, holes = with_holes(cube)
    made, result = streamed(bundle, marked, tmp_path)
    assert result.count.restored == 24
    assert (made[:, 2, 3] == MARK).all() and not (np.delete(made.reshape(BANDS, -1), 2 * SAMPLES + 3, 1) == MARK).any()
    in_range(made[holes], cube[holes])
    known = ~holes
    known[:, 2, 3] = False
    np.testing.assert_allclose(made[known], cube[known], atol=1e-6)


def test_a_band_that_a_line_scan_camera_lost_is_restored(bundle: Bundle, tmp_path: Path) -> None:
    cube = scene(lines=16)
    lost = cube.copy()
    lost[1] = MARK
    made, _ = streamed(bundle, lost, tmp_path)
    in_range(made, cube)


def dead_band(lines: int = 16) -> NDArray[np.float32]:
    cube = scene(lines=lines)
    cube[1] = 0.75
    return cube


@pytest.mark.parametrize("asked", [None, "leave"])
def test_what_is_told_of_a_dead_band_is_what_becomes_of_it(bundle: Bundle, asked: Literal["leave"] | None) -> None:
    dead = dead_band()
    meaning = bundle.meaning(dead, asked=Asked(constant_bands=asked))
    told = " ".join((*meaning.notes, *meaning.doubts))
    made = bundle.restore(dead, meaning=meaning).cube
    if asked == "leave":
        np.testing.assert_array_equal(made[1], dead[1])
    else:
        in_range(made, scene(lines=16))
    assert ("given back as they came" in told) is (asked == "leave")
    assert ("made up of the others, and restored" in told) is (asked is None)


@pytest.mark.parametrize("shown", [False, True], ids=["lines", "file"])
def test_a_dead_band_is_restored_whether_a_file_showed_it_or_its_lines(
    bundle: Bundle, tmp_path: Path, shown: bool
) -> None:
    dead = dead_band()
    if shown:
        write_cube(tmp_path / "scene.bil", dead, fields={})
        source: Source = open_source(f"envi:{tmp_path / 'scene.bil'}")
    else:
        format = LineFormat(BANDS, SAMPLES, dead.dtype)
        source = Script([np.ascontiguousarray(dead[:, n]) for n in range(16)], format)
    with source:
        with pytest.warns(UserWarning, match="made up of the others") if shown else nullcontext():
            stream = runtime.open_stream(
                bundle, source, restored=tmp_path / "out", options=StreamOptions(policy="block")
            )
        stream.run()
    in_range(read_cube(tmp_path / "out" / "restored.hdr").cube, scene(lines=16))


@pytest.mark.parametrize("fills", [True, False])
def test_what_is_not_restored_comes_out_of_a_stream_as_it_came(tmp_path: Path, fills: bool) -> None:
    folder = known_bundle(tmp_path / "bundle", scale=10000)
    reseal(folder, lambda content: content["signature"].update(fills=fills))
    cube = np.rint(10000 * scene(lines=16)).astype(np.int16)
    cube[1, :, 3] = MARK
    cube[:, 6, 7] = MARK, 1234, 4577
    cube[0, 4, 5] = MARK
    cube[:, 5] = cube[:, 4]
    source = Script(
        [np.ascontiguousarray(cube[:, n]) for n in range(16)],
        LineFormat(3, 16, cube.dtype, ignore_value=MARK, scale=10000),
    )
    source.stated = replace(source.stated, bad=(1,))
    with load_bundle(folder) as bundle, source:
        options = StreamOptions(policy="block", selftest_seconds=0)
        result = runtime.open_stream(bundle, source, restored=tmp_path / "out", options=options).run()
    made = read_cube(tmp_path / "out" / "restored.hdr").cube
    assert result.failures == {} and result.count.passed == 1
    np.testing.assert_array_equal(made[1], cube[1], "the file calls it bad")
    np.testing.assert_array_equal(made[:, 5], cube[:, 5], "the line repeats the one before")
    assert (made[0, 4, 5] == MARK) is not fills


def test_a_frame_says_nothing_of_the_one_before(bundle: Bundle) -> None:
    def metrics(marked: slice) -> dict[str, float]:
        """Of a frame that lacks a line, behind two that pass as they came."""
        constant = np.ascontiguousarray(scene()[:, 0])
        constant[0, marked] = MARK
        lines = [np.ascontiguousarray(scene()[:, n]) for n in range(LINES)]
        told: list[Any] = [*([constant] * LINES), Broken("x")] * 2 + lines
        told[-4] = Missing(1, 1, "x")
        told[-1][0, 1] = MARK
        found = []
        runtime.open_stream(
            bundle, Script(told, LineFormat(BANDS, SAMPLES, np.dtype(np.float32), ignore_value=MARK)),
            sinks=[lambda block: found.append(dict(block.metrics))],
            options=StreamOptions(policy="block", selftest_seconds=0),
        ).run()  # fmt: skip
        return found[-1]

    assert metrics(slice(0, 1)) == metrics(slice(None, None, 2))


@pytest.mark.parametrize("bands", [3, 8])
def test_a_dead_band_at_the_limit_of_the_detector_is_restored(tmp_path: Path, bands: int) -> None:
    folder = known_bundle(tmp_path / "bundle", scale=4095)
    reseal(folder, lambda content: content["signature"].update(fills=True))
    clean = np.rint(4095 * scene(bands, 16)).astype(np.uint16)
    write_cube(tmp_path / "scene.bil", np.where(np.arange(bands)[:, None, None] == 1, np.uint16(4095), clean))
    options = SourceOptions(saturation=4095, scale=4095)
    with load_bundle(folder) as bundle, open_source(f"envi:{tmp_path / 'scene.bil'}", options) as source:
        with pytest.warns(UserWarning, match="made up of the others, and restored"):
            stream = runtime.open_stream(
                bundle, source, restored=tmp_path / "out", options=StreamOptions(policy="block")
            )
        assert stream.run().count.passed == 0
    made = read_cube(tmp_path / "out" / "restored.hdr").cube
    assert np.abs(made.astype(int) - clean).max() < 200


def test_most_of_a_cube_may_be_missing(bundle: Bundle) -> None:
    cube, line_sample = scene(), np.indices((LINES, SAMPLES)).sum(axis=0)
    cube[line_sample % 3 == np.arange(3)[:, None, None]] = MARK
    made = bundle.restore(cube, ignore_value=MARK)
    in_range(made.cube, scene())
    assert (made.missing, made.made_up) == (0, LINES * SAMPLES)
    cube = np.where(np.random.default_rng(0).random(cube.shape) < 0.7, np.float32(MARK), scene())
    gone = (cube == MARK).all(axis=0)
    made = bundle.restore(cube, ignore_value=MARK)
    assert made.missing == gone.sum() and made.made_up == (cube == MARK).sum() - 3 * gone.sum()
    assert np.array_equal(made.cube == MARK, np.broadcast_to(gone, cube.shape))


def test_what_is_made_up_is_counted(bundle: Bundle) -> None:
    cube = scene()
    cube[1], cube[:, 2, 3:6] = MARK, MARK
    made = bundle.restore(cube, ignore_value=MARK)
    assert made.made_up == ((cube == MARK) & (made.cube != MARK)).sum() == LINES * SAMPLES - 3
    assert made.meaning is not None and not made.meaning.bad


@pytest.mark.parametrize("lines", [8, 24])
def test_products_of_which_most_is_missing_are_restored_as_cubes_are(bundle: Bundle, lines: int) -> None:
    cube = scene(lines=lines)
    cube[np.random.default_rng(0).random(cube.shape) < 0.7] = MARK
    gone = (cube == MARK).all(axis=0)
    reader = Memory(cube, stated=Stated(marks=(MARK,)))
    found = judged(bundle.manifest, reader, Asked())
    assert found.missing == gone.sum() and not found.meaning.bad and not found.meaning.lost
    seen = bundle.restore(cube, ignore_value=MARK)
    assert np.array_equal(seen.cube == MARK, np.broadcast_to(gone, cube.shape))
    assert found.meaning.means is not None
    known = np.where(cube == MARK, np.nan, cube)
    np.testing.assert_allclose(found.meaning.means, np.nanmean(known, axis=(1, 2)), rtol=1e-5)
