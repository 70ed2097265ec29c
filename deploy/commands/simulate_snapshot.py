"""`deploy simulate --snapshot`: what a coded-aperture spectrometer records of a scene, with the truth beside it."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays import Float32
from runtime.errors import CubeFileError, InputError
from runtime.files import read_cube, write_cube, written_files
from runtime.files.disk import refuse_inputs
from runtime.files.envi import pair_of
from runtime.files.envi_text import listed
from runtime.files.photographs import SUFFIXES
from runtime.meaning import Asked, meaning_of
from runtime.scaling import Conversion
from runtime.simulation import cassi
from runtime.simulation.simulator import simulate_scene

from .. import console
from ..folders import refuse_cube_output

SCALE = 30000.0
"""Number of a picture that stands for 1.0: a measurement may reach 2."""


def simulate_snapshot(
    out: Path,
    mask: str | None,
    scene: Path | None,
    scale: float | None,
    noise: str | None,
    seed: int,
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Write the measurement to `out`, the truth and a random mask beside it; returns what `--json` prints.

    Args:
        out: ENVI, .npy or a picture of 16 bits.
        mask: a file, or random:SEED[,LINESxSAMPLES].
        scene: a cube with wavelengths, the first lines and samples of which are seen; None simulates one.
        scale: number that stands for 1.0 in it.
        noise: ELECTRONS,READ; None for none.
        seed: of a simulated scene, and of the noise.
        replace: whether something may be there.

    Raises:
        InputError: no mask, or an argument that is none; the scene is smaller than the mask.
        DeployError: what `read_cube`, `read_mask` and `write_cube` raise.
    """
    if mask is None:
        raise InputError(
            "a snapshot spectrometer has a mask", key="--mask", remedy="give its file, or random:1 for one of chance"
        )
    if scale is not None and scene is None:
        raise InputError("is of --scene alone", key="--scale", remedy="leave it out, or give a --scene")
    electrons = None if noise is None else _noise(noise)
    picture = out.suffix.lower() in SUFFIXES
    files = {"out": out, "truth": out.with_name(f"{out.stem}-truth{'.hdr' if picture else out.suffix}")}
    if mask.startswith(cassi.RANDOM):
        files["mask"] = out.with_name(f"{out.stem}-mask.npy")
    read = [*_parts(Path(mask)), *(() if scene is None else _parts(scene))]
    for file in files.values():
        refuse_cube_output(file, replace)
        for written in written_files(file):
            refuse_inputs(written, read)
    aperture = cassi.mask_of(mask)
    lines, samples = aperture.shape
    with console.progress("simulating"):
        if scene is None:
            truth = simulate_scene(seed, cassi.BANDS, lines, samples, cassi.WAVELENGTHS).truth
        else:
            truth = _seen(scene, scale, lines, samples)
        plane = cassi.measure(truth, aperture)
        if electrons is not None:
            plane = cassi.noisy(plane, np.random.default_rng([seed, 1]), *electrons)
    told = {"description": "simulated snapshot", "wavelength units": "Nanometers"}
    write_cube(files["truth"], truth, fields={**told, "wavelength": listed(cassi.WAVELENGTHS)})
    if "mask" in files:
        write_cube(files["mask"], aperture[None], layout="lines,samples")
    if picture:
        numbers, saturated = Conversion(SCALE).to_numbers(plane[None], np.dtype(np.uint16))
        if saturated:
            console.warn(f"{saturated} values do not fit uint16 and were set to its limit")
        write_cube(out, numbers)
    else:
        write_cube(out, plane[None], layout="lines,samples", fields={"description": told["description"]})
    how = f", {SCALE:g} stand for 1.0: --scale {SCALE:g}" if picture else ""
    console.say(f"measured    {out}: {lines} lines x {plane.shape[1]} samples of {cassi.BANDS} bands{how}")
    console.say(f"truth       {files['truth']}")
    console.say(f"mask        {files.get('mask', mask)}")
    return {
        **{key: str(file) for key, file in files.items()},
        "mask": str(files.get("mask", mask)),
        "scale": SCALE if picture else 1.0,
        "noise": electrons,
        "seed": seed,
    }


def _parts(path: Path) -> tuple[Path, ...]:
    """The files that a cube or a mask is in."""
    with suppress(CubeFileError):
        return (path, *pair_of(path))
    return (path,)


def _noise(text: str) -> tuple[float, float]:
    try:
        electrons, read = map(float, text.split(","))
    except ValueError:
        electrons = read = math.nan
    (least, most), (quiet, loud) = cassi.ELECTRONS, cassi.READ
    if not (least <= electrons <= most and quiet <= read <= loud):
        raise InputError(
            "not electrons and read noise", key="--noise", value=text,
            remedy=f"{least:g} to {most:g} and {quiet:g} to {loud:g}, for example 10000,5",
        )  # fmt: skip
    return electrons, read


def _seen(scene: Path, scale: float | None, lines: int, samples: int) -> Float32:
    """The part of a cube that a mask of this size sees, in the instrument's bands."""
    source = read_cube(scene)
    if source.wavelengths is None:
        raise InputError(
            "does not say the wavelengths of its bands", file=scene, key="--scene", remedy="give an ENVI or .npz file"
        )
    if source.cube.shape[1] < lines or source.cube.shape[2] < samples:
        found = "x".join(map(str, source.cube.shape[1:]))
        raise InputError(
            f"is smaller than the mask, {lines}x{samples}", file=scene, key="--scene", value=found,
            remedy="give a smaller mask, or a larger cube",
        )  # fmt: skip
    meaning = meaning_of(source.cube, source.stated, Asked(scale))
    for doubt in meaning.doubts:
        console.warn(doubt)
    if meaning.bad or meaning.missing.any():
        raise InputError(
            "has missing pixels or bad bands, of which nothing can be measured", file=scene, key="--scene",
            remedy="give a cube without them",
        )  # fmt: skip
    return cassi.resampled(meaning.unit(source.cube)[:, :lines, :samples], source.wavelengths)
