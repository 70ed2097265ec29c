"""How a product is restored, what becomes of it, and what can be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from runtime.by_lines.rows import Block, Row
from runtime.errors import CubeError
from runtime.manifest import Manifest
from runtime.meaning import Asked, Meaning
from runtime.meaning.marks import standing
from runtime.products.contract import CubeReader, Description, Reading, Result
from runtime.products.ortho import chosen_mark
from runtime.restore import check_fits
from runtime.stated import Stated

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
