"""`deploy run` on one cube or photograph; and what it has in common with folders and videos."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtime.bundle import Bundle, load_bundle
from runtime.bundle_files import read_manifest
from runtime.errors import InputError, MachineError
from runtime.files import CubeFile, check_written, left_behind, read_cube, write_cube, written_type
from runtime.files.disk import available_memory
from runtime.files.layout import DEFAULT_LAYOUT
from runtime.files.taking import taking
from runtime.manifest import Manifest
from runtime.meaning import Asked, Meaning, header_fields, words
from runtime.parity import told
from runtime.restore import Restored
from runtime.restore_file import meaning_of_file, restore_file
from runtime.signature import Signature, plane_text

from .. import console
from ..folders import refuse_cube_output

ELEMENT_BYTES = 10
"""Of memory that restoring takes for every element, beside the cube and what becomes of it: measured, 8.5."""
ENGINE_BYTES = 512 << 20
"""For the engine, a frame on its way and Python."""


@dataclass(frozen=True)
class How:
    """What the options of `deploy run` say.

    Attributes:
        layout, key, bands: of cubes: how they are read, and the bands of them that the network sees, places from 0.
        scale, marks, constant_bands: of their numbers, as `Asked` has it.
        output_type, clip: of the restored cube; None for what suits the network.
        engine, threads, prompt, self_test: of the bundle. replace: what is at `--out`.
        metrics, format, ortho, missing_chunks: of products that are restored line by line, as `Ways` has it; None where
            nothing was said. dry_run: tell what would be done.
    """

    layout: str | None = None
    key: str | None = None
    bands: tuple[int, ...] | None = None
    scale: float | None = None
    marks: tuple[float, ...] | None = None
    constant_bands: Literal["leave", "restore"] | None = None
    output_type: Literal["input", "float32"] | None = None
    clip: bool = False
    engine: str | None = None
    threads: int | None = None
    prompt: str | None = None
    self_test: bool = True
    replace: bool = False
    metrics: Literal["frame", "scene"] | None = None
    format: str | None = None
    ortho: bool = False
    missing_chunks: Literal["refuse", "fill"] | None = None
    dry_run: bool = False

    @property
    def by_lines(self) -> bool:
        """Something is asked for that only a product restored line by line has."""
        return bool(self.metrics == "frame" or self.format or self.ortho or self.missing_chunks or self.dry_run)

    @property
    def asked(self) -> Asked:
        """Of the meaning of numbers."""
        return Asked(self.scale, self.marks, self.constant_bands)

    @property
    def unit(self) -> bool:
        """Float32 in the unit range is asked for."""
        return self.output_type == "float32"

    def refuse_unlike(self, signature: Signature) -> None:
        """Refuse the input's type where the network gives another plane than it takes. Raises InputError."""
        if self.output_type == "input" and not signature.alike:
            raise InputError(
                f"the network makes {plane_text(signature.restored)} of {plane_text(signature.measured)}, which share "
                "no type and scale",
                key="--output-type",
                value="input",
                remedy="leave it out: float32 in the unit range is written",
            )

    def refuse_for(self, what: str) -> None:
        """Refuse what is of one cube alone where `what`, a folder or a video, is restored. Raises InputError."""
        told = {"--layout": self.layout, "--key": self.key, "--bands": self.bands, "--output-type": self.unit or None}
        told |= {"--metrics": self.metrics, "--format": self.format, "--ortho": self.ortho or None}
        told |= {"--missing-chunks": self.missing_chunks, "--dry-run": self.dry_run or None}
        for key, value in told.items():
            if value is not None:
                raise InputError(
                    f"is of one cube or photograph, not of {what}", key=key, remedy="leave it out, or give one file"
                )


@contextmanager
def opened(path: Path, how: How) -> Iterator[Bundle]:
    """The bundle, with what runs it told to people. Raises as `load_bundle`."""
    with load_bundle(path, threads=how.threads, engine=how.engine, prompt=how.prompt) as loaded:
        loaded.prompts.check_chosen()
        for key, value in loaded.engine.describe().items():
            console.say(f"{key:<11} {value}")
        yield loaded


def proved(loaded: Bundle, how: How) -> None:
    """Restore the golden frame, unless it is not wanted. Raises as `Bundle.self_test`."""
    if how.self_test:
        with console.progress("self-test"):
            difference = loaded.self_test()
        off = told(difference, loaded.manifest.golden.truth is not None, loaded.choice.precision)
        console.say(f"self-test   golden frame restored, off by {off}")


def run_cube(bundle: Path, cube: Path, out: Path, how: How) -> dict[str, Any]:
    """Restore one cube or photograph; returns what `--json` prints."""
    refuse_cube_output(out, how.replace)
    signature = read_manifest(bundle).signature
    how.refuse_unlike(signature)
    # What a coded aperture measures is one plane, whose files need no axis for bands.
    plane = how.bands is None and signature.is_area
    source = read_cube(cube, layout=how.layout, key=how.key, plane=plane)
    if how.bands is not None:
        source = taking(source, how.bands)
    source = _as_written(source, out, unit=how.unit or not signature.alike)
    refuse_large(source)
    refuse_full(source, out)
    with opened(bundle, how) as loaded:
        refuse_unwritable(source, out, loaded.manifest.signature, unit=how.unit)
        meaning = meaning_of_file(loaded, source, how.asked)
        proved(loaded, how)
        tell(loaded, source, meaning, how.bands)
        began = time.monotonic()
        with console.progress("restoring") as moved:
            restored = restore_file(
                loaded, source, meaning, clip=how.clip, unit=how.unit, in_place=True, progress=moved
            )
        seconds = time.monotonic() - began
        manifest, chosen_prompt = loaded.manifest, loaded.prompts.chosen
        described = loaded.engine.describe()
    layout = how.layout if how.layout and how.layout.count(",") == 2 else DEFAULT_LAYOUT
    write(out, source, restored, manifest, layout)
    by = "" if restored.metrics_by == "none" else f", metrics by the {restored.metrics_by}"
    console.say(f"restored    {restored.frames} frame{'s' * (restored.frames != 1)} in {seconds:.2f} s{by}")
    if restored.missing:
        console.say(f"missing     {restored.missing} pixels are missing and stay as they are")
    if restored.made_up:
        console.say(f"made up     {restored.made_up} values that were missing are restored from those beside them")
    if restored.moved:
        console.warn(
            f"{restored.moved} restored values equalled a mark of missing pixels and were set to the number next to it"
        )
    for odd in restored.suspect:
        console.warn(f"{odd}; look at what was written before you use it, and run `deploy check` on this machine")
    if restored.saturated:
        # Skies and lamps of photographs are at the limit before: that it is overshot is no news.
        tell_ = console.warn if source.photograph is None else console.say
        tell_(f"{restored.saturated} values do not fit {source.cube.dtype} and were set to its limit")
    console.say(f"wrote       {out}", "bold green")
    return {
        "out": str(out),
        "scale": restored.scale,
        **({} if how.bands is None else {"bands": list(how.bands)}),
        "frames": restored.frames,
        "seconds": round(seconds, 3),
        "metrics": metrics_by_name(manifest.signature, restored),
        "metrics_by": restored.metrics_by,
        "prompt": chosen_prompt,
        "experts": chosen_experts(manifest.signature, restored),
        "missing_pixels": restored.missing,
        "made_up": restored.made_up,
        "bad_bands": {band + 1: why for band, why in (restored.meaning or meaning).bad.items()},
        "doubts": list(meaning.doubts),
        "suspect": list(restored.suspect),
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


def refuse_unwritable(source: CubeFile, out: Path, signature: Signature, *, unit: bool) -> None:
    """Refuse before anything is restored what `out` cannot hold; say what of the source it does not."""
    shape = source.cube.shape
    bands = shape[0] if signature.alike or signature.band_groups else signature.restored.bands
    made = np.dtype(np.float32) if unit or not signature.alike else source.cube.dtype
    check_written(out, (bands, *shape[1:]), made, source)
    for what in left_behind(out, source):
        console.warn(f"{out.suffix} does not hold {what} of {source.path.name}")


def refuse_large(source: CubeFile) -> None:
    """Refuse before anything is restored what does not fit into memory. Raises MachineError."""
    size = source.cube.size
    needed, there = ENGINE_BYTES + (ELEMENT_BYTES + source.cube.itemsize) * size, available_memory()
    if needed > there:
        raise MachineError(
            f"restoring it takes {needed / 2**30:.1f} GiB of memory beside the cube, {there / 2**30:.1f} GiB are free",
            file=source.path,
            key="cube",
            value=f"{source.cube.nbytes / 2**30:.1f} GiB",
            remedy="say --metrics frame: that needs little, whatever the cube's size",
        )


def refuse_full(source: CubeFile, out: Path) -> None:
    """Refuse before anything is restored what does not fit onto the disk. Raises MachineError."""
    free = shutil.disk_usage(out.absolute().parent).free
    if source.cube.nbytes > free:
        raise MachineError(
            f"the restored cube takes {source.cube.nbytes / 2**20:.1f} MiB, and {free / 2**20:.1f} are free there",
            file=out,
            key="--out",
            remedy="make room, or write to another disk",
        )


def tell(bundle: Bundle, source: CubeFile, meaning: Meaning, chosen: tuple[int, ...] | None = None) -> None:
    """Say what is restored, what its numbers are taken to mean, and what is doubtful about it."""
    shape, bands = source.cube.shape, bundle.manifest.signature.measured.bands
    console.say(f"cube        {shape[0]} bands x {shape[1]} lines x {shape[2]} samples, {source.cube.dtype}")
    if chosen is not None:
        console.say(f"bands       {', '.join(map(str, chosen))} of the file, counted from 0")
    made = meaning.conversion
    linear = made.gains is not None or made.offsets is not None
    console.say(f"scale       {words.of_scale(meaning.scale_from, made.scale, linear=linear)}")
    if bundle.prompts.chosen is not None:
        console.say(f"prompt      {bundle.prompts.chosen}")
    for note in meaning.notes:
        console.say(f"note        {note}")
    for doubt in meaning.doubts:
        console.warn(doubt)
    frame = bundle.manifest.signature.measured.size
    if shape[1] < frame[0] or shape[2] < frame[1]:
        said = f"reflected up to the frame of {frame[0]}x{frame[1]}; what is summed over a frame sees that too"
        console.say(f"padding     {said}")
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
