"""What a TIFF says of its bands and its place, in the ways in which GDAL, EnMAP-Box and others write it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from runtime.errors import CubeFileError
from runtime.files.envi_header import NANOMETRES, nanometres_per
from runtime.files.envi_text import normalised
from runtime.products.contract import Gcp, Grid, Place, Quantity
from runtime.products.gdal import Tiff
from runtime.products.place_texts import RPC
from runtime.products.texts import finite, quantity_of
from runtime.stated import Stated

_NAMED = re.compile(r"(?:^|[\s(])(\d+(?:\.\d*)?)\s*([^\W\d_]+)\s*\)?\s*$", re.ASCII)
"""A name such as `band 1 (418.24 Nanometers)` or `418.24 nm`."""
_OF_LIGHT = (1.0, 1e3, 0.1)
"""Nanometres per unit, of units in which names of bands tell wavelengths: 10 m is none."""
_QUANTITIES: Mapping[str, Quantity] = {"reflectance": "reflectance", "radiance": "radiance", "counts": "counts"}


@dataclass(frozen=True)
class Told:
    """What a TIFF says.

    Attributes:
        bands: of its bands, from 1, those that are no opacity.
        opacity: the band, from 1, that is 0 where nothing is.
        stated, fwhm, quantity, unit, place, notes: as `Description` has them.
    """

    bands: tuple[int, ...]
    opacity: int | None
    stated: Stated
    fwhm: tuple[float, ...] | None
    quantity: Quantity | None
    unit: str | None
    place: Place
    notes: tuple[str, ...]


def told_by(tiff: Tiff) -> Told:
    """What an open TIFF says of its numbers.

    Raises:
        CubeFileError: wavelengths, widths or scales of some bands only; such as are no finite numbers; a scale of 0.
    """
    with tiff.asking() as file:
        count, kinds = file.count, [kind.name for kind in file.colorinterp]
        tags = [{normalised(key): text for key, text in file.tags(band).items()} for band in range(1, count + 1)]
        imagery = [file.tags(band, ns="IMAGERY") for band in range(1, count + 1)]
        envi = {normalised(key): text for key, text in file.tags(ns="ENVI").items()}
        whole = {normalised(key): text for key, text in file.tags().items()}
        names, units = file.descriptions, file.units
        scales, offsets = file.scales, file.offsets
        place = _place(file)
    opacities = [band for band, kind in enumerate(kinds, 1) if kind == "alpha"]
    if len(opacities) > 1 or count == len(opacities):
        raise CubeFileError(
            "has several bands of opacity, or nothing else",
            file=tiff.path,
            key="ExtraSamples",
            value=len(opacities),
            remedy="write the cube's bands alone: gdal_translate -b",
        )
    bands = tuple(band for band in range(1, count + 1) if band not in opacities)

    def of(values: Sequence[Any]) -> list[Any]:
        return [values[band - 1] for band in bands]

    reader = _Bands(tiff, of(tags), of(imagery), of(names), envi, whole)
    wavelengths, fwhm = reader.spectrum()
    gains, lifts = _scales(tiff, of(scales), of(offsets), known=wavelengths is not None)
    unit = reader.same("units") or reader.same("unit") or next(iter({text or "" for text in of(units)}), "")
    unit = unit if {text or "" for text in of(units)} <= {"", unit} else ""
    said = whole.get("quantity", "").casefold()
    marks = () if tiff.layout.nodata is None else (tiff.layout.nodata,)
    notes = []
    if opacities:
        notes.append(f"band {opacities[0]} is opacity: pixels where it is 0 are missing")
    if tiff.layout.mask:
        notes.append("pixels that its own mask leaves out are missing")
    return Told(
        bands=bands,
        opacity=opacities[0] if opacities else None,
        stated=Stated(
            gains=gains,
            offsets=lifts,
            marks=marks,
            bad=reader.bad(),
            wavelengths=wavelengths,
            axes=True,
            doubts=tuple(reader.doubts),
        ),
        fwhm=fwhm,
        quantity=_QUANTITIES.get(said) or quantity_of(unit),
        unit=unit or None,
        place=place,
        notes=tuple(notes),
    )


@dataclass
class _Bands:
    """The tags of the bands of a cube."""

    tiff: Tiff
    tags: list[dict[str, str]]
    imagery: list[dict[str, str]]
    names: list[str | None]
    envi: dict[str, str]
    whole: dict[str, str]

    def __post_init__(self) -> None:
        self.doubts: list[str] = []

    def spectrum(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Wavelengths and widths in nm, by the first way that tells them."""
        unit = self.same("wavelength units") or self.same("wavelength_units") or self.same("wavelength_unit")
        ways = (
            ("wavelength", "fwhm", unit, self.tags),
            ("CENTRAL_WAVELENGTH_UM", "FWHM_UM", "um", self.imagery),
            ("wavelength", "fwhm", self.envi.get("wavelength units") or self.envi.get("wavelength_units") or "", None),
        )
        for key, wide, unit, where in ways:
            wavelengths = self._listed(key) if where is None else self._numbers(where, key)
            if wavelengths is None:
                continue
            widths = self._listed(wide) if where is None else self._numbers(where, wide, zero=True)
            if (factor := nanometres_per(unit, wavelengths)) is None:
                self.doubts.append(f"{key}: the unit {unit!r} is not known; they are left out")
                return None, None
            return _times(wavelengths, factor), None if widths is None else _times(widths, factor)
        return self._by_name(), None

    def _numbers(self, where: list[dict[str, str]], key: str, *, zero: bool = False) -> tuple[float, ...] | None:
        texts = [tags.get(key) for tags in where]
        return None if not any(texts) else self._checked(key, texts, zero=zero)

    def _listed(self, key: str) -> tuple[float, ...] | None:
        text = self.envi.get(key, "").strip().strip("{}").strip()
        return self._checked(key, re.split(r"\s*,\s*|\s+", text), zero=key == "fwhm") if text else None

    def _checked(self, key: str, texts: Sequence[str | None], *, zero: bool) -> tuple[float, ...]:
        values = [value for value in map(finite, texts) if value is not None and (value > 0 or (zero and value == 0))]
        if len(values) != len(self.tags) or len(texts) != len(self.tags) or max(values) > 1e12:
            raise CubeFileError(
                f"{len(values)} plausible values for {len(self.tags)} bands",
                file=self.tiff.path,
                key=key,
                value=next((text for text in texts if text is not None and finite(text) is None), None),
                remedy="give every band one, or delete all of these tags",
            )
        return tuple(values)

    def _by_name(self) -> tuple[float, ...] | None:
        found = [_NAMED.search(name or "") for name in self.names]
        units = {normalised(match.group(2)) for match in found if match}
        factor = NANOMETRES.get(next(iter(units))) if len(units) == 1 else None
        if not all(found) or factor not in _OF_LIGHT:
            return None
        values = tuple(float(match.group(1)) for match in found if match and len(match.group(1)) <= 32)
        return _times(values, factor) if len(values) == len(self.names) and min(values) > 0 else None

    def same(self, key: str) -> str:
        """What all bands, or the file, say of `key`; nothing where they differ."""
        texts = {tags[key] for tags in self.tags if key in tags} or {self.whole.get(key, "")}
        return texts.pop().strip() if len(texts) == 1 else ""

    def bad(self) -> tuple[int, ...]:
        listed = re.split(r"\s*,\s*|\s+", self.envi.get("bbl", "").strip().strip("{}").strip())
        texts = [tags.get("bbl") for tags in self.tags]
        if not any(texts) and len(listed) == len(self.tags):
            texts = list(listed)
        found = tuple(band for band, text in enumerate(texts) if finite(text) == 0)
        # A list that calls every band bad was never filled in.
        return found if len(found) < len(texts) else ()


def _times(values: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in values)


def _scales(
    tiff: Tiff, scales: Sequence[float], offsets: Sequence[float], *, known: bool
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Gains and offsets to the physical value, None where they change nothing."""
    for band, (scale, offset) in enumerate(zip(scales, offsets, strict=True), start=1):
        if scale == 0 or not isfinite(scale) or not isfinite(offset):
            raise CubeFileError(
                f"band {band} has a scale or an offset that no number can go through",
                file=tiff.path,
                key="scale",
                value=f"{scale:g}, offset {offset:g}",
                remedy="set them with gdal_edit.py -scale and -offset",
            )
    plain = [scale == 1 and offset == 0 for scale, offset in zip(scales, offsets, strict=True)]
    if all(plain):
        return None, None
    if any(plain) and not known:
        raise CubeFileError(
            f"{sum(plain)} of {len(plain)} bands have no scale, and nothing tells which bands are the cube's",
            file=tiff.path,
            key="scale",
            value=f"none of band {plain.index(True) + 1}",
            remedy="tag the bands with their wavelength, or write the cube's bands alone: gdal_translate -b",
        )
    return tuple(map(float, scales)), tuple(map(float, offsets)) if any(offsets) else None


def _place(file: Any) -> Place:
    points, crs = file.gcps
    grid = None
    if file.crs is not None and not file.transform.is_identity:
        grid = Grid(file.crs.to_wkt(), tuple(file.transform.to_gdal()), file.height, file.width)
    return Place(
        grid=grid,
        gcps=tuple(Gcp(point.row, point.col, point.x, point.y, point.z or 0.0) for point in points),
        gcp_crs=crs.to_wkt() if points and crs is not None else None,
        rpc={key: text for key, text in file.tags(ns="RPC").items() if RPC.fullmatch(key)},
        area=file.tags().get("AREA_OR_POINT", "Area") != "Point",
    )
