"""What writers of TIFFs share: drafts in a hidden folder beside the target, and a quality layer on the same grid."""

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.durable import part_of, sync_folder
from runtime.errors import CubeFileError
from runtime.files.disk import reason
from runtime.plain_json import plain_json
from runtime.products.contract import PROVENANCE, CubeWriter, Quality, Result, Seen
from runtime.products.tiff_draft import REMEDY, Draft, Plan, rows_at_once, writing

_QUALITY_OPTIONS = {"interleave": "band", "compress": "deflate", "tiled": "YES", "blockxsize": 256, "blockysize": 256}


@contextmanager
def system(out: Path) -> Iterator[None]:
    """What the system refuses in the block as CubeFileError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CubeFileError(f"cannot be written: {reason(error)}", file=out, remedy=REMEDY) from error


class TiffTarget(CubeWriter):
    """Lines into drafts, which share the cube's bands in their order.

    Attributes:
        out: what is written, as it was named.
        part: the hidden folder.
        drafts: set by those who inherit, in `_begin`.
    """

    def __init__(self, out: Path, result: Result) -> None:
        self.out, self.result = out, result
        self.drafts: Sequence[Draft] = ()
        self._quality: Draft | None = None
        self._stack = ExitStack()
        place = out.absolute()
        if str(place).startswith("/vsi"):
            raise CubeFileError("GDAL takes this path for another kind", file=out, remedy="give another folder")
        try:
            with system(out):
                self.part = self._stack.enter_context(part_of(place, folder=True))
                self.drafts = self._begin()
                if result.quality:
                    self._quality = _quality_draft(self.part / ".quality", self.drafts[0].path, result, out)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _begin(self) -> Sequence[Draft]:
        """The drafts that take the lines."""

    @abstractmethod
    def _put(self, tags: Mapping[str, str], quality: Draft | None) -> tuple[Path, ...]:
        """Pack the drafts and put all in its place. Raises OSError or CubeFileError."""

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        at = 0
        for draft in self.drafts:
            bands = len(draft.plan.bands)
            draft.write(cube[at : at + bands])
            at += bands
        if self._quality and quality:
            self._quality.write(np.stack([quality.seen, quality.expert]))

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        text = json.dumps(plain_json(provenance), sort_keys=True)
        with system(self.out):
            written = self._put({PROVENANCE: text}, self._quality)
            sync_folder(self.out.absolute().parent)
        self.close()
        return written

    def close(self) -> None:
        self._stack.close()


def _quality_draft(path: Path, like: Path, result: Result, out: Path) -> Draft:
    """A draft of `Quality` that lies where another one does."""
    _, lines, samples = result.shape
    rows = rows_at_once((2, lines, samples), 1)
    shape = {"count": 2, "height": lines, "width": samples, "blockysize": rows, "interleave": "band"}
    with writing(out) as rasterio, rasterio.open(like, driver="GTiff") as source:
        points, crs = source.gcps
        place = {"crs": source.crs} if points else {"crs": source.crs, "transform": source.transform}
        with rasterio.open(path, "w", driver="GTiff", dtype="uint8", bigtiff="YES", **shape, **place) as dataset:
            if not points:
                dataset.update_tags(AREA_OR_POINT=source.tags().get("AREA_OR_POINT", "Area"))
            dataset.update_tags(ns="RPC", **source.tags(ns="RPC"))
            if points:
                dataset.gcps = (points, crs)
            dataset.descriptions = ("seen", "expert")
            flags = {flag.name.lower(): flag.value for flag in Seen if flag.name}
            dataset.update_tags(1, flag_masks=" ".join(map(str, flags.values())), flag_meanings=" ".join(flags))
    plan = Plan(_QUALITY_OPTIONS, (1, 2), ((0, samples),))
    return Draft(path, plan, lines, np.empty((2, rows, samples), np.uint8), out=out)


def _put_pair(image: Path, quality: Path | None, out: Path, part: Path) -> tuple[Path, ...]:
    """Rename a TIFF and its quality, which is called NAME_quality.tif. Raises OSError.

    No kill leaves a quality beside an image that is not its own: the old one goes first, the new one comes last.
    """
    beside, old = quality_path(out), part / "old_quality.tif"
    replaced = os.path.lexists(out) or quality is not None
    if replaced and os.path.lexists(beside):
        os.replace(beside, old)  # noqa: PTH105
        sync_folder(beside.parent)
    try:
        os.replace(image, out)  # noqa: PTH105
    except OSError:
        if old.exists():
            os.replace(old, beside)  # noqa: PTH105
        raise
    if quality is None:
        return (out,)
    sync_folder(out.parent)
    os.replace(quality, beside)  # noqa: PTH105
    return (out, beside)


def quality_path(out: Path) -> Path:
    """Where the quality of a TIFF lies."""
    return out.with_name(f"{out.stem}_quality.tif")


def put_packed(target: TiffTarget, tags: Mapping[str, str], quality: Draft | None) -> tuple[Path, ...]:
    """Pack the one draft of a target and its quality, and put them in their places. Raises OSError, CubeFileError."""
    image, layer = target.part / "image.tif", target.part / "quality.tif"
    target.drafts[0].pack(image, tags)
    if quality:
        quality.pack(layer, tags)
    return _put_pair(image, layer if quality else None, target.out, target.part)
