"""Which data file belongs to a header: any suffix, the size decides; and what is said where the size does not fit."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from calibration.cubes import Wanted, find_cubes, unit_cube
from runtime.errors import CubeFileError
from runtime.files import read_cube, write_cube
from runtime.files.envi import growing_pair_of, pair_of, read_header
from runtime.lines import Broken, Quiet
from runtime.sources import SourceOptions, open_source
from tests.contracts.source import drained
from tests.runtime.files_data import edited, sample, write_pair

SHORT = SourceOptions(idle_seconds=0.4)
CUBE = sample("u2")


def pair(folder: Path, *names: str) -> Path:
    """`cube.hdr` and its data under other names."""
    folder.mkdir(exist_ok=True)
    header = write_pair(folder, CUBE, 12)
    data = (folder / "cube.img").read_bytes()
    (folder / "cube.img").unlink()
    for name in names:
        (folder / name).write_bytes(data)
    return header


@pytest.mark.parametrize(
    "name",
    [
        "cube",
        "cube.rfl",
        "cube.hyspex",
        "cube.fla",
        "cube.cube",
        "cube.RAD",
        "cube.Img",
        "cube.pix",
        "cube.l1b",
        "cube.1",
    ],
)
def test_the_data_file_may_have_any_suffix(tmp_path: Path, name: str) -> None:
    header = pair(tmp_path / "in", name)
    for side in ("cube.hdr.txt", "cube.aux.xml", f"{name}.aux.xml", "cube.enp", "cube.sta", "cube.txt", "cube.png"):
        (header.parent / side).write_bytes(b"x" * 40)
    assert pair_of(header) == growing_pair_of(header) == (header, header.with_name(name))
    read = read_cube(header)
    np.testing.assert_array_equal(read.cube, CUBE)
    assert not read.doubts
    header.rename(header.with_name("cube.HDR"))
    np.testing.assert_array_equal(read_cube(header.with_name("cube.HDR")).cube, CUBE)
    np.testing.assert_array_equal(read_cube(header.with_name(name)).cube, CUBE)
    with open_source(f"watch:{header.parent}", SHORT) as source:
        np.testing.assert_array_equal(np.stack(drained(source)[1], axis=1), CUBE)
    with open_source(f"envi-live:{header.with_name('cube.HDR')}", SHORT) as source:
        np.testing.assert_array_equal(np.stack(drained(source)[1], axis=1), CUBE)


def test_a_header_named_after_its_data_file(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.rfl").rename(tmp_path / "cube.rfl.hdr")
    (tmp_path / "cube.rfl.times").write_bytes(b"x" * 40)
    (tmp_path / "cube.img").write_bytes(bytes(120))
    assert pair_of(header)[1].name == growing_pair_of(header)[1].name == "cube.rfl"


def test_several_that_fit_are_refused_by_name(tmp_path: Path) -> None:
    for index, names in enumerate((["cube.fla", "cube.rfl"], ["cube.img", "cube.rfl"], ["cube", "cube.img"])):
        header = pair(tmp_path / str(index), *names)
        with pytest.raises(CubeFileError, match=f"several files could be its data file: {' and '.join(names)}; give"):
            read_cube(header)
        for name in names:
            np.testing.assert_array_equal(read_cube(header.with_name(name)).cube, CUBE)


def test_of_several_that_fit_the_one_without_a_header_of_its_own_is_it(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.img", "cube.rfl")
    (tmp_path / "cube.rfl.hdr").write_text(header.read_text())
    assert pair_of(header)[1].name == "cube.img"
    assert pair_of(tmp_path / "cube.rfl.hdr")[1].name == "cube.rfl"


def test_the_one_of_the_right_size_is_read_and_told(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.rfl")
    (tmp_path / "cube.nav").write_bytes(b"1" * 119)
    assert not read_header(header).doubts
    (tmp_path / "cube.img").write_bytes(b"1" * 119)
    read = read_cube(header)
    np.testing.assert_array_equal(read.cube, CUBE)
    assert read.doubts == ("cube.rfl is read, not cube.img: it alone has the size that the header says",)


def test_copies_links_and_folders_are_no_second_file(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.rfl")
    for name in ("cube.bak", "cube.rfl~", "cube.part", ".cube.rfl"):
        (tmp_path / name).write_bytes((tmp_path / "cube.rfl").read_bytes())
    (tmp_path / "cube.link").symlink_to("cube.rfl")
    (tmp_path / "cube.nowhere").symlink_to("cube.nothing")
    (tmp_path / "cube.fla").mkdir()
    np.testing.assert_array_equal(read_cube(header).cube, CUBE)


def test_none_that_fits_is_told_by_its_size_or_all_are_named(tmp_path: Path) -> None:
    header = pair(tmp_path)
    with pytest.raises(CubeFileError, match=r"its data file is missing; put one of these beside it: cube, cube\.img"):
        read_cube(header)
    (tmp_path / "cube.rfl").write_bytes(bytes(119))
    with pytest.raises(CubeFileError, match=r"cube\.rfl, lines: the data file has 119 bytes, its header asks for 120"):
        read_cube(header)
    (tmp_path / "cube.fla").write_bytes(bytes(118))
    with pytest.raises(CubeFileError, match=r"several files could be its data file: cube\.fla and cube\.rfl"):
        read_cube(header)
    (tmp_path / "cube.img").write_bytes(bytes(117))
    with pytest.raises(CubeFileError, match=r"cube\.img, lines: the data file has 117 bytes"):
        read_cube(header)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may list everything")
def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    header = pair(tmp_path / "in", "cube.RAW")
    (tmp_path / "in").chmod(0o300)
    np.testing.assert_array_equal(read_cube(header).cube, CUBE)


# --- writing ---


def test_what_is_written_is_not_made_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "out.rfl").write_bytes(bytes(CUBE.nbytes))
    with pytest.raises(CubeFileError, match=r"out\.rfl beside it would make the pair ambiguous"):
        write_cube(tmp_path / "out.hdr", CUBE)
    assert [file.name for file in tmp_path.iterdir()] == ["out.rfl"]
    (tmp_path / "out.rfl").write_bytes(bytes(CUBE.nbytes - 1))
    for name in ("out.txt", "out.npy", "out.bak"):
        (tmp_path / name).write_bytes(bytes(CUBE.nbytes))
    for _ in range(2):
        write_cube(tmp_path / "out.hdr", CUBE)
        assert not read_cube(tmp_path / "out.hdr").doubts
    (tmp_path / "out.RAW").write_bytes(b"x")
    with pytest.raises(CubeFileError, match=r"out\.RAW beside it would make the pair ambiguous"):
        write_cube(tmp_path / "out.hdr", CUBE)


# --- bytes before or behind the image ---


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("offset", [0, 7])
@pytest.mark.parametrize("extra", [1, 9, 30, 617])
def test_bytes_too_many_are_refused_with_both_ways_to_take_them(
    tmp_path: Path, interleave: str, offset: int, extra: int
) -> None:
    header = write_pair(tmp_path, CUBE, 12, interleave, header_offset=offset)
    data = tmp_path / "cube.img"
    image = data.read_bytes()
    data.write_bytes(image + b"\1" * extra)
    with pytest.raises(
        CubeFileError, match=rf"{extra} bytes lie before the image, set.*behind it, keep a copy and cut"
    ) as refused:
        read_cube(header)
    subprocess.run(refused.value.remedy.rpartition(": ")[2], shell=True, check=True, cwd=tmp_path)
    np.testing.assert_array_equal(read_cube(header).cube, CUBE)
    assert (tmp_path / "cube.img.bak").read_bytes() == image + b"\1" * extra, "what is cut off is kept"
    data.write_bytes(b"\1" * extra + image)
    with pytest.raises(CubeFileError) as refused:
        read_cube(header)
    edited(header, refused.value.remedy.split("'")[1], drop=("header offset",))
    np.testing.assert_array_equal(read_cube(header).cube, CUBE)


def test_names_in_the_remedy_are_quoted(tmp_path: Path) -> None:
    header = write_pair(tmp_path, CUBE, 12)
    data = (tmp_path / "cube.img").rename(tmp_path / "$(x) 'y'.img")
    header.rename(data.with_suffix(".hdr"))
    with data.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CubeFileError) as refused:
        read_cube(data)
    words = shlex.split(refused.value.remedy.rpartition(": ")[2])
    assert words == ["cp", str(data), f"{data}.bak", "&&", "truncate", "-s", "120", str(data)]


# --- folders and growing files ---


def test_a_folder_of_cubes_finds_them(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.rfl")
    assert find_cubes(tmp_path) == {"cube": header}
    found = unit_cube(header, Wanted(3, scale=70000.0))
    np.testing.assert_allclose(found.cube, CUBE / 70000, rtol=1e-6)


def test_a_pair_of_any_suffix_is_complete_when_its_size_fits(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.rfl")
    content = (tmp_path / "cube.rfl").read_bytes()
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=1.5)) as source:
        drained(source, 4)
        (tmp_path / "next.hdr").write_text(header.read_text())
        for end in (30, 77, 120):
            (tmp_path / "next.fla").write_bytes(content[:end])
            time.sleep(0.3)
        events, lines = drained(source)
    np.testing.assert_array_equal(np.stack(lines, axis=1), CUBE)
    assert [event.why for event in events if isinstance(event, Broken)] == ["next file: next.fla"]


def test_a_pair_is_read_once_whatever_happens_beside_it(tmp_path: Path) -> None:
    pair(tmp_path, "cube.rfl")
    (tmp_path / "cube.nav").write_bytes(b"x")
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=0.8)) as source:
        drained(source, 4)
        (tmp_path / "cube.nav").write_bytes(b"xyz")
        (tmp_path / "cube.hdr").write_text((tmp_path / "cube.hdr").read_text())
        events, _ = drained(source)
    assert len(events) == 1, "nothing to tell, but that it has ended"


def test_a_second_data_file_that_fits_is_skipped_by_name(tmp_path: Path) -> None:
    pair(tmp_path, "cube.rfl")
    with open_source(f"watch:{tmp_path}", SourceOptions(idle_seconds=0.8)) as source:
        drained(source, 4)
        (tmp_path / "cube.img").write_bytes(bytes(120))
        events, lines = drained(source)
    assert not lines
    assert "several files could be its data file: cube.img and cube.rfl" in getattr(events[0], "why", "")


def test_a_growing_file_of_any_suffix_is_followed(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.hyspex")
    content = (tmp_path / "cube.hyspex").read_bytes()
    (tmp_path / "cube.log").write_bytes(bytes(120))
    (tmp_path / "cube.hyspex").write_bytes(content[:70])
    with open_source(f"envi-live:{header}", SHORT) as source:
        lines = drained(source, 2)[1]
        assert source.read(np.empty((3, 5), "u2"), 0) == Quiet()
        (tmp_path / "cube.hyspex").write_bytes(content)
        lines += drained(source)[1]
    np.testing.assert_array_equal(np.stack(lines, axis=1), CUBE)


def test_a_growing_file_is_not_chosen_by_its_size(tmp_path: Path) -> None:
    header = pair(tmp_path, "cube.rfl")
    (tmp_path / "cube.raw").write_bytes(b"\2" * 30)
    assert growing_pair_of(header)[1].name == "cube.raw"
    assert growing_pair_of(tmp_path / "cube.rfl")[1].name == "cube.rfl"
    (tmp_path / "cube.raw").rename(tmp_path / "cube.fla")
    with pytest.raises(CubeFileError, match=r"nothing to read.*several files.*: cube\.fla and cube\.rfl"):
        open_source(f"envi-live:{header}", SourceOptions(idle_seconds=0.1))
