"""The quicklook, read back by Pillow: its bands, its stretch, its gaps, its marks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import InputError
from runtime.lines import Flag, LineFormat
from runtime.sinks.contract import Block, Sink, StreamFacts
from runtime.sinks.quicklook import STRIP_SAMPLES, Quicklook, Scroll, choose_bands
from tests.contracts.sink import FACTS, SinkContract, block_of

ORANGE, BLUE, BLACK, GREY = (230, 159, 0), (86, 180, 233), (0, 0, 0), (64, 64, 64)


class TestQuicklook(SinkContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Callable[[StreamFacts], Sink]:
        return lambda facts: Quicklook(tmp_path / "look.png", facts, lines=16)


def opened(png: bytes) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    image = Image.open(BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image), dict(image.info)


def strip(picture: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """Colours of the strip, one per row; all of its samples must agree."""
    assert (picture[:, :STRIP_SAMPLES] == picture[:, :1]).all()
    return [tuple(int(value) for value in row) for row in picture[:, 0]]


def facts_of(**format_: Any) -> StreamFacts:
    return StreamFacts(dataclasses.replace(FACTS.format, **format_), "a test")


def test_bands_are_the_nearest() -> None:
    facts = facts_of(bands=5, wavelengths=(650.0, 455.0, 1000.0, 543.0, 500.0))
    bands, said = choose_bands(facts)
    assert bands == (0, 3, 1)
    assert said == "red 650 nm (band 1), green 543 nm (band 4), blue 455 nm (band 2)"


@pytest.mark.parametrize("wavelengths", [None, tuple(float(nm) for nm in range(1000, 2010, 10))])
def test_without_visible_bands_it_says_so(wavelengths: tuple[float, ...] | None) -> None:
    bands, said = choose_bands(facts_of(bands=101, wavelengths=wavelengths))
    assert bands == (75, 50, 25)
    assert "red band 76, green band 51, blue band 26 of 101" in said and "3/4" in said
    assert ("no wavelengths" in said) == (wavelengths is None)


def test_each_channel_is_stretched_by_itself() -> None:
    facts = facts_of(dtype=np.dtype(np.float32), samples=51, wavelengths=None, bands=3)
    scroll = Scroll(facts, lines=2)
    block = block_of(0, 2, facts)
    ramp = np.arange(102, dtype=np.float32).reshape(2, 51)
    for band, (gain, offset) in enumerate(((1, 0), (1000, -5), (0.01, 7))):
        block.values[:, band] = gain * ramp + offset
    scroll.add(block)
    picture, info = opened(scroll.png())
    assert picture.shape == (2, STRIP_SAMPLES + 51, 3)
    low, high = np.percentile(ramp, (2, 98))
    expected = np.round(255 * np.clip((ramp - low) / (high - low), 0, 1))
    for channel in range(3):
        np.testing.assert_allclose(picture[:, STRIP_SAMPLES:, channel], expected, atol=1)
    assert info["Stretch"].startswith("2 to 98 % of each channel: ")


def test_red_is_the_long_wavelength() -> None:
    scroll = Scroll(FACTS, lines=1)
    block = block_of(0, 1)
    block.values[:] = 100
    block.values[0, 4] = np.arange(12) * 100
    block.values[0, 2] = np.arange(12)[::-1] * 100
    scroll.add(block)
    picture = opened(scroll.png())[0][0, STRIP_SAMPLES:].astype(int)
    assert (np.diff(picture[:, 0]) >= 0).all() and picture[-1, 0] == 255
    assert (np.diff(picture[:, 1]) <= 0).all() and picture[0, 1] == 255
    assert set(picture[:, 2]) <= {127, 128}


def test_missing_numbers_are_grey_rows_and_marks_are_at_the_left() -> None:
    scroll = Scroll(FACTS, lines=8)
    scroll.add(block_of(10, 1))
    scroll.add(block_of(13, 1, flags=Flag.PASSED | Flag.EMPTY))
    scroll.add(block_of(14, 1, flags=Flag.INTERPOLATED | Flag.RESTORED))
    picture, info = opened(scroll.png())
    assert strip(picture) == [BLACK, BLACK, BLACK, BLACK, GREY, GREY, ORANGE, BLUE]
    assert (picture[4:6] == 64).all() and not picture[:3].any()
    assert picture[3, STRIP_SAMPLES:].any() and picture[6, STRIP_SAMPLES:].any()
    assert info["Last line"] == "sequence number 14"
    assert "orange passed" in info["Legend"] and info["Description"] == "a test"


def test_gaps_within_a_block_too() -> None:
    block = block_of(0, 4)
    block.sequence[:] = (5, 6, 9, 10)
    scroll = Scroll(FACTS, lines=6)
    scroll.add(block)
    assert strip(opened(scroll.png())[0]) == [BLACK, BLACK, GREY, GREY, BLACK, BLACK]


@pytest.mark.parametrize("lengths", [[1] * 40, [7, 7, 7, 7, 7, 5], [40], [3, 30, 7]])
def test_it_scrolls_however_the_lines_come(lengths: list[int]) -> None:
    whole = block_of(0, 40)
    scroll = Scroll(FACTS, lines=16)
    first = 0
    for lines in lengths:
        piece = slice(first, first + lines)
        scroll.add(
            Block(
                whole.values[piece],
                whole.sequence[piece],
                whole.frame_id[piece],
                whole.utc_ns[piece],
                whole.flags[piece],
            )
        )
        first += lines
    last = Scroll(FACTS, lines=16)
    last.add(Block(whole.values[24:], whole.sequence[24:], whole.frame_id[24:], whole.utc_ns[24:], whole.flags[24:]))
    assert scroll.png() == last.png()


@pytest.mark.parametrize("number", [15, 16, 17, 1 << 40, (1 << 64) - 1])
def test_a_gap_longer_than_the_picture(number: int) -> None:
    scroll = Scroll(FACTS, lines=16)
    scroll.add(block_of(0, 1))
    block = block_of(1, 1)
    block.sequence[0] = number
    scroll.add(block)
    rows = strip(opened(scroll.png())[0])
    assert rows[-1] == BLACK and set(rows[1:-1]) == {GREY}
    assert rows[0] == (BLACK if number == 15 else GREY)


def test_values_that_are_none_are_black_and_do_not_spoil_the_stretch() -> None:
    facts = facts_of(dtype=np.dtype(np.float32), ignore_value=-9999.0)
    clean, spoilt = Scroll(facts, lines=4), Scroll(facts, lines=4)
    block = block_of(0, 4, facts)
    clean.add(block)
    block.values[0, 4, 0], block.values[1, 2, 3], block.values[2, 0, 5] = np.nan, np.inf, -9999
    spoilt.add(block)
    one, other = (opened(scroll.png())[0].astype(int) for scroll in (clean, spoilt))
    for row, sample in ((0, 0), (1, 3), (2, 5)):
        assert not other[row, STRIP_SAMPLES + sample].any()
        other[row, STRIP_SAMPLES + sample] = one[row, STRIP_SAMPLES + sample]
    # Three of 48 pixels fewer move the percentiles a little.
    assert np.abs(one - other).max() < 30


def test_nothing_but_nan_is_black() -> None:
    facts = facts_of(dtype=np.dtype(np.float64))
    scroll = Scroll(facts, lines=2)
    block = block_of(0, 2, facts)
    block.values[:] = np.nan
    scroll.add(block)
    assert not opened(scroll.png())[0].any()


def test_an_empty_picture_is_one() -> None:
    picture, info = opened(Scroll(FACTS, lines=3).png())
    assert picture.shape == (3, STRIP_SAMPLES + 12, 3) and not picture.any()
    assert info["Last line"] == "none yet"


def test_text_from_outside_stays_on_its_line() -> None:
    scroll = Scroll(StreamFacts(FACTS.format, "µ \x1b[31m\nStretch\0"), lines=1)
    assert opened(scroll.png())[1]["Description"] == r"µ \x1b[31m\nStretch\x00"


def test_the_file_is_renewed_no_more_often_than_asked_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "look.png"
    with Quicklook(path, FACTS, lines=4, every_s=3600) as sink:
        sink.write(block_of(0, 1))
        first = path.read_bytes()
        sink.write(block_of(1, 1))
        assert path.read_bytes() == first
    assert opened(path.read_bytes())[1]["Last line"] == "sequence number 1"
    assert opened(first)[1]["Last line"] == "sequence number 0"
    assert [file.name for file in tmp_path.iterdir()] == ["look.png"]
    with Quicklook(path, FACTS, lines=4, every_s=0) as sink:
        for number in range(3):
            sink.write(block_of(number, 1))
            assert opened(path.read_bytes())[1]["Last line"] == f"sequence number {number}"


def test_mistakes_are_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: there is no such folder; make it"):
        Quicklook(tmp_path / "absent" / "look.png", FACTS)
    with pytest.raises(InputError, match=r"quicklook lines: not a number of lines \(found 0\)"):
        Quicklook(tmp_path / "look.png", FACTS, lines=0)


def test_a_folder_that_vanishes_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    sink = Quicklook(folder / "look.png", FACTS, lines=4, every_s=0)
    folder.rmdir()
    with pytest.raises(InputError, match=r"look\.png: cannot be written: No such file"):
        sink.write(block_of(0, 1))


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_of_value(dtype: str) -> None:
    facts = StreamFacts(LineFormat(3, 20, np.dtype(dtype)))
    scroll = Scroll(facts, lines=2)
    block = block_of(0, 2, facts)
    block.values[:] = np.arange(120).reshape(2, 3, 20)
    scroll.add(block)
    picture = opened(scroll.png())[0][:, STRIP_SAMPLES:]
    assert (picture.min(), picture.max()) == (0, 255)
