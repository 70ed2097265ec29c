"""One strict way to open a TIFF with rasterio (GDAL): this file is read, nothing beside it and nothing it names."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools
from runtime.closing import Closing
from runtime.errors import CubeFileError, DeployError
from runtime.files.disk import mark_of, reason
from runtime.products.tiff_tree import layout_of

OPTIONS = {
    # Files beside it change what it says: .aux.xml, .ovr, .msk, world files, RPC texts.
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_NUM_THREADS": "1",
}
CACHE = 64 << 20
"""Bytes of decoded pieces that GDAL keeps, of all files of the process."""
_REFERS = ("OVERVIEWS", "PROXYOVERVIEWREQUEST")
"""Domains of metadata that name other files for GDAL to open."""
_opening = Lock()
_within, _before = 0, (sys.excepthook, sys.unraisablehook)


@dataclass(frozen=True)
class ImagePart:
    """A TIFF that bands of a cube lie in.

    Attributes:
        path: of the TIFF.
        bands: those of its bands, from 1, that are the cube's next ones, in order.
    """

    path: Path
    bands: tuple[int, ...]


@contextmanager
def strict(**more: str) -> Iterator[Any]:
    """The module `rasterio` under `OPTIONS` and `more`, which end with the block; for reading and for writing.

    In the main thread GDAL's options hold for all threads meanwhile, elsewhere for this thread alone. The bound of
    GDAL's cache is one for the process and stays.

    Raises:
        ModuleNotFoundError: rasterio is not installed.
    """
    import rasterio
    import rasterio.env

    with _opening:
        if int(rasterio.env.get_gdal_config("GDAL_CACHEMAX") or CACHE + 1) > CACHE:
            rasterio.env.set_gdal_config("GDAL_CACHEMAX", CACHE)
    with _quiet(), rasterio.Env(**OPTIONS, **more):
        yield rasterio


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep rasterio from writing tracebacks for messages of GDAL that hold bytes of a damaged file.

    What it cannot decode as it logs is shown by both hooks of the process as an exception that is ignored; the error
    itself is raised all the same. The first of several threads sets the hooks, the last puts those before back.
    """
    global _within, _before
    with _opening:
        if not _within:
            _before = sys.excepthook, sys.unraisablehook
            sys.excepthook, sys.unraisablehook = _excepted, _unraisable
        _within += 1
    try:
        yield
    finally:
        with _opening:
            _within -= 1
            if not _within:
                sys.excepthook, sys.unraisablehook = _before


def _excepted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind is not UnicodeDecodeError:
        _before[0](kind, error, trace)


def _unraisable(unraisable: Any) -> None:
    if unraisable.exc_type is not UnicodeDecodeError or unraisable.object != "rasterio._env.log_error":
        _before[1](unraisable)


class Tiff(Closing):
    """An open TIFF of one image that stores all that it claims.

    Attributes:
        path: as it was named.
        layout: how it lies on the disk.

    Raises:
        CubeFileError: see `layout_of`; GDAL refuses it, reads it otherwise, or it names other files.
        ModuleNotFoundError: rasterio is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = mark_of(path)
        self.layout = layout_of(path)
        # Long strips of one band are read line by line so, short ones are read slower.
        self._direct = {"GTIFF_DIRECT_IO": "YES" if self.layout.loose and self.layout.block[0] > 1 else "NO"}
        self._file: Any = None
        with self.asking():
            pass

    @contextmanager
    def asking(self) -> Iterator[Any]:
        """rasterio's dataset, opened anew after a `rest`.

        Raises:
            CubeFileError: what it is asked in the block cannot be read, or the file has changed since it was opened.
        """
        with strict(**self._direct) as rasterio:
            try:
                if self._file is None:
                    self._file = self._opened(rasterio)
                if mark_of(self.path) != self._mark:
                    raise CubeFileError(
                        "was changed since it was opened", file=self.path, remedy="read it again when it is whole"
                    )
                yield self._file
            except (DeployError, ModuleNotFoundError):
                raise
            # GDAL's exceptions have no public base, and the bytes of a stranger may raise any other.
            except Exception as error:
                problem = f"GDAL cannot read it: {reason(error.__cause__ or error)}"
                raise CubeFileError(problem, file=self.path, remedy="copy the file again") from error

    def _opened(self, rasterio: Any) -> Any:
        target = self.path.absolute()
        if str(target).startswith("/vsi"):
            raise CubeFileError("GDAL takes this path for another kind", file=target, remedy="rename the folder")
        # Filters of warnings are the process's, too.
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            file = rasterio.open(target, driver="GTiff", sharing=False)
        try:
            self._check(file)
        except BaseException:
            file.close()
            raise
        return file

    def _check(self, file: Any) -> None:
        seen = (file.count, file.height, file.width), {np.dtype(name) for name in file.dtypes}
        if seen != (self.layout.shape, {self.layout.dtype}):
            found = f"{file.count} x {file.height} x {file.width} of {' and '.join(sorted(set(file.dtypes)))}"
            raise CubeFileError(
                "GDAL sees another image than its tags tell", file=self.path, value=found, remedy="write it anew"
            )
        if refers := [name for name in file.tag_namespaces() if name.upper() in _REFERS]:
            raise CubeFileError(
                "its metadata names other files",
                file=self.path,
                key=refers[0],
                remedy="write it anew without them: gdal_translate -nomd IN.tif OUT.tif",
            )

    def read_into(self, out: NDArray[Any], bands: Sequence[int], start: int, left: int = 0) -> None:
        """Lines from `start` and samples from `left` of bands (from 1) into [bands, lines, samples], in one call.

        Raises:
            CubeFileError: they cannot be read, or the file has changed since it was opened.
        """
        with self.asking() as file:
            file.read(list(bands), out=out, window=_window(left, start, left + out.shape[2], start + out.shape[1]))

    def blank(self, band: int | None, start: int, stop: int) -> Bools:
        """Pixels [stop - start, samples] where this band of opacities, or the file's own mask, is 0."""
        window = _window(0, start, self.layout.shape[2], stop)
        with self.asking() as file:
            found = file.read_masks(1, window=window) if band is None else file.read(band, window=window)
        return np.asarray(found == 0)

    def rest(self) -> None:
        """Close the file until it is asked again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self.rest()


def _window(left: int, start: int, right: int, stop: int) -> Any:
    from rasterio.windows import Window

    return Window(left, start, right - left, stop - start)
