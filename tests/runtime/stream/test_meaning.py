"""What the numbers of a source mean: seen before its first line in a file, in its frames otherwise; restored around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.errors import CubeError
from runtime.files import read_cube, write_cube
from runtime.lines import Broken, Ended, Flag, LineFormat, Taken
from runtime.sinks.contract import Block
from runtime.sources import Source, open_source
from runtime.stream.pipeline import StreamOptions
from tests.contracts.bundles import known_bundle

from .lines import Script

BANDS, LINES, SAMPLES = 9, 40, 20
WHOLE = StreamOptions(policy="block")


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Bundle]:
    """A bundle that doubles, made for integers with a scale of 10000."""
    with runtime.load_bundle(known_bundle(tmp_path_factory.mktemp("two") / "bundle", gain=2, scale=10000)) as bundle:
        yield bundle


def scene(dtype: Any = np.float32) -> np.ndarray:
    """[bands, lines, samples], 0.05 to 0.45, no two lines alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:LINES, :SAMPLES]
    cube = 0.25 + 0.1 * np.sin(x / 5) * np.cos(y / 7) + rng.normal(0, 0.01, (BANDS, LINES, SAMPLES))
    return np.rint(cube * 10000).astype(dtype) if np.dtype(dtype).kind in "iu" else cube.astype(dtype)


def given(
    source: Source, bundle: runtime.Bundle, tmp_path: Path, **asked: Any
) -> tuple[np.ndarray, runtime.Stream, Any]:
    """Restored lines [bands, lines, samples] of a source, the stream, and their file's header."""
    with source:
        stream = runtime.open_stream(bundle, source, restored=tmp_path / "out", options=WHOLE, **asked)
        result = stream.run()
    assert result.failures == {} and result.count.restored == result.count.issued == LINES
    found = read_cube(tmp_path / "out" / "restored.hdr")
    return found.cube, stream, found


def of_file(tmp_path: Path, cube: np.ndarray, scheme: str = "envi", **fields: str) -> Source:
    (tmp_path / "in").mkdir(exist_ok=True)
    path = tmp_path / "in" / "scene.bil"
    write_cube(path, cube, fields={key.replace("_", " "): text for key, text in fields.items()})
    return open_source(
        f"{scheme}:{path.parent if scheme == 'watch' else path}", runtime.sources.SourceOptions(idle_seconds=0.5)
    )


def of_lines(cube: np.ndarray, **format: Any) -> Source:
    """A source that shows nothing before its first line, as a camera does."""
    lines = LineFormat(BANDS, SAMPLES, cube.dtype, **format)
    return Script([np.ascontiguousarray(cube[:, n]) for n in range(LINES)], lines)


@pytest.mark.parametrize("scheme", ["envi", "envi-live", "watch"])
@pytest.mark.parametrize(("dtype", "mark"), [("f4", -9999), ("i2", -9999), ("u2", 65535), ("f4", 1e20)])
def test_a_mark_that_nobody_named_is_restored_around(
    doubling: runtime.Bundle, tmp_path: Path, scheme: str, dtype: str, mark: float
) -> None:
    cube = scene(dtype)
    cube[:, :, :3] = mark
    restored, _, found = given(of_file(tmp_path, cube, scheme), doubling, tmp_path)
    assert (restored[:, :, :3] == np.dtype(dtype).type(mark)).all() and found.ignore_value == pytest.approx(
        mark, rel=1e-6
    )
    np.testing.assert_allclose(restored[:, :, 3:], 2 * cube[:, :, 3:], rtol=1e-5)


@pytest.mark.parametrize(("dtype", "mark"), [("f4", -9999), ("i2", -9999), ("u2", 65535)])
def test_a_mark_that_comes_later_is_seen_in_its_frame_and_told(
    doubling: runtime.Bundle, tmp_path: Path, dtype: str, mark: float
) -> None:
    cube = scene(dtype)
    cube[:, 20:30, 4:7] = mark
    restored, stream, _ = given(of_lines(cube), doubling, tmp_path)
    there = cube == np.dtype(dtype).type(mark)
    np.testing.assert_array_equal(restored[there], cube[there])
    np.testing.assert_allclose(restored[~there], 2 * cube[~there], rtol=1e-5)
    told = stream.snapshot().doubts
    assert len(told) == 1 and f"{mark}" in told[0] and "--ignore-value" in told[0]


def test_marks_that_are_said_are_the_only_ones(doubling: runtime.Bundle, tmp_path: Path) -> None:
    cube = scene()
    cube[:, :, 2] = np.nan
    cube[:, 5, 7] = -1
    restored, stream, _ = given(of_file(tmp_path, cube), doubling, tmp_path, ignore_values=[np.nan, -1])
    there = np.isnan(cube) | (cube == -1)
    # One mark stands for all of them in lines that are written anew.
    assert np.isnan(restored[there]).all()
    np.testing.assert_allclose(restored[~there], 2 * cube[~there], rtol=1e-5)
    assert not stream.snapshot().doubts


def test_none_means_that_nothing_is_missing(doubling: runtime.Bundle, tmp_path: Path) -> None:
    cube = scene("i2")
    cube[:, :, :3] = -9999
    restored, _, _ = given(of_file(tmp_path, cube, data_ignore_value="-9999"), doubling, tmp_path, ignore_values=[])
    np.testing.assert_array_equal(restored, 2 * cube.astype(int))


BAD: list[tuple[str, str, Any, dict[str, str]]] = [
    ("listed", "f4", 0.3, {"bbl": "{1, 1, 1, 0, 0, 1, 1, 1, 1}"}),
    ("nan", "f4", np.nan, {}),
    ("infinite", "f4", np.inf, {}),
    ("zero", "i2", 0, {}),
    ("constant", "f4", -0.01, {}),
    ("marked", "i2", -9999, {"data_ignore_value": "-9999"}),
    ("unnamed fill", "f4", -9999, {}),
    ("saturated", "u2", 65535, {}),
]  # fmt: skip


@pytest.mark.parametrize("shown", [True, False], ids=["file", "camera"])
@pytest.mark.parametrize(("dtype", "value", "fields"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bands_that_say_nothing_come_out_as_they_are_and_the_others_are_restored(
    doubling: runtime.Bundle, tmp_path: Path, dtype: str, value: Any, fields: dict[str, str], shown: bool
) -> None:
    cube = scene(dtype)
    cube[3:5] = value
    if "bbl" in fields:
        cube[3:5] = scene(dtype)[3:5]
    elif not shown:
        fields = {}
    mark = -9999.0 if "data_ignore_value" in fields or (value == -9999 and not shown) else None
    source = of_file(tmp_path, cube, **fields) if shown else of_lines(cube, ignore_value=mark)
    if "bbl" in fields and not shown:
        source.stated = replace(source.stated, bad=(3, 4))
    restored, stream, _ = given(source, doubling, tmp_path)
    good = [band for band in range(BANDS) if band not in (3, 4)]
    np.testing.assert_allclose(restored[good], 2 * cube[good], rtol=1e-5)
    if np.isinf(value):
        # Where frames are blended, they become NaN.
        assert not np.isfinite(restored[3:5]).any()
    else:
        np.testing.assert_array_equal(restored[3:5], cube[3:5])
    if not shown and "bbl" not in fields:
        assert any("bands 4 to 5 are" in told for told in stream.snapshot().doubts)


def test_a_band_that_dies_in_flight_is_told_once(doubling: runtime.Bundle, tmp_path: Path) -> None:
    cube = scene("u2")
    cube[6, 16:] = 0
    restored, stream, _ = given(of_lines(cube), doubling, tmp_path)
    np.testing.assert_allclose(restored[:6], 2 * cube[:6].astype(int), atol=1)
    assert (restored[6, 24:] == 0).all()
    assert [told for told in stream.snapshot().doubts if "band 7 is" in told] == [stream.snapshot().doubts[-1]]


GAINS = np.linspace(0.5e-4, 1.5e-4, BANDS)
OFFSETS = np.linspace(-0.02, 0.02, BANDS)


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_gains_give_the_unit_range_and_stay_in_the_record(
    doubling: runtime.Bundle, tmp_path: Path, dtype: str, offsets: bool
) -> None:
    shift = OFFSETS[:, None, None] if offsets else 0.0
    cube = np.rint((scene("f8") - shift) / GAINS[:, None, None]).astype(dtype)
    fields = {"data_gain_values": "{" + ", ".join(map(repr, GAINS.tolist())) + "}"}
    fields |= {"data_offset_values": "{" + ", ".join(map(repr, OFFSETS.tolist())) + "}"} if offsets else {}
    source = of_file(tmp_path, cube, **fields)
    restored, _, found = given(source, doubling, tmp_path, record=tmp_path / "raw")
    assert restored.dtype == np.float32 and found.scale is None and found.stated.gains is None
    np.testing.assert_allclose(restored, 2 * scene("f8"), atol=4e-4)
    raw = read_cube(tmp_path / "raw" / "lines.hdr")
    np.testing.assert_array_equal(raw.cube, cube)
    assert raw.stated.gains == pytest.approx(tuple(GAINS)) and raw.scale is None
    assert raw.stated.offsets == (pytest.approx(tuple(OFFSETS)) if offsets else None)


@pytest.mark.parametrize("said", ["file", "flag"])
def test_floats_are_divided_by_the_scale_that_is_said(doubling: runtime.Bundle, tmp_path: Path, said: str) -> None:
    cube = (scene() * 10000).astype(np.float32)
    fields = {"reflectance_scale_factor": "10000"} if said == "file" else {}
    restored, _, _ = given(
        of_file(tmp_path, cube, **fields), doubling, tmp_path, scale=10000 if said == "flag" else None
    )
    np.testing.assert_allclose(restored, 2 * scene(), rtol=1e-5)


REFUSED: Sequence[tuple[str, float, dict[str, str], str]] = [
    ("u2", 1, {"reflectance_scale_factor": "1"}, "reflectance scale factor: the numbers reach"),
    ("f4", 10000, {}, "as they are"),
    ("f4", 1, {"reflectance_scale_factor": "10000"}, "converted already"),
]


@pytest.mark.parametrize(("dtype", "factor", "fields", "words"), REFUSED, ids=range(len(REFUSED)))
def test_numbers_that_do_not_fit_their_scale_are_refused_before_the_first_line(
    doubling: runtime.Bundle, tmp_path: Path, dtype: str, factor: float, fields: dict[str, str], words: str
) -> None:
    source = of_file(tmp_path, scene(dtype) * np.dtype(dtype).type(factor), **fields)
    with source, pytest.raises(CubeError, match=words):
        runtime.open_stream(doubling, source, record=tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("key", ["data gain values", "data offset values", "bbl"])
def test_a_later_file_that_means_something_else_is_left_out_with_a_word(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    said = {"data gain values": 1e-4, "data offset values": 0.01, "bbl": 1}[key]
    for name, last in (("a", said), ("b", 0.5)):
        values = ", ".join(map(str, [said] * (BANDS - 1) + [last if key != "bbl" else int(last == said)]))
        write_cube(folder / f"{name}.bil", scene(), fields={key: f"{{{values}}}"})
    with open_source(f"watch:{folder}", runtime.sources.SourceOptions(idle_seconds=0.5)) as source:
        why, lines, line = "", 0, np.empty((BANDS, SAMPLES), np.float32)
        while not isinstance(event := source.read(line, 0.2), Ended):
            why += event.why if isinstance(event, Broken) else ""
            lines += isinstance(event, Taken)
    told = {"data gain values": "gains", "data offset values": "offsets", "bbl": "bad bands"}[key]
    assert lines == LINES and "skipped" in why and told in why


def test_lines_with_dead_bands_say_so_in_their_flags(doubling: runtime.Bundle, tmp_path: Path) -> None:
    cube = scene()
    cube[3] = np.nan
    seen: list[Block] = []
    with of_lines(cube) as source:
        runtime.open_stream(doubling, source, sinks=[seen.append], options=WHOLE).run()
    flags = np.concatenate([block.flags for block in seen])
    assert ((flags & Flag.DEAD_BANDS) > 0).all() and ((flags & Flag.RESTORED) > 0).all()


@pytest.mark.parametrize(
    ("dtype", "mark", "said"),
    [("u2", "-9999", None), ("u2", "nan", None), ("u2", "1e20", None), ("u2", None, [np.nan]), ("i2", "65535", None)],
)
def test_a_mark_that_the_lines_cannot_hold_marks_nothing(
    doubling: runtime.Bundle, tmp_path: Path, dtype: str, mark: str | None, said: list[float] | None
) -> None:
    cube = scene(dtype)
    fields = {} if mark is None else {"data_ignore_value": mark}
    restored, _, found = given(of_file(tmp_path, cube, **fields), doubling, tmp_path, ignore_values=said)
    np.testing.assert_array_equal(restored, 2 * cube)
    assert found.ignore_value is None


@pytest.mark.parametrize(("dtype", "mark"), [("i2", -999), ("u2", 12000), ("f4", -0.3), ("i2", -9999)])
def test_a_mark_within_the_unit_range_is_seen_where_it_comes_first(
    doubling: runtime.Bundle, tmp_path: Path, dtype: str, mark: float
) -> None:
    cube = scene(dtype)
    cube[:, 25:30, 4:7] = mark
    restored, stream, _ = given(of_lines(cube), doubling, tmp_path)
    there = cube == np.dtype(dtype).type(mark)
    np.testing.assert_array_equal(restored[there], cube[there])
    np.testing.assert_allclose(restored[~there], 2 * cube[~there], rtol=1e-5)
    assert len(stream.snapshot().doubts) == 1


@pytest.mark.parametrize("scheme", ["said", "seen"])
def test_infinite_values_are_marks_like_others(doubling: runtime.Bundle, tmp_path: Path, scheme: str) -> None:
    cube = scene()
    cube[:, 3:9, 5] = np.inf
    said = [np.inf] if scheme == "said" else None
    restored, _, _ = given(of_file(tmp_path, cube), doubling, tmp_path, ignore_values=said)
    there = np.isinf(cube)
    assert np.isinf(restored[there]).all()
    np.testing.assert_allclose(restored[~there], 2 * cube[~there], rtol=1e-5)


def test_what_looks_wrong_is_doubted_as_in_files(doubling: runtime.Bundle, tmp_path: Path) -> None:
    cube = scene()
    cube[4] = np.minimum(cube[4], np.quantile(cube[4], 0.4))
    cube[:, 2:12, 3:6] = 0
    with of_file(tmp_path, cube) as source, pytest.warns(UserWarning) as told:
        runtime.open_stream(doubling, source)
    texts = [str(one.message) for one in told]
    assert any("band 5 holds its largest value in" in text for text in texts)
    assert any("30 pixels hold 0 in every band" in text and "--ignore-value 0" in text for text in texts)


def test_a_scale_that_nobody_said_does_not_become_the_files_word(doubling: runtime.Bundle, tmp_path: Path) -> None:
    restored, _, found = given(of_file(tmp_path, scene("u2")), doubling, tmp_path)
    assert found.scale is None
    np.testing.assert_array_equal(restored, 2 * scene("u2"))
    again = of_file(tmp_path, scene("u2"), reflectance_scale_factor="10000")
    with again:
        stream = runtime.open_stream(doubling, again, restored=tmp_path / "said", options=WHOLE)
        stream.run()
    assert read_cube(tmp_path / "said" / "restored.hdr").scale == 10000
