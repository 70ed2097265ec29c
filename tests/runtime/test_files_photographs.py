"""Photographs: what other programs write is read as they read it, and they read what is written."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import rasterio
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from runtime.errors import CubeFileError, DeployError, MachineError
from runtime.files import CubeFile, check_written, disk, left_behind, read_cube, write_cube, written_type
from runtime.files.photographs import stored
from runtime.files.tags import EXIF, GPS, INTEROPERABILITY, KEPT, ORIENTATION, Entry, Tags, header, packed
from runtime.meaning import Asked, Known, meaning_of
from runtime.stated import Stated

LINES, SAMPLES = 37, 23
GDAL = "gdal_translate -of ENVI"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WRITTEN = (".png", ".tif")


def picture(bands: int = 3, dtype: Any = np.uint8, lines: int = LINES, samples: int = SAMPLES) -> NDArray[Any]:
    """[lines, samples, bands]: smooth, so that JPEG keeps most of it, with noise."""
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    y, x = np.mgrid[:lines, :samples] / max(lines, samples)
    smooth = np.stack([0.3 + 0.4 * x, 0.5 - 0.3 * y, 0.2 + 0.3 * x * y, 0.1 + 0.8 * y][:bands], axis=2)
    return np.asarray((smooth + rng.normal(0, 0.02, smooth.shape)).clip(0, 1) * top).astype(dtype)


def exif_of(orientation: int = 1, order: str = "<") -> bytes:
    """EXIF as cameras write it: GPS, a maker's note, and directories below directories."""

    def text(value: str) -> Entry:
        return Entry(2, len(value) + 1, value.encode() + b"\0")

    rational = struct.pack(f"{order}6I", 47, 1, 22, 1, 30, 1)
    below = {33434: Entry(5, 1, struct.pack(f"{order}2I", 1, 125)), 37500: Entry(7, 40, b"maker" * 8)}
    tree = {
        271: text("Maker of cameras"),
        306: text("2026:01:02 03:04:05"),
        ORIENTATION: Entry(3, 1, struct.pack(f"{order}H", orientation)),
        EXIF: {**below, INTEROPERABILITY: {1: text("R98")}},
        GPS: {1: text("N"), 2: Entry(5, 3, rational)},
    }
    return header(order, 8) + packed(order, tree, 8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def shown(path: Path) -> NDArray[Any]:
    """The picture as a viewer shows it. (Pillow confuses lines and samples of TIFF files that lie on their side.)"""
    if path.suffix != ".tif":
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image))
    with tifffile.TiffFile(path) as file:
        image = Image.fromarray(file.pages[0].asarray())
        image.getexif()[ORIENTATION] = file.pages[0].tags[ORIENTATION].value
        return np.asarray(ImageOps.exif_transpose(image))


def cube_of(array: NDArray[Any]) -> NDArray[Any]:
    """[3, lines, samples] of what another library reads."""
    colours = array[..., None] if array.ndim == 2 else array
    colours = colours[..., : 1 if colours.shape[2] < 3 else 3]
    return np.broadcast_to(np.moveaxis(colours, 2, 0), (3, *colours.shape[:2]))


def tags_of(blob: bytes) -> dict[Any, Any]:
    """Everything that Pillow finds in EXIF."""
    exif = Image.Exif()
    exif.load(blob)
    return told(exif)


def told(exif: Image.Exif) -> dict[Any, Any]:
    kept = {tag: value for tag, value in exif.items() if tag in KEPT - {EXIF, GPS}}
    below = dict(exif.get_ifd(EXIF))
    below.pop(INTEROPERABILITY, None)
    return {
        **kept,
        "exif": below,
        "gps": dict(exif.get_ifd(GPS)),
        "interoperability": dict(exif.get_ifd(INTEROPERABILITY)),
    }


def written(source: CubeFile, path: Path) -> Path:
    check_written(path, source.cube.shape, source.cube.dtype, source)
    return write_cube(path, source.cube, like=source)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_values_are_those_that_pillow_reads(tmp_path: Path, mode: str, suffix: str) -> None:
    if suffix == ".jpg" and mode not in ("RGB", "L"):
        return
    deep = mode == "I;16"
    image = Image.fromarray(picture(1, np.uint16)[..., 0]) if deep else Image.fromarray(picture(4)).convert(mode)
    path = saved(tmp_path / f"a{suffix}", image, **({"quality": 95, "progressive": True} if suffix == ".jpg" else {}))
    read = read_cube(path)
    with Image.open(path) as opened:
        mixed = "RGBA" if opened.has_transparency_data else "RGB"
        expected = np.asarray(opened.convert(mixed) if mode == "P" else opened)
    np.testing.assert_array_equal(read.cube, cube_of(expected))
    photograph = read.photograph
    assert photograph and photograph.grey == (mode in ("L", "LA", "I;16")) and read.format == "photograph"
    assert read.cube.flags.c_contiguous and read.cube.dtype == (np.uint16 if deep else np.uint8)
    assert read.scale == (65535 if deep else 255) and not read.doubts
    if expected.ndim == 3 and expected.shape[2] in (2, 4):
        np.testing.assert_array_equal(photograph.alpha, expected[..., -1])
    for other in WRITTEN:
        np.testing.assert_array_equal(np.asarray(Image.open(written(read, tmp_path / f"o{other}"))), expected)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", WRITTEN)
def test_depth_and_transparency_come_back(tmp_path: Path, bands: int, dtype: Any, suffix: str) -> None:
    array = picture(bands, dtype)
    image = pyvips.Image.new_from_array(array)
    image = image.copy(
        interpretation={1: "rgb16", 2: "grey16"}[1 + (bands < 3)]
        if dtype == np.uint16
        else "srgb"
        if bands > 2
        else "b-w"
    )
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        image.pngsave(str(path), interlace=True)
    else:
        image.tiffsave(str(path), compression="lzw", tile=True, tile_width=16, tile_height=16, bigtiff=True)
    read = read_cube(path)
    np.testing.assert_array_equal(read.cube, cube_of(array))
    made = written(read, tmp_path / f"o{suffix}")
    back = read_cube(made)
    np.testing.assert_array_equal(back.cube, read.cube)
    assert back.photograph and (back.photograph.alpha is None) == (bands in (1, 3))
    if bands in (2, 4):
        np.testing.assert_array_equal(back.photograph.alpha, array[..., -1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(made) as file:
            np.testing.assert_array_equal(np.moveaxis(file.read(), 0, 2), array)
    if suffix == ".tif":
        np.testing.assert_array_equal(tifffile.imread(made), array if bands > 1 else array[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_are_upright_and_turn_out_as_they_were(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    image, exif = Image.fromarray(picture(3 if suffix == ".jpg" else 4)), exif_of(orientation, ">")
    if suffix == ".tif":
        saved(path, image, tiffinfo={ORIENTATION: orientation})
    else:
        saved(path, image, exif=b"Exif\0\0" + exif)
    read = read_cube(path)
    np.testing.assert_array_equal(read.cube, cube_of(shown(path)))
    assert read.photograph and read.photograph.orientation == orientation
    for other in WRITTEN:
        made = written(read, tmp_path / f"o{other}")
        np.testing.assert_array_equal(shown(made), shown(path))
        back = read_cube(made)
        assert back.photograph and back.photograph.orientation == orientation
        assert stored(back.cube, orientation).shape == (3, LINES, SAMPLES)
        np.testing.assert_array_equal(back.cube, read.cube)


@pytest.mark.parametrize("order", "<>")
def test_profile_exif_and_gps_are_kept_from_file_to_file(tmp_path: Path, order: str) -> None:
    exif, image = exif_of(6, order), Image.fromarray(picture())
    expected = tags_of(exif)
    assert expected["gps"] and expected["interoperability"] and expected["exif"][37500] == b"maker" * 8
    paths = [
        saved(tmp_path / f"a{suffix}", image, exif=b"Exif\0\0" + exif, icc_profile=ICC) for suffix in (".png", ".jpg")
    ]
    paths.append(written(read_cube(paths[0]), tmp_path / "a.tif"))
    for path in paths:
        read = read_cube(path)
        assert read.photograph and read.photograph.icc == ICC and tags_of(read.photograph.exif) == expected
        for suffix in WRITTEN:
            made = written(read, tmp_path / f"o{suffix}")
            with Image.open(made) as file:
                assert file.info["icc_profile"] == ICC
                assert told(file.getexif()) == expected


def test_thumbnails_are_not_kept(tmp_path: Path) -> None:
    exif, small = bytearray(exif_of()), b"the picture as it was"
    end = Tags(bytes(exif)).directory(8)[1]
    start = len(exif)
    exif[end : end + 4] = struct.pack("<I", start)
    tags = {256: 160, 513: 0, 514: len(small)}
    size = len(packed("<", {tag: Entry(4, 1, struct.pack("<I", value)) for tag, value in tags.items()}, start))
    tags[513] = start + size
    exif += packed("<", {tag: Entry(4, 1, struct.pack("<I", value)) for tag, value in tags.items()}, start) + small
    read = read_cube(saved(tmp_path / "a.jpg", Image.fromarray(picture()), exif=b"Exif\0\0" + exif))
    assert read.photograph
    kept = Tags(read.photograph.exif)
    assert small not in read.photograph.exif and len(read.photograph.exif) == len(exif)
    assert kept.next_of(kept.directory(8)[1]) == 0 and tags_of(read.photograph.exif) == tags_of(exif_of())


def test_what_png_says_of_its_colours_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(picture()), dpi=(300, 300))
    data = path.read_bytes()
    gamma = b"gAMA" + struct.pack(">I", 100000)
    path.write_bytes(data[:33] + struct.pack(">I", 4) + gamma + struct.pack(">I", zlib.crc32(gamma)) + data[33:])
    with Image.open(written(read_cube(path), tmp_path / "o.png")) as made:
        assert made.info["gamma"] == 1 and made.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def chunks_in(png: bytes, *chunks: bytes) -> bytes:
    """A PNG file with these, each a name and what it holds, before its picture."""
    made = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return png[:33] + b"".join(made) + png[33:]


@pytest.mark.parametrize("packs", [False, True])
def test_xmp_comes_back(tmp_path: Path, packs: bool) -> None:
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    key = b"iTXtXML:com.adobe.xmp\0"
    text = key + (b"\1\0en\0\0" + zlib.compress(packet) if packs else b"\0\0\0\0" + packet)
    path = saved(tmp_path / "a.png", Image.fromarray(picture()))
    # Another text before it, and one that unpacks to more than is kept.
    path.write_bytes(chunks_in(path.read_bytes(), b"tEXtTitle\0IEND", text, b"zTXtXML:com.adobe.xmp\0\0junk"))
    jpeg = saved(tmp_path / "a.jpg", Image.fromarray(picture()), xmp=packet)
    for read in (read_cube(path), read_cube(jpeg)):
        assert read.photograph and read.photograph.xmp == packet
        assert Image.open(written(read, tmp_path / "o.png")).info["xmp"] == packet
        assert tifffile.TiffFile(written(read, tmp_path / "o.tif")).pages[0].tags[700].value == packet
    bomb_ = key + b"\1\0\0\0" + zlib.compress(bytes(40 << 20))
    path.write_bytes(
        chunks_in(saved(path, Image.fromarray(picture())).read_bytes(), bomb_, b"zTXtRaw profile type exif")
    )
    read = read_cube(path)
    assert read.photograph and not read.photograph.xmp and not read.photograph.exif


def test_exif_in_a_text_of_imagemagick(tmp_path: Path) -> None:
    exif = b"Exif\0\0" + exif_of(6)
    text = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"
    path = saved(tmp_path / "a.png", Image.fromarray(picture()))
    for chunk in (b"zTXtRaw profile type exif\0\0" + zlib.compress(text), b"tEXtRaw profile type APP1\0" + text):
        path.write_bytes(chunks_in(saved(path, Image.fromarray(picture())).read_bytes(), chunk))
        read = read_cube(path)
        assert read.photograph and read.photograph.orientation == 6 and read.photograph.exif == exif_of(6)
        np.testing.assert_array_equal(stored(read.cube, 6), cube_of(picture()))


def test_significant_bits_are_told_of_every_band_or_not_at_all(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(picture()))
    whole = path.read_bytes()
    for more, kept in (([], 1), ([b"tRNS\0\1\0\2\0\3"], 0)):
        path.write_bytes(chunks_in(whole, b"sBIT\5\6\5", *more))
        assert written(read_cube(path), tmp_path / "o.png").read_bytes().count(b"sBIT") == kept


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_that_were_multiplied_stay_so(tmp_path: Path, dtype: Any) -> None:
    array = picture(4, dtype)
    array[..., :3] = array[..., :3] * (array[..., 3:] / np.iinfo(dtype).max)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["assocalpha"])
    read = read_cube(tmp_path / "a.tif")
    np.testing.assert_array_equal(read.cube, cube_of(array))
    made = written(read, tmp_path / "o.tif")
    np.testing.assert_array_equal(tifffile.imread(made), array)
    assert tifffile.TiffFile(made).pages[0].extrasamples == (1,)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("profile", [False, True])
def test_cmyk_becomes_rgb(tmp_path: Path, suffix: str, profile: bool) -> None:
    image = (
        pyvips.Image.new_from_array(picture()).copy(interpretation="srgb").icc_transform("cmyk", input_profile="srgb")
    )
    if not profile:
        image = image.copy()
        image.remove("icc-profile-data")
    path = tmp_path / f"a{suffix}"
    image.write_to_file(str(path), **({"Q": 98} if suffix == ".jpg" else {}))
    with Image.open(path) as file:
        assert file.mode == "CMYK"
    read = read_cube(path)
    assert np.abs(read.cube.astype(int) - cube_of(picture())).mean() < 8
    assert len(read.doubts) == 1 and "CMYK" in read.doubts[0] and "convert it" in read.doubts[0]
    assert read.photograph and not read.photograph.icc
    assert Image.open(written(read, tmp_path / "o.png")).mode == "RGB"


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(picture()), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    deep = pyvips.Image.new_from_array(picture()).copy(interpretation="srgb").colourspace("labs")
    deep.tiffsave(str(tmp_path / "deep.tif"))
    for path, one in ((saved(tmp_path / "a.tif", lab), 1), (tmp_path / "deep.tif", 257)):
        read = read_cube(path)
        assert np.abs(read.cube / one - cube_of(picture())).mean() < 3 and "Lab" in read.doubts[0]
        assert read.cube.dtype == (np.uint8 if one == 1 else np.uint16)


def test_grey_comes_back_as_the_mean(tmp_path: Path) -> None:
    read = read_cube(saved(tmp_path / "a.png", Image.fromarray(picture(1)[..., 0])))
    cube = read.cube.copy()
    cube[0, 0, 0], cube[1, 0, 0], cube[2, 0, 0] = 10, 20, 32
    for suffix in WRITTEN:
        with Image.open(write_cube(tmp_path / f"o{suffix}", cube, like=read)) as made:
            assert made.mode == "L" and made.getpixel((0, 0)) == 21


def test_floats_go_into_tiff_alone(tmp_path: Path) -> None:
    read = read_cube(saved(tmp_path / "a.png", Image.fromarray(picture(4)), exif=exif_of(3)))
    unit = (read.cube / 255).astype(np.float32)
    path = write_cube(tmp_path / "o.tif", unit, like=read)
    array = tifffile.imread(path)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, picture(4) / 255, rtol=1e-6)
    with pytest.raises(CubeFileError, match=r"uint8 and uint16 only.*float32.*use a \.tif"):
        check_written(tmp_path / "o.png", unit.shape, unit.dtype, read)
    assert written_type("a.tif", np.dtype(np.float16)) == np.float32 and written_type("a.png", np.dtype("u1")) == "u1"


@pytest.mark.parametrize(
    ("shape", "dtype", "suffix", "said"),
    [
        ((31, 8, 8), "u1", ".png", r"1 or 3 bands \(found 31\); use \.hdr"),
        ((3, 8, 8), "i2", ".png", r"uint8 and uint16 only \(found 'int16'\); use --output-type float32 and a \.tif"),
        ((3, 8, 8), "f8", ".tif", "float32 only.*--output-type float32"),
        ((3, 40_000, 40_000), "u1", ".tif", "no more than 4 GiB"),
    ],
)
def test_what_no_picture_holds(tmp_path: Path, shape: tuple[int, ...], dtype: str, suffix: str, said: str) -> None:
    like = CubeFile(np.zeros((3, 1, 1), np.uint8), tmp_path / "a.npy", "npy")
    with pytest.raises(CubeFileError, match=said):
        check_written(tmp_path / f"a{suffix}", shape, np.dtype(dtype), like)


def test_jpeg_is_not_written_and_no_input_overwritten(tmp_path: Path) -> None:
    read = read_cube(saved(tmp_path / "a.png", Image.fromarray(picture())))
    with pytest.raises(CubeFileError, match=r"JPEG would lose.*use \.png or \.tif"):
        write_cube(tmp_path / "o.jpeg", read.cube)
    (tmp_path / "b.png").symlink_to("a.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(CubeFileError, match="would overwrite the input"):
            check_written(tmp_path / name, read.cube.shape, read.cube.dtype, read)
        with pytest.raises(CubeFileError, match="would overwrite the input"):
            write_cube(tmp_path / name, read.cube, like=read)


def test_cubes_become_pictures_and_photographs_cubes(tmp_path: Path) -> None:
    for cube in (cube_of(picture()), cube_of(picture())[:1], cube_of(picture(dtype=np.uint16))):
        for suffix in WRITTEN:
            path = write_cube(tmp_path / f"o{suffix}", cube)
            np.testing.assert_array_equal(read_cube(path).cube, np.broadcast_to(cube, (3, *cube.shape[1:])))
    read = read_cube(saved(tmp_path / "a.png", Image.fromarray(picture(4)), icc_profile=ICC))
    envi = read_cube(write_cube(tmp_path / "o.hdr", read.cube, like=read))
    np.testing.assert_array_equal(envi.cube, read.cube)
    assert envi.scale == 255
    assert left_behind("o.hdr", read) == ("the transparency", "the colour profile") and not left_behind("o.png", read)


def test_a_place_on_earth_is_kept_in_tiff(tmp_path: Path) -> None:
    place = rasterio.transform.from_origin(600000, 7400000, 2.5, 2.5)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=3, width=SAMPLES, height=LINES, dtype="uint8",
        crs="EPSG:32617", transform=place, photometric="RGB",
    ) as file:  # fmt: skip
        file.write(np.moveaxis(picture(), 2, 0))
    read = read_cube(tmp_path / "a.tif")
    with rasterio.open(written(read, tmp_path / "o.tif")) as made:
        assert made.crs.to_epsg() == 32617 and made.transform == place
    assert left_behind("o.png", read) == ("the place on Earth",)


@pytest.mark.parametrize(
    ("count", "dtype", "options"),
    [
        (1, "float32", {}),
        (3, "float32", {}),
        (5, "uint8", {}),
        (3, "int16", {}),
        (3, "uint16", {"photometric": "MINISBLACK"}),
        (3, "uint8", {"photometric": "RGB", "nbits": "4"}),
    ],
)
def test_tiff_files_that_are_no_photographs(tmp_path: Path, count: int, dtype: str, options: Mapping[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", count=count, width=5, height=4, dtype=dtype, **options
        ) as file:
            file.write(np.zeros((count, 4, 5), dtype))
    with pytest.raises(CubeFileError, match=f"a TIFF file, no cube file that is read.*{GDAL}"):
        read_cube(tmp_path / "a.tif")


def test_one_band_in_tiles_as_a_plane(tmp_path: Path) -> None:
    array = picture(1, lines=40, samples=40)[..., 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", count=1, width=40, height=40, dtype="uint8",
            tiled=True, blockxsize=16, blockysize=16, interleave="band",
        ) as file:  # fmt: skip
            file.write(array, 1)
    np.testing.assert_array_equal(read_cube(tmp_path / "a.tif").cube[0], array)


def test_what_is_not_read_is_not_called_damaged(tmp_path: Path) -> None:
    planes, tiles = np.zeros((3, 48, 48), np.uint8), (16, 16)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", tile=tiles)
    data = bytearray(whole_file(".jpg"))
    data[data.index(b"\xff\xc2") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(data)
    for name, why in (("a.tif", "separate planes not supported"), ("a.jpg", "precision 12")):
        with pytest.raises(CubeFileError, match=f"file of a kind that is not read: .*{why}"):
            read_cube(tmp_path / name)


def test_ycbcr_is_read_out_of_jpeg_alone(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="ycbcr", compression="zlib")
    with pytest.raises(CubeFileError, match=r"YCbCr without JPEG inside.*save it anew as RGB"):
        read_cube(tmp_path / "a.tif")


@pytest.mark.parametrize("said", [0, 9])
def test_no_valid_orientation_is_none(tmp_path: Path, said: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", extratags=[(ORIENTATION, 3, 1, said, True)])
    read = read_cube(tmp_path / "a.tif")
    np.testing.assert_array_equal(read.cube, cube_of(picture()))
    assert tifffile.TiffFile(written(read, tmp_path / "o.tif")).pages[0].tags[ORIENTATION].value == 1


@pytest.mark.parametrize("colours", [0, 30])
def test_palettes_that_are_not_whole(tmp_path: Path, colours: int) -> None:
    tree = {256: 5, 257: 4, 262: 3, 258: 8, 273: 8, 279: 20}
    entries = {tag: Entry(4, 1, struct.pack("<I", value)) for tag, value in tree.items()}
    palette = {320: Entry(3, colours, bytes(2 * colours))} if colours else {}
    (tmp_path / "a.tif").write_bytes(header("<", 28) + bytes(20) + packed("<", entries | palette, 28))
    with pytest.raises(CubeFileError, match="its palette is not whole"):
        read_cube(tmp_path / "a.tif")


def test_several_pages_are_refused_and_smaller_copies_are_none(tmp_path: Path) -> None:
    image = Image.fromarray(picture())
    saved(tmp_path / "a.tif", image, save_all=True, append_images=[image])
    saved(tmp_path / "a.png", image, save_all=True, append_images=[Image.fromarray(255 - picture())])
    for name in ("a.tif", "a.png"):
        with pytest.raises(CubeFileError, match="several pictures"):
            read_cube(tmp_path / name)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(picture(), photometric="rgb")
        file.write(picture()[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_cube(tmp_path / "b.tif").cube, cube_of(picture()))


@pytest.mark.parametrize("suffix", WRITTEN)
def test_bilevel_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(CubeFileError, match="bilevel"):
        read_cube(saved(tmp_path / f"a{suffix}", Image.fromarray(picture()).convert("1")))


def test_a_file_is_what_its_first_bytes_say(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "JPEG")
    for name in ("a.png", "b.TIF", "Füße 写真 🛰.jpeg", "c.jfif", "d"):
        (tmp_path / name).write_bytes(data.getvalue())
        read = read_cube(tmp_path / name)
        assert read.photograph and read.photograph.kind == "jpeg"
        np.testing.assert_array_equal(read.cube, cube_of(np.asarray(Image.open(tmp_path / name))))
    (tmp_path / "c.png").write_bytes(b"GIF89a" + bytes(50))
    with pytest.raises(CubeFileError, match="is a picture, no cube file"):
        read_cube(tmp_path / "c.png")
    for name in ("e.png", "e.tif", "e.jpg"):
        (tmp_path / name).write_bytes(b"<!DOCTYPE html>" + bytes(50))
        with pytest.raises(CubeFileError, match=r"begins as no PNG, JPEG or TIFF file.*copy it again"):
            read_cube(tmp_path / name)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 20000)])
@pytest.mark.parametrize("suffix", WRITTEN)
def test_sizes(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    array = picture(3, np.uint16, *size)
    path = write_cube(tmp_path / f"a{suffix}", cube_of(array))
    np.testing.assert_array_equal(read_cube(path).cube, cube_of(array))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(np.moveaxis(file.read(), 0, 2), array)


def bomb(suffix: str, side: int = 60_000) -> bytes:
    """A small file that claims many pixels."""
    if suffix == ".png":
        whole = bytearray(b"\x89PNG\r\n\x1a\n")
        for name, data in (
            (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(1 << 20))),
            (b"IEND", b""),
        ):
            whole += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        return bytes(whole)
    if suffix == ".jpg":
        buffer = io.BytesIO()
        Image.fromarray(picture()).save(buffer, "JPEG")
        data = bytearray(buffer.getvalue())
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
        return bytes(data)
    short = {256: side, 257: side, 262: 2, 277: 3, 278: side, 273: 8, 279: 100, 259: 8}
    tree = {tag: Entry(4, 1, struct.pack("<I", value)) for tag, value in short.items()}
    return header("<", 8) + packed("<", {**tree, 258: Entry(3, 3, struct.pack("<3H", 8, 8, 8))}, 8) + bytes(100)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_bombs(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(bomb(suffix))
    with pytest.raises(CubeFileError, match="claim to hold 10800000000 bytes"):
        read_cube(tmp_path / f"a{suffix}")


def test_what_stands_behind_the_pixels_makes_no_bomb_smaller(tmp_path: Path) -> None:
    data, behind = bomb(".png", 6000), 4 << 20
    junk = chunks_in(data, b"junk" + bytes(behind))[33 : 33 + behind + 12]
    (tmp_path / "a.png").write_bytes(data[:-12] + junk + data[-12:])
    with pytest.raises(CubeFileError, match="claim to hold 108000000 bytes"):
        read_cube(tmp_path / "a.png")


@pytest.mark.parametrize(("kind", "marks"), [("minisblack", (0.0,)), ("rgb", ())])
def test_what_gdal_calls_no_data_is_missing_in_grey_and_told_of_colours(
    tmp_path: Path, kind: str, marks: tuple[float, ...]
) -> None:
    array = picture()
    array[:2] = 0
    array = array if kind == "rgb" else array[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=kind, extratags=[(42113, "s", 0, "0", False)])
    read = read_cube(tmp_path / "a.tif")
    assert read.stated.marks == marks and bool(read.stated.doubts) == (kind == "rgb")
    with rasterio.open(written(read, tmp_path / "o.tif")) as made:
        assert made.nodata == 0


@pytest.mark.parametrize(("at", "size"), [(0, 40), (8, 18)])
def test_a_thumbnail_that_lies_over_tags_takes_the_exif_along(tmp_path: Path, at: int, size: int) -> None:
    own = struct.pack("<HHHIHHI", 1, 274, 3, 1, 6, 0, 26)
    small = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, at, 514, 4, 1, size, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + own + small
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    read = read_cube(tmp_path / "a.jpg")
    assert read.photograph is not None and read.photograph.exif == b"" and "EXIF" in read.stated.doubts[0]


@pytest.mark.parametrize("spoilt", ["flipped", "zeroed", "ended"])
def test_a_tiff_file_with_damaged_jpeg_inside_is_refused(tmp_path: Path, spoilt: str) -> None:
    base = np.kron(np.random.default_rng(0).integers(0, 255, (16, 16, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    image = pyvips.Image.new_from_array(base).copy(interpretation="srgb")
    image.tiffsave(str(tmp_path / "a.tif"), compression="jpeg", Q=90)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    assert read_cube(tmp_path / "a.tif").cube.shape == (3, 256, 256)
    tags = Tags(bytes(data))
    first = tags.directory(tags.first)[0]
    at, size = (tags.numbers(first[tag])[0] for tag in (273, 279))
    middle = at + size // 2
    if spoilt == "flipped":
        data[middle : middle + 6] = bytes(value ^ 0x5A for value in data[middle : middle + 6])
    elif spoilt == "zeroed":
        data[middle : at + size - 2] = bytes(at + size - 2 - middle)
    else:
        data[middle : middle + 2] = b"\xff\xd9"
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(CubeFileError, match="damaged"):
        read_cube(tmp_path / "a.tif")


def test_a_dim_picture_of_16_bits_is_doubted(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4096, (8, 9, 3), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    read = read_cube(tmp_path / "a.tif")
    assert any("--scale" in d for d in meaning_of(read.cube, read.stated, None, Known("bundle", None, None, 3)).doubts)
    assert not meaning_of(read.cube, read.stated, Asked(4095.0), Known("bundle", None, None, 3)).doubts


def test_large_tiff_files_of_one_strip_and_tiles_that_claim_too_much(tmp_path: Path) -> None:
    array = np.zeros((6000, 4000, 3), np.uint8)
    array[-1] = np.random.default_rng(0).integers(0, 256, (4000, 3))
    # Above libvips' own limit, which is no limit of the machine.
    tifffile.imwrite(
        tmp_path / "a.tif",
        array,
        photometric="rgb",
        rowsperstrip=6000,
        compression="zlib",
        compressionargs={"level": 0},
    )
    np.testing.assert_array_equal(read_cube(tmp_path / "a.tif").cube[:, -1], array[-1].T)
    tree = {256: 5, 257: 4, 262: 1, 258: 8, 322: 1 << 20, 323: 1 << 20, 324: 8, 325: 20}
    packed_ = packed("<", {tag: Entry(4, 1, struct.pack("<I", value)) for tag, value in tree.items()}, 8)
    (tmp_path / "b.tif").write_bytes(header("<", 8) + packed_)
    with pytest.raises(CubeFileError, match="tiles are far larger"):
        read_cube(tmp_path / "b.tif")


def test_what_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(picture()))
    monkeypatch.setattr(disk, "available_memory", lambda: 4000)
    with pytest.raises(MachineError, match="of memory"):
        read_cube(path)


def whole_file(suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".tif":
        tifffile.imwrite(buffer, picture(), photometric="rgb", rowsperstrip=8, compression="zlib")
    else:
        form, options = ("PNG", {}) if suffix == ".png" else ("JPEG", {"progressive": True})
        Image.fromarray(picture()).save(buffer, form, exif=b"Exif\0\0" + exif_of(6), icc_profile=ICC, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_files_that_lack_a_part(tmp_path: Path, suffix: str) -> None:
    """Of PNG any chunk, of JPEG any segment before the picture; TIFF any tag: one line of refusal, or a picture."""
    data, path, cuts = whole_file(suffix), tmp_path / f"a{suffix}", list[bytes]()
    if suffix == ".tif":
        first = Tags(data)
        for entry in first.directory(first.first)[0].values():
            cuts.append(data[: entry.at] + b"\xff\xff" + data[entry.at + 2 :])
    else:
        at = 8 if suffix == ".png" else 2
        while at < len(data) and data[at : at + 2] != b"\xff\xda":
            size = struct.unpack_from(">I" if suffix == ".png" else ">H", data, at + 2 * (suffix == ".jpg"))[0]
            size += 12 if suffix == ".png" else 2
            cuts.append(data[:at] + data[at + size :])
            at += size
    assert len(cuts) >= 5
    for cut in cuts:
        path.write_bytes(cut)
        try:
            assert read_cube(path).cube.shape[0] == 3
        except CubeFileError as error:
            assert "\n" not in error.one_line() and error.remedy


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_files_that_were_cut_short(tmp_path: Path, suffix: str) -> None:
    data, path = whole_file(suffix), tmp_path / f"a{suffix}"
    for length in [*range(9, len(data), max(1, len(data) // 60)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CubeFileError) as refused:
            read_cube(path)
        assert "\n" not in str(refused.value) and refused.value.remedy and "unpack" not in str(refused.value)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 32}], ids=str)
def test_a_part_of_tiff_that_cannot_be_decoded(tmp_path: Path, layout: dict[str, Any], compression: str | None) -> None:
    """libvips makes tiles of it black and goes on."""
    file, picture = tmp_path / "a.tif", np.random.default_rng(0).integers(0, 255, (200, 150, 3)).astype(np.uint8)
    tifffile.imwrite(file, picture, photometric="rgb", compression=compression, **layout)
    np.testing.assert_array_equal(read_cube(file).cube, picture.transpose(2, 0, 1))
    with tifffile.TiffFile(file) as tiff:
        starts, sizes = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    whole, part = file.read_bytes(), len(starts) // 2
    spoilt = {"cut": whole[: starts[-1] + sizes[-1] // 2]}
    if compression:
        at = starts[part] + sizes[part] // 2
        spoilt["flipped"] = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        spoilt["zeros"] = whole[: starts[part]] + bytes(sizes[part]) + whole[starts[part] + sizes[part] :]
    for data in spoilt.values():
        file.write_bytes(data)
        with pytest.raises(CubeFileError, match="damaged or cut short"):
            read_cube(file)
    file.write_bytes(whole)
    assert read_cube(file).cube.shape == (3, 200, 150)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_bytes_that_were_flipped(tmp_path: Path, suffix: str) -> None:
    """One line of refusal, or a picture; of PNG, whose checksums tell, only the right one."""
    data, path = whole_file(suffix), tmp_path / f"a{suffix}"
    path.write_bytes(data)
    right = read_cube(path).cube
    rng = np.random.default_rng(1)
    for _ in range(80):
        damaged = bytearray(data)
        damaged[rng.integers(0, len(data))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(damaged))
        try:
            read = read_cube(path)
        except DeployError as error:
            assert "\n" not in error.one_line()
        else:
            assert read.cube.shape[0] == 3
            assert suffix != ".png" or (
                read.cube.size == right.size and np.array_equal(np.sort(read.cube, None), np.sort(right, None))
            )


def test_exif_that_points_in_circles_or_nowhere(tmp_path: Path) -> None:
    pointing = {EXIF: 8, GPS: 8, INTEROPERABILITY: 8, 270: 1 << 30}
    tree = {tag: Entry(4, 1, struct.pack("<I", value)) for tag, value in pointing.items()}
    circle = header("<", 8) + packed("<", tree, 8)
    for exif in (circle, b"II*\0\xff\xff\xff\xff", b"II*\0", b"nothing", b"MM\0*" + bytes(4) + b"\xff" * 500):
        read = read_cube(saved(tmp_path / "a.jpg", Image.fromarray(picture()), exif=b"Exif\0\0" + exif))
        for suffix in WRITTEN:
            np.testing.assert_array_equal(read_cube(written(read, tmp_path / f"o{suffix}")).cube, read.cube)
    strip = {256: 5, 257: 4, 262: 1, 258: 8, 273: 0, 279: 20}
    tree |= {tag: Entry(4, 1, struct.pack("<I", value)) for tag, value in strip.items()}
    (tmp_path / "a.tif").write_bytes(header("<", 8) + packed("<", tree, 8))
    assert read_cube(tmp_path / "a.tif").cube.shape == (3, 4, 5)


def test_nothing_is_said_on_stderr(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif"):
        data = whole_file(suffix)
        (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) * 2 // 3])
        damaged = bytearray(data)
        damaged[len(data) * 3 // 4] ^= 0x55
        (tmp_path / f"flipped{suffix}").write_bytes(damaged)
        # Warnings quote what is there, which need not be text.
        for number in range(40):
            damaged = bytearray(data)
            for place in range(number, 360, 40):
                damaged[-1 - place] = 0xFF
            (tmp_path / f"{number}{suffix}").write_bytes(damaged)
    code = """
import pathlib, sys
from runtime.files import read_cube
from runtime.errors import CubeFileError
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, read_cube(path).cube.shape)
    except CubeFileError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 126


def test_libvips_is_loaded_for_photographs_alone() -> None:
    code = "import sys, runtime.files; print(*[m for m in ('pyvips', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_links_are_followed_and_pipes_are_not(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", Image.fromarray(picture()))
    (tmp_path / "b.jpg").symlink_to("a.png")
    np.testing.assert_array_equal(read_cube(tmp_path / "b.jpg").cube, cube_of(picture()))
    os.mkfifo(tmp_path / "c.png")
    with pytest.raises(CubeFileError, match="not a regular file"):
        read_cube(tmp_path / "c.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ordinary_photographs_are_not_doubted(tmp_path: Path, dtype: Any) -> None:
    top = np.iinfo(dtype).max
    sky, night, red, flat, spot = (picture(dtype=dtype, lines=64, samples=64) for _ in range(5))
    sky[:40] = top
    sky[:, :20, 2] = top
    night[:] //= 40
    night[5:9, 5:9] = top
    night[20:] = 0
    red[..., 1:] = 0
    flat[:] = top // 3
    spot[spot > top // 2] = top // 2
    spot[10:16, 10:16] = 0
    for array in (sky, night, red, flat, spot, np.zeros_like(sky), np.full_like(sky, top)):
        read = read_cube(write_cube(tmp_path / "a.png", cube_of(array)))
        found = meaning_of(read.cube, read.stated, None, Known(bands=3))
        assert not found.doubts and not found.bad and not found.missing.any() and found.conversion.scale == top
    # Numbers of an instrument are.
    assert meaning_of(cube_of(red), Stated(scale=top)).bad
    assert meaning_of(cube_of(red), Stated(scale=top, photograph=True), Asked(constant_bands="leave")).bad
