"""`deploy simulate --snapshot`: what a coded-aperture spectrometer records of a scene, with the truth beside it."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays import Float32
from runtime.errors import InputError
from runtime.files import read_cube, write_cube
from runtime.files.envi_text import listed
from runtime.files.photographs import SUFFIXES
from runtime.meaning import Asked, meaning_of
from runtime.scaling import Conversion
from runtime.simulation import cassi
from runtime.simulation.simulator import simulate_scene

from .. import console
from ..folders import refuse_cube_output
from .options import parse_size

SCALE = 30000.0
"""Number of a picture that stands for 1.0: a measurement may reach 2."""
LARGEST = 4096
RANDOM = "random:"


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
    if mask.startswith(RANDOM):
        files["mask"] = out.with_name(f"{out.stem}-mask.npy")
    for file in files.values():
        refuse_cube_output(file, replace)
    aperture = _random(mask) if mask.startswith(RANDOM) else cassi.read_mask(mask)
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


def _random(text: str) -> Float32:
    match = re.fullmatch(rf"{RANDOM}(\d{{1,10}})(?:,(.+))?", text, re.ASCII)
    if match is None:
        raise InputError("not a random mask", key="--mask", value=text, remedy="for example random:1,256x256")
    size = parse_size(match[2] or "256x256") or {}
    if max(size.values()) > LARGEST:
        remedy = f"give at most {LARGEST}x{LARGEST}"
        raise InputError("the mask is too large", key="--mask", value=text, remedy=remedy)
    return cassi.checked_mask(cassi.random_mask(int(match[1]), **size).astype(np.float64), text)


def _noise(text: str) -> tuple[float, float]:
    try:
        electrons, read = map(float, text.split(","))
    except ValueError:
        electrons = read = math.nan
    if not (0 < electrons < math.inf and 0 <= read < math.inf):
        raise InputError(
            "not electrons and read noise", key="--noise", value=text, remedy="two numbers, for example 10000,5"
        )
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
    return cassi.resampled(meaning.unit(source.cube)[:, :lines, :samples], source.wavelengths)
