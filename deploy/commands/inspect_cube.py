"""`deploy inspect CUBE`: what the numbers of a cube file are taken to mean, and what is doubtful about them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import meaning_for
from runtime.errors import CubeError, CubeFileError, GateError
from runtime.files import READERS, CubeFile, Photograph, read_cube
from runtime.files.envi import pair_of
from runtime.files.photographs import is_photograph
from runtime.manifest import Manifest
from runtime.meaning import Asked, Known, Mark, Meaning, meaning_of, words
from runtime.meaning.marks import marked, measured
from runtime.restore import check_fits

from .. import console

ROWS = 16
"""Of the table for people; neighbouring bands share one."""
NOBODY = "nobody"
GREY = "to a network that takes one band this is one, whose scale is not the type's: say --bundle BUNDLE"


def is_cube(path: Path) -> bool:
    """Whether this names a cube file: by its suffix, by the header that lies beside it, or as a photograph begins."""
    if path.suffix.lower() in READERS:
        return not path.is_dir()
    try:
        return path.is_file() and bool(pair_of(path))
    except CubeFileError:
        return path.stat().st_size > 0 and is_photograph(path)


def inspect_cube(
    path: Path, asked: Asked, layout: str | None, key: str | None, bundle: Manifest | None = None
) -> dict[str, Any]:
    """Show what a cube file is taken to mean, to a bundle where one is given; returns what `--json` prints.

    Raises:
        CubeFileError: it cannot be read.
        GateError: something is doubtful; `report` has all of it.
    """
    # As `deploy run` reads it: what a coded aperture measures is one plane.
    plane = bundle is not None and bundle.signature.is_area
    source = read_cube(path, layout=layout, key=key, plane=plane)
    largest = float(np.max(np.abs(source.cube, dtype=np.float64), initial=1, where=np.isfinite(source.cube)))
    try:
        if bundle is None:
            # Nobody's scale is refused here: integers may get one from the bundle.
            found = meaning_of(source.cube, source.stated, asked, Known(NOBODY, largest))
            if source.photograph is not None and source.photograph.grey and len(source.cube) > 1:
                found = replace(found, notes=(*found.notes, GREY))
        else:
            check_fits(source.cube.shape, bundle.signature)
            found = meaning_for(bundle, source.cube, source.stated, asked)
        meaning: Meaning | None = found
        doubts = list(found.doubts)
    except CubeError as error:
        meaning = None
        doubts = [*source.doubts, error.one_line()]
    marks = meaning.marks if meaning else tuple(Mark(m, m, "file") for m in source.stated.marks)
    bands = _bands(source, marks)
    told = _told(source, meaning, marks) | {"bands": bands, "doubts": doubts}
    _show(source, meaning, marks, bands)
    for doubt in doubts:
        console.warn(doubt)
    if doubts:
        doubtful = GateError(
            f"{len(doubts)} doubt{'s' * (len(doubts) > 1)} about its numbers",
            file=path,
            remedy="read the warnings, and say what is meant with the flags that they name",
        )
        doubtful.report = told
        raise doubtful
    return told


def _bands(source: CubeFile, marks: tuple[Mark, ...]) -> list[dict[str, Any]]:
    """Smallest and largest measured value of every band, and the share that is missing."""
    found = []
    for number, band in enumerate(source.cube, 1):
        values = measured(band, marks)
        low, high = (float(values.min()), float(values.max())) if values.size else (None, None)
        missing = float(np.mean(marked(band, marks) | ~np.isfinite(band)))
        found.append({"band": number, "min": _finite(low), "max": _finite(high), "missing": round(missing, 6)})
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _told(source: CubeFile, meaning: Meaning | None, marks: tuple[Mark, ...]) -> dict[str, Any]:
    stated, nobody = source.stated, meaning is None or meaning.scale_from == NOBODY
    return {
        "file": str(source.path),
        "format": source.format,
        "shape": list(source.cube.shape),
        "type": str(source.cube.dtype),
        "scale": None if nobody or meaning is None else meaning.conversion.scale,
        "scale_from": None if nobody or meaning is None else meaning.scale_from,
        "gains": list(stated.gains) if stated.gains else None,
        "offsets": list(stated.offsets) if stated.offsets else None,
        "marks": [{"low": words.number(m.low), "high": words.number(m.high), "from": m.whence} for m in marks],
        "missing_pixels": int(meaning.missing.sum()) if meaning else None,
        "bad_bands": {band + 1: why for band, why in meaning.bad.items()} if meaning else {},
        "wavelengths": list(stated.wavelengths) if stated.wavelengths else None,
        "photograph": _beside(source.photograph) if source.photograph else None,
        "notes": list(meaning.notes) if meaning else [],
    }


def _show(source: CubeFile, meaning: Meaning | None, marks: tuple[Mark, ...], bands: list[dict[str, Any]]) -> None:
    shape, nm = source.cube.shape, source.wavelengths
    named = ", ".join(f"{words.number(mark.value)} (from the {mark.whence})" for mark in marks)
    for label, text in (
        ("cube", f"{shape[0]} bands x {shape[1]} lines x {shape[2]} samples, {source.cube.dtype}, {source.format}"),
        ("wavelengths", f"{nm[0]:g} to {nm[-1]:g} nm" if nm else "not told"),
        ("scale", _scale(meaning)),
        ("missing", f"{named or 'no mark'}; {words.pixels(int(meaning.missing.sum())) if meaning else 'not counted'}"),
        ("bad bands", words.bands(meaning.bad) if meaning and meaning.bad else "none"),
        *((("photograph", _beside(source.photograph)),) if source.photograph else ()),
        *(("note", note) for note in (meaning.notes if meaning else ())),
    ):
        console.say(f"{label:<11} {text}")
    step = -(-len(bands) // ROWS)
    rows = []
    for first in range(0, len(bands), step):
        part = bands[first : first + step]
        low, high = ([b[key] for b in part if b[key] is not None] for key in ("min", "max"))
        which = f"{first + 1}" if len(part) == 1 else f"{first + 1} to {first + len(part)}"
        share = max(b["missing"] for b in part)
        rows.append((which, f"{min(low):g}" if low else "-", f"{max(high):g}" if high else "-", f"{100 * share:.3g} %"))
    console.table("numbers as they are stored", ("bands", "min", "max", "missing at most"), rows)


def _beside(photograph: Photograph) -> str:
    """What a photograph's file holds beside its numbers."""
    there = {
        "grey": photograph.grey,
        f"turned upright by orientation {photograph.orientation}": photograph.orientation != 1,
        "transparency": photograph.alpha is not None,
        "a colour profile": bool(photograph.icc),
        "EXIF": bool(photograph.exif),
        "XMP": bool(photograph.xmp),
    }
    return ", ".join((photograph.kind.upper(), *(what for what, so in there.items() if so)))


def _scale(meaning: Meaning | None) -> str:
    if meaning is None:
        return "not clear, see below"
    if meaning.scale_from == NOBODY:
        return "not told: the bundle's scale is taken, or --scale"
    made = meaning.conversion
    linear = made.gains is not None or made.offsets is not None
    return words.of_scale(meaning.scale_from, made.scale, linear=linear)
