"""`deploy run`: a bundle and a cube in, a restored cube out."""

import time
from pathlib import Path
from typing import Any

import click

from runtime.bundle import Bundle, load_bundle
from runtime.files import CubeFile, read_cube, write_cube
from runtime.files.layout import DEFAULT_LAYOUT
from runtime.manifest import Manifest
from runtime.restore import Restored
from runtime.restore_file import doubts, restore_file, said_scale
from runtime.signature import Signature

from .. import console
from ..folders import refuse_cube_output
from .options import engine_option, examples, json_option


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
@engine_option
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
    engine: str | None,
    self_test: bool,
    replace: bool,
) -> dict[str, Any]:
    """Restore a cube with a bundle.

    Integer cubes come back in their own type and scale, with wavelengths and georeferencing; pixels that the file marks
    with `data ignore value` stay as they are.
    """
    refuse_cube_output(out, replace)
    source = read_cube(cube, layout=layout, key=key)
    with load_bundle(bundle, threads=threads, engine=engine) as loaded:
        described = loaded.engine.describe()
        for key_, value in described.items():
            console.say(f"{key_:<11} {value}")
        if self_test:
            with console.progress("self-test"):
                difference = loaded.self_test()
            console.say(f"self-test   golden frame restored, off by {difference:.1e} of its range")
        tell(loaded, source, scale)
        began = time.monotonic()
        with console.progress("restoring") as moved:
            restored = restore_file(
                loaded, source, scale=scale, clip=clip, unit=output_type == "float32", progress=moved
            )
        seconds = time.monotonic() - began
        tell_scale(source, restored, scale)
        manifest = loaded.manifest
    write(out, source, restored, manifest, layout)
    by = "" if restored.metrics_by == "none" else f", metrics by the {restored.metrics_by}"
    console.say(f"restored    {restored.frames} frame{'s' * (restored.frames != 1)} in {seconds:.2f} s{by}")
    if restored.missing:
        console.say(f"missing     {restored.missing} pixels hold the file's ignore value and stay as they are")
    if restored.moved:
        console.warn(
            f"{restored.moved} restored values equalled the ignore value and were set to the number next to it"
        )
    if restored.saturated:
        console.warn(f"{restored.saturated} values do not fit {source.cube.dtype} and were set to its limit")
    console.say(f"wrote       {out}", "bold green")
    return {
        "out": str(out),
        "scale": restored.scale,
        "frames": restored.frames,
        "seconds": round(seconds, 3),
        "metrics": metrics_by_name(manifest.signature, restored),
        "metrics_by": restored.metrics_by,
        "experts": chosen_experts(manifest.signature, restored),
        "missing_pixels": restored.missing,
        "moved": restored.moved,
        "saturated": restored.saturated,
        "precision": described["computes in"],
    }


def tell(bundle: Bundle, source: CubeFile, scale: float | None = None) -> None:
    """Say what is restored, and what is doubtful about it."""
    shape, bands = source.cube.shape, bundle.manifest.signature.measured.bands
    console.say(f"cube        {shape[0]} bands x {shape[1]} lines x {shape[2]} samples, {source.cube.dtype}")
    found = list(doubts(bundle, source, scale))
    for doubt in found:
        console.warn(doubt)
    if shape[0] > bands and not any("--layout" in doubt for doubt in found):
        console.say(f"groups      {shape[0]} bands are restored in overlapping groups of the network's {bands}")


def tell_scale(source: CubeFile, restored: Restored, scale: float | None = None) -> None:
    """Say which scale was taken, and whose it is."""
    if restored.scale is not None:
        origin = "flag" if scale is not None else "file" if said_scale(source, None) is not None else "bundle"
        console.say(f"scale       {restored.scale:g} stands for 1.0 (from the {origin})")


def write(out: Path, source: CubeFile, restored: Restored, manifest: Manifest, layout: str = DEFAULT_LAYOUT) -> None:
    """Write a restored cube with what its source's file, or its bundle, says of bands and place."""
    fields: dict[str, str | None] = {}
    # A cube in the unit range no longer has the file's scale.
    if source.cube.dtype.kind in "iu" and restored.cube.dtype.kind == "f":
        fields["reflectance scale factor"] = None
    if not manifest.signature.alike and manifest.wavelengths:
        centres = ", ".join(f"{nanometres:g}" for nanometres in manifest.wavelengths)
        fields |= {"wavelength": f"{{{centres}}}", "wavelength units": "Nanometers"}
    write_cube(out, restored.cube, like=source, layout=layout, fields=fields)


def metrics_by_name(signature: Signature, restored: Restored) -> dict[str, Any]:
    """{name: value} of every metric; with band groups a list of values, one per group."""
    if signature.metrics is None:
        return {}
    values = restored.prompts[signature.metrics.name]
    return {name: values[..., i].tolist() for i, name in enumerate(signature.metric_names)}


def chosen_experts(signature: Signature, restored: Restored) -> list[float]:
    """Share of tiles and layers in which each expert was chosen."""
    if signature.routing is None:
        return []
    weights = restored.side[signature.routing.name]
    return [round(float(v), 6) for v in (weights > 0).reshape(-1, weights.shape[-1]).mean(axis=0)]
