"""A product restored into another: whole or absent, within memory that is declared before, with its provenance."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle, meaning_for
from runtime.by_lines.memory import planned, refuse_large
from runtime.by_lines.provenance import digest_of, plain_files, provenance
from runtime.by_lines.rows import Block, Given, Row, restore_lines
from runtime.by_lines.survey import Survey, survey
from runtime.by_lines.ways import Outcome, Progress, Tally, Ways, refuse_unfit, refuse_ways, result_of
from runtime.files.disk import unchanged
from runtime.manifest import Manifest
from runtime.meaning import Asked, Meaning, words
from runtime.meaning.marks import marked
from runtime.products import open_cube, open_writer
from runtime.products.contract import CubeReader, CubeWriter, Result, Seen
from runtime.products.ortho import open_ortho, result_on_map
from runtime.scaling import next_to
from runtime.tiles import frame_plan


def judged(manifest: Manifest, reader: CubeReader, asked: Asked, progress: Progress | None = None) -> Survey:
    """A look at every pixel of a product, for the bundle of a manifest. Raises CubeError."""
    refuse_unfit(manifest, reader.description)
    asked = replace(asked, by_wavelength=manifest.signature.measured.kind == "cube")
    found = survey(reader, partial(meaning_for, manifest), asked, progress, fills=manifest.signature.fills)
    bands, described = manifest.signature.measured.bands, reader.description
    doubt = words.axis_doubt(described.shape, bands, described.stated.axes)
    if doubt is not None:
        found = replace(found, meaning=replace(found.meaning, doubts=(*found.meaning.doubts, doubt)))
    return found


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
        with unchanged(*plain_files(description)):
            found = judged(bundle.manifest, reader, ways.asked, _first_half(progress))
        if told is not None:
            told(reader, found)
        tally = Tally()
        result = result_of(description, reader, found.meaning, ways, found.missing)
        with opened_writer(out, result, ways) as writer:
            with unchanged(*plain_files(description)):
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
        meaning, holes = found.of_lines(numbers, reader.missing(start, stop))
        cube[:, start:stop] = meaning.unit(numbers, holes)
    groups = frame_plan(description.shape, signature, bundle.manifest.overlap).groups
    return tuple(bundle.prompts(cube[at : at + signature.measured.bands]) for at, _ in groups)


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
