"""Restored lines on a sensor's grid, written onto a map."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import CubeFileError, MachineError
from runtime.products import ortho
from runtime.products.contract import CubeWriter, Description, Glt, Grid, Quality, Result, Seen
from runtime.products.ortho import open_ortho, result_on_map
from runtime.stated import Stated

BANDS, LINES, SAMPLES = 4, 12, 7


class Kept(CubeWriter):
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.cube: list[NDArray[Any]] = []
        self.seen: list[NDArray[Any]] = []
        self.told: Mapping[str, Any] = {}
        self.closed = False

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        assert cube.flags.c_contiguous
        self.cube.append(cube)
        if quality is not None:
            self.seen.append(np.stack([quality.seen, quality.expert]))

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        self.told = provenance
        return (Path("out"),)

    def close(self) -> None:
        self.closed = True


def result_of(dtype: str = "f4", **more: Any) -> Result:
    shape = (BANDS, LINES, SAMPLES)
    source = Description("emit", Path("in.nc"), (Path("in.nc"),), shape, np.dtype(dtype))
    return Result(source, shape, np.dtype(dtype), **more)


def table(lines: int = 20, samples: int = 15, holes: float = 0.3) -> Glt:
    """A map whose pixels are any of the sensor's, turned and repeated, some none."""
    chance = np.random.default_rng(1)
    grid = Grid("EPSG:32632", (0, 1, 0, 0, 0, -1), lines, samples)
    line = chance.integers(0, LINES, (lines, samples)).astype(np.int32)
    sample = chance.integers(0, SAMPLES, (lines, samples)).astype(np.int32)
    none = chance.random((lines, samples)) < holes
    line[none] = sample[none] = -1
    return Glt(grid, line, sample)


def given(kept: Kept, glt: Glt, result: Result, cube: NDArray[Any], step: int = 5) -> NDArray[Any]:
    with open_ortho(lambda: kept, glt, result) as writer:
        for start in range(0, LINES, step):
            part = cube[:, start : start + step]
            seen = np.broadcast_to(np.arange(start, start + part.shape[1], dtype=np.uint8)[:, None], part.shape[1:])
            writer.write_lines(part, Quality(seen, seen + 100) if result.quality else None)
        assert writer.finish({"a": 1}) == (Path("out"),)
    assert kept.closed and kept.told == {"a": 1}
    return np.concatenate(kept.cube, axis=1)


@pytest.mark.parametrize("block", [1, 300, 1 << 20])
@pytest.mark.parametrize("dtype", ["f4", "i2", "u2"])
def test_each_pixel_of_the_map_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch, dtype: str, block: int) -> None:
    monkeypatch.setattr(ortho, "BLOCK", block)
    glt, kept = table(), Kept()
    cube = np.arange(1, BANDS * LINES * SAMPLES + 1).reshape(BANDS, LINES, SAMPLES).astype(dtype)
    found = given(kept, glt, result_of(dtype), cube)
    there = glt.lines >= 0
    mark = {"f4": -9999, "i2": -32768, "u2": 0}[dtype]
    expected = np.where(there, cube[:, glt.lines, glt.samples], np.array(mark, dtype))
    assert found.dtype == dtype and np.array_equal(found, expected)
    seen, expert = np.concatenate(kept.seen, axis=1)
    assert np.array_equal(seen, np.where(there, glt.lines, Seen.MISSING))
    assert np.array_equal(expert, np.where(there, glt.lines + 100, 0))
    assert (len(kept.cube) == 1) == (block == 1 << 20)


def test_numbers_that_equal_a_chosen_mark_are_moved_and_a_stated_one_is_kept() -> None:
    cube = np.zeros((BANDS, LINES, SAMPLES), "u2")
    glt = table()
    found = given(Kept(), glt, result_of("u2", quality=False), cube)
    assert np.array_equal(found, np.broadcast_to(glt.lines >= 0, found.shape))
    result = result_of("u2", quality=False, mark=7.0, stated=Stated(marks=(7.0,)))
    assert np.array_equal(given(Kept(), glt, result, cube + 7), np.full(found.shape, 7))


def test_the_result_on_the_map_says_where_it_lies() -> None:
    glt = table()
    made = result_on_map(result_of("i2"), glt)
    assert made.shape == (BANDS, 20, 15) and made.place.grid == glt.grid and made.place.ortho is None
    assert made.mark == -32768 and made.stated.marks == (-32768,) and made.reader is None
    stated = Stated(marks=(-1.0,))
    assert result_on_map(result_of("i2", mark=-1.0, stated=stated), glt).stated == stated
    nan = result_on_map(result_of(mark=float("nan"), stated=Stated(marks=(float("nan"),))), glt)
    assert np.isnan(nan.mark or 0) and len(nan.stated.marks) == 1


def test_a_map_without_a_single_pixel_is_all_mark() -> None:
    found = given(Kept(), table(holes=2), result_of(), np.ones((BANDS, LINES, SAMPLES), "f4"))
    assert (found == -9999).all()


def test_a_table_that_points_outside_is_refused() -> None:
    glt = table()
    glt.lines[3, 3], glt.samples[3, 3] = LINES, 0
    with pytest.raises(CubeFileError, match="points outside") as error:
        open_ortho(Kept, glt, result_of())
    assert error.value.file == "in.nc"


def test_lines_that_are_missing_are_said() -> None:
    kept = Kept()
    with open_ortho(lambda: kept, table(), result_of(quality=False)) as writer:
        writer.write_lines(np.zeros((BANDS, 3, SAMPLES), "f4"))
        with pytest.raises(CubeFileError, match="only 3 of its 12 lines"):
            writer.finish({})
    assert kept.closed and not kept.cube


def test_no_temporary_space_is_said_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 9))
    with pytest.raises(MachineError, match="9 are free") as error:
        open_ortho(lambda: pytest.fail("opened"), table(), result_of())
    assert "TMPDIR" in error.value.one_line()


def test_what_the_inner_writer_refuses_is_said_at_once() -> None:
    def refuses() -> CubeWriter:
        raise CubeFileError("is there", file="out.tif")

    with pytest.raises(CubeFileError, match="is there"):
        open_ortho(refuses, table(), result_of())
