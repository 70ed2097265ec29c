"""A new NetCDF-4 file of CF conventions, written by HDF5 alone: `[wavelength, y, x]`, where it lies, what it means.

What makes HDF5 a NetCDF-4 file: "NetCDF-4 Format Specification", NetCDF User's Guide, appendix C.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.files.disk import PIECE
from runtime.files.layout import AXES
from runtime.products.cf_bands import band_axis, of_bands
from runtime.products.cf_meaning import BY_BAND
from runtime.products.cf_place import axes_of, mapping_of
from runtime.products.contract import CubeWriter, Quality, Result
from runtime.products.hdf5_out import Hdf5Out
from runtime.products.hdf5_quality import NAMES, make_layers, set_texts
from runtime.products.hdf5_rows import Rows, held
from runtime.products.place_texts import texts_of
from runtime.products.written import check_lines, scale_of

SUFFIX = ".nc"
_CHUNK, _LARGEST = 1 << 20, 8 << 20
"""Bytes of a chunk, and of one whose single line is longer."""
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
_STORED = {"f2": "f4", "b1": "u1"}
"""Types that NetCDF does not have."""


def open_writer(out: Path, result: Result) -> "CfWriter":
    """A NetCDF-4 file with the cube in `reflectance`, `radiance` or `cube`.

    One gain for all bands is `scale_factor`, one offset `add_offset`; those of each band are the variables `gain` and
    `offset`. Bands stand in the file's order; where their wavelengths neither rise nor fall their dimension is `band`.

    Raises:
        CubeFileError: `out` is an input, or the system refused.
        ModuleNotFoundError: h5py is not installed.
    """
    return CfWriter(out, result)


def holds(result: Result) -> int:
    """Bytes that a writer keeps beside the block it is given."""
    kind = _stored(result.dtype)
    return 2 * PIECE + held(result.shape, _chunks(result.shape, kind), kind.itemsize, AXES)


def _stored(kind: np.dtype[Any]) -> np.dtype[Any]:
    stored: np.dtype[Any] = np.dtype(_STORED.get(kind.str[1:], kind)).newbyteorder("=")
    return stored


def _chunks(shape: tuple[int, int, int], kind: np.dtype[Any]) -> tuple[int, int, int]:
    bands, lines, samples = shape
    wide = max(1, min(samples, _LARGEST // (bands * kind.itemsize)))
    return bands, max(1, min(lines, _CHUNK // (bands * wide * kind.itemsize))), wide


class CfWriter(CubeWriter):
    """See `open_writer`."""

    def __init__(self, out: Path, result: Result) -> None:
        from h5py import h5p

        self._result = result
        tracked = h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED
        self._out = Hdf5Out(out, result.source.files, (tracked, tracked))
        try:
            with self._out.writing():
                self._fill(out)
        except BaseException:
            self.close()
            raise

    def _fill(self, out: Path) -> None:
        result = self._result
        self._out.file.attrs["_NCProperties"] = np.bytes_(_versions().encode())
        set_texts(self._out.file, {"Conventions": "CF-1.11", "title": f"{result.source.path.stem}, restored"})
        self._dimensions()
        beside = [*self._of_bands(), *self._of_place()]
        self._cube = Rows(self._make_cube(beside), AXES, out)
        self._layers: tuple[Rows, ...] = ()
        if result.quality:
            layers = make_layers(self._out.file, NAMES, *result.shape[1:])
            for layer in layers:
                self._attach(layer, self._names[1:])
                set_texts(layer, self._placed)
            self._layers = tuple(Rows(layer, AXES[1:], out) for layer in layers)

    def _dimensions(self) -> None:
        """The three dimensions, in their order, with coordinates where there are some."""
        grid = self._result.place.grid
        self._of_band = of_bands(self._result)
        self._names = (band_axis(self._result.stated.wavelengths), "y", "x")
        known = {**(axes_of(grid) if grid else {}), **self._of_band}
        for number, (name, length) in enumerate(zip(self._names, self._result.shape, strict=True)):
            if name in known:
                values, about = known[name]
                made = self._variable(name, values, (), about)
                made.make_scale(name)
            else:
                made = self._out.file.create_dataset(name, (length,), ">f4", track_times=False, track_order=True)
                made.make_scale(f"{_NO_VARIABLE}{length:10d}")
            made.attrs["_Netcdf4Dimid"] = np.int32(number)

    def _of_bands(self) -> list[str]:
        """Variables with a value for each band; returns names of those that are coordinates of the cube."""
        held = {name: one for name, one in self._of_band.items() if name != self._names[0]}
        for name, (values, about) in held.items():
            self._variable(name, values, self._names[:1], about)
        return [name for name in held if name not in ("gain", "offset")]

    def _of_place(self) -> list[str]:
        """Place on a map, or longitudes and latitudes of a sensor's grid; returns names of coordinates of the cube."""
        grid, reader = self._result.place.grid, self._result.reader
        self._placed: dict[str, str] = {}
        self._located: tuple[Rows, ...] = ()
        if grid is not None:
            made = self._out.file.create_dataset("spatial_ref", (), np.int32, track_times=False, track_order=True)
            set_texts(made, mapping_of(grid))
            self._placed["grid_mapping"] = "spatial_ref"
            return []
        # A reader tells places of its own lines alone.
        same = self._result.shape[1:] == self._result.source.shape[1:]
        if reader is None or not same or reader.located(0, 1) is None:
            return []
        layers = []
        for name, standard, unit in (("lat", "latitude", "degrees_north"), ("lon", "longitude", "degrees_east")):
            chunk = (max(1, min(self._result.shape[1], _CHUNK // (8 * self._result.shape[2]))), self._result.shape[2])
            made = self._out.file.create_dataset(
                name, self._result.shape[1:], np.float64, chunks=chunk, fillvalue=np.nan, **_COMPRESSED
            )
            self._attach(made, self._names[1:])
            made.attrs["_FillValue"] = np.array([np.nan])
            set_texts(made, {"standard_name": standard, "units": unit})
            layers.append(Rows(made, AXES[1:], self._out.out))
        self._located = tuple(layers)
        self._placed["coordinates"] = "lat lon"
        return ["lat", "lon"]

    def _make_cube(self, beside: Sequence[str]) -> Any:
        result = self._result
        kind, mark = _stored(result.dtype), result.mark
        fill = None if mark is None else np.array([mark], kind)
        # Radiance in the unit range is none any more; reflectance is.
        of_units = result.quantity == "radiance" and result.unit_range and not result.stated.gains
        quantity = None if of_units else result.quantity
        name = str(quantity) if quantity in ("reflectance", "radiance") else "cube"
        made = self._out.file.create_dataset(
            name,
            result.shape,
            kind,
            chunks=_chunks(result.shape, kind),
            fillvalue=None if fill is None else fill[0],
            **_COMPRESSED,
        )
        self._attach(made, self._names)
        if fill is not None:
            made.attrs["_FillValue"] = fill
        gains, offsets = scale_of(result)
        about: dict[str, Any] = {"long_name": quantity or "cube", "units": None if of_units else result.unit}
        if result.unit is None and quantity == "reflectance":
            about["units"] = "1"
        if "gain" in self._of_band:
            about |= {"comment": BY_BAND, "ancillary_variables": "gain offset"}
        elif gains and (gains[0], offsets[0]) != (1, 0):
            about |= {"scale_factor": gains[0], "add_offset": offsets[0]}
        about |= texts_of(result.place)
        set_texts(made, about | {**self._placed, "coordinates": " ".join(beside)})
        return made

    def _variable(self, name: str, values: NDArray[Any], dimensions: Sequence[str], about: Mapping[str, Any]) -> Any:
        made = self._out.file.create_dataset(name, data=values, track_times=False, track_order=True)
        self._attach(made, dimensions)
        set_texts(made, about)
        return made

    def _attach(self, made: Any, dimensions: Sequence[str]) -> None:
        for axis, name in enumerate(dimensions):
            made.dims[axis].attach_scale(self._out.file[name])

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        """See `CubeWriter`."""
        count, done = cube.shape[1], self._result.shape[1] - self._cube.missing
        assert count <= self._cube.missing
        with self._out.writing():
            self._cube.append(cube)
            if self._layers:
                assert quality is not None
                for rows, layer in zip(self._layers, (quality.seen, quality.expert), strict=True):
                    rows.append(layer[None])
            reader = self._result.reader
            if self._located and reader is not None and (found := reader.located(done, done + count)) is not None:
                for rows, degrees in zip(self._located, reversed(found), strict=True):
                    rows.append(degrees[None])

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        """See `CubeWriter`."""
        try:
            lines = self._result.shape[1]
            check_lines(lines - self._cube.missing, lines, self._out.out)
            with self._out.writing():
                self._out.sign(provenance, None)
            self._out.finish()
        finally:
            self.close()
        return (self._out.out,)

    def close(self) -> None:
        """See `CubeWriter`."""
        self._out.close()


_COMPRESSED: Mapping[str, Any] = {
    "compression": "gzip",
    "compression_opts": 4,
    "shuffle": True,
    "track_times": False,
    "track_order": True,
}


def _versions() -> str:
    import h5py

    return f"version=2,h5py={h5py.version.version},hdf5={h5py.version.hdf5_version}"
