"""A new NetCDF-4 file of CF conventions, written by HDF5 alone: `[wavelength, y, x]`, where it lies, what it means.

What makes HDF5 a NetCDF-4 file: "NetCDF-4 Format Specification", NetCDF User's Guide, appendix C.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import PIECE
from runtime.files.layout import AXES
from runtime.products.cf_meaning import BY_BAND
from runtime.products.cf_place import axes_of, mapping_of
from runtime.products.contract import CubeWriter, Quality, Result
from runtime.products.hdf5_out import Hdf5Out
from runtime.products.hdf5_quality import NAMES, make_layers, set_texts
from runtime.products.hdf5_rows import Rows, held
from runtime.products.place_texts import texts_of

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
                self._fill(out.parent)
        except BaseException:
            self.close()
            raise

    def _fill(self, folder: Path) -> None:
        result = self._result
        self._out.file.attrs["_NCProperties"] = np.bytes_(_versions().encode())
        set_texts(self._out.file, {"Conventions": "CF-1.11", "title": f"{result.source.path.stem}, restored"})
        self._dimensions()
        beside = [*self._of_bands(), *self._of_place()]
        self._cube = Rows(self._make_cube(beside), AXES, folder)
        self._layers: tuple[Rows, ...] = ()
        if result.quality:
            layers = make_layers(self._out.file, NAMES, *result.shape[1:])
            for layer in layers:
                self._attach(layer, self._names[1:])
                set_texts(layer, self._placed)
            self._layers = tuple(Rows(layer, AXES[1:], folder) for layer in layers)

    def _dimensions(self) -> None:
        """The three dimensions, in their order, with coordinates where there are some."""
        stated, grid = self._result.stated, self._result.place.grid
        waves = stated.wavelengths
        self._names = ("band" if waves is None or not _one_way(waves) else "wavelength", "y", "x")
        axes = axes_of(grid) if grid else {}
        known = {**axes, "wavelength": (waves, _WAVELENGTH)}
        for number, (name, length) in enumerate(zip(self._names, self._result.shape, strict=True)):
            if name in known:
                values, about = known[name]
                made = self._variable(name, np.array(values, np.float64), (), about)
                made.make_scale(name)
            else:
                made = self._out.file.create_dataset(name, (length,), ">f4", track_times=False, track_order=True)
                made.make_scale(f"{_NO_VARIABLE}{length:10d}")
            made.attrs["_Netcdf4Dimid"] = np.int32(number)

    def _of_bands(self) -> list[str]:
        """Variables with a value for each band; returns names of those that are coordinates of the cube."""
        stated, band, beside = self._result.stated, self._names[:1], []
        if stated.wavelengths is not None and band == ("band",):
            self._variable("wavelength", np.array(stated.wavelengths, np.float64), band, _WAVELENGTH)
            beside.append("wavelength")
        if self._result.fwhm is not None:
            about = {"long_name": "full width at half maximum", "units": "nm"}
            self._variable("fwhm", np.array(self._result.fwhm, np.float64), band, about)
            beside.append("fwhm")
        if stated.bad:
            good = np.ones(self._result.shape[0], np.uint8)
            good[list(stated.bad)] = 0
            flags = {"flag_values": np.array([0, 1], np.uint8), "flag_meanings": "bad good"}
            self._variable("good_wavelengths", good, band, {"long_name": "bands that are good", **flags})
            beside.append("good_wavelengths")
        if self._by_band():
            for name, values in zip(("gain", "offset"), _pairs(self._result), strict=True):
                self._variable(name, values, band, {"long_name": f"{name} of the band"})
        return beside

    def _by_band(self) -> bool:
        return any(len(set(values.tolist())) > 1 for values in _pairs(self._result))

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
            layers.append(Rows(made, AXES[1:], self._out.out.parent))
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
        gains, offsets = _pairs(result)
        about: dict[str, Any] = {"long_name": quantity or "cube", "units": None if of_units else result.unit}
        if result.unit is None and quantity == "reflectance":
            about["units"] = "1"
        if self._by_band():
            about |= {"comment": BY_BAND, "ancillary_variables": "gain offset"}
        elif len(gains) and (gains[0], offsets[0]) != (1, 0):
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
            if missing := self._cube.missing:
                raise CubeFileError(f"{missing} of its lines were not written", file=self._out.out, remedy="write all")
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
_WAVELENGTH = {"standard_name": "radiation_wavelength", "long_name": "wavelength", "units": "nm"}


def _one_way(values: Sequence[float]) -> bool:
    """Whether they rise, or fall, as CF asks of a dimension's own coordinate."""
    steps = [right - left for left, right in pairwise(values)]
    return all(step > 0 for step in steps) or all(step < 0 for step in steps)


def _pairs(result: Result) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gains and offsets to the physical value, one per band; empty where nobody says."""
    stated, bands = result.stated, result.shape[0]
    gains, offsets = stated.gains, stated.offsets
    if gains is None and offsets is None:
        gains, offsets = stated.reflectance_gains, stated.reflectance_offsets
    if gains is None and offsets is None:
        if not stated.scale:
            return np.empty(0), np.empty(0)
        gains = (1 / stated.scale,) * bands
    return np.array(gains or (1.0,) * bands), np.array(offsets or (0.0,) * bands)


def _versions() -> str:
    import h5py

    return f"version=2,h5py={h5py.version.version},hdf5={h5py.version.hdf5_version}"
