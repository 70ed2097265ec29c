"""Sources that read ENVI files: finished, growing under a recorder's hands, dropped into a folder."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import CubeError, CubeFileError, InputError, MachineError
from runtime.files import read_cube
from runtime.lines import Broken, Ended, Event, Flag, LineFormat, Missing, Quiet, Taken
from runtime.sources import Source, SourceOptions, open_source
from tests.contracts.source import PATIENCE, Cube, SourceContract, buffer, drained, following
from tests.runtime.files_data import CODES, INTERLEAVED, sample, write_pair

SHORT = SourceOptions(idle_seconds=0.4)
CODE_OF = {name: code for code, name in CODES.items()}


def cube_of(lines: int, seed: int = 0, dtype: str = "u2", bands: int = 3, samples: int = 5) -> Cube:
    return sample(dtype, (bands, lines, samples), seed)


def put(folder: Path, name: str, cube: Cube, interleave: str = "bil", **more: Any) -> Path:
    """A pair `name.hdr` and `name.img`, its data there first; gives the header."""
    part = folder / f".{name}"
    part.mkdir(parents=True)
    header = write_pair(part, cube, CODE_OF[cube.dtype.str[1:]], interleave, **more)
    header.with_suffix(".img").replace(folder / f"{name}.img")
    return header.replace(folder / f"{name}.hdr")


def bytes_of(cube: Cube, interleave: str = "bil") -> bytes:
    return cube.transpose(INTERLEAVED[interleave]).astype(cube.dtype.newbyteorder("<")).tobytes()


def cube_from(lines: list[Cube]) -> Cube:
    """[bands, lines, samples] of lines taken."""
    return np.stack(lines, axis=1)


def without_quiet(source: Source, count: int) -> list[Event]:
    line = buffer(source)
    return [following(source, line) for _ in range(count)]


class FileContract(SourceContract):
    """What the three have in common: a pair of twelve lines, and no patience."""

    scheme = ""
    folder = False
    interleave = "bil"

    @pytest.fixture
    def cube(self) -> Cube:
        return cube_of(12)

    @pytest.fixture
    def address(self, tmp_path: Path, cube: Cube) -> str:
        header = put(tmp_path / "in", "cube", cube, self.interleave)
        return f"{self.scheme}:{header.parent if self.folder else header}"

    @pytest.fixture
    def source(self, address: str) -> Iterator[Source]:
        with open_source(address, SHORT) as source:
            yield source

    @pytest.fixture
    def expected(self, cube: Cube) -> Cube | None:
        return cube.transpose(1, 0, 2)

    @pytest.fixture
    def quiet(self, address: str) -> Iterator[Source]:
        with open_source(address, SourceOptions(idle_seconds=3 * PATIENCE)) as source:
            drained(source, 12)
            yield source

    def test_paces_lines_without_drift(self, address: str) -> None:
        with open_source(address, replace(SHORT, rate=100.0)) as source:
            line, start = buffer(source), time.monotonic()
            # What nobody took for a while comes at once: the tenth line is due a tenth of a second after the first.
            first = following(source, line)
            time.sleep(0.12)
            rest = [source.read(line, 0.0) for _ in range(10)]
            assert isinstance(first, Taken) and all(isinstance(event, Taken) for event in rest)
            following(source, line)
            assert time.monotonic() - start >= 0.11

    def test_is_quiet_until_a_line_is_due(self, address: str) -> None:
        with open_source(address, SourceOptions(rate=0.01, idle_seconds=3 * PATIENCE)) as source:
            line = buffer(source)
            assert isinstance(following(source, line), Taken)
            assert [source.read(line, 0.02) for _ in range(3)] == [Quiet()] * 3

    @pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
    def test_refuses_what_is_no_rate(self, address: str, rate: float) -> None:
        with pytest.raises(InputError, match="rate: not a rate"):
            open_source(address, SourceOptions(rate=rate))

    def test_options_beat_the_header(self, address: str) -> None:
        options = SourceOptions(wavelengths=(1.0, 2.0, 3.0), scale=7.0, saturation=9.0, idle_seconds=0.4)
        with open_source(address, options) as source:
            form = source.format
        assert (form.wavelengths, form.scale, form.saturation) == ((1.0, 2.0, 3.0), 7.0, 9.0)

    def test_refuses_wavelengths_of_other_bands(self, address: str) -> None:
        with pytest.raises(InputError, match="not as many wavelengths as the 3 bands"):
            open_source(address, SourceOptions(wavelengths=(1.0, 2.0), idle_seconds=0.4))

    def test_needs_a_path(self) -> None:
        with pytest.raises(InputError, match="the path is missing"):
            open_source(f"{self.scheme}:")

    def test_a_buffer_of_another_shape_says_which_fits(self, source: Source) -> None:
        with pytest.raises(CubeError, match=r"uint16 \[3, 5\]"):
            source.read(np.zeros((5, 3), np.uint16), 0)


class TestFile(FileContract):
    scheme = "envi"
    interleave = "bsq"

    @pytest.fixture
    def quiet(self, address: str) -> Iterator[Source]:
        with open_source(address, SourceOptions(rate=1 / PATIENCE)) as source:
            drained(source, 1)
            yield source


class TestLive(FileContract):
    scheme = "envi-live"


class TestWatch(FileContract):
    scheme = "watch"
    folder = True


# --- finished files ---


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("byte_order", [0, 1])
@pytest.mark.parametrize("dtype", CODES.values())
def test_every_layout_gives_the_same_lines(tmp_path: Path, interleave: str, byte_order: int, dtype: str) -> None:
    cube = cube_of(150, dtype=dtype)
    header = put(tmp_path / "in", "x", cube, interleave, byte_order=byte_order, header_offset=7)
    with open_source(f"envi:{header}") as source:
        assert source.format.dtype == np.dtype(dtype) and source.format.dtype.isnative
        events, lines = drained(source)
    np.testing.assert_array_equal(cube_from(lines), cube)
    assert [event.frame_id for event in events[:-1] if isinstance(event, Taken)] == list(range(150))
    assert [type(event) for event in events[150:]] == [Ended]


def test_the_data_file_may_be_given(tmp_path: Path) -> None:
    cube = cube_of(9)
    put(tmp_path / "in", "x", cube)
    with open_source(f"envi:{tmp_path / 'in' / 'x.img'}") as source:
        np.testing.assert_array_equal(cube_from(drained(source)[1]), cube)
        assert source.describe()["path"].endswith("x.img")
        assert not source.live


def test_the_header_says_scale_wavelengths_and_what_is_missing(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "wavelength": "{0.4, 0.55, 0.7}",
        "wavelength_units": "Micrometers",
        "reflectance_scale_factor": 10000,
        "data_ignore_value": -9999,
    }
    header = put(tmp_path / "in", "x", cube_of(2, dtype="i2"), **more)
    floats = put(tmp_path / "floats", "x", cube_of(2, dtype="f4"), **more)
    with open_source(f"envi:{header}") as source:
        wavelengths = source.format.wavelengths
        assert source.format == LineFormat(3, 5, np.dtype("i2"), 10000.0, None, wavelengths, -9999.0)
        assert wavelengths == pytest.approx((400, 550, 700))
    with open_source(f"envi:{floats}") as source:
        assert source.format.scale == 10000


@pytest.mark.data
@pytest.mark.parametrize("name", ["corn_kernel", "aviris_ng_0", "aviris_mastercal", "hyspex_bavaria_232"])
def test_real_files_give_the_lines_of_their_cube(data_dir: Path, name: str) -> None:
    header = data_dir / "envi" / f"{name}.hdr"
    known = read_cube(header)
    with open_source(f"envi:{header}") as source:
        form = source.format
        lines = drained(source)[1]
    np.testing.assert_array_equal(cube_from(lines), known.cube)
    assert (form.wavelengths, form.scale, form.ignore_value) == (known.wavelengths, known.scale, known.ignore_value)


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path: Path, interleave: str) -> None:
    cube = cube_of(200)
    header = put(tmp_path / "in", "x", cube, interleave)
    with open_source(f"envi:{header}") as source:
        lines = drained(source, 3)[1]
        os.truncate(header.with_suffix(".img"), 100 * 30 + 7)
        line = buffer(source)
        with pytest.raises(CubeFileError, match=r"x\.img, lines: was cut short while it was read: line \d+ is no"):
            for _ in range(200):
                assert isinstance(source.read(line, 1), Taken)
                lines.append(line.copy())
        with pytest.raises(CubeFileError, match="cut short"):
            source.read(line, 1)
    # Blocks hold 64 lines; a line-interleaved file gives all that is still whole.
    assert len(lines) == (64 if interleave == "bsq" else 100)
    np.testing.assert_array_equal(cube_from(lines), cube[:, : len(lines)])


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_a_file_overwritten_while_it_is_read_is_an_error(tmp_path: Path, interleave: str) -> None:
    cube = cube_of(200)
    header = put(tmp_path / "in", "x", cube, interleave)
    with open_source(f"envi:{header}") as source:
        lines, line = drained(source, 3)[1], buffer(source)
        with header.with_suffix(".img").open("r+b") as file:
            file.write(bytes_of(cube_of(200, seed=1), interleave))
        with pytest.raises(CubeFileError, match=r"x\.img, lines: was written to while it was read: line 64 may be"):
            for _ in range(200):
                assert isinstance(source.read(line, 1), Taken)
                lines.append(line.copy())
    np.testing.assert_array_equal(cube_from(lines), cube[:, :64])


def test_a_file_replaced_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    cube = cube_of(200)
    header = put(tmp_path / "in", "x", cube)
    other = put(tmp_path / "other", "x", cube_of(200, seed=1))
    with open_source(f"envi:{header}") as source:
        lines = drained(source, 3)[1]
        other.with_suffix(".img").replace(header.with_suffix(".img"))
        lines += drained(source)[1]
    np.testing.assert_array_equal(cube_from(lines), cube)


def test_what_is_no_envi_file_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "cube.npz", cube_of(3))
    with pytest.raises(CubeFileError, match=r"cube.npz: is no ENVI file; convert it to ENVI, or restore it with"):
        open_source(f"envi:{tmp_path / 'cube.npz'}")


def test_a_file_of_another_size_than_its_header_says_is_refused(tmp_path: Path) -> None:
    header = put(tmp_path / "in", "x", cube_of(4))
    os.truncate(header.with_suffix(".img"), 100)
    with pytest.raises(CubeFileError, match="has 100 bytes, its header asks for 120"):
        open_source(f"envi:{header}")


# --- a growing file ---


def text_of(cube: Cube, lines: int, interleave: str = "bil") -> str:
    bands, _, samples = cube.shape
    code = CODE_OF[cube.dtype.str[1:]]
    keys = f"samples = {samples}\nlines = {lines}\nbands = {bands}\ndata type = {code}\n"
    return f"ENVI\n{keys}interleave = {interleave}\nbyte order = 0\n"


def rename_over(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


@pytest.fixture
def record() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Starts a recorder: a thread that has ended, without an error, when the test has."""
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def start(work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not errors


@pytest.mark.parametrize("interleave", ["bil", "bip"])
def test_a_file_that_grows_in_odd_pieces_gives_every_line_once(
    tmp_path: Path, record: Callable[[Callable[[], None]], None], interleave: str
) -> None:
    cube = cube_of(400, bands=4, samples=7)
    header, data = tmp_path / "x.hdr", tmp_path / "x.bil"
    sizes = np.random.default_rng(0).integers(1, 900, 1000)

    def work() -> None:
        time.sleep(0.2)
        content = bytes_of(cube, interleave)
        with data.open("wb", buffering=0) as file:
            done = 0
            for index, size in enumerate(sizes.tolist()):
                # A header that is half there, one that knows of no line, and then now too few and now too many.
                if index == 1:
                    header.write_text(text_of(cube, 1, interleave)[:30])
                elif index % 3 == 2:
                    rename_over(header, text_of(cube, index * 17 % 1000 if index > 2 else 0, interleave))
                done += file.write(content[done : done + size])
                if done == len(content):
                    break
                time.sleep(0.004)

    record(work)
    with open_source(f"envi-live:{data}", SourceOptions(idle_seconds=1.5)) as source:
        assert not source.live
        events, lines = drained(source)
    assert [event.frame_id for event in events[:-1] if isinstance(event, Taken)] == list(range(400))
    assert len(events) == 401
    np.testing.assert_array_equal(cube_from(lines), cube)


def growing(folder: Path, cube: Cube, whole: int, torn: int = 0, said: int = 1) -> tuple[Path, Path]:
    header, data = folder / "x.hdr", folder / "x.raw"
    header.write_text(text_of(cube, said))
    data.write_bytes(bytes_of(cube)[: 30 * whole + torn])
    return header, data


def test_a_line_is_not_taken_before_it_is_whole(tmp_path: Path) -> None:
    cube = cube_of(4)
    header, data = growing(tmp_path, cube, 2, torn=29)
    with open_source(f"envi-live:{header}", SourceOptions(idle_seconds=PATIENCE)) as source:
        drained(source, 2)
        line = buffer(source)
        assert source.read(line, 0.1) == Quiet()
        with data.open("ab") as file:
            file.write(bytes_of(cube)[89:90])
        event = following(source, line)
        assert isinstance(event, Taken) and event.frame_id == 2
        np.testing.assert_array_equal(line, cube[:, 2])


def test_a_file_that_grows_slowly_has_not_ended(tmp_path: Path) -> None:
    header, data = growing(tmp_path, cube_of(4), 1)
    with open_source(f"envi-live:{header}", SourceOptions(idle_seconds=0.6)) as source:
        drained(source, 1)
        for _ in range(9):
            with data.open("ab") as file:
                file.write(b"x")
            assert source.read(buffer(source), 0.1) == Quiet()
        assert isinstance(following(source, buffer(source)), Missing)


def test_a_header_that_knows_of_no_line_yet_will_do(tmp_path: Path) -> None:
    header, _ = growing(tmp_path, cube_of(4), 4, said=0)
    with open_source(f"envi-live:{header}", SHORT) as source:
        assert len(drained(source)[1]) == 4


def test_a_header_that_is_half_written_is_not_believed(
    tmp_path: Path, record: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cube = cube_of(4)
    header, data = growing(tmp_path, cube, 0)
    data.write_bytes(cube.transpose(1, 0, 2).astype(">u2").tobytes())
    text = text_of(cube, 4)
    header.write_text(text.replace("byte order = 0\n", ""))

    def finish() -> None:
        time.sleep(0.1)
        header.write_text(text.replace("byte order = 0", "byte order = 1"))

    monkeypatch.setattr("runtime.sources.envi_live.POLL", 0.5)
    record(finish)
    with open_source(f"envi-live:{header}", SHORT) as source:
        np.testing.assert_array_equal(cube_from(drained(source, 4)[1]), cube)


@pytest.mark.data
@pytest.mark.parametrize("name", ["corn_kernel.raw", "aviris_ng_0.img"])
def test_a_real_file_may_grow(data_dir: Path, tmp_path: Path, name: str) -> None:
    real = data_dir / "envi" / name
    known = read_cube(real.with_suffix(".hdr")).cube
    content = real.read_bytes()
    data = tmp_path / name
    data.write_bytes(content[: len(content) // 3])
    (tmp_path / name).with_suffix(".hdr").write_bytes(real.with_suffix(".hdr").read_bytes())
    with open_source(f"envi-live:{data}", SHORT) as source:
        lines = drained(source, known.shape[1] // 3)[1]
        assert source.read(buffer(source), 0) == Quiet()
        with data.open("ab") as file:
            file.write(content[len(content) // 3 :])
        lines += drained(source)[1]
    np.testing.assert_array_equal(cube_from(lines), known)


def test_what_is_torn_at_the_end_is_missing(tmp_path: Path) -> None:
    header, _ = growing(tmp_path, cube_of(4), 2, torn=17, said=900)
    with open_source(f"envi-live:{header}", SHORT) as source:
        events, lines = drained(source)
    assert len(lines) == 2
    assert events[2:] == [Missing(2, 1, "x.raw ends within a line: 17 of 30 bytes are there"), Ended()]


def test_a_torn_line_that_is_cut_off_and_written_again_is_no_break(tmp_path: Path) -> None:
    cube = cube_of(4)
    header, data = growing(tmp_path, cube, 2, torn=17)
    with open_source(f"envi-live:{header}", SHORT) as source:
        lines = drained(source, 2)[1]
        assert source.read(buffer(source), 0) == Quiet()
        os.truncate(data, 60)
        assert source.read(buffer(source), 0) == Quiet()
        with data.open("ab") as file:
            file.write(bytes_of(cube)[60:])
        events, more = drained(source)
    assert [type(event) for event in events] == [Taken, Taken, Ended]
    np.testing.assert_array_equal(cube_from(lines + more), cube)


def test_a_file_that_shrinks_is_a_break_and_begins_again(tmp_path: Path) -> None:
    cube, other = cube_of(100), cube_of(5, seed=1)
    header, data = growing(tmp_path, cube, 100)
    with open_source(f"envi-live:{header}", SHORT) as source:
        lines = drained(source, 3)[1]
        data.write_bytes(bytes_of(other))
        events, more = drained(source)
        assert source.telemetry() == {"reconnects": 1}
    broken = [index for index, event in enumerate(events) if isinstance(event, Broken)]
    assert broken == [62], "what was read before is given first"
    assert events[61] == Missing(64, 36, "x.raw was cut from 3000 to 150 bytes"), "what was seen and not read"
    assert events[62] == Broken("x.raw was cut from 3000 to 150 bytes")
    again = events[63]
    assert isinstance(again, Taken) and again.frame_id == 0 and again.flags == Flag.BREAK
    np.testing.assert_array_equal(cube_from(lines + more), np.concatenate([cube[:, :64], other], axis=1))
    assert events[-1] == Ended() and len(events) == 69


def test_a_file_that_shrinks_when_all_was_read_misses_nothing(tmp_path: Path) -> None:
    header, data = growing(tmp_path, cube_of(10), 10, torn=4)
    with open_source(f"envi-live:{header}", SHORT) as source:
        drained(source, 10)
        os.truncate(data, 150)
        events, lines = drained(source)
    assert [type(event) for event in events] == [Broken] + [Taken] * 5 + [Ended] and len(lines) == 5


def test_a_file_replaced_is_read_to_its_end_and_then_the_new_one(tmp_path: Path) -> None:
    cube, other = cube_of(100), cube_of(120, seed=1)
    header, data = growing(tmp_path, cube, 80, torn=3)
    with open_source(f"envi-live:{header}", SHORT) as source:
        lines = drained(source, 3)[1]
        with data.open("ab") as file:
            new = tmp_path / "new"
            new.write_bytes(bytes_of(other))
            new.replace(data)
            file.write(bytes_of(cube)[30 * 80 + 3 : 30 * 90 + 11])
        events, more = drained(source)
    kinds = [type(event) for event in events]
    assert kinds == [Taken] * 87 + [Missing, Broken] + [Taken] * 120 + [Ended]
    assert events[87] == Missing(90, 1, "x.raw ends within a line: 11 of 30 bytes are there")
    assert events[88] == Broken("another file took the place of x.raw")
    np.testing.assert_array_equal(cube_from(lines + more), np.concatenate([cube[:, :90], other], axis=1))


def test_a_file_replaced_by_another_layout_is_an_error(tmp_path: Path) -> None:
    header, data = growing(tmp_path, cube_of(8), 8)
    with open_source(f"envi-live:{header}", SHORT) as source:
        drained(source, 8)
        new = tmp_path / "new"
        new.write_bytes(bytes(96))
        new.replace(data)
        rename_over(header, text_of(cube_of(2, samples=6), 2))
        line = buffer(source)
        assert isinstance(following(source, line), Broken)
        with pytest.raises(CubeFileError, match=r"x\.hdr: the file that took its place has another layout.*3 x 6"):
            following(source, line)


def test_a_header_rewritten_with_another_layout_is_an_error(tmp_path: Path) -> None:
    header, _ = growing(tmp_path, cube_of(8), 8)
    with open_source(f"envi-live:{header}", SHORT) as source:
        drained(source, 8)
        rename_over(header, text_of(cube_of(2), 8).replace("byte order = 0", "byte order = 1"))
        with pytest.raises(CubeFileError, match=r"x\.hdr: the header was rewritten with another layout .*>u2"):
            following(source, buffer(source))


MEANING = "reflectance scale factor = 4095\n"
ANEW = {
    "reflectance scale factor": "reflectance scale factor = 10000\n",
    "data ignore value": f"{MEANING}data ignore value = 100\n",
    "wavelength": f"{MEANING}wavelength units = nm\nwavelength = {{400, 500, 600}}\n",
    "bbl": f"{MEANING}bbl = {{1, 0, 1}}\n",
    "data gain values": f"{MEANING}data gain values = {{2, 2, 2}}\n",
    "data offset values": f"{MEANING}data offset values = {{2, 2, 2}}\n",
    "data reflectance gain values": f"{MEANING}data reflectance gain values = {{2, 2, 2}}\n",
    "data reflectance offset values": f"{MEANING}data reflectance offset values = {{2, 2, 2}}\n",
}


@pytest.mark.parametrize("key", ANEW)
def test_a_header_that_is_rewritten_with_another_meaning_is_an_error(tmp_path: Path, key: str) -> None:
    cube = cube_of(8)
    header, data = growing(tmp_path, cube, 4)
    header.write_text(text_of(cube, 8) + MEANING)
    with open_source(f"envi-live:{header}", SHORT) as source:
        drained(source, 4)
        rename_over(header, text_of(cube, 8) + ANEW[key])
        data.write_bytes(bytes_of(cube))
        with pytest.raises(CubeFileError, match=rf"x\.hdr, {key}: the header was rewritten"):
            following(source, buffer(source))


def test_a_header_that_says_for_a_moment_less_is_no_error(tmp_path: Path) -> None:
    cube = cube_of(8)
    header, data = growing(tmp_path, cube, 4)
    header.write_text(text_of(cube, 8) + MEANING)
    options = SourceOptions(wavelengths=(1.0, 2.0, 3.0), idle_seconds=PATIENCE)
    with open_source(f"envi-live:{header}", options) as source:
        drained(source, 4)
        header.write_text(text_of(cube, 8))
        data.write_bytes(bytes_of(cube))
        assert source.read(buffer(source), 0.1) == Quiet()
        header.write_text(text_of(cube, 9) + MEANING + ANEW["wavelength"].removeprefix(MEANING))
        np.testing.assert_array_equal(cube_from(drained(source, 4)[1]), cube[:, 4:])


def test_a_growing_file_that_vanishes_for_good_has_ended(tmp_path: Path) -> None:
    header, data = growing(tmp_path, cube_of(8), 8)
    with open_source(f"envi-live:{header}", SHORT) as source:
        drained(source, 8)
        os.truncate(data, 0)
        first, second, third = without_quiet(source, 3)
    assert first == Broken("x.raw was cut from 240 to 0 bytes")
    assert isinstance(second, Broken) and "did not come back" in second.why and "the file is empty" in second.why
    assert third == Ended()


def test_a_growing_bsq_file_is_refused(tmp_path: Path) -> None:
    header = put(tmp_path / "in", "x", cube_of(4), "bsq")
    with pytest.raises(CubeFileError, match=r"bsq file has no whole line before it is complete.*file:PATH"):
        open_source(f"envi-live:{header}")


def test_a_growing_file_that_never_comes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"x\.hdr: nothing to read within 0\.3 s: no such file; start the recorder"):
        open_source(f"envi-live:{tmp_path / 'x.hdr'}", SourceOptions(idle_seconds=0.3))
    (tmp_path / "x.img").write_bytes(bytes(4))
    (tmp_path / "x.hdr").write_text("ENVI\nsamples = 4\n")
    with pytest.raises(CubeFileError, match="nothing to read within 0 s: is missing; start"):
        open_source(f"envi-live:{tmp_path / 'x.hdr'}", SourceOptions(idle_seconds=0))


# --- a watched folder ---


def aged(header: Path, seconds: int) -> Path:
    """The pair, last changed so long ago."""
    for path in (header, header.with_suffix(".img")):
        then = time.time_ns() - seconds * 10**9
        os.utime(path, ns=(then, then))
    return header


def names(events: list[Event]) -> list[str]:
    """The events, runs of lines as their number."""
    told: list[str] = []
    for event in events:
        if isinstance(event, Broken):
            told.append(event.why)
        elif isinstance(event, Taken) and told and told[-1].isdecimal():
            told[-1] = str(int(told[-1]) + 1)
        else:
            told.append("1" if isinstance(event, Taken) else type(event).__name__)
    return told


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    cubes = {"b": cube_of(2), "c": cube_of(70, 1), "a": cube_of(4, 2), ".d": cube_of(5, 3)}
    for age, (name, cube) in enumerate(cubes.items()):
        aged(put(tmp_path, name, cube, "bip" if name == "a" else "bil"), 100 * (9 - age))
    (tmp_path / "notes.txt").write_text("nothing of ours")
    with open_source(f"watch:{tmp_path}", SHORT) as source:
        assert not source.live
        events, lines = drained(source)
        assert source.telemetry() == {"files": 3, "skipped": 0, "cut_short": 0}
    assert names(events) == ["2", "next file: c.img", "70", "next file: a.img", "4", "Ended"]
    np.testing.assert_array_equal(cube_from(lines), np.concatenate([cubes[name] for name in "bca"], axis=1))
    starts = [event for event in events if isinstance(event, Taken) and event.flags & Flag.BREAK]
    assert [event.frame_id for event in starts] == [0, 0, 0]


def test_files_of_one_moment_go_by_name(tmp_path: Path) -> None:
    then = time.time_ns()
    for name in ("b", "a", "c"):
        header = put(tmp_path, name, cube_of(1))
        os.utime(header.with_suffix(".img"), ns=(then, then))
    with open_source(f"watch:{tmp_path}", SHORT) as source:
        assert names(drained(source)[0]) == ["1", "next file: b.img", "1", "next file: c.img", "1", "Ended"]


def test_pairs_that_drop_in_are_read_when_they_are_whole(
    tmp_path: Path, record: Callable[[Callable[[], None]], None]
) -> None:
    cubes = [cube_of(30, seed) for seed in range(3)]

    def work() -> None:
        time.sleep(0.3)
        put(tmp_path, "one", cubes[0])
        # The header first and the data in pieces, longer than the watch has patience with what does not move.
        content = bytes_of(cubes[1])
        (tmp_path / "two.hdr").write_text(text_of(cubes[1], 30))
        with (tmp_path / "two.bil").open("wb", buffering=0) as file:
            for start in range(0, len(content), 50):
                time.sleep(0.06)
                file.write(content[start : start + 50])
        # The data first.
        (tmp_path / "three.bil").write_bytes(bytes_of(cubes[2]))
        time.sleep(0.3)
        (tmp_path / "three.hdr").write_text(text_of(cubes[2], 30))

    record(work)
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=1.2)) as source:
        events, lines = drained(source)
    assert names(events) == ["30", "next file: two.bil", "30", "next file: three.bil", "30", "Ended"]
    np.testing.assert_array_equal(cube_from(lines), np.concatenate(cubes, axis=1))


def test_a_pair_that_agrees_for_a_moment_is_not_taken_yet(tmp_path: Path) -> None:
    cube = cube_of(6, 1)
    put(tmp_path, "a", cube_of(3))
    with open_source(f"watch:{tmp_path}", SHORT) as source:
        drained(source, 3)
        time.sleep(0.25)
        (tmp_path / "b.bil").write_bytes(bytes_of(cube[:, :2]))
        (tmp_path / "b.hdr").write_text(text_of(cube, 2))
        assert source.read(buffer(source), 0) == Quiet()
        (tmp_path / "b.bil").write_bytes(bytes_of(cube))
        (tmp_path / "b.hdr").write_text(text_of(cube, 6))
        events, lines = drained(source)
    assert names(events) == ["next file: b.bil", "6", "Ended"]
    np.testing.assert_array_equal(cube_from(lines), cube)


def test_what_cannot_be_read_is_skipped_with_its_reason(tmp_path: Path) -> None:
    aged(put(tmp_path, "good", cube_of(3)), 500)
    aged(put(tmp_path, "wide", cube_of(3, samples=6)), 400)
    aged(put(tmp_path, "type", cube_of(3, dtype="f4")), 390)
    aged(put(tmp_path, "scaled", cube_of(3), reflectance_scale_factor=100), 380)
    aged(put(tmp_path, "last", cube_of(4)), 300)
    short = put(tmp_path, "short", cube_of(3))
    os.truncate(short.with_suffix(".img"), 77)
    (tmp_path / "alone.bil").write_bytes(bytes(30))
    (tmp_path / "empty.hdr").write_text("")
    twice = put(tmp_path, "twice", cube_of(3))
    (tmp_path / "twice.img.hdr").write_text(twice.read_text())
    with open_source(f"watch:{tmp_path}", SHORT) as source:
        events, lines = drained(source)
        assert source.telemetry() == {"files": 2, "skipped": 8, "cut_short": 0}
    told = names(events)
    skipped = {why.split(": ")[0].removeprefix("skipped "): why for why in told if why.startswith("skipped ")}
    assert {name: next(part for part in parts if part in skipped[name]) for name, parts in WHY.items()} == {
        name: parts[0] for name, parts in WHY.items()
    }
    assert set(skipped) == set(WHY)
    assert [one for one in told if one not in skipped.values()] == ["3", "next file: last.img", "4", "Ended"]
    assert len(lines) == 7


WHY = {
    "wide.hdr": ["other samples than the first file's", ""],
    "type.hdr": ["other dtype than the first file's", ""],
    "scaled.hdr": ["other scale than the first file's", ""],
    "short.hdr": ["the data file has 77 bytes, its header asks for 90", ""],
    "alone.bil": ["its header is missing", ""],
    "empty.hdr": ["the file is empty", "its data file is missing", ""],
    "twice.hdr": ["several files could be its header", ""],
    "twice.img.hdr": ["several files could be its header", ""],
}


def test_a_pair_that_was_skipped_is_read_once_it_is_mended(tmp_path: Path) -> None:
    put(tmp_path, "a", cube_of(3))
    short = put(tmp_path, "b", cube_of(3, seed=1))
    data = short.with_suffix(".img")
    content = data.read_bytes()
    data.write_bytes(content[:50])
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=0.8)) as source:
        assert [type(event) for event in without_quiet(source, 4)] == [Taken] * 3 + [Broken]
        with data.open("ab") as file:
            file.write(content[50:])
        assert names(drained(source)[0]) == ["next file: b.img", "3", "Ended"]


def test_a_file_that_takes_the_place_of_one_read_is_new(tmp_path: Path) -> None:
    put(tmp_path, "a", cube_of(3))
    other = put(tmp_path / "other", "a", cube_of(3, seed=1))
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=PATIENCE)) as source:
        drained(source, 3)
        assert source.read(buffer(source), 0.5) == Quiet()
        # A header that is written again is no new cube.
        rename_over(tmp_path / "a.hdr", (tmp_path / "a.hdr").read_text())
        assert source.read(buffer(source), 0.6) == Quiet()
        other.with_suffix(".img").replace(tmp_path / "a.img")
        events, lines = drained(source, 3)
    assert names(events) == ["next file: a.img", "3"]
    np.testing.assert_array_equal(cube_from(lines), cube_of(3, seed=1))


def test_a_pair_that_is_touched_after_it_was_read_is_not_read_again(tmp_path: Path) -> None:
    cube, other = cube_of(20), cube_of(20)
    other[:, 9] += 1
    put(tmp_path, "a", cube)
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=0.8)) as source:
        drained(source, 20)
        os.utime(tmp_path / "a.img", ns=(1, 1))
        touched = without_quiet(source, 1)
        with (tmp_path / "a.img").open("r+b") as file:
            file.write(bytes_of(other, "bil"))
        events, lines = drained(source)
    assert names(touched) == [
        "skipped a.hdr: a.img was touched after it was read, and holds what it held: it is not read again"
    ]
    assert names(events) == ["next file: a.img", "20", "Ended"]
    np.testing.assert_array_equal(cube_from(lines), other)


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_a_pair_that_grows_after_it_was_read_is_told_and_not_read_again(tmp_path: Path, interleave: str) -> None:
    cube = cube_of(30)

    def grown(lines: int) -> None:
        with (tmp_path / "a.img").open("r+b") as file:
            file.write(bytes_of(cube[:, :lines], interleave))
        rename_over(tmp_path / "a.hdr", text_of(cube, lines, interleave))

    put(tmp_path, "a", cube[:, :10], interleave)
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=0.8)) as source:
        lines = drained(source, 10)[1]
        told = []
        for count in (22, 30):
            grown(count)
            told += without_quiet(source, 1)
        # A file that has the inode and is longer, but is another: written anew.
        other = cube_of(40, seed=1)
        (tmp_path / "a.img").write_bytes(bytes_of(other, interleave))
        (tmp_path / "a.hdr").write_text(text_of(other, 40, interleave))
        events, more = drained(source)
    why = "skipped a.hdr: a.img grew after it was read: {} new lines are left out; read a file that is still recorded"
    assert [type(event) for event in told] == [Broken, Broken]
    assert [event.why.removesuffix(" with envi-live:PATH") for event in told if isinstance(event, Broken)] == [
        why.format(12),
        why.format(8),
    ]
    assert names(events) == ["next file: a.img", "40", "Ended"]
    np.testing.assert_array_equal(cube_from(lines + more), np.concatenate([cube[:, :10], other], axis=1))


def test_a_file_of_the_folder_that_is_cut_short_misses_the_rest(tmp_path: Path) -> None:
    aged(put(tmp_path, "a", cube_of(100)), 9)
    put(tmp_path, "b", cube_of(3))
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=0.4)) as source:
        drained(source, 1)
        os.truncate(tmp_path / "a.img", 2000)
        events, _ = drained(source)
        assert source.telemetry()["cut_short"] == 1
    missing = [event for event in events if isinstance(event, Missing)]
    assert [(event.frame_id, event.count) for event in missing] == [(66, 34)]
    assert "a.img" in missing[0].why
    told = names(events)
    assert told[:4] == ["65", "Missing", "next file: b.img", "3"] and told[-1] == "Ended"
    assert len(told) == 6 and told[4].startswith("skipped a.hdr: ")


def test_a_folder_that_goes_and_comes_back_is_a_break(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder, "a", cube_of(3))
    with open_source(f"watch:{folder}", SourceOptions(idle_seconds=PATIENCE)) as source:
        drained(source, 3)
        folder.rename(tmp_path / "away")
        line = buffer(source)
        event = following(source, line)
        assert isinstance(event, Broken) and "cannot be looked through: No such file" in event.why
        assert source.read(line, 0.3) == Quiet()
        (tmp_path / "away").rename(folder)
        put(folder, "b", cube_of(3))
        assert names(without_quiet(source, 4)) == ["next file: b.img", "3"]


def test_a_watch_without_idle_seconds_does_not_end(tmp_path: Path) -> None:
    put(tmp_path, "a", cube_of(3))
    with open_source(f"watch:{tmp_path}") as source:
        drained(source, 3)
        assert source.read(buffer(source), 0.7) == Quiet()


def test_a_folder_without_a_pair_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(CubeFileError, match="cannot be watched: No such file or directory"):
        open_source(f"watch:{tmp_path / 'none'}")
    (tmp_path / "x.hdr").write_text("ENVI\n")
    with pytest.raises(CubeFileError, match=r"no complete ENVI pair within 0\.4 s; .*x\.hdr: its data file is missing"):
        open_source(f"watch:{tmp_path}", SHORT)


def test_names_of_files_are_no_orders_to_a_terminal(tmp_path: Path) -> None:
    aged(put(tmp_path, "a", cube_of(1)), 9)
    put(tmp_path, "b\x1b[31m\nc", cube_of(1))
    with open_source(f"watch:{tmp_path}", SHORT) as source:
        assert names(drained(source)[0])[1] == r"next file: b\x1b[31m\nc.img"
