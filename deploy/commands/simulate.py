"""`deploy simulate`: a degraded line-scan cube with its ground truth, so that nobody needs a download to try things."""

from pathlib import Path
from typing import Any

import click
import numpy as np

from runtime.errors import InputError
from runtime.files import write_cube
from runtime.files.envi_text import listed
from runtime.scaling import Conversion
from runtime.simulation.simulator import SensorModel, sense, simulate_scene

from .. import console
from ..folders import refuse_cube_output
from .options import examples, json_option, parse_size

REFLECTANCE_SCALE = 10000.0


@click.command(
    epilog=examples(
        "deploy simulate --out scene.hdr --degradation noise,stripes",
        "deploy simulate --out blurred.npy --degradation blur --size 512x320 --seed 3",
        "deploy simulate --out field.hdr --bands 120 --wavelengths 400-1000",
    )
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="ENVI (.hdr, ...) or .npy; its truth goes beside it."
)
@click.option("--degradation", default="noise", show_default=True, help="Comma list, or `none` for the sensor alone.")
@click.option("--size", default="256x256", show_default=True, help="Lines x samples.")
@click.option("--bands", type=click.IntRange(1, 4096), default=31, show_default=True)
@click.option("--wavelengths", default="400-700", show_default=True, help="First and last band centre in nm.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@json_option
def command(
    out: Path, degradation: str, size: str, bands: int, wavelengths: str, seed: int, replace: bool
) -> dict[str, Any]:
    """Simulate a scene, a line-scan sensor and a degradation.

    The cube is int16 with reflectance scale factor 10000 (float32 for .npy); the truth is float32 in [0, 1].
    """
    return simulate(out, degradation, parse_size(size) or {}, bands, _range(wavelengths), seed, replace=replace)


def simulate(
    out: Path,
    degradation: str,
    size: dict[str, int],
    bands: int,
    wavelengths: tuple[float, float],
    seed: int,
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Write the degraded cube to `out` and the truth beside it; returns what `--json` prints."""
    from calibration.degradations import degrade, parse_degradations
    from calibration.quality import psnr

    names = () if degradation.strip() == "none" else parse_degradations(degradation)
    truth_file = out.with_name(f"{out.stem}-truth{out.suffix}")
    for file in (out, truth_file):
        refuse_cube_output(file, replace)
    with console.progress("simulating"):
        scene = simulate_scene(seed, bands, size["lines"], size["samples"], np.linspace(*wavelengths, bands))
        sensed = sense(scene, SensorModel(), np.random.default_rng([seed, 1]))
        cube = ((sensed.dn.astype(np.float32) - np.float32(sensed.dark)) / np.float32(sensed.scale)).astype(np.float32)
        if names:
            cube = degrade(cube, names, np.random.default_rng([seed, 2]))
    fields: dict[str, str | None] = {
        "description": "simulated line-scan scene",
        "wavelength units": "Nanometers",
        "wavelength": listed([round(float(w), 4) for w in scene.wavelengths]),
    }
    write_cube(truth_file, scene.truth, fields=fields)
    if out.suffix.lower() == ".npy":
        write_cube(out, cube)
    else:
        numbers, saturated = Conversion(REFLECTANCE_SCALE).to_numbers(cube, np.dtype(np.int16))
        if saturated:
            console.warn(f"{saturated} values do not fit int16 and were set to its limit")
        write_cube(out, numbers, fields={**fields, "reflectance scale factor": f"{REFLECTANCE_SCALE:g}"})
    level = psnr(cube, scene.truth)
    console.say(
        f"cube       {out}: {bands} bands x {size['lines']} lines x {size['samples']} samples, {level:.2f} dB PSNR"
    )
    console.say(f"truth      {truth_file}")
    return {"out": str(out), "truth": str(truth_file), "degradation": list(names), "psnr": level, "seed": seed}


def _range(text: str) -> tuple[float, float]:
    first, dash, last = text.partition("-")
    try:
        low, high = float(first), float(last)
    except ValueError:
        low = high = -1.0
    if not dash or not 0 < low <= high < 1e5:
        raise InputError(
            "not a range of wavelengths", key="--wavelengths", value=text, remedy="in nm, for example 400-700"
        )
    return low, high
