"""`deploy simulate`: a degraded line-scan cube with its ground truth, so that nobody needs a download to try things."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from runtime.errors import InputError

from .. import console
from .options import PositiveNumber, examples, json_option, parse_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.arrays import Float32
    from runtime.simulation.simulator import Scene

REFLECTANCE_SCALE, WHITE = 10000.0, 255.0
OF_LINES, OF_SNAPSHOTS = ("degradation", "size", "bands", "wavelengths"), ("mask", "scene", "scale", "noise")
"""Options of one kind of sensor alone."""


@click.command(
    epilog=examples(
        "deploy simulate --out scene.hdr --degradation noise,stripes",
        "deploy simulate --out blurred.npy --degradation blur --size 512x320 --seed 3",
        "deploy simulate --out field.hdr --bands 120 --wavelengths 400-1000",
        "deploy simulate --out rainy.png --degradation rain",
        "deploy simulate --snapshot --mask random:1 --noise 10000,5 --out measurement.npy",
    )
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="ENVI (.hdr, ...), .npy or .png; its truth goes beside it.",
)
@click.option("--degradation", default="noise", show_default=True, help="Comma list, or `none` for the sensor alone.")
@click.option("--size", default="256x256", show_default=True, help="Lines x samples.")
@click.option("--bands", type=click.IntRange(1, 4096), default=31, show_default=True)
@click.option("--wavelengths", default="400-700", show_default=True, help="First and last band centre in nm.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@click.option("--snapshot", is_flag=True, help="What a coded-aperture snapshot spectrometer records instead.")
@click.option("--mask", metavar="FILE", help="Its mask, which says the size; or random:SEED[,LINESxSAMPLES].")
@click.option("--scene", type=click.Path(path_type=Path), help="Cube that it looks at, in place of a simulated one.")
@click.option("--scale", type=PositiveNumber(), help="Number that stands for 1.0 in --scene.")
@click.option("--noise", metavar="ELECTRONS,READ", help="Its noise: electrons where it measures 1, read noise in them.")
@json_option
def command(
    out: Path,
    degradation: str,
    size: str,
    bands: int,
    wavelengths: str,
    seed: int,
    replace: bool,
    snapshot: bool,
    mask: str | None,
    scene: Path | None,
    scale: float | None,
    noise: str | None,
) -> dict[str, Any]:
    """Simulate a scene, a line-scan sensor and a degradation.

    The cube is int16 with reflectance scale factor 10000 (float32 for .npy); the truth is float32 in [0, 1]. A .png or
    .tif is a photograph: the scene in natural colours, 8 bits, degraded without a sensor.

    With --snapshot the scene has 28 bands from 453.5 to 648 nm, the measurement is one float32 plane with the mask's
    lines and 54 samples more than it has, and the truth is float32. A .png or .tif has 16 bits, 30000 stand for 1.0
    there, and its truth is .hdr.
    """
    from .simulate_snapshot import simulate_snapshot

    source = click.get_current_context().get_parameter_source
    for name in OF_LINES if snapshot else OF_SNAPSHOTS:
        if source(name) == ParameterSource.COMMANDLINE:
            problem = "is of a line-scan sensor alone" if snapshot else "is of a snapshot spectrometer alone"
            remedy = "leave it out" if snapshot else "leave it out, or say --snapshot"
            raise InputError(problem, key=f"--{name}", remedy=remedy)
    if snapshot:
        return simulate_snapshot(out, mask, scene, scale, noise, seed, replace=replace)
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
    import numpy as np

    from calibration.degradations import degrade, parse_degradations
    from calibration.quality import psnr
    from runtime.files import write_cube
    from runtime.files.photographs import SUFFIXES
    from runtime.scaling import Conversion
    from runtime.simulation.simulator import simulate_scene

    from ..folders import refuse_cube_output

    names = () if degradation.strip() == "none" else parse_degradations(degradation)
    truth_file = out.with_name(f"{out.stem}-truth{out.suffix}")
    for file in (out, truth_file):
        refuse_cube_output(file, replace)
    picture = out.suffix.lower() in SUFFIXES
    with console.progress("simulating"):
        scene = simulate_scene(seed, bands, size["lines"], size["samples"], np.linspace(*wavelengths, bands))
        truth, cube = _photographed(scene) if picture else (scene.truth, _sensed(scene, seed))
        if names:
            cube = degrade(cube, names, np.random.default_rng([seed, 2]))
    told, scale, dtype = ({}, WHITE, np.uint8) if picture else (_told(scene), REFLECTANCE_SCALE, np.int16)
    if out.suffix.lower() == ".npy":
        write_cube(truth_file, truth)
        write_cube(out, cube)
    else:
        numbers, saturated = Conversion(scale).to_numbers(cube, np.dtype(dtype))
        # A camera clips, and nobody is told.
        if saturated and not picture:
            console.warn(f"{saturated} values do not fit {np.dtype(dtype)} and were set to its limit")
        write_cube(truth_file, truth, fields=told)
        write_cube(out, numbers, fields=told and {**told, "reflectance scale factor": f"{scale:g}"})
    level = psnr(cube, np.asarray(truth / np.float32(scale) if picture else truth, np.float32))
    bands = len(cube)
    console.say(
        f"cube       {out}: {bands} bands x {size['lines']} lines x {size['samples']} samples, {level:.2f} dB PSNR"
    )
    console.say(f"truth      {truth_file}")
    return {"out": str(out), "truth": str(truth_file), "degradation": list(names), "psnr": level, "seed": seed}


def _photographed(scene: Scene) -> tuple[NDArray[np.uint8], Float32]:
    """A scene in natural colours, 8 bits: as it is written, and in [0, 1]."""
    import numpy as np

    from ..reporting.quicklooks import rgb

    picture = rgb(scene.truth, scene.wavelengths.tolist()).transpose(2, 0, 1)
    return picture, (picture / np.float32(WHITE)).astype(np.float32)


def _sensed(scene: Scene, seed: int) -> Float32:
    """A scene as a line-scan sensor sees it."""
    import numpy as np

    from runtime.simulation.simulator import SensorModel, sense

    sensed = sense(scene, SensorModel(), np.random.default_rng([seed, 1]))
    return np.asarray((sensed.dn.astype(np.float32) - np.float32(sensed.dark)) / np.float32(sensed.scale), np.float32)


def _told(scene: Scene) -> dict[str, str | None]:
    """What an ENVI header says of it."""
    from runtime.files.envi_text import listed

    return {
        "description": "simulated line-scan scene",
        "wavelength units": "Nanometers",
        "wavelength": listed([round(float(w), 4) for w in scene.wavelengths]),
    }


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
