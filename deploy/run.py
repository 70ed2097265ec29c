"""`deploy run`: a bundle and a cube in, a restored cube out."""

from __future__ import annotations

import time
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.bundle import Bundle, load_bundle
from runtime.errors import InputError
from runtime.files import CubeFile, read_cube, write_cube
from runtime.files.layout import DEFAULT_LAYOUT
from runtime.masking import filled, missing_pixels
from runtime.restore import Restored
from runtime.scaling import to_numbers, to_unit

from . import console
from .options import examples, json_option, refuse_cube_output

FAR_NANOMETRES = 5.0


@click.command(
    epilog=examples(
        "deploy run build/bundle scene.hdr --out restored.hdr",
        "deploy run build/bundle scene.npy --layout bands,lines,samples --out restored.npy",
        "deploy run build/bundle raw.hdr --scale 4095 --output-type float32 --out restored.hdr --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("cube", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="ENVI (.hdr, .bil, .bip, .bsq, ...) or .npy."
)
@click.option("--scale", type=float, help="Digital number that stands for 1.0; beats the file's and the bundle's.")
@click.option("--layout", default=DEFAULT_LAYOUT, show_default=True, help="Axes of .npy, .npz and .mat files.")
@click.option("--key", help="Name of the array in .npz and .mat files.")
@click.option(
    "--output-type",
    type=click.Choice(["input", "float32"]),
    default="input",
    show_default=True,
    help="The input's type and scale, or float32 in the unit range.",
)
@click.option("--clip", is_flag=True, help="Clip the restored cube to [0, 1] (in the unit range).")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the engine.")
@click.option("--self-test/--no-self-test", default=True, show_default=True, help="Restore the golden frame first.")
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@json_option
def command(
    bundle: Path,
    cube: Path,
    out: Path,
    scale: float | None,
    layout: str,
    key: str | None,
    output_type: str,
    clip: bool,
    threads: int | None,
    self_test: bool,
    replace: bool,
) -> dict[str, Any]:
    """Restore a cube with a bundle.

    Integer cubes come back in their own type and scale, with wavelengths and georeferencing; pixels that the file marks
    with `data ignore value` stay as they are.
    """
    refuse_cube_output(out, replace)
    source = read_cube(cube, layout=layout, key=key)
    with load_bundle(bundle, threads=threads) as loaded:
        for key_, value in loaded.engine.describe().items():
            console.say(f"{key_:<10} {value}")
        if self_test:
            with console.progress("self-test"):
                difference = loaded.self_test()
            console.say(f"self-test  golden frame restored, off by {difference:.1e} of its range")
        began = time.monotonic()
        restored, used, missing = restore_file(loaded, source, scale=scale, clip=clip, unit=output_type == "float32")
        seconds = time.monotonic() - began
        manifest = loaded.manifest
    write(out, source, restored, layout)
    tiles = int(np.prod(restored.gates.shape[:-2], dtype=int))
    console.say(f"restored   {tiles} frames in {seconds:.2f} s")
    if missing:
        console.say(f"missing    {missing} pixels hold the file's ignore value and stay as they are")
    if restored.saturated:
        console.warn(f"{restored.saturated} values do not fit {source.cube.dtype} and were set to its limit")
    console.say(f"wrote      {out}", "bold green")
    return {
        "out": str(out),
        "scale": used,
        "frames": tiles,
        "seconds": round(seconds, 3),
        "metrics": dict(metric_names(manifest.metric_set, restored.metrics)),
        "experts": chosen_experts(restored.gates),
        "missing_pixels": missing,
        "saturated": restored.saturated,
        "precision": manifest.precision.chosen,
    }


def write(out: Path, source: CubeFile, restored: Restored, layout: str = DEFAULT_LAYOUT) -> None:
    """Write a restored cube with what its source's file says of bands and place."""
    # A cube in the unit range no longer has the file's scale.
    unit = source.cube.dtype.kind in "iu" and restored.cube.dtype.kind == "f"
    write_cube(
        out, restored.cube, like=source, layout=layout, fields={"reflectance scale factor": None} if unit else {}
    )


def restore_file(
    bundle: Bundle, source: CubeFile, *, scale: float | None = None, clip: bool = False, unit: bool = False
) -> tuple[Restored, float | None, int]:
    """Restore a cube file's cube.

    Args:
        bundle: an open bundle.
        source: what was read.
        scale: digital number that stands for 1.0; beats the file's, which beats the bundle's.
        clip: clip to [0, 1] in the unit range.
        unit: give float32 in the unit range, whatever the input's type.

    Returns:
        (the restoration, the scale used or None for floats, number of missing pixels).
    """
    integers = source.cube.dtype.kind in "iu"
    if scale is not None and not integers:
        raise InputError(
            "a scale is for cubes of integers, this one holds floats",
            file=source.path,
            key="--scale",
            value=scale,
            remedy="leave --scale out; floats pass as they are",
        )
    used, origin = _scale(bundle, source, scale) if integers else (None, "")
    if integers:
        if used is None:
            raise InputError(
                "a cube of integers needs a scale, and neither flag, file nor bundle tells one",
                file=source.path,
                key="--scale",
                remedy="say which digital number stands for 1.0, for example --scale 4095",
            )
        console.say(f"scale      {used:g} stands for 1.0 (from the {origin})")
    _compare_wavelengths(bundle, source)
    missing = missing_pixels(source.cube, source.ignore_value)
    cube = filled(source.cube, missing)
    if unit or clip:
        cube = to_unit(cube, used)
    with console.progress("restoring") as moved:
        restored = bundle.restore(cube, scale=used if integers else None, progress=moved)
    if clip:
        restored = changed(restored, cube=np.clip(restored.cube, 0, 1))
    if clip and not unit:
        restored = _back(restored, source.cube.dtype, used)
    if missing.any():
        out = restored.cube.copy()
        out[:, missing] = source.cube[:, missing].astype(out.dtype)
        restored = changed(restored, cube=out)
    return restored, used, int(missing.sum())


def _back(restored: Restored, dtype: np.dtype[Any], scale: float | None) -> Restored:
    if scale is None:
        return changed(restored, cube=restored.cube.astype(dtype, copy=False))
    numbers, saturated = to_numbers(np.asarray(restored.cube, np.float32), scale, dtype)
    return changed(restored, cube=numbers, saturated=saturated)


def _scale(bundle: Bundle, source: CubeFile, flag: float | None) -> tuple[float | None, str]:
    for value, origin in ((flag, "flag"), (source.scale, "file"), (bundle.manifest.scale, "bundle")):
        if value is not None:
            return value, origin
    return None, ""


def _compare_wavelengths(bundle: Bundle, source: CubeFile) -> None:
    trained, found = bundle.manifest.wavelengths, source.wavelengths
    if trained is None or found is None or len(found) != len(trained):
        return
    apart = float(np.abs(np.asarray(found) - np.asarray(trained)).max())
    if apart > FAR_NANOMETRES:
        console.warn(
            f"the file's bands lie up to {apart:.0f} nm from those the network was built for "
            f"({trained[0]:g} to {trained[-1]:g} nm)"
        )


def metric_names(metric_set: str, metrics: NDArray[np.float32]) -> list[tuple[str, Any]]:
    """(name, value) of every metric; with band groups a list of values, one per group."""
    from runtime.metrics import METRIC_SETS

    return [(name, np.asarray(metrics)[..., i].tolist()) for i, name in enumerate(METRIC_SETS[metric_set])]


def chosen_experts(gates: NDArray[np.float32]) -> list[float]:
    """Share of tiles and layers in which each expert was chosen."""
    return [round(float(v), 6) for v in (gates > 0).reshape(-1, gates.shape[-1]).mean(axis=0)]
