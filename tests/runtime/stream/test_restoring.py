"""A frame of a stream is restored as `restore_cube` restores the cube of its lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.bundle import Bundle, load_bundle
from runtime.errors import CubeError, MachineError
from runtime.lines import NO_FLAGS, Flag, LineFormat
from runtime.prompts import Prompts
from runtime.radiometry import load_radiometry
from runtime.restore import restore_cube
from runtime.signature import Plane, Prompt, Signature
from runtime.simulation.simulator import SensorModel, sense, simulate_scene
from runtime.stream.frames import Frame
from runtime.stream.pool import LinePool
from runtime.stream.preparing import AbandonedError, RestorerFacts
from runtime.stream.restoring import FrameRestorer
from tests.contracts.coded import CODE, CODED, decode, decoded
from tests.contracts.graphs import SMALL

BANDS, LINES = 31, 64


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle, threads=1)


def cube_of(bands: int, lines: int, samples: int) -> NDArray[np.uint16]:
    return sense(simulate_scene(3, bands, lines, samples), SensorModel(), np.random.default_rng(3)).dn


def frame_of(
    cube: NDArray[np.generic], flags: dict[int, Flag] | None = None, missing: tuple[int, ...] = ()
) -> tuple[Frame, LineFormat]:
    bands, lines, samples = cube.shape
    format = LineFormat(bands, samples, cube.dtype, scale=4095.0, saturation=4095.0)
    pool = LinePool(format, lines)
    slots = []
    for place in range(lines):
        slot = pool.acquire(0)
        assert slot is not None
        slot.line[:] = cube[:, place]
        slot.sequence, slot.flags = place, (flags or {}).get(place, NO_FLAGS)
        slots.append(None if place in missing else slot)
    return Frame(0, 0, 0, tuple(slots), 0, 0.0), format


def restorer_of(
    bundle: Bundle, format: LineFormat, chosen: tuple[int, ...] | None = None, radiometry: dict[str, Any] | None = None
) -> FrameRestorer:
    m = bundle.manifest
    facts = RestorerFacts(m.signature, m.overlap, bundle.prompts, chosen)
    return FrameRestorer(facts, format, bundle.engine.infer, load_radiometry(radiometry or {}, format))


def expected(bundle: Bundle, unit: NDArray[np.float32]) -> NDArray[np.float32]:
    m = bundle.manifest
    return np.asarray(
        restore_cube(unit, bundle.engine.infer, m.signature, overlap=m.overlap, prompts=bundle.prompts).cube
    )


@pytest.mark.parametrize(
    ("bands", "lines", "samples"),
    [(31, 64, 64), (31, 64, 150), (31, 20, 64), (31, 1, 64), (31, 64, 40), (45, 64, 100)],
    ids=["whole", "tiles", "short", "one line", "narrow", "groups"],
)
def test_a_frame_is_restored_as_a_cube_is(bundle: Bundle, bands: int, lines: int, samples: int) -> None:
    cube = cube_of(bands, lines, samples)
    frame, format = frame_of(cube)
    values, report = restorer_of(bundle, format).restore(frame)
    unit = (cube / np.float64(4095)).astype(np.float32)
    np.testing.assert_allclose(values, expected(bundle, unit), rtol=0, atol=2e-6)
    wanted = Flag.RESTORED | (Flag.PADDED if lines < LINES else NO_FLAGS)
    assert set(report.flags.tolist()) == {int(wanted)}
    assert len(report.metrics) == 6
    assert sum(report.experts) > 0
    assert not report.passed


def test_metrics_of_whole_frames_are_the_graphs_of_a_bundle_that_has_one(metrics_bundle: Path, bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64)
    unit = (cube / np.float64(4095)).astype(np.float32)
    (frame, format), (short, _) = frame_of(cube), frame_of(cube[:, :20])
    with load_bundle(metrics_bundle, threads=1) as measuring:
        restorer = restorer_of(measuring, format)
        values, report = restorer.restore(frame)
        assert report.metrics_by == "graph"
        np.testing.assert_array_equal(list(report.metrics.values()), measuring.prompts.metrics(unit))
        np.testing.assert_allclose(values, expected(measuring, unit), rtol=0, atol=2e-6)
        assert restorer.restore(short)[1].metrics_by == "host"
        assert restorer.pass_through(frame)[1].metrics_by == ""
    assert restorer_of(bundle, format).restore(frame)[1].metrics_by == "host"


def test_chosen_bands_are_those_of_the_cube(bundle: Bundle) -> None:
    cube = cube_of(62, LINES, 64)
    chosen = tuple(range(1, 62, 2))
    frame, format = frame_of(cube)
    values, _ = restorer_of(bundle, format, chosen).restore(frame)
    unit = (cube[list(chosen)] / np.float64(4095)).astype(np.float32)
    np.testing.assert_allclose(values, expected(bundle, unit), rtol=0, atol=2e-6)


def test_the_same_memory_serves_every_frame(bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64)
    frame, format = frame_of(cube)
    restorer = restorer_of(bundle, format)
    first = restorer.restore(frame)[0]
    before = first.copy()
    other, _ = frame_of(cube[:, ::-1])
    assert restorer.restore(other)[0].base is first.base
    np.testing.assert_array_equal(restorer.restore(frame)[0], before)


def test_what_was_prepared_with_another_engines_prompts_gets_its_own(metrics_bundle: Path, bundle: Bundle) -> None:
    frame, format = frame_of(cube_of(BANDS, LINES, 64))
    with load_bundle(metrics_bundle, threads=1) as measuring:
        restorer = restorer_of(measuring, format)
        wanted = restorer_of(bundle, format).restore(frame)[1].metrics
        ready = restorer.preparer.prepare(frame, restorer.spaces[1])
        restorer.use(bundle.engine.infer, bundle.prompts)
    _, report = restorer.run(ready)
    assert (report.metrics, report.metrics_by, report.suspect) == (wanted, "host", "")


def test_what_was_prepared_with_altered_tables_is_suspect(bundle: Bundle) -> None:
    frame, format = frame_of(cube_of(BANDS, LINES, 64))
    restorer = restorer_of(bundle, format)
    ready = restorer.preparer.prepare(frame, restorer.spaces[0])
    restorer.preparer.mended += 1
    _, report = restorer.run(ready)
    assert "tables changed in memory" in report.suspect
    assert all(flags & Flag.SUSPECT for flags in report.flags)
    assert restorer.restore(frame)[1].suspect == ""


@pytest.mark.parametrize("flag", [Flag.EMPTY, Flag.SATURATED, Flag.REPEATED, Flag.NOT_FINITE])
def test_an_unfit_line_is_passed_and_spoils_no_other(bundle: Bundle, flag: Flag) -> None:
    cube = cube_of(BANDS, LINES, 64).astype(np.float32) / np.float32(4095)
    bad = cube.copy()
    bad[:, 20] = np.nan if flag is Flag.NOT_FINITE else 7.0
    frame, format = frame_of(bad, {20: flag})
    format = LineFormat(format.bands, format.samples, format.dtype)
    values, report = restorer_of(bundle, format).restore(frame)
    np.testing.assert_array_equal(values[:, 20], bad[:, 20])
    assert report.flags[20] == flag | Flag.PASSED
    assert set(np.delete(report.flags, 20).tolist()) == {int(Flag.RESTORED)}
    mended = cube.copy()
    mended[:, 20] = np.float32(0.5) * cube[:, 19] + np.float32(0.5) * cube[:, 21]
    np.testing.assert_allclose(np.delete(values, 20, 1), np.delete(expected(bundle, mended), 20, 1), atol=2e-6)


def test_a_missing_line_is_made_from_its_neighbours(bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64)
    frame, format = frame_of(cube, missing=(0, 30, 31))
    values, report = restorer_of(bundle, format).restore(frame)
    assert np.flatnonzero(report.flags == Flag.INTERPOLATED).tolist() == [0, 30, 31]
    unit = (cube / np.float64(4095)).astype(np.float32)
    unit[:, 0] = unit[:, 1]
    third = np.float32(1 / 3)
    a, b = unit[:, 29].copy(), unit[:, 32].copy()
    unit[:, 30], unit[:, 31] = (1 - third) * a + third * b, third * a + (1 - third) * b
    np.testing.assert_allclose(values, expected(bundle, unit), atol=2e-6)


def test_saturated_values_come_out_as_they_came_in(bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64)
    cube[5, 10, 7:9] = 4095
    frame, format = frame_of(cube, {10: Flag.SOME_SATURATED})
    values, report = restorer_of(bundle, format).restore(frame)
    assert values[5, 10, 7:9].tolist() == [1.0, 1.0]
    assert report.flags[10] == Flag.SOME_SATURATED | Flag.RESTORED
    unit = (cube / np.float64(4095)).astype(np.float32)
    assert not np.allclose(values[5, 10, 6], unit[5, 10, 6], atol=1e-6), "its neighbours are restored"


def test_missing_pixels_of_a_file_stay_as_they_are(bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64).astype(np.int16)
    cube[:, 4, 9] = -9999
    frame, format = frame_of(cube)
    format = LineFormat(format.bands, format.samples, format.dtype, 4095.0, None, None, -9999.0)
    values, _ = restorer_of(bundle, format).restore(frame)
    assert np.isnan(values[:, 4, 9]).all()
    assert np.isnan(values).sum() == BANDS
    assert values[:, 4, 8].min() > -0.5, "the mark has reached the network"


def test_a_line_that_is_missing_in_one_band_is_passed(bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64).astype(np.int16)
    cube[3, 20] = -9999
    frame, format = frame_of(cube)
    format = LineFormat(format.bands, format.samples, format.dtype, 4095.0, None, None, -9999.0)
    values, report = restorer_of(bundle, format).restore(frame)
    assert report.flags[20] == Flag.PASSED
    assert np.isnan(values[3, 20]).all()
    others = np.arange(BANDS) != 3
    np.testing.assert_allclose(values[others, 20] * 4095, cube[others, 20], rtol=1e-6)
    assert values[:, 19].min() > -0.5, "the mark has reached the network"


def test_a_bad_element_is_replaced_even_where_it_holds_the_mark(bundle: Bundle, tmp_path: Path) -> None:
    cube = cube_of(BANDS, LINES, 64).astype(np.int16)
    cube[7, :, 9] = -9999
    bad = np.zeros((BANDS, 64), np.uint8)
    bad[7, 9] = 1
    np.save(tmp_path / "bad.npy", bad)
    frame, format = frame_of(cube)
    format = LineFormat(format.bands, format.samples, format.dtype, 4095.0, None, None, -9999.0)
    values, report = restorer_of(bundle, format, radiometry={"bad_pixels": str(tmp_path / "bad.npy")}).restore(frame)
    assert np.isfinite(values).all()
    assert (report.flags == Flag.RESTORED).all()


def test_saturation_follows_radiometry(bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64)
    cube[5, 10, 7] = 4095
    bad = np.zeros((BANDS, 64), bool)
    bad[9, 30] = True
    frame, format = frame_of(cube, {10: Flag.SOME_SATURATED})
    shift = [3.0] * BANDS
    restorer = restorer_of(bundle, format, radiometry={"keystone": shift})
    values, _ = restorer.restore(frame)
    unit = np.empty((BANDS, 64), np.float32)
    radiometry = load_radiometry({"keystone": shift}, format)
    radiometry.apply_line(cube[:, 10].copy(), unit)
    place = int(np.argmin(np.abs(unit[5] - 1)))
    assert place != 7
    assert values[5, 10, place] == unit[5, place], "the saturated value was restored"
    assert values[5, 10, 7] != unit[5, 7], "another was passed in its place"


def test_an_interpolated_line_shows_nothing_of_an_older_frame(bundle: Bundle) -> None:
    bright, dark = cube_of(BANDS, LINES, 64), np.full((BANDS, LINES, 64), 64, np.uint16)
    frame, format = frame_of(bright)
    restorer = restorer_of(bundle, format)
    restorer.restore(frame)
    empty, _ = frame_of(dark, dict.fromkeys(range(LINES), Flag.EMPTY), missing=(30,))
    values, report = restorer.restore(empty)
    assert report.flags[30] == Flag.INTERPOLATED
    np.testing.assert_allclose(values[:, 30] * 4095, 64, atol=1e-3)


def test_a_frame_of_mostly_unfit_lines_is_passed_as_a_whole(bundle: Bundle) -> None:
    cube = cube_of(BANDS, LINES, 64)
    frame, format = frame_of(cube, dict.fromkeys(range(40), Flag.EMPTY), missing=(50,))
    asked: list[None] = []
    restorer = restorer_of(bundle, format)
    values, report = restorer.restore(frame, alive=lambda: asked.append(None))
    assert not asked, "the engine was asked"
    assert not report.metrics and report.passed
    came = np.arange(LINES) != 50
    assert ((report.flags[came] & Flag.PASSED) > 0).all()
    np.testing.assert_array_equal(values[:, came], (cube / np.float64(4095)).astype(np.float32)[:, came])
    assert report.flags[50] == Flag.INTERPOLATED


def test_it_can_be_abandoned_between_runs_of_the_engine(bundle: Bundle) -> None:
    frame, format = frame_of(cube_of(BANDS, LINES, 150))
    restorer = restorer_of(bundle, format)
    runs: list[None] = []
    with pytest.raises(AbandonedError):
        restorer.restore(frame, lambda: len(runs) > 1, lambda: runs.append(None))
    assert 1 < len(runs) < restorer.runs


def test_what_the_engine_raises_is_raised(bundle: Bundle) -> None:
    frame, format = frame_of(cube_of(BANDS, LINES, 64))
    restorer = restorer_of(bundle, format)
    bundle_infer = restorer._infer

    def broken(*_: object) -> None:
        raise MachineError("the engine failed")

    restorer._infer = broken  # type: ignore[assignment]
    with pytest.raises(MachineError, match="the engine failed"):
        restorer.restore(frame)
    restorer._infer = bundle_infer
    restorer.restore(frame)


# A network of other planes, with a constant, without metrics and experts, whose frames have one place


Feeds = dict[str, NDArray[np.float32]]


def coded_restorer(
    format: LineFormat, infer: Any = decode, chosen: tuple[int, ...] | None = None, **radiometry: Any
) -> FrameRestorer:
    facts = RestorerFacts(CODED, 0, Prompts(CODED, {"code": CODE}), chosen)
    return FrameRestorer(facts, format, infer, load_radiometry(radiometry, format))


def unit_of(cube: NDArray[np.generic]) -> NDArray[np.float32]:
    return (cube / np.float64(4095)).astype(np.float32)


def test_other_bands_come_out_than_go_in() -> None:
    cube = cube_of(3, 8, 16)
    frame, format = frame_of(cube)
    restorer = coded_restorer(format)
    assert (restorer.bands, restorer.runs, restorer.passes_through) == (5, 1, False)
    values, report = restorer.restore(frame)
    assert values.shape == (5, 8, 16)
    np.testing.assert_array_equal(values, decoded(unit_of(cube)))
    assert set(report.flags.tolist()) == {int(Flag.RESTORED)}
    assert (report.metrics, report.experts, report.metrics_by, report.passed) == ({}, (), "", False)
    assert report.peak == unit_of(cube).max() and set(report.seconds) == {"radiometry", "metrics", "engine", "whole"}


def test_other_bands_come_out_of_the_chosen_ones() -> None:
    cube = cube_of(7, 8, 16)
    frame, format = frame_of(cube)
    values, _ = coded_restorer(format, chosen=(1, 3, 6)).restore(frame)
    np.testing.assert_array_equal(values, decoded(unit_of(cube[[1, 3, 6]])))


def test_memory_of_other_planes_serves_every_frame() -> None:
    cubes = [cube_of(3, 8, 16), cube_of(3, 8, 16)[:, ::-1].copy()]
    restorer = coded_restorer(frame_of(cubes[0])[1])
    first = restorer.restore(frame_of(cubes[0])[0])[0]
    other = restorer.restore(frame_of(cubes[1], {0: Flag.BREAK})[0])[0]
    assert other.base is first.base
    np.testing.assert_array_equal(other, decoded(unit_of(cubes[1])))


@pytest.mark.parametrize("lines", [1, 4, 7])
def test_a_short_frame_of_one_place_is_refused(lines: int) -> None:
    frame, format = frame_of(cube_of(3, lines, 16))
    asked: list[None] = []
    with pytest.raises(CubeError, match=rf"lines: the frame is not whole.*{lines} of 8"):
        coded_restorer(format).restore(frame, alive=lambda: asked.append(None))
    assert not asked, "the engine was asked"


def test_a_short_frame_of_one_place_passes_where_it_can() -> None:
    signature = Signature(
        Plane("cube", 3, 8, 16), Plane("restored", 3, 8, 16), tiling="fixed", band_groups=False
    )  # fmt: skip
    cube = cube_of(3, 5, 16)
    frame, format = frame_of(cube)
    facts = RestorerFacts(signature, 0, Prompts(signature, {}), None)
    restorer = FrameRestorer(facts, format, decode, load_radiometry({}, format))
    values, report = restorer.restore(frame)
    np.testing.assert_array_equal(values, unit_of(cube))
    assert report.passed and set(report.flags.tolist()) == {int(Flag.PASSED)}


@pytest.mark.parametrize("missing", [0, 5])
def test_a_frame_of_mostly_unfit_lines_is_refused_where_nothing_passes_through(missing: int) -> None:
    flags = dict.fromkeys(range(5 - missing), Flag.EMPTY)
    frame, format = frame_of(cube_of(3, 8, 16), flags, tuple(range(missing)))
    with pytest.raises(CubeError, match="the frame is not whole, and nothing of it can be passed through"):
        coded_restorer(format).restore(frame)


def test_missing_pixels_are_refused_where_nothing_passes_through() -> None:
    cube = cube_of(3, 8, 16).astype(np.int16)
    cube[1, 4, 9] = -9999
    marked = LineFormat(3, 16, cube.dtype, 4095.0, None, None, -9999.0)
    with pytest.raises(CubeError, match=r"values of the frame are missing.*bad_pixels"):
        coded_restorer(marked).restore(frame_of(cube)[0])
    # Of an older frame, in the place of a line that never came, nothing is missing.
    restorer, whole = coded_restorer(marked), cube_of(3, 8, 16).astype(np.int16)
    with pytest.raises(CubeError):
        restorer.restore(frame_of(cube)[0])
    values, _ = restorer.restore(frame_of(whole, {0: Flag.BREAK}, missing=(4,))[0])
    np.testing.assert_array_equal(np.delete(values, 4, 1), np.delete(decoded(unit_of(whole)), 4, 1))


def test_a_line_is_bridged_where_nothing_passes_through_and_says_so() -> None:
    cube = cube_of(3, 8, 16)
    spoilt = cube.copy()
    spoilt[:, 2] = 7
    frame, format = frame_of(spoilt, {2: Flag.EMPTY}, missing=(5,))
    values, report = coded_restorer(format).restore(frame)
    unit = unit_of(cube)
    for place in (2, 5):
        unit[:, place] = np.float32(0.5) * unit[:, place - 1] + np.float32(0.5) * unit[:, place + 1]
    np.testing.assert_allclose(values, decoded(unit), atol=1e-6)
    others = [place for place in range(8) if place not in (2, 5)]
    assert report.flags[2] == Flag.EMPTY | Flag.RESTORED and report.flags[5] == Flag.INTERPOLATED
    assert set(report.flags[others].tolist()) == {int(Flag.RESTORED)}


def test_saturated_values_are_restored_where_nothing_passes_through() -> None:
    cube = cube_of(3, 8, 16)
    cube[1, 3, 7:9] = 4095
    frame, format = frame_of(cube, {3: Flag.SOME_SATURATED})
    values, report = coded_restorer(format).restore(frame)
    np.testing.assert_array_equal(values, decoded(unit_of(cube)))
    assert report.flags[3] == Flag.SOME_SATURATED | Flag.RESTORED


@pytest.mark.parametrize(("lines", "samples"), [(8, 16), (8, 40), (8, 9), (3, 16), (5, 40)])
def test_frames_of_other_bands_that_lie_anywhere_are_restored_as_a_cube_is(lines: int, samples: int) -> None:
    signature = Signature(
        Plane("photo", 3, 8, 16, "rgb"), Plane("restored", 5, 8, 16), CODED.prompts, band_groups=False
    )
    prompts, cube = Prompts(signature, {"code": CODE}), cube_of(3, lines, samples)

    def infer(feeds: Feeds) -> Feeds:
        return {"restored": decoded(feeds["photo"][0] ** 2, feeds["code"])[None]}

    frame, format = frame_of(cube)
    restorer = FrameRestorer(RestorerFacts(signature, 4, prompts), format, infer, load_radiometry({}, format))
    values, report = restorer.restore(frame)
    wanted = restore_cube(unit_of(cube), infer, signature, overlap=4, prompts=prompts).cube
    assert values.shape == (5, lines, samples)
    np.testing.assert_allclose(values, wanted, atol=2e-6)
    assert set(report.flags.tolist()) == {int(Flag.RESTORED | (Flag.PADDED if lines < 8 else NO_FLAGS))}


def test_prompts_of_every_band_group_go_to_the_network() -> None:
    signature = Signature(SMALL.measured, SMALL.restored, (*SMALL.prompts, Prompt("code", (1, 5), "constant", "c")))
    cube, seen = cube_of(5, 8, 16), []

    def infer(feeds: Feeds) -> Feeds:
        seen.append(feeds)
        return {"restored": feeds["frame"]}

    frame, format = frame_of(cube)
    prompts = Prompts(signature, {"code": CODE})
    restorer = FrameRestorer(RestorerFacts(signature, 2, prompts), format, infer, load_radiometry({}, format))
    values, report = restorer.restore(frame)
    np.testing.assert_allclose(values, unit_of(cube), atol=1e-6)
    for feeds, start in zip(seen, (0, 2), strict=True):
        np.testing.assert_array_equal(feeds["metrics"][0], prompts.metrics(unit_of(cube)[start : start + 3]))
        np.testing.assert_array_equal(feeds["code"], CODE)
    assert list(report.metrics) == list(prompts.names) and report.experts == () and report.metrics_by == "host"
    means = np.mean([feeds["metrics"][0] for feeds in seen], axis=0)
    np.testing.assert_allclose(list(report.metrics.values()), means, rtol=1e-6)


def test_a_network_without_metrics_passes_through_what_it_cannot_restore() -> None:
    """Its frames come out as they went in, so that they can; metrics do not tell what was passed."""
    signature = Signature(SMALL.measured, SMALL.restored)
    cube = cube_of(3, 8, 16)
    format = frame_of(cube)[1]
    facts = RestorerFacts(signature, 2, Prompts(signature))
    infer = lambda feeds: {"restored": feeds["frame"] + np.float32(0.125)}  # noqa: E731
    restorer = FrameRestorer(facts, format, infer, load_radiometry({}, format))
    values, report = restorer.restore(frame_of(cube)[0])
    np.testing.assert_array_equal(values, unit_of(cube) + np.float32(0.125))
    assert not report.passed and (report.flags == Flag.RESTORED).all() and not report.metrics
    values, report = restorer.restore(frame_of(cube, dict.fromkeys(range(5), Flag.EMPTY))[0])
    np.testing.assert_array_equal(values, unit_of(cube))
    assert report.passed and ((report.flags & Flag.PASSED) > 0).all()


def test_a_frame_of_one_place_that_nobody_begins_is_refused() -> None:
    restorer = coded_restorer(frame_of(cube_of(3, 8, 16))[1])
    frames = [replace(frame_of(cube_of(3, 8, 16))[0], first=first) for first in (0, 8, 17)]
    for frame in frames[:2]:
        restorer.restore(frame)
    with pytest.raises(CubeError, match="begins where none does"):
        restorer.restore(frames[2])
    begun = replace(frame_of(cube_of(3, 8, 16))[0], first=30, run=30)
    assert not restorer.restore(begun)[1].passed
