"""What the tests of TIFF writers share: results, lines in odd blocks, and how a TIFF is built."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from runtime.products import desis, enmap, geotiff, hyperion, open_writer
from runtime.products.contract import CubeReader, CubeWriter, Description, Quality, Reading, Result

STEP = 7


def write(writer: CubeWriter, cube: NDArray[Any], lines: int | None = None) -> None:
    """Give a writer lines of a cube in blocks of `STEP`, with a quality that tells them apart."""
    for start in range(0, cube.shape[1] if lines is None else lines, STEP):
        block = cube[:, start : start + STEP]
        seen = np.full(block.shape[1:], 1 + start % 3, np.uint8)
        writer.write_lines(block, Quality(seen, seen + 10))


def written(out: Path, result: Result, cube: NDArray[Any], kind: str = "cog") -> tuple[Path, ...]:
    """A cube whole, with provenance."""
    with open_writer(out, result, kind) as writer:
        write(writer, cube)
        return writer.finish({"program": "damp-deploy", "scale": float("nan"), "name": "<&> é"})


def opened(path: Path) -> CubeReader:
    """A product of TIFFs, by the module that recognises it."""
    module = next(one for one in (enmap, desis, hyperion, geotiff) if one.recognises(path))
    return module.open_reader(path, Reading())


def like(reader: CubeReader, **changes: Any) -> Result:
    """A result like its source."""
    found = reader.description
    said = {"stated": found.stated, "fwhm": found.fwhm, "unit": found.unit, "place": found.place, "reader": reader}
    return Result(found, found.shape, found.dtype, **(said | changes))


def of_array(cube: NDArray[Any], **said: Any) -> Result:
    """A result made from a cube of no file."""
    return Result(Description("array", Path("none.npy"), (), cube.shape, cube.dtype), cube.shape, cube.dtype, **said)


def scene(bands: int, lines: int, samples: int, dtype: str) -> NDArray[Any]:
    """A cube of numbers that are all different from their neighbours'."""
    cube = np.arange(bands * lines * samples).reshape(bands, lines, samples) % 30011
    return (cube / 8 if np.dtype(dtype).kind == "f" else cube).astype(dtype)


def check_cog(path: Path, block: int = 512) -> None:
    """Assert what defines a COG, as GDAL's validate_cloud_optimized_geotiff.py does: the order of all its parts."""
    data = path.read_bytes()
    first = 16 if data[2] == 43 else 8
    assert data[first:].startswith(b"GDAL_STRUCTURAL_METADATA_SIZE=")
    size = int(data[first + 30 : first + 36])
    text = data[first + 43 : first + 43 + size]
    assert b"BLOCK_LEADER=SIZE_AS_UINT4\n" in text and b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\n" in text
    with tifffile.TiffFile(path) as file:
        pages: list[Any] = list(file.pages)
    assert pages[0].offset == first + 43 + size
    assert [page.offset for page in pages] == sorted(page.offset for page in pages)
    # Masks of overviews stand behind all overviews.
    masks = [page for page in pages if page.subfiletype & 4]
    images = [page for page in pages if page not in masks]
    assert all(page.tilelength == page.tilewidth == block and page.compression == 8 for page in images)
    shapes = [(page.imagelength, page.imagewidth) for page in images]
    assert max(shapes[-1]) <= block
    for number, (lines, samples) in enumerate(shapes):
        assert (lines, samples) == (-(-shapes[0][0] // 2**number), -(-shapes[0][1] // 2**number))
    # Numbers follow all directories, the smallest copy first, each in the order of tiles.
    before = max(page.offset for page in pages)
    for page in reversed(images):
        for place, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            assert place > before
            assert int.from_bytes(data[place - 4 : place], "little") == length
            assert data[place + length : place + length + 4] == data[place + length - 4 : place + length]
            before = place + length


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )
