"""`deploy run` on a product of any size, line by line."""

import shutil
import time
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from runtime.bundle_files import read_manifest
from runtime.by_lines.memory import planned
from runtime.by_lines.product import restore_product
from runtime.by_lines.survey import Survey
from runtime.by_lines.ways import Ways, refuse_unfit, refuse_ways
from runtime.errors import InputError, MachineError
from runtime.files import read_cube
from runtime.files.disk import available_memory
from runtime.meaning import words
from runtime.products import CubeReader, Reading, format_of, open_cube
from runtime.products.naming import claimed, kind_of

from .. import console
from ..folders import refuse_existing
from .run_cube import ELEMENT_BYTES, ENGINE_BYTES, How, opened, proved

MOST_OF_A_PICTURE = 4
"""Bands that a TIFF of a photograph may have."""
IN_MEMORY = ("envi", "array", "pictures", "geotiff")
"""Formats that were read whole before there were products, and still are where nobody asks otherwise."""


def is_product(bundle: Path, cube: Path, out: Path, how: How) -> bool:
    """Whether a file or folder is restored line by line: it is asked for, no other way reads it, or it is too large."""
    if not cube.exists():
        if how.by_lines or out.suffix.lower() in (".nc", ".zarr"):
            raise InputError("no such file or folder", file=cube, remedy="check the path")
        return False
    found = format_of(cube)
    if found is None:
        return False
    if how.by_lines or found.name not in IN_MEMORY or out.suffix.lower() in (".nc", ".zarr"):
        return True
    if read_manifest(bundle).signature.measured.kind != "cube" or how.bands is not None:
        return False
    if found.name in ("pictures", "geotiff"):
        return not is_picture(cube)
    with open_cube(cube, Reading(how.layout, how.key)) as reader:
        described = reader.description
    if described.quantity == "radiance":
        return True
    if how.metrics == "scene":
        return False
    if out.suffix.lower() in (".tif", ".tiff") and described.shape[0] > MOST_OF_A_PICTURE:
        return True
    needed = ENGINE_BYTES + (ELEMENT_BYTES + 2 * described.dtype.itemsize) * prod(described.shape)
    return needed > available_memory()


def _refuse_unused(cube: Path, how: How) -> None:
    """Refuse what is said of a file whose format tells it itself. Raises InputError."""
    found = format_of(cube)
    for name in ("layout", "key", "missing_chunks"):
        if getattr(how, name) is not None and found is not None and name not in found.takes:
            key = f"--{name.replace('_', '-')}"
            raise InputError(f"means nothing to {found.name} products", file=cube, key=key, remedy="leave it out")


def is_picture(cube: Path) -> bool:
    """Whether a picture is one that `read_cube` takes, such as a photograph."""
    if cube.is_dir():
        return False
    try:
        return read_cube(cube).photograph is not None
    except (InputError, MachineError, ModuleNotFoundError):
        return False


def run_product(bundle: Path, cube: Path, out: Path, how: How) -> dict[str, Any]:
    """Restore a product; returns what `--json` prints."""
    if how.bands is not None:
        raise InputError("is of a cube that is read whole", key="--bands", remedy="leave it out")
    if not out.absolute().parent.is_dir():
        raise InputError("no such folder", file=out, key="--out", remedy="make the folder first")
    for there in claimed(out):
        refuse_existing(there, how.replace)
    _refuse_unused(cube, how)
    manifest = read_manifest(bundle)
    reading = Reading(how.layout, how.key, how.missing_chunks or "refuse")
    with open_cube(cube, reading) as reader:
        described = reader.description
        kind = kind_of(out, described, how.format, ortho=how.ortho)
        ways = Ways(
            reading, how.asked, kind, how.metrics or "frame", how.ortho, how.clip, how.unit, how.prompt, how.engine
        )
        refuse_unfit(manifest, described)
        refuse_ways(described, ways)
        needed = planned(manifest, reader, ways)
    bands, lines, samples = described.shape
    console.say(f"product     {described.format}, {bands} bands x {lines} lines x {samples} samples, {described.dtype}")
    console.say(f"memory      {needed / 2**20:.0f} MiB at most, {available_memory() / 2**20:.0f} MiB are free")
    for note in described.notes:
        console.say(f"note        {note}")
    if how.dry_run:
        return {
            "out": str(out),
            "format": described.format,
            "shape": list(described.shape),
            "kind": kind,
            "memory": needed,
        }
    _refuse_full(prod(described.shape) * (4 if how.unit else described.dtype.itemsize), out)
    began = time.monotonic()
    with opened(bundle, how) as loaded:
        proved(loaded, how)
        with console.progress("restoring") as moved:
            made = restore_product(loaded, cube, out, ways, progress=moved, told=_tell)
        precision = loaded.engine.describe()["computes in"]
    seconds = time.monotonic() - began
    console.say(
        f"restored    {made.frames} frame{'s' * (made.frames != 1)} in {seconds:.2f} s, metrics of each {ways.metrics}"
    )
    if made.missing:
        console.say(f"missing     {words.pixels(made.missing)} without a value: they stay as they are")
    if made.moved:
        console.warn(
            f"{made.moved} restored values equalled a mark of missing pixels and were set to the number next to it"
        )
    for odd in (*made.suspect, *(f"not restored: {why}" for why in made.passed)):
        console.warn(odd)
    if made.saturated:
        console.warn(f"{made.saturated} values do not fit {described.dtype} and were set to its limit")
    first, *others = map(Path, made.files)
    for file in (first, *(other for other in others if first not in other.parents)):
        console.say(f"wrote       {file}", "bold green")
    told = asdict(made)
    told["experts"] = {str(expert): count for expert, count in made.experts.items()}
    told["bad_bands"] = {str(band): why for band, why in told.pop("bad").items()}
    told["memory"] = told.pop("planned")
    return {"out": str(out), "kind": kind, "metrics_of": ways.metrics, "precision": precision, **told}


def _tell(reader: CubeReader, found: Survey) -> None:
    made = found.meaning.conversion
    linear = made.gains is not None or made.offsets is not None
    console.say(f"scale       {words.of_scale(found.meaning.scale_from, made.scale, linear=linear)}")
    for note in found.meaning.notes:
        console.say(f"note        {note}")
    for doubt in found.meaning.doubts:
        console.warn(doubt)


def _refuse_full(needed: int, out: Path) -> None:
    """Refuse before anything is restored what does not fit onto the disk. Raises MachineError."""
    free = shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        raise MachineError(
            f"the restored cube takes {needed / 2**20:.1f} MiB, and {free / 2**20:.1f} are free there",
            file=out,
            key="--out",
            remedy="make room, or write to another disk",
        )
