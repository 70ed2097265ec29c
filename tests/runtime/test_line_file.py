"""Line files: what is in them, who may write them, and what a torn end becomes."""

from __future__ import annotations

import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spectral

from runtime.errors import CubeFileError, InputError, MachineError
from runtime.files.envi import read_envi, read_header
from runtime.lines import Flag, LineFormat
from runtime.record import ring
from runtime.record import segment as line_segment
from runtime.record import writer as line_file
from runtime.record.index import RECORD, Report, Runs, read_index, runs_of, suffixed, verify, without
from runtime.record.writer import LineWriter, open_line_writer
from tests.contracts.line_files import SMALL, bytes_of, check_folder, data_files, known, served
from tests.runtime.test_files_envi import by_gdal

SIZE = SMALL.line_bytes
LINE = served()
SEGMENT, LIMIT = 8000, 60_000


def append(writer: LineWriter, count: int, format: LineFormat = SMALL) -> None:
    line = served(format)
    for _ in range(count):
        number = writer.next_sequence
        writer.append(line(number), number, *known(number))


def append_as_block(writer: LineWriter, count: int) -> None:
    numbers = range(writer.next_sequence, writer.next_sequence + count)
    writer.append_block(np.stack([LINE(number) for number in numbers]), *columns_of(numbers))


def columns_of(numbers: range) -> Any:
    return np.array([(number, *known(number)) for number in numbers], np.uint64).T


def recorded(folder: Path, count: int, **options: Any) -> Path:
    with open_line_writer(folder, "lines", SMALL, **options) as writer:
        append(writer, count)
    return folder


def left(tmp_path: Path, saved: int, count: int) -> Path:
    """A record as a kill leaves it: a checkpoint after `saved` lines, `count` in the files."""
    with open_line_writer(tmp_path / "alive", "lines", SMALL) as writer:
        append(writer, saved)
        writer.checkpoint()
        append(writer, count - saved)
        shutil.copytree(tmp_path / "alive", tmp_path / "left")
    return tmp_path / "left"


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_files_open_everywhere(tmp_path: Path, dtype: str) -> None:
    format = LineFormat(3, 50, np.dtype(dtype), scale=4000, wavelengths=(450, 550.5, 650), ignore_value=0)
    with open_line_writer(tmp_path, "restored", format, fields={"description": "by a test"}) as writer:
        append(writer, 7, format)
    cube = np.stack([served(format)(number) for number in range(7)], axis=1)
    header = read_header(tmp_path / "restored.hdr")
    np.testing.assert_array_equal(read_envi(header), cube)
    assert (header.reflectance_scale_factor, header.data_ignore_value, header.wavelengths) == (
        4000,
        0,
        (450, 550.5, 650),
    )
    assert header.fields["description"] == "{by a test}"
    np.testing.assert_array_equal(by_gdal(tmp_path / "restored.raw"), cube)
    opened = spectral.envi.open(str(tmp_path / "restored.hdr"), str(tmp_path / "restored.raw"))
    np.testing.assert_array_equal(np.asarray(opened.open_memmap()).transpose(2, 0, 1), cube)
    check_folder(tmp_path, "restored", served(format), format=format)


def test_header_fields_given_beat_those_of_the_format(tmp_path: Path) -> None:
    format = LineFormat(3, 50, np.dtype("u2"), scale=4000, ignore_value=0)
    fields = {"Reflectance Scale Factor": "10000", "DATA IGNORE VALUE": None}
    with open_line_writer(tmp_path, "lines", format, fields=fields) as writer:
        append(writer, 1)
    header = read_header(tmp_path / "lines.hdr")
    assert (header.reflectance_scale_factor, header.data_ignore_value) == (10000, None)


def test_index_byte_for_byte(tmp_path: Path) -> None:
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        writer.append(LINE(0), 5, 2**40 + 1, 1_700_000_000_123_456_789, Flag.GAP | Flag.PADDED)
        writer.append(LINE(1), 2**63, 7, 2**64 - 1, 2**32 - 1)
        assert writer.next_sequence == 2**63 + 1
    stored = [LINE(number).astype("<u2").tobytes() for number in range(2)]
    first = struct.pack("<QQQII", 5, 2**40 + 1, 1_700_000_000_123_456_789, zlib.crc32(stored[0]), 2 | 2048)
    second = struct.pack("<QQQII", 2**63, 7, 2**64 - 1, zlib.crc32(stored[1]), 2**32 - 1)
    assert (tmp_path / "lines.idx").read_bytes() == first + second
    assert (tmp_path / "lines.raw").read_bytes() == b"".join(stored)
    assert RECORD.itemsize == 32
    records = read_index(tmp_path / "lines.idx")
    assert records["flags"].tolist() == [2050, 2**32 - 1] and records["frame_id"].tolist() == [2**40 + 1, 7]
    with pytest.raises(CubeFileError, match="No such file"):
        read_index(tmp_path / "other.idx")


def test_header_grows_at_checkpoints_only(tmp_path: Path) -> None:
    with open_line_writer(tmp_path / "new" / "folder", "lines", SMALL) as writer:
        header = tmp_path / "new/folder/lines.hdr"
        writer.checkpoint()
        assert not header.exists()
        append(writer, 3)
        assert not header.exists()
        writer.checkpoint()
        append_as_block(writer, 4)
        assert check_folder(header.parent, line=LINE, closed=False).sequence == [0, 1, 2]
        assert (writer.lines, writer.appended, writer.bytes) == (7, 7, 7 * (SIZE + 32))
    writer.close()
    assert check_folder(header.parent, line=LINE).sequence == list(range(7))
    assert sorted(path.name for path in header.parent.iterdir()) == [
        "lines.hdr",
        "lines.idx",
        "lines.lock",
        "lines.raw",
    ]


def test_an_empty_record_has_no_header_and_goes_on(tmp_path: Path) -> None:
    recorded(tmp_path, 0)
    assert not (tmp_path / "lines.hdr").exists()
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        assert (writer.next_sequence, writer.lines, writer.resumed) == (0, 0, None)


@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_runs_of_lines_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr("runtime.record.index.PIECE", piece * RECORD.itemsize)
    for name, numbers in (("a", [0, 1, 2, 5, 6]), ("b", [7, 9]), ("c", [])):
        records = np.zeros(len(numbers), RECORD)
        records["sequence"] = numbers
        records.tofile(suffixed(tmp_path / name, ".idx"))
    assert runs_of(tmp_path / name for name in ("a", "none", "b", "c")) == [(0, 2), (5, 7), (9, 9)]


def test_runs_without_others() -> None:
    rng = np.random.default_rng(0)

    def runs(numbers: np.ndarray) -> Runs:
        parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
        return [(int(part[0]), int(part[-1])) for part in parts if part.size]

    for _ in range(200):
        some, others = (np.flatnonzero(rng.random(30) < rng.random()) for _ in range(2))
        assert without(runs(some), runs(others)) == [
            run for first, last in runs(some) for run in runs(np.setdiff1d(np.arange(first, last + 1), others))
        ]


def test_a_rerun_appends(tmp_path: Path) -> None:
    recorded(tmp_path, 100)
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        assert (writer.next_sequence, writer.lines, writer.appended, writer.resumed) == (100, 100, 0, None)
        append(writer, 5)
        assert (writer.lines, writer.appended) == (105, 5)
    assert check_folder(tmp_path, line=LINE).sequence == list(range(105))


def test_views_are_stored_as_they_look(tmp_path: Path) -> None:
    wide = np.zeros((4, 3, 100), np.uint16)
    for number in range(4):
        wide[number, :, ::2] = LINE(number)
    columns = np.array([(number, *known(number)) for number in range(4)], np.uint64).T
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        writer.append_block(wide[:, :, ::2], *columns)
    check_folder(tmp_path, line=LINE)


def test_lines_that_do_not_belong(tmp_path: Path) -> None:
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        append(writer, 3)
        for line in (LINE(0).astype("i2"), LINE(0)[:2], LINE(0).T, LINE(0).astype(">u2")):
            with pytest.raises(ValueError, match="are not lines of 3 bands x 50 samples, uint16"):
                writer.append(line, 3, 0, 0, 0)
        with pytest.raises(ValueError, match="must rise from 3"):
            writer.append(LINE(0), 2, 0, 0, 0)
        with pytest.raises(ValueError, match="must rise"):
            writer.append_block(np.stack([LINE(3)] * 2), [7, 7], [0, 0], [0, 0], [0, 0])
        with pytest.raises(ValueError, match="1 of flags for 2 lines"):
            writer.append_block(np.stack([LINE(3)] * 2), [7, 8], [0, 0], [0, 0], [0])
        writer.append_block(np.empty((0, 3, 50), "u2"), [], [], [], [])
    with pytest.raises(ValueError, match="closed"):
        writer.append(LINE(3), 3, *known(3))
    assert check_folder(tmp_path, line=LINE).sequence == [0, 1, 2]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (LineFormat(4, 50, np.dtype("u2")), "4 bands x 50 samples, uint16"),
        (LineFormat(3, 51, np.dtype("u2")), "3 bands x 51 samples, uint16"),
        (LineFormat(3, 50, np.dtype("i2")), "3 bands x 50 samples, int16"),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("limit", [None, LIMIT])
def test_other_lines_are_refused(tmp_path: Path, other: LineFormat, words: str, saved: bool, limit: int | None) -> None:
    options = {"limit": limit, "segment_bytes": SEGMENT if limit else None}
    with open_line_writer(tmp_path / "alive", "lines", SMALL, **options) as writer:
        append(writer, 3)
        if saved:
            writer.checkpoint()
        shutil.copytree(tmp_path / "alive", tmp_path / "left")
    before = {path: path.read_bytes() for path in (tmp_path / "left").iterdir()}
    with pytest.raises(CubeFileError) as caught:
        open_line_writer(tmp_path / "left", "lines", other, **options)
    assert f"have 3 bands x 50 samples, uint16, those to come {words}" in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "left").iterdir()} == before


MEANT = LineFormat(3, 50, np.dtype("u2"), scale=4000, wavelengths=(450, 550.5, 650), ignore_value=0)
OTHER_MEANINGS: dict[str, tuple[LineFormat, str, str, str]] = {
    "scale": (replace(MEANT, scale=10000), "dn", "scale", "have 4000.0, those to come 10000.0"),
    "no scale": (replace(MEANT, scale=None), "dn", "scale", "have 4000.0, those to come none"),
    "ignore value": (replace(MEANT, ignore_value=float("nan")), "dn", "ignore value", "have 0.0, those to come nan"),
    "wavelengths": (
        replace(MEANT, wavelengths=(450, 551, 650)),
        "dn",
        "wavelength of band 2",
        "have 550.5, those to come 551.0",
    ),
    "no wavelengths": (
        replace(MEANT, wavelengths=None),
        "dn",
        "wavelengths",
        "have 450.0, 550.5, 650.0, those to come none",
    ),
    "meaning": (MEANT, "radiance, network b", "meaning", "have dn, those to come radiance, network b"),
    "no meaning": (MEANT, "", "meaning", "have dn, those to come none"),
}


@pytest.mark.parametrize("name", OTHER_MEANINGS)
@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("limit", [None, LIMIT])
def test_lines_of_another_meaning_are_refused(tmp_path: Path, name: str, saved: bool, limit: int | None) -> None:
    other, meaning, key, words = OTHER_MEANINGS[name]
    options: dict[str, Any] = {"limit": limit, "segment_bytes": SEGMENT if limit else None}
    with open_line_writer(tmp_path / "alive", "lines", MEANT, meaning="dn", **options) as writer:
        append(writer, 3)
        if saved:
            writer.checkpoint()
        shutil.copytree(tmp_path / "alive", tmp_path / "left")
    before = {path: path.read_bytes() for path in (tmp_path / "left").iterdir()}
    with pytest.raises(CubeFileError) as caught:
        open_line_writer(tmp_path / "left", "lines", other, meaning=meaning, **options)
    assert caught.value.exit_code == 2 and caught.value.key == key
    assert f"the lines that are there {words}; record into another folder" in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "left").iterdir()} == before
    fields = {"description": "another"}
    with open_line_writer(tmp_path / "left", "lines", MEANT, fields=fields, meaning=" dn\n", **options) as writer:
        append(writer, 1)
    assert check_folder(tmp_path / "left", line=LINE).sequence == list(range(4))


def test_header_fields_that_are_given_have_a_meaning_too(tmp_path: Path) -> None:
    def opened(scale: str | None, ignore: float = float("nan")) -> LineWriter:
        format = replace(MEANT, ignore_value=ignore)
        return open_line_writer(tmp_path, "lines", format, fields={"reflectance scale factor": scale})

    with opened("5000") as writer:
        append(writer, 1)
    with pytest.raises(CubeFileError, match=r"lines\.hdr, scale: .* have 5000\.0, those to come none; record into"):
        opened(None)
    opened("5000").close()


@pytest.mark.parametrize("lock", [None, "3 bands x 50 samples, uint16", "3 bands x 50 samples, uint16\nscale: 40"])
def test_files_of_earlier_versions_tell_what_their_header_tells(tmp_path: Path, lock: str | None) -> None:
    with open_line_writer(tmp_path, "lines", MEANT) as writer:
        append(writer, 2)
    (tmp_path / "lines.lock").unlink()
    if lock is not None:
        (tmp_path / "lines.lock").write_text(lock)
    with pytest.raises(CubeFileError, match=r"lines\.hdr, scale: .* have 4000\.0, those to come 1\.5; record"):
        open_line_writer(tmp_path, "lines", replace(MEANT, scale=1.5), meaning="dn")
    with open_line_writer(tmp_path, "lines", MEANT, meaning="dn") as writer:
        append(writer, 1)
    with pytest.raises(CubeFileError, match=r"lines\.lock, meaning: .* have dn, those to come reflectance"):
        open_line_writer(tmp_path, "lines", MEANT, meaning="reflectance")


def test_a_folder_without_lines_takes_any(tmp_path: Path) -> None:
    open_line_writer(tmp_path, "lines", MEANT, meaning="a" * 5000).close()
    with open_line_writer(tmp_path, "lines", SMALL, meaning="dn") as writer:
        append(writer, 1)
    with pytest.raises(CubeFileError, match="scale"):
        open_line_writer(tmp_path, "lines", MEANT, meaning="dn")
    recorded(tmp_path, 1, meaning="dn")


def test_data_files_are_told(tmp_path: Path) -> None:
    with open_line_writer(tmp_path / "file", "lines", SMALL) as writer:
        assert writer.files == (tmp_path / "file/lines.raw",)
    with ring_writer(tmp_path / "ring") as writer:
        append(writer, 400)
        assert writer.deleted_segments > 0
        assert list(writer.files) == data_files(tmp_path / "ring", "lines")


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    recorded(tmp_path / "order", 2)
    header = tmp_path / "order" / "lines.hdr"
    header.write_text(header.read_text().replace("byte order = 0", "byte order = 1"))
    with pytest.raises(CubeFileError, match="have 3 bands x 50 samples, big endian uint16"):
        open_line_writer(tmp_path / "order", "lines", SMALL)
    header.write_text(header.read_text().replace("interleave = bil", "interleave = bsq"))
    with pytest.raises(CubeFileError, match="bsq, header offset 0"):
        open_line_writer(tmp_path / "order", "lines", SMALL)
    header.unlink()
    (tmp_path / "order" / "lines.lock").unlink()
    with pytest.raises(CubeFileError, match=r"lines\.raw: has no header"):
        open_line_writer(tmp_path / "order", "lines", SMALL)
    with pytest.raises(CubeFileError, match="ENVI files hold lines of"):
        open_line_writer(tmp_path, "lines", LineFormat(3, 50, np.dtype("f2")))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        open_line_writer(tmp_path / "file", "lines", SMALL)
    with pytest.raises(ValueError, match="is not a name"):
        open_line_writer(tmp_path, "../lines", SMALL)


@pytest.mark.parametrize("missing", [".raw", ".idx"])
def test_a_file_that_is_gone_takes_nothing_with_it(tmp_path: Path, missing: str) -> None:
    folder = recorded(tmp_path, 5)
    (folder / f"lines{missing}").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CubeFileError, match=rf"lines\{missing}: is missing; bring it back"):
        open_line_writer(folder, "lines", SMALL)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    def refused() -> None:
        with pytest.raises(InputError, match=r"lines\.lock: another process is writing these lines; stop it first"):
            open_line_writer(tmp_path, "lines", SMALL)

    with open_line_writer(tmp_path, "lines", SMALL) as writer, open_line_writer(tmp_path, "restored", SMALL) as other:
        append(writer, 3)
        refused()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                refused()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        append(other, 2)
        append(writer, 3)
    for name, count in (("lines", 6), ("restored", 2)):
        assert check_folder(tmp_path, name, LINE).sequence == list(range(count))
    recorded(tmp_path, 1)


TORN: dict[str, tuple[Callable[[Path, Path], object], int]] = {
    "as it was left": (lambda raw, idx: None, 10),
    "no data": (lambda raw, idx: os.truncate(raw, 0), 0),
    "one byte": (lambda raw, idx: os.truncate(raw, 1), 0),
    "one line": (lambda raw, idx: os.truncate(raw, SIZE), 1),
    "data before the checkpoint": (lambda raw, idx: os.truncate(raw, 5 * SIZE + 3), 5),
    "data at the checkpoint": (lambda raw, idx: os.truncate(raw, 6 * SIZE), 6),
    "data without one byte": (lambda raw, idx: os.truncate(raw, 10 * SIZE - 1), 9),
    "no index": (lambda raw, idx: os.truncate(idx, 0), 0),
    "index before the checkpoint": (lambda raw, idx: os.truncate(idx, 3 * 32 + 31), 3),
    "index of the checkpoint": (lambda raw, idx: os.truncate(idx, 6 * 32), 6),
    "index without one byte": (lambda raw, idx: os.truncate(idx, 10 * 32 - 1), 9),
    "both torn": (lambda raw, idx: (os.truncate(raw, 9 * SIZE + 7), os.truncate(idx, 8 * 32 + 5)), 8),
    "data too long": (lambda raw, idx: grow(raw, os.urandom(3 * SIZE + 1)), 10),
    "index too long": (lambda raw, idx: grow(idx, os.urandom(3 * 32 + 1)), 10),
    "both too long": (lambda raw, idx: (grow(raw, os.urandom(2 * SIZE)), grow(idx, os.urandom(2 * 32))), 10),
    "zeros behind": (lambda raw, idx: (os.truncate(raw, 14 * SIZE), os.truncate(idx, 14 * 32)), 10),
    "a bit of an unsaved line": (lambda raw, idx: flip(raw, 8 * SIZE + 11), 8),
    "a bit of the first unsaved line": (lambda raw, idx: flip(raw, 6 * SIZE), 6),
    "a bit of its checksum": (lambda raw, idx: flip(idx, 7 * 32 + 25), 7),
    "a number that does not rise": (lambda raw, idx: put(idx, 9 * 32, struct.pack("<Q", 8)), 9),
    "the last saved line": (lambda raw, idx: (os.truncate(raw, 6 * SIZE), flip(raw, 6 * SIZE - 1)), 5),
    "all lines": (lambda raw, idx: put(raw, 0, bytes(10 * SIZE)), 0),
}


def grow(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def put(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


@pytest.mark.parametrize("name", TORN)
def test_torn_ends(tmp_path: Path, name: str) -> None:
    damage, kept = TORN[name]
    folder = left(tmp_path, 6, 10)
    damage(folder / "lines.raw", folder / "lines.idx")
    with open_line_writer(folder, "lines", SMALL) as writer:
        assert (writer.lines, writer.next_sequence, writer.appended) == (kept, kept, 0)
        assert writer.resumed is not None
        assert f"lines: not closed cleanly: {kept} lines are whole, its header said 6" in writer.resumed
        # Safe and whole before any line comes.
        assert check_folder(folder, line=LINE).promised == kept
        append(writer, 3)
    assert check_folder(folder, line=LINE).sequence == list(range(kept + 3))


def test_a_line_damaged_long_ago_is_told_and_kept(tmp_path: Path) -> None:
    folder = recorded(tmp_path, 100)
    flip(folder / "lines.raw", 90 * SIZE)
    with open_line_writer(folder, "lines", SMALL) as writer:
        assert writer.lines == 100
        assert writer.resumed == "lines: 1 damaged lines near the end were saved before and are kept"
    report = verify(folder, "lines")
    assert (report.lines, report.bad, report.problems) == (
        100,
        1,
        ("lines: 1 damaged lines, the first is line 90",),
    )


def test_an_end_that_is_wrong_for_long_is_left_to_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recorded(tmp_path, 300)
    put(folder / "lines.raw", 100 * SIZE, bytes(200 * SIZE))
    shutil.copytree(folder, tmp_path / "copy")
    with open_line_writer(tmp_path / "copy", "lines", SMALL) as writer:
        assert writer.lines == 100
    monkeypatch.setattr("runtime.record.index.CHECKED_BYTES", 30 * SIZE)
    before = {path: path.read_bytes() for path in folder.glob("lines.*")}
    with pytest.raises(CubeFileError, match="do not agree with its index; record into another folder"):
        open_line_writer(folder, "lines", SMALL)
    assert {path: path.read_bytes() for path in folder.glob("lines.*")} == before


@pytest.mark.parametrize("seed", range(30))
def test_pages_lost_in_a_power_cut(tmp_path: Path, seed: int) -> None:
    """Behind the checkpoint any page of data or index may be zeros, and either file of any length."""
    random = np.random.default_rng(seed)
    folder = left(tmp_path, 200, 700)
    for path, unit in ((folder / "lines.raw", SIZE), (folder / "lines.idx", 32)):
        data = bytearray(path.read_bytes())
        for page in random.integers(200 * unit // 512 + 1, len(data) // 512, random.integers(0, 4)):
            data[page * 512 : (page + 1) * 512] = bytes(512)
        path.write_bytes(data[: random.integers(200 * unit, len(data), endpoint=True)])
    with open_line_writer(folder, "lines", SMALL) as writer:
        assert 200 <= writer.lines <= 700
        append(writer, 1)
    assert check_folder(folder, line=LINE).sequence == list(range(writer.lines))


def test_headers_half_replaced_are_cleared_away(tmp_path: Path) -> None:
    folder = recorded(tmp_path, 2)
    for name in (
        ".lines.hdr.0123456789ab.part",
        ".lines-0003.hdr.0123456789ab.part",
        ".lines-0003.verified.0123456789ab.part",
        ".restored.hdr.0123456789ab.part",
    ):
        (folder / name).touch()
    recorded(folder, 2)
    assert [path.name for path in folder.glob(".*")] == [".restored.hdr.0123456789ab.part"]


class Refusing:
    """Lets some calls of `os.pwrite` through, then takes some bytes only and refuses the next."""

    def __init__(self, calls: int, bytes_taken: int, error: OSError | None) -> None:
        self.calls, self.bytes_taken, self.error = calls, bytes_taken, error
        self.real = os.pwrite

    def __call__(self, descriptor: int, data: memoryview, position: int) -> int:
        self.calls -= 1
        if self.calls >= 0:
            return self.real(descriptor, data, position)
        if self.calls < -1 and self.error is not None:
            raise self.error
        return self.real(descriptor, data[: self.bytes_taken], position)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize("taken", [1, 17, 31])
def test_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, taken: int, block: bool
) -> None:
    writer = open_line_writer(tmp_path, "lines", SMALL)
    append(writer, 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", Refusing(calls, taken, OSError(5, "Input/output error")))
        with pytest.raises(MachineError, match="cannot be written: Input/output error; check the disk") as first:
            for _ in range(3):
                append_as_block(writer, 2) if block else append(writer, 1)
    kept = 4 + calls // 2 * (2 if block else 1)
    assert (writer.lines, writer.next_sequence, writer.appended) == (kept, kept, kept)
    assert first.value.file == str(tmp_path / ("lines.idx" if calls % 2 else "lines.raw"))
    with pytest.raises(MachineError) as again:
        append(writer, 1)
    assert str(again.value) == str(first.value)
    writer.checkpoint()
    assert check_folder(tmp_path, line=LINE).sequence == list(range(kept))
    writer.close()
    recorded(tmp_path, 1)
    assert check_folder(tmp_path, line=LINE).sequence == list(range(kept + 1))


@pytest.mark.parametrize("taken", range(4))
def test_of_lines_a_disk_keeps_as_many_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    def partly(descriptor: int, pieces: Sequence[memoryview], position: int) -> int:
        if position > SIZE * 4:
            raise OSError(28, "No space left on device")
        return os.pwrite(descriptor, pieces[0][:17], position)

    numbers = range(4, 8)
    with open_line_writer(tmp_path, "lines", SMALL) as writer, monkeypatch.context() as patch:
        append(writer, 4)
        patch.setattr(os, "pwritev", partly)
        patch.setattr(os, "pwrite", Refusing(1 + 2 * taken, 17, OSError(28, "No space left on device")))
        with pytest.raises(MachineError, match="No space left"):
            writer.append_lines([LINE(number) for number in numbers], *columns_of(numbers))
        assert (writer.lines, writer.next_sequence, writer.appended) == (4 + taken,) * 3
    assert check_folder(tmp_path, line=LINE).sequence == list(range(4 + taken))


def test_lines_from_anywhere_are_written_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, steps, real = range(1030), list[int](), os.pwritev

    def counted(descriptor: int, pieces: Sequence[memoryview], position: int) -> int:
        steps.append(len(pieces))
        return real(descriptor, pieces, position)

    monkeypatch.setattr(os, "pwritev", counted)
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        writer.append_lines([LINE(number) for number in numbers], *columns_of(numbers))
    assert steps == [1024, 6]
    assert check_folder(tmp_path, line=LINE).sequence == list(numbers)


def test_writes_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", Refusing(0, 7, None))
    recorded(tmp_path, 5)
    assert check_folder(tmp_path, line=LINE).sequence == list(range(5))


def test_the_header_waits_for_data_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert (tmp_path / "lines.hdr").exists() == (len(synced) > 2)
        real(descriptor)

    monkeypatch.setattr(line_segment, "_DATA_SYNC", counted)
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        append(writer, 2)
        writer.checkpoint()
        writer.checkpoint()
        assert synced == ["lines.raw", "lines.idx"]
        append(writer, 1)
    assert synced == ["lines.raw", "lines.idx"] * 2


def test_a_sync_that_failed_is_never_believed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_line_writer(tmp_path, "lines", SMALL)
    append(writer, 4)
    writer.checkpoint()
    append(writer, 3)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(line_segment, "_DATA_SYNC", fail)
        with pytest.raises(MachineError, match=r"lines\.raw: cannot be written: Input/output error"):
            writer.checkpoint()
    for call in (writer.checkpoint, writer.close):
        with pytest.raises(MachineError, match="Input/output error"):
            call()
    writer.close()
    assert check_folder(tmp_path, line=LINE, closed=False).promised == 4
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        assert writer.lines == 7


def test_lines_are_saved_unasked_before_they_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_file, "UNSAVED_BYTES", 10 * SIZE)
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        append(writer, 25)
        assert check_folder(tmp_path, line=LINE, closed=False).promised == 20


def test_verify_tells_gaps_and_torn_ends(tmp_path: Path) -> None:
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        for number in (3, 4, 8, 9, 2**40):
            writer.append(LINE(number), number, *known(number))
    report = verify(tmp_path, "lines")
    assert (report.lines, report.bad, report.gaps, report.missing) == (5, 0, 2, 3 + 2**40 - 10)
    assert (report.last, report.problems) == (2**40, ())
    grow(tmp_path / "lines.raw", b"x" * (SIZE // 2))
    assert verify(tmp_path, "lines").problems == ("lines: the header says 5 lines, data and index have 5.5 and 5",)
    with pytest.raises(CubeFileError, match="there are no lines of the name lines"):
        verify(tmp_path / "no", "lines")
    assert verify(recorded(tmp_path / "empty", 0), "lines") == Report()
    for missing, words in ((".idx", "cannot be read: No such file"), (".hdr", "the header is missing")):
        (tmp_path / f"lines{missing}").unlink()
        (problem,) = verify(tmp_path, "lines").problems
        assert f"lines{missing}: {words}" in problem


def ring_writer(folder: Path, limit: int = LIMIT, segment_bytes: int = SEGMENT) -> LineWriter:
    return open_line_writer(folder, "lines", SMALL, limit=limit, segment_bytes=segment_bytes)


@pytest.mark.parametrize("block", [1, 60])
def test_a_ring_keeps_within_its_limit(tmp_path: Path, block: int) -> None:
    with ring_writer(tmp_path) as writer:
        while writer.next_sequence < 1200:
            append_as_block(writer, block)
            if writer.next_sequence % 40 == 0:
                writer.checkpoint()
            assert bytes_of(tmp_path.iterdir()) <= LIMIT
    assert writer.deleted_lines + writer.lines == writer.appended == 1200
    found = check_folder(tmp_path, line=LINE)
    assert found.sequence == list(range(1200 - writer.lines, 1200))
    assert writer.deleted_segments > 20 and writer.bad_segments == 0
    assert found.segments * SEGMENT > LIMIT / 3
    segments = data_files(tmp_path, "lines")
    assert segments[-1].name == f"lines-{writer.deleted_segments + len(segments):04d}.raw"
    report = verify(tmp_path, "lines")
    assert (report.lines, report.gaps, report.problems) == (writer.lines, 0, ())
    last = segments[-1].with_suffix(".hdr")
    np.testing.assert_array_equal(by_gdal(last.with_suffix(".raw")), read_envi(last))


def test_a_ring_goes_on(tmp_path: Path) -> None:
    for turn in range(1, 8):
        with ring_writer(tmp_path) as writer:
            assert writer.resumed is None and writer.next_sequence == (turn - 1) * 50
            append(writer, 50)
        assert check_folder(tmp_path, line=LINE).sequence[-1] == turn * 50 - 1
    assert writer.lines < 350
    with ring_writer(tmp_path, LIMIT // 2, SEGMENT // 2) as writer:
        append(writer, 1)
    assert check_folder(tmp_path, line=LINE).bytes <= LIMIT // 2


class Gate:
    """Holds back the reading of closed segments until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        real = ring.problem_of

        def held(segment: ring.Segment, stop: Callable[[], bool]) -> str | None:
            while not (self.opened.wait(0.01) or stop()):
                pass
            return real(segment, stop)

        monkeypatch.setattr(ring, "problem_of", held)

    @contextmanager
    def opened_after(self, seconds: float) -> Iterator[None]:
        """So that a test fails that would wait for ever."""
        timer = threading.Timer(seconds, self.opened.set)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def test_nothing_unverified_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with ring_writer(tmp_path) as writer:
        worker = threading.Thread(target=append, args=(writer, 400))
        worker.start()
        worker.join(1)
        assert worker.is_alive() and writer.deleted_segments == 0
        assert 0 < writer.lines == writer.appended < 400
        assert data_files(tmp_path, "lines")[0].name == "lines-0001.raw"
        gate.opened.set()
        worker.join(30)
        assert not worker.is_alive() and writer.deleted_segments > 0 and writer.appended == 400
    assert check_folder(tmp_path, line=LINE).sequence[-1] == 399


def full_ring(folder: Path) -> list[Path]:
    """The data files of a ring without room for one more segment, all closed ones of it read back."""
    with ring_writer(folder) as writer:
        while writer.deleted_segments < 2:
            append(writer, 1)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("lines-*.verified"))) < len(writer.files) - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        append(writer, 1)
    return data_files(folder, "lines")


def test_a_rerun_does_not_read_back_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = full_ring(tmp_path)
    gate = Gate(monkeypatch)
    with ring_writer(tmp_path) as writer, gate.opened_after(30):
        append(writer, 60)
        assert writer.deleted_segments > 1 and not gate.opened.is_set()
    assert not segments[0].exists() and not segments[0].with_suffix(".verified").exists()
    found = check_folder(tmp_path, line=LINE)
    assert found.bytes <= LIMIT and found.sequence[-1] == writer.next_sequence - 1


@pytest.mark.parametrize("what", ["data", "index", "proof", "no proof"])
def test_a_proof_of_other_files_is_not_believed(tmp_path: Path, what: str) -> None:
    segments = full_ring(tmp_path)
    old = segments[0]
    proof = old.with_suffix(".verified")
    if what == "data":
        grow(old, b"x")
    elif what == "index":
        flip(old.with_suffix(".idx"), 3 * 32 + 25)
    else:
        flip(old, 7)
        flip(proof, 0) if what == "proof" else proof.unlink()
    with ring_writer(tmp_path) as writer:
        append(writer, 400)
        assert writer.bad_segments == 1 and writer.deleted_segments > 5
        assert writer.problems[0].startswith(f"{old.stem}: ")
    assert old.exists()


def test_waiting_is_told_and_may_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    calls: list[int] = []

    def waiting() -> None:
        calls.append(writer.lines)
        if len(calls) == 3:
            raise KeyboardInterrupt
        if len(calls) == 5:
            gate.opened.set()

    with ring_writer(tmp_path) as writer, gate.opened_after(30):
        writer.waiting = waiting
        with pytest.raises(KeyboardInterrupt):
            append(writer, 400)
        assert calls == [writer.appended] * 3 and writer.deleted_segments == 0
        append(writer, 100)
        assert len(calls) >= 5 and writer.deleted_segments > 0
    assert check_folder(tmp_path, line=LINE).sequence[-1] == calls[0] + 99


def test_proofs_of_segments_that_are_gone_are_cleared_away(tmp_path: Path) -> None:
    full_ring(tmp_path)
    for name in ("lines-0001.verified", "restored-0001.verified"):
        (tmp_path / name).write_text("1 1 00000000\n")
    ring_writer(tmp_path).close()
    assert not (tmp_path / "lines-0001.verified").exists() and (tmp_path / "restored-0001.verified").exists()


def test_a_damaged_segment_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with ring_writer(tmp_path) as writer:
        append(writer, 60)
        flip(tmp_path / "lines-0001.raw", 5 * SIZE + 1)
        gate.opened.set()
        append(writer, 400)
        assert writer.bad_segments == 1 and writer.deleted_segments > 5
        assert writer.problems == ("lines-0001: 1 damaged lines, the first is line 5",)
    assert data_files(tmp_path, "lines")[0].name == "lines-0001.raw"
    assert not (tmp_path / "lines-0002.raw").exists()
    with ring_writer(tmp_path) as writer:
        append(writer, 100)
        assert writer.bad_segments == 1 and (tmp_path / "lines-0001.raw").exists()
    assert verify(tmp_path, "lines").bad == 1


def test_a_ring_full_of_damage_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with ring_writer(tmp_path) as writer:
        append(writer, 60)
    limit = check_folder(tmp_path, line=LINE).bytes + 20_000
    segments = data_files(tmp_path, "lines")
    for path in segments[:-1]:
        flip(path, 3)
    gate.opened.set()
    with ring_writer(tmp_path, limit) as writer:
        with pytest.raises(MachineError, match=r"the ring is full: .* damaged segments are kept; move") as first:
            append(writer, 1000)
        assert writer.bad_segments == len(segments) - 1
        with pytest.raises(MachineError, match=str(first.value.problem)):
            append(writer, 1)
    assert set(segments) <= set(data_files(tmp_path, "lines"))
    assert verify(tmp_path, "lines").bad == len(segments) - 1


@pytest.mark.parametrize("removed", [(), (".idx",), (".idx", ".raw")])
def test_a_deletion_is_finished(tmp_path: Path, removed: tuple[str, ...]) -> None:
    with ring_writer(tmp_path) as writer:
        append(writer, 60)
    first = tmp_path / f"lines-{writer.deleted_segments + 1:04d}.hdr"
    lines = read_header(first).lines
    for suffix in removed:
        first.with_suffix(suffix).unlink()
    first.replace(first.with_suffix(".deleting"))
    with ring_writer(tmp_path) as writer:
        assert writer.resumed == f"{first.stem}: its deletion was finished"
        assert (writer.deleted_lines, writer.deleted_segments) == (lines, 1)
        assert not list(tmp_path.glob(f"{first.stem}.*"))
        append(writer, 5)
    assert check_folder(tmp_path, line=LINE).sequence[-1] == 64


def test_a_segment_that_lost_its_header_is_kept_and_told(tmp_path: Path) -> None:
    first = full_ring(tmp_path)[0]
    first.with_suffix(".hdr").unlink()
    data = first.read_bytes()
    with ring_writer(tmp_path) as writer:
        assert writer.resumed == f"{first.stem}: its header is missing; it is kept"
        append(writer, 200)
        # Its proof is of data and index, which are as they were; it is not deleted for that.
        assert writer.deleted_segments > 2 and writer.bad_segments == 1
        (problem,) = writer.problems
        assert f"{first.stem}.hdr: the header is missing" in problem
    assert first.read_bytes() == data and first.with_suffix(".idx").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in (".lock", ".verified")}


@pytest.mark.parametrize("newest_full", [False, True])
def test_a_limit_without_room_for_what_stays_is_refused_before_anything_is_deleted(
    tmp_path: Path, newest_full: bool
) -> None:
    with ring_writer(tmp_path, 100_000, 20_000) as writer:
        while len(writer.files) < 4:
            append(writer, 1)
        # More lines than a segment of the rerun has: it is full then, and the one before may go.
        append(writer, 40 if newest_full else 0)
    before = contents(tmp_path)
    with pytest.raises(
        InputError,
        match=r"limit: the limit does not hold the newest full segment .*; give at least \d+ bytes, or another",
    ) as caught:
        ring_writer(tmp_path, 33_000, 4000)
    assert contents(tmp_path) == before
    needed = int(caught.value.remedy.split()[3])
    with pytest.raises(InputError, match="give at least"):
        ring_writer(tmp_path, needed - 1, 4000)
    assert contents(tmp_path) == before
    with ring_writer(tmp_path, needed, 4000) as writer:
        append(writer, 300)
        assert writer.deleted_segments > 3
    assert check_folder(tmp_path, line=LINE).bytes <= needed


def test_nothing_is_deleted_where_that_would_not_do(tmp_path: Path) -> None:
    segments = full_ring(tmp_path)
    newest = ring.closed_segment(segments[-2].with_suffix(""))
    small = ring.Ring(newest.bytes + ring.VERIFIED_BYTES + 99)
    try:
        for path in segments[:-1]:
            small.add(ring.closed_segment(path.with_suffix("")))
        with pytest.raises(
            MachineError, match=f"the ring is full: {newest.stem.name} is the newest and never .* by 1 bytes"
        ):
            small.make_room(100, lambda: None)
        assert small.deleted_segments == 0 and all(path.exists() for path in segments)
        small.make_room(99, lambda: None)
        assert small.deleted_segments == len(segments) - 2
    finally:
        small.close()


@pytest.mark.parametrize("step", range(5))
def test_killed_while_deleting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    with ring_writer(tmp_path) as writer:
        append(writer, 60)
    child = os.fork()
    if child == 0:
        unlink, left = Path.unlink, [step]

        def counted(path: Path, missing_ok: bool = False) -> None:
            if left[0] == 0:
                os._exit(0)
            left[0] -= path.name.startswith("lines-0001")
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", counted)
        ring.remove_files(tmp_path / "lines-0001")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with ring_writer(tmp_path) as writer:
        append(writer, 500)
        assert writer.bad_segments == 0
    assert check_folder(tmp_path, line=LINE).sequence[-1] == 559


@pytest.mark.parametrize("removed", [(".hdr",), (".hdr", ".idx", ".raw")])
def test_the_newest_segment_may_be_unfinished(tmp_path: Path, removed: tuple[str, ...]) -> None:
    with ring_writer(tmp_path) as writer:
        append(writer, 60)
    newest = data_files(tmp_path, "lines")[-1]
    gone = read_header(newest).lines if len(removed) == 3 else 0
    for suffix in removed:
        newest.with_suffix(suffix).unlink()
    with ring_writer(tmp_path) as writer:
        assert writer.next_sequence == 60 - gone
        append(writer, 5)
    assert check_folder(tmp_path, line=LINE).sequence[-1] == 64 - gone


def test_an_empty_newest_segment_keeps_the_count(tmp_path: Path) -> None:
    with ring_writer(tmp_path) as writer:
        append(writer, 60)
    newest = data_files(tmp_path, "lines")[-1]
    following = newest.with_name(f"lines-{int(newest.stem[-4:]) + 1:04d}.raw")
    for suffix in (".raw", ".idx"):
        following.with_suffix(suffix).touch()
    with ring_writer(tmp_path) as writer:
        assert writer.next_sequence == 60
        append(writer, 1)
    assert check_folder(tmp_path, line=LINE).sequence[-1] == 60


def test_rings_and_files_are_not_mixed(tmp_path: Path) -> None:
    recorded(tmp_path / "file", 3)
    with pytest.raises(
        InputError, match=r"limit: lines\.raw is there, which is no ring of segments .*; leave the limit"
    ):
        ring_writer(tmp_path / "file")
    ring_writer(tmp_path / "ring").close()
    with pytest.raises(InputError, match="limit: a ring of segments is there; give its limit"):
        open_line_writer(tmp_path / "ring", "lines", SMALL)


def test_limits_that_are_too_small(tmp_path: Path) -> None:
    for limit, segment, words in (
        (10**6, 300, "segment_bytes: a segment does not hold one line .*; give at least"),
        (2 * SEGMENT, SEGMENT, "limit: the limit does not hold two segments of 8000 bytes"),
        (10**6, None, "limit: the limit does not hold two segments of 16777216 bytes"),
        (0, None, "does not hold two segments"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            open_line_writer(tmp_path, "lines", SMALL, limit=limit, segment_bytes=segment)
    assert isinstance(caught.value, InputError)
    recorded(tmp_path, 2)


def test_segments_grow_with_the_limit() -> None:
    for limit, size in ((1 << 30, 1 << 26), (1 << 26, 1 << 24), (1 << 40, 1 << 30)):
        assert ring.checked_segment_bytes(limit, None, 1000, 0, file=Path()) == size
