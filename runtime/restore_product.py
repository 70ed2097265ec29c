"""A product restored into another: whole or absent, within memory that is declared before, with its provenance."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtime.bundle import Bundle, meaning_for
from runtime.bundle_files import Head
from runtime.errors import CubeError, InputError, MachineError
from runtime.files.disk import available_memory, opened, unchanged
from runtime.manifest import Manifest
from runtime.meaning import Asked, Meaning, words
from runtime.meaning.marks import marked, standing
from runtime.products import holds, open_cube, open_writer
from runtime.products.contract import CubeReader, CubeWriter, Description, Place, Reading, Result, Seen
from runtime.products.ortho import BLOCK as MAP_BLOCK
from runtime.products.ortho import chosen_mark, open_ortho, result_on_map
from runtime.restore import check_fits
from runtime.restore_lines import Block, Given, Row, restore_lines
from runtime.scaling import Conversion, next_to
from runtime.stated import Stated
from runtime.survey import BLOCK_BYTES, SAMPLE_BYTES, Survey, survey
from runtime.tiles import frame_plan
from runtime.versions import PROGRAM

FORMAT = 1
"""Of what an output holds: part of every key."""
BASE_BYTES = 96 << 20
"""Of Python, its libraries and an engine with nothing loaded: measured, as all that follows."""
ENGINE_FACTOR = 3.6
"""Times the tensors that a graph holds at once, weights included, which an engine on a CPU takes."""
LOOK_FACTOR, GROUP_FACTOR = 2, 20
"""Times the sample that judging it takes, and times the elements of a band group of a row that its metrics take."""
MAP_FACTOR = 20
"""Bytes of a pixel of a lookup table while it is read."""
MOST_ROWS = 1024
"""Of the table of rows in a provenance; of more, they are those spread evenly."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Ways:
    """How a product is restored: all that changes a byte of what is written.

    Attributes:
        reading: what somebody says of its file; asked: of its numbers.
        kind: format of `runtime.products.WRITERS`, or `like` the source.
        metrics: of each row of `frame`s, or of the whole `scene`.
        ortho: put on the map grid of its lookup table.
        clip, unit: as `Bundle.restore` has them.
        prompt, engine: of the bundle, in place of its own.
    """

    reading: Reading = field(default_factory=Reading)
    asked: Asked = field(default_factory=Asked)
    kind: str = "like"
    metrics: Literal["frame", "scene"] = "frame"
    ortho: bool = False
    clip: bool = False
    unit: bool = False
    prompt: str | None = None
    engine: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a product.

    Attributes:
        files: that were written, the one that was asked for first.
        sha256: of it, or of the names and digests of all, where there are several.
        frames: band groups times tiles that were restored.
        experts: {expert, from 1: tiles in which it weighs most}.
        missing, moved, saturated: pixels without a value; values moved off a mark, or set to a limit of the type.
        suspect: what is odd about frames that came out, in words.
        passed: rows of frames that were not restored, in words.
        notes, doubts: of the meaning of its numbers.
        seconds: it took. planned: bytes of memory that were declared.
        scale: number that stood for 1.0, None for floats taken as they are.
        bad: {band, from 1: why it was left out}.
    """

    files: tuple[str, ...]
    sha256: str
    frames: int
    experts: Mapping[int, int]
    missing: int
    moved: int
    saturated: int
    suspect: tuple[str, ...]
    passed: tuple[str, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    seconds: float
    planned: int
    scale: float | None
    bad: Mapping[int, str]


@dataclass(eq=False)
class Tally:
    """What is counted while lines are restored; of parts, it adds up."""

    rows: dict[int, Row] = field(default_factory=dict)
    missing: int = 0
    moved: int = 0
    saturated: int = 0

    def take(self, block: Block) -> None:
        """Count a block."""
        self.missing, self.moved = self.missing + block.missing, self.moved + block.moved
        self.saturated += block.saturated

    @property
    def frames(self) -> int:
        return sum(row.frames for row in self.rows.values())

    @property
    def experts(self) -> dict[int, int]:
        found = dict[int, int]()
        for row in self.rows.values():
            for expert, count in row.experts.items():
                found[expert] = found.get(expert, 0) + count
        return dict(sorted(found.items()))

    def told(self, of: Callable[[Row], Mapping[str, int]]) -> tuple[str, ...]:
        """`3 of 8 frames: why`, of whatever a row says."""
        found = dict[str, int]()
        for row in self.rows.values():
            for why, count in of(row).items():
                found[why] = found.get(why, 0) + count
        return tuple(f"{count} of {self.frames}: {why}" for why, count in sorted(found.items()))


def seal_of(head: Head) -> str:
    """What tells a bundle, and the engine that was made of it, from every other: a SHA-256."""
    digest = hashlib.sha256()
    for name in ("manifest.json", "made.json"):
        digest.update(head.files.get(name, b"") + b"\0")
    return digest.hexdigest()


def key_of(description: Description, seal: str, ways: Ways) -> str:
    """What tells an output from others without a look into its input, as a SHA-256: names and sizes, bundle, ways.

    Of two inputs of one name and size `input_digest` tells which it was.
    """
    files = [(file.name, _size(file)) for file in description.files]
    told = json.dumps([FORMAT, files, seal, _options(ways)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise InputError("cannot be read", file=file, remedy="check the path and the permissions") from error


def refuse_unfit(manifest: Manifest, description: Description) -> None:
    """Raise CubeError where a network cannot restore a product by rows of frames."""
    signature = manifest.signature
    if not signature.alike or signature.tiling != "free" or signature.embedding is not None:
        raise CubeError(
            "the network does not restore a cube line by line, as products are",
            file=description.path,
            key="bundle",
            remedy="give a bundle whose network gives the bands it takes and is tiled freely",
        )
    try:
        check_fits(description.shape, signature)
    except CubeError as error:
        error.file = str(description.path)
        raise


def refuse_ways(description: Description, ways: Ways) -> None:
    """Raise CubeError where a product cannot be put on a map as it is asked for."""
    if not ways.ortho:
        return
    if description.place.ortho is None:
        remedy = "leave it out, or give the product that has one"
        raise CubeError("has no lookup table to a map", file=description.path, key="--ortho", remedy=remedy)
    if ways.kind == "like":
        problem = "a product on a map is of another shape than its input"
        remedy = "say --format cog, netcdf, zarr or envi"
        raise CubeError(problem, file=description.path, key="--ortho", remedy=remedy)


def result_of(
    description: Description, reader: CubeReader | None, meaning: Meaning, ways: Ways, missing: int
) -> Result:
    """What is going to be written of a product."""
    dtype = np.dtype(np.float32) if ways.unit else description.dtype
    mark = standing(meaning.marks, dtype)
    if mark is None and ways.kind != "like" and (missing or ways.ortho):
        mark = chosen_mark(dtype)
    stated = replace(
        description.stated, bad=tuple(sorted(meaning.bad)), marks=() if mark is None else (mark,), doubts=()
    )
    if ways.unit:
        stated = Stated(bad=stated.bad, marks=stated.marks, wavelengths=stated.wavelengths, axes=stated.axes)
    return Result(
        description, description.shape, dtype, stated, description.fwhm, None if ways.unit else description.quantity,
        None if ways.unit else description.unit, description.place, mark, ways.unit, reader,
    )  # fmt: skip


def planned(manifest: Manifest, reader: CubeReader, ways: Ways) -> int:
    """Bytes of memory that a process takes at most which restores a product; docs/products.md tells what of."""
    description = reader.description
    bands, lines, samples = description.shape
    size = description.dtype.itemsize
    signature = manifest.signature
    rows = min(signature.measured.size[0], lines)
    row, group = bands * rows * samples, min(bands, signature.measured.bands) * rows * samples
    out = 4 if ways.unit else size
    sorted_ = description.stated.wavelengths is not None and list(description.stated.wavelengths) != sorted(
        description.stated.wavelengths
    )
    restoring = row * (size + 4 + max(4 * (1 + sorted_), size, out)) + GROUP_FACTOR * group
    engine = manifest.memory or (0 if manifest.cost is None else int(ENGINE_FACTOR * manifest.cost.peak_bytes))
    looking = LOOK_FACTOR * min(SAMPLE_BYTES, prod(description.shape) * size) + 2 * BLOCK_BYTES
    scene = prod(description.shape) * 4 + GROUP_FACTOR * group // rows * lines if ways.metrics == "scene" else 0
    written = result_of(description, reader, _unlooked(description), ways, 1)
    ortho = 0
    if ways.ortho and (grid := description.place.ortho) is not None:
        ortho = MAP_FACTOR * grid.lines * grid.samples + 3 * MAP_BLOCK
        written = replace(written, shape=(bands, grid.lines, grid.samples), place=Place(grid=grid), reader=None)
    writing = holds(written, ways.kind)
    return BASE_BYTES + engine + description.holds + writing + ortho + scene + max(restoring, looking)


def _unlooked(description: Description) -> Meaning:
    nothing = np.zeros((0, description.shape[2]), np.bool_)
    return Meaning(Conversion(), None, (), {}, nothing, description.stated.wavelengths)


def judged(manifest: Manifest, reader: CubeReader, asked: Asked, progress: Progress | None = None) -> Survey:
    """A look at every pixel of a product, for the bundle of a manifest. Raises CubeError."""
    refuse_unfit(manifest, reader.description)
    asked = replace(asked, by_wavelength=manifest.signature.measured.kind == "cube")
    found = survey(reader, partial(meaning_for, manifest), asked, progress)
    bands, described = manifest.signature.measured.bands, reader.description
    doubt = words.axis_doubt(described.shape, bands, described.stated.axes)
    if doubt is None:
        return found
    return replace(found, meaning=replace(found.meaning, doubts=(*found.meaning.doubts, doubt)))


def restore_product(
    bundle: Bundle,
    path: Path,
    out: Path,
    ways: Ways,
    *,
    progress: Progress | None = None,
    told: Callable[[CubeReader, Survey], None] | None = None,
) -> Outcome:
    """Restore a product of any size.

    Args:
        bundle: open; its network is as `refuse_unfit` asks.
        path: the product.
        out: file or folder of the format that `ways` says; its folder is there.
        ways: how.
        progress: called with (lines done, lines in all), those of the look at every pixel first.
        told: called when its numbers are understood, before anything is restored.

    Raises:
        CubeError, CubeFileError: it cannot be used, or the output cannot be written.
        MachineError: memory does not suffice, or the engine failed.
    """
    began = time.monotonic()
    with open_cube(path, ways.reading) as reader:
        description = reader.description
        refuse_ways(description, ways)
        needed = planned(bundle.manifest, reader, ways)
        refuse_large(needed, description.path)
        with unchanged(*_plain_files(description)):
            found = judged(bundle.manifest, reader, ways.asked, _first_half(progress))
        if told is not None:
            told(reader, found)
        tally = Tally()
        result = result_of(description, reader, found.meaning, ways, found.missing)
        with opened_writer(out, result, ways) as writer:
            with unchanged(*_plain_files(description)):
                given = _of_scene(bundle, reader, found) if ways.metrics == "scene" else None
                for step in restore_lines(bundle, reader, found, given=given, clip=ways.clip, unit=ways.unit):
                    if isinstance(step, Row):
                        tally.rows[step.line] = step
                        continue
                    write_block(writer, step, result, found.meaning, tally, ways)
                    if progress is not None:
                        progress(step.start + step.cube.shape[1], description.shape[1])
                how = provenance(bundle, description, found.meaning, ways, tally)
            files = writer.finish(how)
    return outcome(files, found.meaning, tally, time.monotonic() - began, needed)


def _first_half(progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda done, lines: progress(0, lines)


def _plain_files(description: Description) -> tuple[Path, ...]:
    return tuple(file for file in description.files if file.is_file())


def opened_writer(out: Path, result: Result, ways: Ways) -> CubeWriter:
    """A writer of what `ways` says. Raises CubeError, CubeFileError."""
    if not ways.ortho:
        return open_writer(out, result, ways.kind)
    glt = None if result.reader is None else result.reader.glt()
    assert glt is not None, "refuse_ways has asked for it"
    return open_ortho(lambda: open_writer(out, result_on_map(result, glt), ways.kind), glt, result)


def write_block(writer: CubeWriter, block: Block, result: Result, meaning: Meaning, tally: Tally, ways: Ways) -> None:
    """Write finished lines: in another format than the source's one mark stands for all that is missing."""
    tally.take(block)
    if ways.kind != "like" and result.mark is not None:
        tally.moved += _marked(block, meaning, block.cube.dtype.type(result.mark))
    writer.write_lines(block.cube, block.quality if result.quality else None)


def _marked(block: Block, meaning: Meaning, mark: Any) -> int:
    """Put the mark where a value, or by a mask a pixel, is missing; how many restored values were moved off it."""
    missing, restored = ((block.quality.seen & bit) > 0 for bit in (Seen.MISSING, Seen.RESTORED))
    untold, moved = missing.copy(), 0
    for number, band in enumerate(block.cube):
        found = marked(band, meaning.marks)
        if number not in meaning.bad:
            untold &= ~found
        if not meaning.marks and number not in meaning.bad and (equal := (band == mark) & restored).any():
            moved += int(np.count_nonzero(equal))
            band[equal] = next_to(mark)
        band[found] = mark
    block.cube[:, untold] = mark
    return moved


def _of_scene(bundle: Bundle, reader: CubeReader, found: Survey) -> Given:
    """What the network takes beside frames, of the whole product: one for each band group."""
    description, signature = reader.description, bundle.manifest.signature
    lines = description.shape[1]
    cube = np.empty(description.shape, np.float32)
    height = signature.measured.size[0]
    for start in range(0, lines, height):
        stop = min(start + height, lines)
        numbers = reader.read_lines(start, stop)
        cube[:, start:stop] = found.of_lines(numbers, reader.missing(start, stop)).unit(numbers)
    groups = frame_plan(description.shape, signature, bundle.manifest.overlap).groups
    return tuple(bundle.prompts(cube[at : at + signature.measured.bands]) for at, _ in groups)


def refuse_large(needed: int, path: Path) -> None:
    """Raise MachineError where this machine has not the memory that is declared."""
    there = available_memory()
    if needed > there:
        raise MachineError(
            f"restoring it takes {needed / 2**20:.0f} MiB of memory, {there / 2**20:.0f} are free",
            file=path,
            key="memory",
            remedy="build the bundle for frames of fewer lines, say --metrics frame, or free memory",
        )


def provenance(bundle: Bundle, description: Description, meaning: Meaning, ways: Ways, tally: Tally) -> dict[str, Any]:
    """How an output was made, as plain values: the same whenever, wherever and in how many parts it is."""
    manifest, engine = bundle.manifest, bundle.engine.describe()
    seal = seal_of(bundle.contents)
    rows = [tally.rows[line] for line in sorted(tally.rows)]
    if len(rows) > MOST_ROWS:
        rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, MOST_ROWS)]
    names = manifest.signature.metric_names
    return {
        "program": "damp-deploy",
        "version": PROGRAM,
        "key": key_of(description, seal, ways),
        "bundle": seal,
        "network": manifest.network.architecture,
        "checkpoint": manifest.network.checkpoint_sha256,
        "precision": bundle.choice.precision,
        "engine": engine["engine"],
        "computes_in": engine["computes in"],
        "prompt": bundle.prompts.chosen,
        "metrics_of": ways.metrics,
        "options": _options(ways),
        "input": {"name": description.path.name, "format": description.format, "sha256": input_digest(description)},
        "scale": None if meaning.scale_from is None else meaning.conversion.scale,
        "scale_from": meaning.scale_from,
        "bands_left_out": {str(band + 1): why for band, why in sorted(meaning.bad.items())},
        "frames": tally.frames,
        "missing": tally.missing,
        "moved": tally.moved,
        "saturated": tally.saturated,
        "suspect": list(tally.told(lambda row: row.odd)),
        "experts": {str(expert): count for expert, count in tally.experts.items()},
        "rows": {
            "columns": ["line", "expert", *names],
            "values": [[r.line, _most(r.experts), *(float(f"{m:.5g}") for m in r.metrics)] for r in rows],
        },
    }


def _most(experts: Mapping[int, int]) -> int:
    return max(experts, key=lambda expert: (experts[expert], -expert)) if experts else 0


def _options(ways: Ways) -> dict[str, Any]:
    """Those that are not what they are by themselves."""
    plain, told = asdict(Ways()), asdict(ways)
    found: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            found |= {inner: one for inner, one in value.items() if one != plain[name][inner]}
        elif value != plain[name]:
            found[name] = value
    if found.get("marks"):
        # JSON has no NaN.
        found["marks"] = [words.number(mark) for mark in found["marks"]]
    return found


def input_digest(description: Description) -> str:
    """SHA-256 of the file, or of the names and digests of all that a product is read from. Raises CubeFileError."""
    found = []
    for file in _plain_files(description):
        digest = hashlib.sha256()
        with opened(file) as (stream, _):
            while piece := stream.read(1 << 20):
                digest.update(piece)
        found.append((file.name, digest.hexdigest()))
    return found[0][1] if len(found) == 1 else hashlib.sha256(json.dumps(found).encode()).hexdigest()


def outcome(files: tuple[Path, ...], meaning: Meaning, tally: Tally, seconds: float, needed: int) -> Outcome:
    """What became of a product that was written."""
    digests = [(str(file.relative_to(files[0].parent)), digest_of(file)) for file in files]
    sha256 = digests[0][1] if len(digests) == 1 else hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return Outcome(
        files=tuple(str(file) for file in files),
        sha256=sha256,
        frames=tally.frames,
        experts=tally.experts,
        missing=tally.missing,
        moved=tally.moved,
        saturated=tally.saturated,
        suspect=tally.told(lambda row: row.odd),
        passed=tally.told(lambda row: {row.passed: 1} if row.passed else {}),
        notes=meaning.notes,
        doubts=meaning.doubts,
        seconds=round(seconds, 3),
        planned=needed,
        scale=None if meaning.scale_from is None else meaning.conversion.scale,
        bad={band + 1: why for band, why in meaning.bad.items()},
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of all files of a folder."""
    if path.is_dir():
        inner = sorted(file for file in path.rglob("*") if file.is_file())
        told = [(str(file.relative_to(path)), digest_of(file)) for file in inner]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
