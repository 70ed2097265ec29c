"""Files of other programs that may hold a cube: how they are known, and what makes a file of them that is read here."""

import re
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from runtime.errors import CubeFileError
from runtime.untrusted import open_regular

_GDAL = "convert it: gdal_translate -of ENVI {file} {envi}"
_SAVED = "open it in ENVI and save it as one file of type ENVI Standard"


def _array(module: str, expression: str, arguments: str = "{file} NAME {npy}") -> str:
    command = f'python -c "import sys, numpy, {module}; numpy.save(sys.argv[-1], {expression})" {arguments}'
    return f"save its array, then say --layout and --scale: {command}"


class Kind(NamedTuple):
    """A kind of file that is not read.

    Attributes:
        name: in words.
        remedy: what makes a readable file of it; {file}, {envi}, {npy} and {png} stand for file names.
        suffixes: in lower case.
        begins: first bytes.
        file_type: pattern of what ENVI headers call it.
        rows: whether an ENVI header may describe it all the same, as plain rows of numbers.
    """

    name: str
    remedy: str
    suffixes: tuple[str, ...] = ()
    begins: tuple[bytes, ...] = ()
    file_type: str = ""
    rows: bool = False

    def remedy_for(self, path: Path) -> str:
        """What makes a readable file beside `path` of it; names are quoted for a shell."""
        return _filled(self.remedy, path)


def _filled(remedy: str, path: Path) -> str:
    names = {
        "file": path,
        "envi": path.with_name(f"{path.stem}-envi.img"),
        "npy": path.with_suffix(".npy"),
        "png": path.with_suffix(".png"),
    }
    return remedy.format(**{key: quote(str(name)) for key, name in names.items()})


def converted(path: Path) -> str:
    """What makes an ENVI pair of a raster file."""
    return _filled(_GDAL, path)


_ZARR = Kind("a Zarr folder", _array("zarr", "zarr.open(sys.argv[1])[sys.argv[2]][...]"), (".zarr",))

KINDS = (
    Kind(
        "a TIFF file",
        _GDAL,
        (".tif", ".tiff"),
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        r"(?:geo)?tiff?\b|cog\b",
    ),
    Kind(
        "an HDF5 file",
        _array("h5py", "h5py.File(sys.argv[1])[sys.argv[2]][()]"),
        (".h5", ".he5", ".hdf5", ".nc", ".nc4"),
        (b"\x89HDF\r\n\x1a\n",),
        "hdf[- ]?(?:eos ?)?5",
    ),
    Kind(
        "a NetCDF file",
        _array("scipy.io", "scipy.io.netcdf_file(sys.argv[1]).variables[sys.argv[2]][:]"),
        (".cdf",),
        (b"CDF\1", b"CDF\2"),
        "netcdf|ncdf",
    ),
    Kind(
        "an HDF4 file",
        "convert one of its data sets, which gdalinfo {file} lists: gdal_translate -of ENVI DATA_SET {envi}",
        (".hdf", ".hdf4", ".h4"),
        (b"\x0e\x03\x13\x01",),
        "hdf",
    ),
    Kind("a NITF file", _GDAL, (".ntf", ".nitf"), (b"NITF", b"NSIF"), "nitf|nsif"),
    Kind(
        "a JPEG 2000 file",
        _GDAL,
        (".jp2", ".j2k"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
        "jpe?g|jp2",
    ),
    Kind("a MrSID file", _GDAL, (".sid",), (b"msid",), "mrsid"),
    Kind("an ECW file", _GDAL, (".ecw",), file_type=r"ecw\b"),
    Kind("a FITS file", _GDAL, (".fits",), (b"SIMPLE  =",), r"fits\b"),
    Kind(
        "a photograph of another kind",
        "save it as PNG or TIFF: vips copy {file} {png}",
        (".heic", ".heif", ".avif", ".webp", ".bmp"),
    ),
    Kind("a picture", _GDAL, (), (b"\x89PNG", b"GIF8", b"\xff\xd8\xff"), r"(?:bmp|png|gif)\b"),
    Kind("a tiled ERDAS IMAGINE file", _GDAL, (), (b"EHFA_HEADER_TAG",)),
    Kind("an ERDAS LAN file", _GDAL, (".lan",), (b"HEAD74", b"HEADER"), rows=True),
    Kind("a PCIDSK file", _GDAL, (".pix",), (b"PCIDSK",), rows=True),
    Kind(
        "a Princeton Instruments file",
        _array("imageio.v3", "imageio.v3.imread(sys.argv[1], plugin='SPE')", "{file} {npy}"),
        (".spe",),
    ),
    Kind("a Cubert file", "export ENVI from Cuvis", (".cu3s", ".cu3")),
    Kind("a compressed file", "unpack it: gunzip -k {file}", (".gz",), (b"\x1f\x8b\x08",), r"compress|g?zip\b"),
    Kind("an archive", "unpack it: unzip {file}", (".zip",), (b"PK\3\4",)),
    _ZARR,
    Kind("a classification, which holds labels", "give the image that was classified", file_type="classification"),
    Kind("a spectral library, which holds single spectra", "give an image", file_type="spectral lib"),
    Kind("a Fourier transform", "give the image that was transformed", file_type=r"fft\b"),
    Kind("a list of other files", _SAVED, file_type="virtual|mosaic|meta"),
    Kind("a file of tiles", _GDAL, file_type=r"tiled|(?:arc|esri) ?grid"),
)
"""The first that fits by its first bytes counts, else the first by its suffix."""

HEAD_BYTES = 16


def named(file_type: str) -> Kind | None:
    """The kind that `file type` of an ENVI header names, None where it may be rows of numbers."""
    return next((one for one in KINDS if one.file_type and re.search(rf"(?i)\b(?:{one.file_type})", file_type)), None)


def begun(head: bytes) -> Kind | None:
    """The kind of a file by its first HEAD_BYTES."""
    return next((one for one in KINDS if head.startswith(one.begins)), None)


def kind_of(path: Path, *, by_suffix: bool = True) -> Kind | None:
    """The kind of a file or folder that is not read, None where it is none that is known."""
    suffix, head = path.suffix.lower(), b""
    if path.is_dir():
        inside = any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))
        return _ZARR if path.name and (inside or suffix in _ZARR.suffixes) else None
    with suppress(OSError, ValueError), open_regular(path)[0] as file:
        head = file.read(HEAD_BYTES)
    return begun(head) or next((one for one in KINDS if by_suffix and head and suffix in one.suffixes), None)


def refuse_foreign(path: Path, *, by_suffix: bool = True) -> None:
    """Raise CubeFileError where `path` is of a kind that is known and not read: what it is, and what to do.

    Args:
        by_suffix: whether its suffix says what it is where its first bytes do not.
    """
    if (kind := kind_of(path, by_suffix=by_suffix)) is not None:
        raise CubeFileError(f"is {kind.name}, no cube file that is read", file=path, remedy=kind.remedy_for(path))
