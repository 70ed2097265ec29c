"""Cubes in files: ENVI pairs, NumPy and MATLAB files, and photographs, by one pair of functions.

Every file is taken as a stranger's: nothing in it is executed, and it cannot claim more memory than it holds.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.arrays import read_npy, read_npz, write_npy
from runtime.files.disk import refuse_inputs, unchanged
from runtime.files.envi import DATA_SUFFIXES, pair_of, read_envi, read_header, target_pair, write_envi
from runtime.files.envi_header import stated_by
from runtime.files.envi_text import INTERLEAVES, Fields, Interleave, listed
from runtime.files.foreign import refuse_foreign
from runtime.files.layout import AS_CUBE, DEFAULT_LAYOUT, ONE_BAND, PLANE_LAYOUTS, Order, check_plane, checked_layout
from runtime.files.matlab import read_mat
from runtime.files.photographs import SUFFIXES, Photograph, as_plane, is_photograph, read_photograph
from runtime.files.pictures import check_picture, write_picture
from runtime.stated import NOTHING, Stated

__all__ = [
    "READERS",
    "WRITERS",
    "CubeFile",
    "Photograph",
    "check_written",
    "left_behind",
    "read_cube",
    "write_cube",
    "written_files",
    "written_type",
]


@dataclass(frozen=True, eq=False)
class CubeFile:
    """A cube and what its file says about it.

    Attributes:
        cube: [bands, lines, samples], native byte order, the file's own type, C-contiguous.
        path: the file as it was named.
        format: 'envi', 'npy', 'npz', 'mat' or 'photograph'.
        stated: what it says of its numbers.
        fields: the ENVI header (`EnviHeader.fields`), name -> text, looked up in any case; empty for other formats.
        photograph: what it holds beside its numbers, where it is one.
    """

    cube: NDArray[Any]
    path: Path
    format: str
    stated: Stated = NOTHING
    fields: Mapping[str, str] = field(default_factory=lambda: Fields({}))
    photograph: Photograph | None = None

    @property
    def wavelengths(self) -> tuple[float, ...] | None:
        """Nanometres, one per band, or None where they or their unit are not known."""
        return self.stated.wavelengths

    @property
    def scale(self) -> float | None:
        """Number that stands for 1.0 where the file says so (ENVI `reflectance scale factor`), else None."""
        return self.stated.scale

    @property
    def ignore_value(self) -> float | None:
        """The value that marks missing pixels, possibly NaN, or None."""
        return next(iter(self.stated.marks), None)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What its reader could not take as it stands, in words for people."""
        return self.stated.doubts


def _read_envi(path: Path, order: Order, key: str | None) -> CubeFile:
    _no_key(path, key)
    header = read_header(path)
    check_plane(header.bands, order, path)
    return CubeFile(
        cube=read_envi(header),
        path=path,
        format="envi",
        stated=stated_by(header),
        fields=header.fields,
    )


def _read_npy(path: Path, order: Order, key: str | None) -> CubeFile:
    _no_key(path, key)
    return CubeFile(read_npy(path, order), path, "npy")


def _read_npz(path: Path, order: Order, key: str | None) -> CubeFile:
    cube, wavelengths = read_npz(path, order, key)
    return CubeFile(cube, path, "npz", Stated(wavelengths=wavelengths))


def _read_mat(path: Path, order: Order, key: str | None) -> CubeFile:
    cube, doubts = read_mat(path, order, key)
    return CubeFile(cube, path, "mat", Stated(doubts=doubts))


def _read_photograph(path: Path, order: Order, key: str | None) -> CubeFile:
    _no_key(path, key)
    cube, photograph, stated = read_photograph(path)
    if len(order) == 2:
        cube, stated = as_plane(cube, photograph, stated)
    check_plane(len(cube), order, path)
    return CubeFile(cube, path, "photograph", stated, photograph=photograph)


def _no_key(path: Path, key: str | None) -> None:
    if key is not None:
        raise CubeFileError(
            "this format holds one cube without a name", file=path, key="key", value=key, remedy="leave the key out"
        )


READERS: dict[str, Callable[[Path, Order, str | None], CubeFile]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".hdr": _read_envi,
    **dict.fromkeys(DATA_SUFFIXES, _read_envi),
    **dict.fromkeys(SUFFIXES, _read_photograph),
}
"""Suffix in lower case -> reader(path, order of the axes, key)."""


def read_cube(path: str | Path, *, layout: str | None = None, key: str | None = None, plane: bool = False) -> CubeFile:
    """Read a cube file of any known format, chosen by its suffix.

    A file with another suffix, or none, is read as ENVI data where a header lies beside it, else as a photograph where
    it begins as one.

    Args:
        path: the file; for ENVI the header or the data file.
        layout: order of the axes in `.npy`, `.npz` and `.mat` files, `lines,samples,bands` where nobody says; an ENVI
            header states its own. `lines,samples` and `samples,lines` are for one band, whatever the format: a cube
            [1, lines, samples].
        key: name of the array in `.npz` (default `cube`) and `.mat` (default: the only 3-D array outside structs, of
            one band the only 2-D array with more than one line and sample, see `matlab.read_mat` for others).
        plane: what is read has one band, `lines,samples` where nobody says the layout.

    Raises:
        CubeFileError: the file is missing, damaged, of an unknown format, not a cube, of more bands or axes than
            `layout` is for, too large for this machine, or changes while it is read.
    """
    path = Path(path)
    usual = PLANE_LAYOUTS[0] if plane else DEFAULT_LAYOUT
    order = checked_layout(usual if layout is None else layout, path)
    reader = READERS.get(path.suffix.lower())
    # Rows of numbers may have any name where an ENVI header lies beside them, and photographs any at all.
    if reader is None or (reader is _read_photograph and not is_photograph(path)):
        named, reader = reader is not None, _read_envi
        try:
            pair_of(path)
        except CubeFileError as error:
            if path.is_file() and is_photograph(path):
                reader = _read_photograph
            else:
                refuse_foreign(path, by_suffix=not named)
                if not path.is_file():
                    raise
                raise CubeFileError(
                    "begins as no PNG, JPEG or TIFF file does"
                    if named
                    else "is not a known cube format and has no ENVI header beside it",
                    file=path,
                    value=path.suffix or None,
                    remedy="copy it again, or save it as one of these"
                    if named
                    else "give a file with one of these suffixes: " + " ".join(READERS),
                ) from error
    try:
        with unchanged(*(pair_of(path) if reader is _read_envi else (path,))):
            found = reader(path, order, key)
    except CubeFileError as error:
        if plane:
            error.remedy = error.remedy.replace(AS_CUBE, ONE_BAND)
        raise
    if found.format in ("envi", "photograph"):
        return found
    # All that these formats' readers doubt is which axis is which.
    stated = replace(found.stated, axes=False) if layout is None else replace(found.stated, axes=True, doubts=())
    return replace(found, stated=stated)


def _write_envi(
    path: Path, cube: NDArray[Any], like: CubeFile | None, order: Order, fields: Mapping[str, str | None]
) -> None:
    suffix = path.suffix.lower().removeprefix(".")
    own = like.fields.get("interleave", "").lower() if like is not None else ""
    named: list[Interleave] = [name for said in (suffix, own) for name in INTERLEAVES if name == said]
    write_envi(path, cube, interleave=named[0] if named else "bil", fields=_merged(like, fields), inputs=_inputs(like))


def _merged(like: CubeFile | None, fields: Mapping[str, str | None]) -> dict[str, str | None]:
    if like is None:
        return dict(fields)
    merged: dict[str, str | None] = dict(like.fields)
    if like.format != "envi":
        if like.wavelengths is not None:
            merged |= {"wavelength units": "Nanometers", "wavelength": listed(like.wavelengths)}
        if like.scale is not None:
            merged["reflectance scale factor"] = repr(like.scale)
        if like.ignore_value is not None:
            merged["data ignore value"] = repr(like.ignore_value)
    given = Fields(dict.fromkeys(fields, ""))
    return {name: text for name, text in merged.items() if name not in given} | dict(fields)


def _inputs(like: CubeFile | None) -> tuple[Path, ...]:
    if like is not None and like.format == "envi":
        with suppress(CubeFileError):
            return pair_of(like.path)
    return () if like is None else (like.path,)


def _write_npy(
    path: Path, cube: NDArray[Any], like: CubeFile | None, order: Order, fields: Mapping[str, str | None]
) -> None:
    write_npy(path, cube, order, _inputs(like))


def _write_picture(
    path: Path, cube: NDArray[Any], like: CubeFile | None, order: Order, fields: Mapping[str, str | None]
) -> None:
    write_picture(path, cube, None if like is None else like.photograph, _inputs(like))


Writer = Callable[[Path, NDArray[Any], CubeFile | None, Order, Mapping[str, str | None]], None]
WRITERS: dict[str, Writer] = {
    ".npy": _write_npy,
    **dict.fromkeys((".hdr", ".img", ".raw", ".dat", ".bsq", ".bil", ".bip"), _write_envi),
    **dict.fromkeys((".png", ".tif", ".tiff"), _write_picture),
}
"""Suffix in lower case -> writer(path, cube, like, order of the axes, fields)."""


def write_cube(
    path: str | Path,
    cube: NDArray[Any],
    *,
    like: CubeFile | None = None,
    layout: str = DEFAULT_LAYOUT,
    fields: Mapping[str, str | None] | None = None,
) -> Path:
    """Write a cube, in the format of the suffix: whole afterwards, or nothing has changed.

    Args:
        path: `.npy`, `.png`, `.tif`, or for ENVI the data file (its header gets `.hdr`) or the header (its data file
            gets `.img`).
        cube: [bands, lines, samples].
        like: the cube it was made from. Its header fields are carried along where they stay true (`envi.carried`), its
            interleave is kept unless the suffix names another, and its files are never overwritten. Of a photograph a
            picture carries transparency, profile, EXIF, XMP and orientation.
        layout: order of the axes in a `.npy` file: of two, where the cube has one band.
        fields: more ENVI header fields, over those of `like`; None drops one. A caller that changes the scale of the
            values must say so here (`reflectance scale factor`, `data ignore value`).

    Returns:
        `path`.

    Raises:
        CubeFileError: the format cannot hold the cube, the target is the input, or the system refused to write.
    """
    path = Path(path)
    order = checked_layout(layout, path)
    _writer(path)(path, cube, like, order, fields or {})
    return path


def written_files(path: str | Path) -> tuple[Path, ...]:
    """The files that `write_cube` would write for `path`.

    Raises:
        CubeFileError: the suffix is none that cubes are written in, or a file beside it would make the pair ambiguous.
    """
    path = Path(path)
    return target_pair(path) if _writer(path) is _write_envi else (path,)


def written_type(path: str | Path, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which `write_cube` can write numbers of `dtype`: itself, or the next that holds them all."""
    writer = _writer(Path(path))
    wider = {"f2": "f4", "i1": "i2"} if writer is _write_envi else {"f2": "f4"} if writer is _write_picture else {}
    name = dtype.newbyteorder("=").str[1:]
    return np.dtype(wider.get(name, dtype))


def check_written(path: str | Path, shape: tuple[int, ...], dtype: np.dtype[Any], like: CubeFile) -> None:
    """Refuse, before it is made, a cube that `write_cube` could not write.

    Args:
        path: as for `write_cube`.
        shape: [bands, lines, samples].
        dtype: of its numbers, as `written_type` has it.
        like: the cube that it will be made from.

    Raises:
        CubeFileError: a picture cannot hold it, or the target is the input.
    """
    path = Path(path)
    if _writer(path) is _write_picture:
        check_picture(path, shape, dtype, like.photograph)
        refuse_inputs(path, _inputs(like))


def left_behind(path: str | Path, like: CubeFile) -> tuple[str, ...]:
    """What of a photograph `write_cube` does not keep in this format, for people."""
    photograph, writer, picture = like.photograph, _writer(Path(path)), Path(path).suffix.lower() == ".png"
    if photograph is None:
        return ()
    kept = writer is _write_picture
    found = {
        "the transparency": photograph.alpha is not None and not kept,
        "the colour profile": bool(photograph.icc) and not kept,
        "the place on Earth": photograph.placed and (picture or not kept),
    }
    return tuple(what for what, lost in found.items() if lost)


def _writer(path: Path) -> Writer:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise CubeFileError(
            "JPEG would lose what was restored, and is not written",
            file=path,
            value=path.suffix,
            remedy="use .png or .tif",
        )
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise CubeFileError(
            "is not a format cubes are written in",
            file=path,
            value=path.suffix or None,
            remedy="use one of these suffixes: " + " ".join(WRITERS),
        )
    return writer
