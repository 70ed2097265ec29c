"""Writing cubes: what comes back, what the header carries along, and that nothing is ever half there."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.durable import part_of, replacing, write_bytes
from runtime.errors import CubeFileError
from runtime.files import CubeFile, read_cube, write_cube
from runtime.files.envi import pair_of, read_envi, read_header, write_envi
from runtime.files.envi_text import Interleave, listed
from tests.contracts.killing import killed
from tests.runtime.files_data import CODES, DATA, REAL_HEADERS, edited, sample, skip_without_data, write_pair
from tests.runtime.test_files_envi import by_gdal, by_spectral


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("code", CODES)
def test_every_layout_comes_back(tmp_path: Path, code: int, interleave: Interleave) -> None:
    cube = sample(CODES[code])
    header, data = write_envi(tmp_path / "out.img", cube, interleave=interleave)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.hdr", "out.img"]
    read = read_header(header)
    assert (read.interleave, read.dtype) == (interleave, np.dtype(CODES[code]).newbyteorder("<"))
    np.testing.assert_array_equal(read_envi(read), cube)
    np.testing.assert_array_equal(by_spectral(header, data, cube.dtype), cube)
    np.testing.assert_array_equal(by_gdal(data), cube)


def test_views_and_foreign_byte_order_and_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.files.rows.PIECE", 64)
    cube = sample("i2", (4, 9, 8)).astype(">i2")[::2, ::-1, 1::3]
    for name in ("a.bil", "b.bip", "c.bsq", "d.npy"):
        write_cube(tmp_path / name, cube)
        np.testing.assert_array_equal(read_cube(tmp_path / name).cube, cube)


@pytest.mark.data
@skip_without_data
@pytest.mark.parametrize("name", REAL_HEADERS)
def test_real_files_copied_keep_what_they_say(tmp_path: Path, name: str) -> None:
    source = read_cube(DATA / name)
    write_cube(tmp_path / "copy.hdr", source.cube, like=source)
    copy = read_cube(tmp_path / "copy.img")
    np.testing.assert_array_equal(copy.cube, source.cube)
    assert (copy.wavelengths, copy.scale, copy.ignore_value) == (source.wavelengths, source.scale, source.ignore_value)
    assert copy.fields["interleave"].lower() == source.fields["interleave"].lower()
    layout = {"file type", "byte order", "header offset", "interleave"}
    for key, text in source.fields.items():
        if key.lower() not in layout:
            assert copy.fields[key].split() == text.split(), key


GEOREFERENCED = {
    "map_info": "{UTM, 1, 1, 716737.4, 4322229.1, 14.9, 14.9, 10, North,WGS-84, rotation=71}",
    "coordinate_system_string": '{PROJCS["WGS_1984_UTM_Zone_10N",UNIT["Meter",1.0]]}',
    "x_start": "10",
    "sensor_type": "FX10",
    "acquisition_time": "2020-01-01T00:00:00Z",
    "description": "{of a\n field}",
    "band_names": "{one, two, three}",
    "wavelength_units": "Micrometers",
    "wavelength": "{0.4, 0.5, 0.6}",
    "default_bands": "{3, 2, 1}",
    "data_ignore_value": "-1",
    "reflectance_scale_factor": "10000",
    "vendor_list": "{7, 8, 9}",
}


@pytest.fixture
def source(tmp_path: Path) -> CubeFile:
    folder = tmp_path / "in"
    folder.mkdir()
    header = edited(write_pair(folder, sample("i2"), 2, "bip", 1, **GEOREFERENCED), "Odd Key = 5")
    return read_cube(header)


def test_fields_are_carried_along(tmp_path: Path, source: CubeFile) -> None:
    assert source.wavelengths == pytest.approx((400, 500, 600))
    assert (source.scale, source.ignore_value) == (10000, -1)
    write_cube(tmp_path / "out.hdr", source.cube.astype("f4"), like=source, fields={"history": "restored"})
    copy = read_header(tmp_path / "out.img")
    assert (copy.interleave, copy.dtype) == ("bip", np.dtype("<f4"))
    for key in GEOREFERENCED:
        assert copy.fields[key.replace("_", " ")] == source.fields[key.replace("_", " ")]
    assert "Odd Key" in list(copy.fields)
    assert copy.fields["history"] == "restored"


def test_fields_that_are_no_longer_true_are_left_out(tmp_path: Path, source: CubeFile) -> None:
    write_cube(tmp_path / "bands.bsq", source.cube[:2], like=source)
    fields = read_header(tmp_path / "bands.hdr").fields
    for key in ("wavelength", "band names", "default bands", "vendor list"):
        assert key not in fields
    assert "map info" in fields
    write_cube(tmp_path / "lines.bsq", source.cube[:, 1:], like=source)
    fields = read_header(tmp_path / "lines.hdr").fields
    for key in ("map info", "x start", "coordinate system string"):
        assert key not in fields
    assert "wavelength" in fields


def test_fields_replaced_and_dropped(tmp_path: Path, source: CubeFile) -> None:
    fields = {"Reflectance Scale Factor": None, "DATA IGNORE VALUE": "nan", "wavelength": listed((0.1, 1 / 3, 2e-9))}
    write_cube(tmp_path / "out.bil", source.cube.astype("f4"), like=source, fields=fields)
    copy = read_cube(tmp_path / "out.bil")
    assert copy.scale is None
    assert copy.ignore_value is not None
    assert np.isnan(copy.ignore_value)
    assert read_header(tmp_path / "out.bil").wavelengths == (0.1, 1 / 3, 2e-9)


def test_what_another_format_said_reaches_the_header(tmp_path: Path) -> None:
    cube = sample("u2")
    np.savez(tmp_path / "in.npz", cube=cube.transpose(1, 2, 0), wavelength_nm=[400.5, 500.25, 600.125])
    write_cube(tmp_path / "out.img", cube, like=read_cube(tmp_path / "in.npz"))
    assert read_cube(tmp_path / "out.img").wavelengths == (400.5, 500.25, 600.125)


@pytest.mark.parametrize(
    "text",
    [
        "x\nsamples = 99",
        "x}\nsamples = 99\n{",
        "{x}\nsamples = 99",
        "{x\n}\nsamples = 99\nz = {1}",
        "{x\n; }\n}",
        "{x {y} z}",
        "x\r\nbands = 9\rlines = 9",
        "\u2028x\x0bsamples = 99\x85",
        "a\0b",
        "{",
        "}",
        "{}",
        "",
    ],
)
@pytest.mark.parametrize("key", ["note", "description"])
def test_no_value_breaks_out_of_its_field(tmp_path: Path, key: str, text: str) -> None:
    cube = sample("u1")
    header, data = write_envi(tmp_path / "out.img", cube, fields={key: text, "after": "here"})
    read = read_header(header)
    assert (read.bands, read.lines, read.samples) == cube.shape
    assert set(read.fields) >= {key, "after"}
    np.testing.assert_array_equal(by_spectral(header, data, cube.dtype), cube)
    np.testing.assert_array_equal(by_gdal(data), cube)


@pytest.mark.parametrize("key", ["", "a = b", "a\nb{", "; a", "{", "a\x1bb"])
def test_no_key_breaks_out(tmp_path: Path, key: str) -> None:
    with pytest.raises(CubeFileError, match="is not a name for a header field"):
        write_envi(tmp_path / "out.img", sample("u1"), fields={key: "1"})
    assert not list(tmp_path.iterdir())


def test_the_input_is_never_overwritten(tmp_path: Path, source: CubeFile) -> None:
    before = {path: path.read_bytes() for path in source.path.parent.iterdir()}
    (tmp_path / "other.img").symlink_to(source.path.parent / "cube.img")
    for name in ("in/cube.hdr", "in/cube.img", "in/../in/cube.img", "other.img"):
        with pytest.raises(CubeFileError, match="would overwrite the input file"):
            write_cube(tmp_path / name, source.cube, like=source)
    with pytest.raises(CubeFileError, match=r"cube\.img beside it would make the pair ambiguous"):
        write_cube(source.path.parent / "cube.bsq", source.cube, like=source)
    assert {path: path.read_bytes() for path in source.path.parent.iterdir()} == before
    np.save(tmp_path / "in.npy", source.cube)
    with pytest.raises(CubeFileError, match="would overwrite the input file"):
        write_cube(tmp_path / "in.npy", source.cube, like=read_cube(tmp_path / "in.npy"))


@pytest.mark.parametrize("cube", [sample("u1").astype("f2"), sample("u1") > 3, sample("i2")[0], sample("f4") * 1j])
def test_cubes_that_envi_does_not_hold(tmp_path: Path, cube: NDArray[Any]) -> None:
    with pytest.raises(CubeFileError, match="ENVI files hold 3-D cubes of uint8, int16"):
        write_cube(tmp_path / "out.img", cube)
    assert not list(tmp_path.iterdir())


def test_suffixes_and_layouts_that_are_not_known(tmp_path: Path) -> None:
    for name in ("out.gif", "out", "out.npz"):
        with pytest.raises(CubeFileError, match=r"use one of these suffixes: \.npy \.hdr \.img"):
            write_cube(tmp_path / name, sample("u1"))
    with pytest.raises(CubeFileError, match="use one of lines,samples,bands lines,bands,samples"):
        write_cube(tmp_path / "out.npy", sample("u1"), layout="bands,lines")


class Failing:
    """Lets `count` calls of a function of `os` through, then fails each one, or the next one only."""

    def __init__(self, function: Callable[..., Any], count: int, error: BaseException, *, once: bool) -> None:
        self.function, self.left, self.error, self.once = function, count, error, once

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == -1 or (self.left < -1 and not self.once):
            raise self.error
        return self.function(*arguments, **options)


FAILURES = [("fsync", 0), ("fsync", 1), ("fsync", 2), ("replace", 0), ("open", 0), ("open", 1)]
TOO_LATE = [("fsync", 3), ("fsync", 4), ("replace", 1), ("replace", 2)]
"""Failures of a pair that is ready: it comes into its place as soon as the system lets it."""


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(("name", "count"), FAILURES)
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int, once: bool
) -> None:
    with monkeypatch.context() as patch:
        failing = Failing(getattr(os, name), count, OSError(errno.ENOSPC, "No space left on device"), once=once)
        patch.setattr(os, name, failing)
        try:
            write_envi(tmp_path / "out.img", sample("u2"))
        except CubeFileError as error:
            assert "cannot be written: No space left on device" in str(error)
        else:
            assert failing.left >= 0
            return
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "count"), FAILURES)
def test_an_interrupted_replacement_leaves_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    old = sample("u1")
    write_envi(tmp_path / "out.img", old)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, Failing(getattr(os, name), count, OSError(errno.EIO, "Input/output error"), once=True))
        with pytest.raises(CubeFileError, match="Input/output error"):
            write_envi(tmp_path / "out.img", sample("f8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.hdr", "out.img"]
    np.testing.assert_array_equal(read_envi(tmp_path / "out.img"), old)
    write_envi(tmp_path / "out.img", sample("f8"))
    np.testing.assert_array_equal(read_envi(tmp_path / "out.img"), sample("f8"))


def test_a_keyboard_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, 1, KeyboardInterrupt(), once=True))
    with pytest.raises(KeyboardInterrupt):
        write_envi(tmp_path / "out.img", sample("u2"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "count"), TOO_LATE)
@pytest.mark.parametrize("once", [True, False])
def test_a_pair_that_was_ready_is_whole_at_the_next_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int, once: bool
) -> None:
    write_envi(tmp_path / "out.img", sample("u1"))
    with monkeypatch.context() as patch:
        patch.setattr(os, name, Failing(getattr(os, name), count, OSError(errno.EIO, "broken"), once=once))
        with pytest.raises(CubeFileError, match="broken"):
            write_envi(tmp_path / "out.img", sample("f8"))
    np.testing.assert_array_equal(read_envi(tmp_path / "out.hdr"), sample("f8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.hdr", "out.img"]


def test_a_pair_is_whole_wherever_its_writer_was_killed(tmp_path: Path) -> None:
    old, new = sample("u2", seed=1), sample("u2", (4, 5, 6), seed=2)
    brought = 0
    for kill_at in range(100):
        for first in (old, None):
            folder = tmp_path / f"{kill_at}-{first is None}"
            folder.mkdir()
            if first is not None:
                write_envi(folder / "out.img", first)
            code = killed(kill_at, partial(write_envi, folder / "out.img", new, interleave="bsq"))
            missing = not (folder / "out.hdr").exists()
            try:
                read = read_envi(folder / ("out.hdr", "out.img")[kill_at % 2])
            except CubeFileError:
                assert first is None
                assert not (folder / "out.hdr").exists()
                assert not (folder / "out.img").exists()
            else:
                assert any(np.array_equal(read, cube) for cube in (first, new) if cube is not None)
                brought += missing
            write_envi(folder / "out.img", old)
            np.testing.assert_array_equal(read_envi(folder / "out.hdr"), old)
            assert sorted(path.name for path in folder.iterdir()) == ["out.hdr", "out.img"]
        if code == 0:
            break
    assert code == 0
    assert brought > 3


def test_what_a_living_writer_writes_is_left_alone(tmp_path: Path) -> None:
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with replacing(tmp_path / "a.bin") as part:
            part.write_bytes(b"first")
            os.write(ready[1], b".")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    (tmp_path / ".a.bin.0123456789ab.part").write_bytes(b"of a dead writer")
    (tmp_path / ".b.bin.0123456789ab.part").write_bytes(b"of another name")
    write_bytes(tmp_path / "a.bin", b"second")
    assert len(list(tmp_path.glob(".a.bin.*.part"))) == 1
    assert (tmp_path / "a.bin").read_bytes() == b"second"
    os.write(go[1], b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.bin.0123456789ab.part", "a.bin"]


def test_a_folder_that_a_dead_writer_filled_is_removed(tmp_path: Path) -> None:
    def fill() -> None:
        with part_of(tmp_path / "a", folder=True) as part:
            (part / "inside").mkdir()
            (part / "inside" / "file").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed(100, fill) == -signal.SIGKILL
    assert [path.name[:3] for path in tmp_path.iterdir()] == [".a."]
    with part_of(tmp_path / "a", folder=True) as part:
        assert list(tmp_path.iterdir()) == [part]
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_pair_leave_one_of_theirs(tmp_path: Path) -> None:
    cubes = [sample("u2", seed=seed) for seed in range(3)]
    children = []
    for cube in cubes:
        child = os.fork()
        if child == 0:
            for _ in range(30):
                write_envi(tmp_path / "out.img", cube, fields={"sum": str(int(cube.sum()))})
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    header = read_header(tmp_path / "out.hdr")
    assert header.fields["sum"] == str(int(read_envi(header).sum()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.hdr", "out.img"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_what_a_stranger_made_ready_is_not_taken(tmp_path: Path) -> None:
    write_envi(tmp_path / "out.img", sample("u1"))
    for name in (".out.hdr.0123456789ab.ready", ".out.img.0123456789ab.part"):
        (tmp_path / name).write_bytes(b"ENVI")
        os.chown(tmp_path / name, 1, 1)
    np.testing.assert_array_equal(read_envi(tmp_path / "out.hdr"), sample("u1"))


def test_npy_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sample("u1")
    write_cube(tmp_path / "out.npy", old)
    for name, count in (("fsync", 0), ("replace", 0), ("open", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, Failing(getattr(os, name), count, OSError(errno.EIO, "broken"), once=False))
            with pytest.raises(CubeFileError, match="broken"):
                write_cube(tmp_path / "out.npy", sample("f4"))
        assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]
        np.testing.assert_array_equal(read_cube(tmp_path / "out.npy").cube, old)


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CubeFileError, match="cannot be written: No such file or directory"):
        write_cube(tmp_path / "nowhere" / "out.img", sample("u1"))
    (tmp_path / "out.img").mkdir()
    with pytest.raises(CubeFileError, match="a folder of that name is in the way"):
        write_cube(tmp_path / "out.img", sample("u1"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.img"]
    assert pair_of(write_envi(tmp_path / "plain", sample("u1"))[0])[1].name == "plain"


def test_no_space_left(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import signal

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_cube(tmp_path / "out.img", np.zeros((10, 100, 100), "u2"))
        except CubeFileError as error:
            os._exit(0 if "File too large" in str(error) and not list(tmp_path.iterdir()) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
