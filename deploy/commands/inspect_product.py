"""`deploy inspect PRODUCT`: what a product is, without its pixels; with a bundle, what its numbers mean to it."""

from pathlib import Path
from typing import Any

from runtime.by_lines.product import judged
from runtime.errors import CubeError, GateError
from runtime.manifest import Manifest
from runtime.meaning import Asked, words
from runtime.products import Reading, format_of, open_cube
from runtime.products.contract import CubeReader, Description
from runtime.products.provenance import provenance_of

from .. import console
from .run_product import is_picture

WHOLE = ("envi", "array")
"""Formats that `deploy inspect` reads whole, band by band."""


def is_product(path: Path) -> bool:
    """Whether this is a product that is described by itself."""
    found = format_of(path) if path.exists() else None
    return found is not None and found.name not in WHOLE and not is_picture(path)


def inspect_product(path: Path, asked: Asked, reading: Reading, bundle: Manifest | None) -> dict[str, Any]:
    """Show what a product is; returns what `--json` prints.

    Raises:
        CubeFileError: it cannot be read.
        GateError: something is doubtful; `report` has all of it.
    """
    # Before it is opened: HDF5 takes no second opening.
    made = provenance_of(path)
    with open_cube(path, reading) as reader:
        described = reader.description
        told = _told(described) | {"provenance": made}
        for label, text in _lines(described):
            console.say(f"{label:<11} {text}")
        if made is not None:
            console.say(
                f"restored    by {made.get('program')} {made.get('version')}, bundle {str(made.get('bundle'))[:12]}"
            )
        doubts = list(described.stated.doubts)
        if bundle is not None:
            doubts = _meant(reader, asked, bundle, told)
    for doubt in doubts:
        console.warn(doubt)
    told["doubts"] = doubts
    if doubts:
        doubtful = GateError(
            f"{len(doubts)} doubt{'s' * (len(doubts) > 1)} about its numbers",
            file=path,
            remedy="read the warnings, and say what is meant with the flags that they name",
        )
        doubtful.report = told
        raise doubtful
    return told


def _meant(reader: CubeReader, asked: Asked, bundle: Manifest, told: dict[str, Any]) -> list[str]:
    """Say and keep what its numbers mean to a bundle; the doubts."""
    try:
        with console.progress("looking") as moved:
            found = judged(bundle, reader, asked, moved)
    except CubeError as error:
        return [error.one_line()]
    meaning, made = found.meaning, found.meaning.conversion
    linear = made.gains is not None or made.offsets is not None
    console.say(f"scale       {words.of_scale(meaning.scale_from, made.scale, linear=linear)}")
    console.say(f"missing     {words.pixels(found.missing)}")
    for note in meaning.notes:
        console.say(f"note        {note}")
    told |= {
        "scale": made.scale,
        "scale_from": meaning.scale_from,
        "missing_pixels": found.missing,
        "bad_bands": {str(band + 1): why for band, why in meaning.bad.items()},
    }
    return list(meaning.doubts)


def _told(described: Description) -> dict[str, Any]:
    stated, place = described.stated, described.place
    return {
        "file": str(described.path),
        "format": described.format,
        "cube": described.title,
        "shape": list(described.shape),
        "type": str(described.dtype),
        "block_lines": described.block,
        "quantity": described.quantity,
        "unit": described.unit,
        "wavelengths": list(stated.wavelengths) if stated.wavelengths else None,
        "fwhm": list(described.fwhm) if described.fwhm else None,
        "gains": list(stated.gains) if stated.gains else None,
        "offsets": list(stated.offsets) if stated.offsets else None,
        "scale": stated.scale,
        "marks": [str(mark) for mark in stated.marks],
        "bad_bands": {str(band + 1): "marked bad" for band in stated.bad},
        "grid": None if place.grid is None else {"crs": place.grid.crs, "transform": list(place.grid.transform)},
        "ortho": None if place.ortho is None else {"lines": place.ortho.lines, "samples": place.ortho.samples},
        "files": [str(file) for file in described.files],
        "notes": list(described.notes),
    }


def _lines(described: Description) -> list[tuple[str, str]]:
    shape, stated, nm = described.shape, described.stated, described.stated.wavelengths
    size = (
        f"{shape[0]} bands x {shape[1]} lines x {shape[2]} samples, {described.dtype}, read by {described.block} lines"
    )
    found = [
        ("product", f"{described.format}{f', {described.title}' if described.title else ''}"),
        ("cube", size),
        (
            "numbers",
            f"{described.quantity or 'nobody says what they are'}{f', {described.unit}' if described.unit else ''}",
        ),
        (
            "wavelengths",
            f"{min(nm):g} to {max(nm):g} nm{'' if list(nm) == sorted(nm) else ', not in order'}" if nm else "not told",
        ),
        ("scale", _scale(described)),
        ("missing", ", ".join(words.number(mark) for mark in stated.marks) or "no mark"),
        ("bad bands", words.bands(stated.bad) if stated.bad else "none told"),
        ("place", _place(described)),
        ("files", f"{len(described.files)}, the first {described.files[0].name}"),
    ]
    return [*found, *(("note", note) for note in described.notes)]


def _scale(described: Description) -> str:
    stated = described.stated
    if stated.gains or stated.offsets:
        gains, offsets = set(stated.gains or (1.0,)), set(stated.offsets or (0.0,))
        if len(gains) == len(offsets) == 1:
            return f"a number times {gains.pop():g} plus {offsets.pop():g} is a physical value"
        every = f"gains of {min(gains):g} to {max(gains):g}, offsets of {min(offsets):g} to {max(offsets):g}"
        return f"{every}, one for each band"
    return f"{stated.scale:g} stands for 1.0" if stated.scale is not None else "not told"


def _place(described: Description) -> str:
    place = described.place
    found = [
        *([f"a map grid, steps of {abs(place.grid.transform[1]):g}"] if place.grid else []),
        *([f"{len(place.gcps)} points"] if place.gcps else []),
        *(["rational polynomials"] if place.rpc else []),
        *([f"a lookup table to a map of {place.ortho.lines} x {place.ortho.samples}"] if place.ortho else []),
    ]
    return ", ".join(found) or "not told"
