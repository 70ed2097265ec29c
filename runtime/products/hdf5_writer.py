"""EMIT, AVIRIS, HYPSO, PRISMA and CF NetCDF files "like the input": all but the cube's numbers is the source's."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import PIECE
from runtime.files.hdf5 import StoredArray
from runtime.products.contract import PROVENANCE, CubeWriter, Quality, Result
from runtime.products.hdf5_copy import Copy
from runtime.products.hdf5_lines import LinesOf
from runtime.products.hdf5_objects import order_of
from runtime.products.hdf5_out import Hdf5Out
from runtime.products.hdf5_quality import GROUP, NAMES, make_layers
from runtime.products.hdf5_rows import Rows, held
from runtime.products.hdf5_tree import CubePart, Tree
from runtime.products.written import check_lines

_HISTORY = "history"
_LONGEST_HISTORY = 1 << 20


def open_like(out: Path, result: Result) -> "HdfLike":
    """A copy of the source's file, whose cube is to be written.

    Groups, attributes, data sets with their chunks and filters, dimensions and references are the source's. What lies
    in other files, or takes a plug-in, is left out, and told in the provenance as `left_out`.

    Raises:
        CubeFileError: the result is no cube of the source's size and type; the source is damaged, or was changed since
            it was opened; the system refused.
        ModuleNotFoundError: h5py is not installed.
    """
    return HdfLike(out, result)


def holds_like(result: Result) -> int:
    """Bytes that a writer like the input keeps beside the block it is given."""
    with Tree(result.source.files[0]) as tree:
        return 2 * PIECE + sum(_held(tree, part) for part in _parts(result))


def _held(tree: Tree, part: CubePart) -> int:
    stored = _cube(tree, part)
    taken = held(stored.shape, stored.chunks, stored.dtype.itemsize, part.axes)
    others = _others(tree, part)
    return taken + (others.holds if others else 0)


def _parts(result: Result) -> tuple[CubePart, ...]:
    parts: tuple[CubePart, ...] = getattr(result.reader, "cube_parts", ())
    source = result.source
    if result.unit_range and result.shape == source.shape:
        raise CubeFileError(
            "float32 in the unit range is asked for, and a file like the input keeps its numbers' scale",
            file=source.path,
            remedy="write another format: --format netcdf",
        )
    if not parts or (result.shape, result.dtype) != (source.shape, source.dtype):
        raise CubeFileError(
            f"{result.dtype} {list(result.shape)} cannot stand where {source.dtype} {list(source.shape)} stood",
            file=source.path,
            remedy="write another format: --format netcdf",
        )
    return parts


def _cube(tree: Tree, part: CubePart) -> StoredArray:
    stored = tree.array(part.path, (None, None, None))
    if stored is None:
        raise tree.wrong("is not there any more", part.path)
    return stored


def _others(tree: Tree, part: CubePart) -> LinesOf | None:
    """Those bands of a data set that are none of the cube's, such as PRISMA's of wavelength 0."""
    stored = _cube(tree, part)
    others = tuple(sorted({*range(stored.shape[part.axes.index("bands")])} - {*part.bands}))
    return LinesOf(stored, part.axes, others) if others else None


class HdfLike(CubeWriter):
    """See `open_like`.

    Attributes:
        notes: what of the source is left out, each a sentence.
    """

    def __init__(self, out: Path, result: Result) -> None:
        parts = _parts(result)
        self._stack = ExitStack()
        try:
            self._tree = self._stack.enter_context(Tree(result.source.files[0]))
            with self._tree.guarded():
                cubes: list[Any] = [self._tree.find(part.path) for part in parts]
                source = cubes[0].file
                order = order_of(source)
            self._out = Hdf5Out(out, result.source.files, order)
            self._stack.callback(self._out.close)
            beside = str(PurePosixPath(parts[0].path).parent)
            with self._out.writing():
                # What goes wrong here, with a disk that is not full, is the source's.
                with self._tree.guarded():
                    copy = Copy(
                        self._tree.path,
                        self._tree.size,
                        source,
                        self._out.file,
                        empty=cubes,
                        without=[GROUP, *(str(PurePosixPath(beside, name)) for name in NAMES)],
                    )
                    copy.make(self._out.check, (PROVENANCE.encode(), _HISTORY.encode()))
                    self._history = _history(source, copy)
                self.notes = tuple(copy.notes)
                made = [copy.of(cube) for cube in cubes]
                self._rows = [
                    self._stack.enter_context(Rows(cube, part.axes, out, part.bands, _others(self._tree, part)))
                    for part, cube in zip(parts, made, strict=True)
                ]
                self._layers = self._quality(made[0], parts[0]) if result.quality else ()
            self._parts, self._lines = parts, result.shape[1]
        except BaseException:
            self._stack.close()
            raise

    def _quality(self, cube: Any, part: CubePart) -> tuple[Rows, ...]:
        at = [part.axes.index("lines"), part.axes.index("samples")]
        scales = [_scale(cube, axis) for axis in at]
        group = cube.parent if all(scales) else self._out.file.create_group(GROUP, track_order=True)
        names = NAMES if all(scales) else tuple(name.removeprefix(f"{PROVENANCE}_") for name in NAMES)
        layers = make_layers(group, names, *(cube.shape[axis] for axis in at))
        if all(scales):
            for layer in layers:
                for axis, scale in enumerate(scales):
                    layer.dims[axis].attach_scale(scale)
        return tuple(Rows(layer, ("lines", "samples"), self._out.out) for layer in layers)

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        """See `CubeWriter`."""
        assert cube.shape[1] <= self._rows[0].missing
        with self._tree.guarded(pixels=True), self._out.writing():
            band = 0
            for part, rows in zip(self._parts, self._rows, strict=True):
                rows.append(cube[band : band + len(part.bands)])
                band += len(part.bands)
            if self._layers:
                assert quality is not None
                for rows, layer in zip(self._layers, (quality.seen, quality.expert), strict=True):
                    rows.append(layer[None])

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        """See `CubeWriter`."""
        try:
            check_lines(self._lines - self._rows[0].missing, self._lines, self._out.out)
            told = {**provenance, "left_out": list(self.notes)} if self.notes else provenance
            with self._out.writing():
                self._out.sign(told, self._history)
            self._out.finish()
        finally:
            self.close()
        return (self._out.out,)

    def close(self) -> None:
        """See `CubeWriter`."""
        self._stack.close()


def _scale(cube: Any, axis: int) -> Any | None:
    """The dimension of an axis, as NetCDF keeps it."""
    import h5py

    try:
        scales = list(cube.dims[axis].values())
    except Exception:
        return None
    fits = scales and h5py.h5ds.is_scale(scales[0].id) and scales[0].shape == (cube.shape[axis],)
    return scales[0] if fits else None


def _history(source: Any, copy: Copy) -> str | None:
    import h5py

    if _HISTORY not in source.attrs:
        return None
    told = source.attrs.get_id(_HISTORY)
    if told.shape is None or h5py.check_string_dtype(told.dtype) is None:
        copy.notes.append(f"/@{_HISTORY} is left out: it is no text")
        return None
    copy.largest()
    texts = np.asarray(source.attrs[_HISTORY], object).reshape(-1)
    lines = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts]
    return "\n".join(lines)[-_LONGEST_HISTORY:].rstrip("\0")
