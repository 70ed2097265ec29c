"""`deploy run`: a bundle and a cube in, a restored cube out."""

import shutil
import time
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from runtime.bundle import Bundle, load_bundle
from runtime.errors import MachineError
from runtime.files import CubeFile, check_written, left_behind, read_cube, write_cube, written_type
from runtime.files.disk import available_memory
from runtime.files.layout import DEFAULT_LAYOUT
from runtime.manifest import Manifest
from runtime.meaning import Asked, Meaning, header_fields, words
from runtime.restore import Restored
from runtime.restore_file import meaning_of_file, restore_file
from runtime.signature import Signature

from .. import console
from ..folders import refuse_cube_output
from .options import constant_bands_option, engine_option, examples, json_option, prompt_option, reading_options

ELEMENT_BYTES = 10
"""Of memory that restoring takes for every element, beside the cube and what becomes of it: measured, 8.5."""
ENGINE_BYTES = 512 << 20
"""For the engine, a frame on its way and Python."""


@click.command(
    epilog=examples(
        "deploy run build/bundle scene.hdr --out restored.hdr",
        "deploy run build/bundle photo.jpg --out restored.png",
        "deploy run build/bundle scene.npy --layout bands,lines,samples --out restored.npy",
        "deploy run build/bundle raw.hdr --scale 4095 --output-type float32 --out restored.hdr --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("cube", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="ENVI (.hdr, .bil, .bip, .bsq, ...), .npy, .png or .tif.",
)
@reading_options
@constant_bands_option
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
@prompt_option
@click.option("--self-test/--no-self-test", default=True, show_default=True, help="Restore the golden frame first.")
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@json_option
def command(
    bundle: Path,
    cube: Path,
    out: Path,
    scale: float | None,
    layout: str | None,
    key: str | None,
    marks: tuple[float, ...] | None,
    constant_bands: Literal["leave", "restore"] | None,
    output_type: str,
    clip: bool,
    threads: int | None,
    engine: str | None,
    prompt: str | None,
    self_test: bool,
    replace: bool,
) -> dict[str, Any]:
    """Restore a cube with a bundle.

    Integer cubes come back in their own type and scale, with wavelengths and georeferencing; pixels that the file marks
    with `data ignore value` stay as they are. Photographs (PNG, JPEG, TIFF) come back as they were turned, with their
    transparency, colour profile and EXIF.
    """
    refuse_cube_output(out, replace)
    source = read_cube(cube, layout=layout, key=key)
    source = _as_written(source, out, unit=output_type == "float32")
    _refuse_unfit(source, out)
    with load_bundle(bundle, threads=threads, engine=engine, prompt=prompt) as loaded:
        loaded.prompts.check_chosen()
        described = loaded.engine.describe()
        for key_, value in described.items():
            console.say(f"{key_:<11} {value}")
        _refuse_unwritable(source, out, loaded.manifest.signature, unit=output_type == "float32")
        meaning = meaning_of_file(loaded, source, Asked(scale, marks, constant_bands))
        if self_test:
            with console.progress("self-test"):
                difference = loaded.self_test()
            console.say(f"self-test   golden frame restored, off by {difference:.1e} of its range")
        tell(loaded, source, meaning)
        began = time.monotonic()
        with console.progress("restoring") as moved:
            restored = restore_file(loaded, source, meaning, clip=clip, unit=output_type == "float32", progress=moved)
        seconds = time.monotonic() - began
        manifest, chosen_prompt = loaded.manifest, loaded.prompts.chosen
    write(out, source, restored, manifest, layout or DEFAULT_LAYOUT)
    by = "" if restored.metrics_by == "none" else f", metrics by the {restored.metrics_by}"
    console.say(f"restored    {restored.frames} frame{'s' * (restored.frames != 1)} in {seconds:.2f} s{by}")
    if restored.missing:
        console.say(f"missing     {restored.missing} pixels are missing and stay as they are")
    if restored.moved:
        console.warn(
            f"{restored.moved} restored values equalled a mark of missing pixels and were set to the number next to it"
        )
    if restored.saturated:
        # Skies and lamps of photographs are at the limit before: that it is overshot is no news.
        tell_ = console.warn if source.photograph is None else console.say
        tell_(f"{restored.saturated} values do not fit {source.cube.dtype} and were set to its limit")
    console.say(f"wrote       {out}", "bold green")
    return {
        "out": str(out),
        "scale": restored.scale,
        "frames": restored.frames,
        "seconds": round(seconds, 3),
        "metrics": metrics_by_name(manifest.signature, restored),
        "metrics_by": restored.metrics_by,
        "prompt": chosen_prompt,
        "experts": chosen_experts(manifest.signature, restored),
        "missing_pixels": restored.missing,
        "bad_bands": {band + 1: why for band, why in meaning.bad.items()},
        "doubts": list(meaning.doubts),
        "moved": restored.moved,
        "saturated": restored.saturated,
        "precision": described["computes in"],
    }


def _as_written(source: CubeFile, out: Path, *, unit: bool) -> CubeFile:
    """The cube in a type that `out` can hold."""
    own = source.cube.dtype
    wider = own if unit else written_type(out, own)
    if wider == own:
        return source
    console.warn(f"{out.suffix} holds no {own}: {wider} is written")
    return replaced(source, cube=source.cube.astype(wider))


def _refuse_unwritable(source: CubeFile, out: Path, signature: Signature, *, unit: bool) -> None:
    """Refuse before anything is restored what `out` cannot hold; say what of the source it does not."""
    shape = source.cube.shape
    bands = shape[0] if signature.alike or signature.band_groups else signature.restored.bands
    made = np.dtype(np.float32) if unit or not signature.alike else source.cube.dtype
    check_written(out, (bands, *shape[1:]), made, source)
    for what in left_behind(out, source):
        console.warn(f"{out.suffix} does not hold {what} of {source.path.name}")


def _refuse_unfit(source: CubeFile, out: Path) -> None:
    """Refuse before anything is restored what does not fit into memory or onto the disk. Raises MachineError."""
    size, free = source.cube.size, shutil.disk_usage(out.absolute().parent).free
    needed, there = ENGINE_BYTES + (ELEMENT_BYTES + source.cube.itemsize) * size, available_memory()
    if needed > there:
        raise MachineError(
            f"restoring it takes {needed / 2**30:.1f} GiB of memory beside the cube, {there / 2**30:.1f} GiB are free",
            file=source.path,
            key="cube",
            value=f"{source.cube.nbytes / 2**30:.1f} GiB",
            remedy="`deploy stream BUNDLE --source envi:FILE --restored FOLDER` needs little, whatever the cube's size",
        )
    if source.cube.nbytes > free:
        raise MachineError(
            f"the restored cube takes {source.cube.nbytes / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free there",
            file=out,
            key="--out",
            remedy="make room, or write to another disk",
        )


def tell(bundle: Bundle, source: CubeFile, meaning: Meaning) -> None:
    """Say what is restored, what its numbers are taken to mean, and what is doubtful about it."""
    shape, bands = source.cube.shape, bundle.manifest.signature.measured.bands
    console.say(f"cube        {shape[0]} bands x {shape[1]} lines x {shape[2]} samples, {source.cube.dtype}")
    made = meaning.conversion
    linear = made.gains is not None or made.offsets is not None
    console.say(f"scale       {words.of_scale(meaning.scale_from, made.scale, linear=linear)}")
    if bundle.prompts.chosen is not None:
        console.say(f"prompt      {bundle.prompts.chosen}")
    for note in meaning.notes:
        console.say(f"note        {note}")
    for doubt in meaning.doubts:
        console.warn(doubt)
    if shape[0] > bands and not any("--layout" in doubt for doubt in meaning.doubts):
        console.say(f"groups      {shape[0]} bands are restored in overlapping groups of the network's {bands}")


def write(out: Path, source: CubeFile, restored: Restored, manifest: Manifest, layout: str = DEFAULT_LAYOUT) -> None:
    """Write a restored cube with what its source's file, or its bundle, says of bands and place."""
    fields: dict[str, str | None] = {}
    if restored.meaning is not None:
        fields |= header_fields(restored.meaning, source.cube, unit=restored.unit)
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
