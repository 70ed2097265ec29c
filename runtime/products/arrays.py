"""NumPy and MATLAB files by lines: `.npy` as it lies, where lines are not its fastest axis; others unpacked once."""

from dataclasses import dataclass, replace
from pathlib import Path

from runtime.errors import CubeFileError
from runtime.files.arrays import npy_rows, npz_rows, unpack_npz
from runtime.files.disk import complete_pairs, opened, unchanged
from runtime.files.layout import AXES, DEFAULT_LAYOUT, Order, checked_layout
from runtime.files.matlab import describe_mat, read_mat
from runtime.files.rows import Rows
from runtime.products.contract import Description, Reading
from runtime.products.flat import FlatReader
from runtime.products.spool import Spool
from runtime.stated import NOTHING, Stated

SUFFIXES = (".npy", ".npz", ".mat")


@dataclass(frozen=True)
class ArrayDescription(Description):
    """Of an array.

    Attributes:
        order: of its axes, as they were read; two of one band.
    """

    order: Order = tuple(DEFAULT_LAYOUT.split(","))


def recognises(path: Path) -> bool:
    """By its suffix: one that is not there yet may be ready (`runtime.files.disk.Together`)."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def open_reader(path: Path, reading: Reading) -> FlatReader:
    """Raises CubeFileError: as `runtime.files.read_cube`."""
    complete_pairs(path.parent)
    said = reading.layout
    order = checked_layout(DEFAULT_LAYOUT if said is None else said, path)
    reader = {".npy": _npy, ".npz": _npz}.get(path.suffix.lower(), _mat)
    with unchanged(path):
        return reader(path, order, reading.key, said is not None)


def _npy(path: Path, order: Order, key: str | None, told: bool) -> FlatReader:
    if key is not None:
        raise CubeFileError(
            "this format holds one array without a name", file=path, key="key", value=key, remedy="leave the key out"
        )
    with opened(path) as (file, size):
        rows = npy_rows(file, path, size, order)
    return FlatReader(_description(path, rows, order, NOTHING, told), rows)


def _npz(path: Path, order: Order, key: str | None, told: bool) -> FlatReader:
    rows, wavelengths = npz_rows(path, order, key)

    def unpack(spool: Spool) -> None:
        unpack_npz(path, key, spool.append)

    described = _description(path, rows, order, Stated(wavelengths=wavelengths), told, key or "cube")
    return FlatReader(described, rows, unpack)


def _mat(path: Path, order: Order, key: str | None, told: bool) -> FlatReader:
    found = describe_mat(path, order, key)
    rows = Rows(found.shape, AXES, found.dtype)

    def unpack(spool: Spool) -> None:
        cube, _ = read_mat(path, order, key)
        spool.append(cube.astype(found.dtype, copy=False).reshape(-1).view("u1").data)

    described = _description(path, rows, order, Stated(doubts=found.doubts), told, found.name)
    # The whole array, twice, while it is unpacked.
    return FlatReader(replace(described, holds=2 * rows.end), rows, unpack)


def _description(
    path: Path, rows: Rows, order: Order, stated: Stated, told: bool, title: str | None = None
) -> ArrayDescription:
    stated = replace(stated, axes=told, doubts=() if told else stated.doubts)
    return ArrayDescription(
        format="array",
        path=path,
        files=(path,),
        shape=rows.shape,
        dtype=rows.dtype.newbyteorder("="),
        block=rows.best_lines,
        holds=rows.holds,
        stated=stated,
        title=title,
        order=order,
    )
