"""An HDF5 file copied object by object: nothing comes from outside it, and what points inside it points to the copies.

HDF5's own copy (H5Ocopy) would follow what a stranger's file names, forget references and note the time of day.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, DeployError
from runtime.files.disk import PIECE, reason
from runtime.products.contract import LINE_OF_CHUNKS
from runtime.products.hdf5_heaps import largest_object
from runtime.products.hdf5_objects import (
    boxes,
    foreign,
    index_of,
    links_of,
    place_of,
    pointing,
    strange,
    text_of,
    weight,
)

_MOST_EXPANDED = 1 << 28
"""Bytes that the texts of one attribute may have."""
_SMALL_CHUNK = 1 << 16
"""Bytes of a compressed chunk that HDF5 may inflate by itself: to 64 MiB at most."""


class Copy:
    """What of a file is copied into another, and where it lies.

    Args:
        path, size: of the source, and its bytes.
        source, target: both open as `h5py.File`; the target's root is empty.
        empty: data sets of the source whose values are left to somebody else.
        without: paths of what is not copied, since something new takes its place.

    Attributes:
        notes: what was left out and why, each a sentence.

    Raises:
        CubeFileError: the source is damaged, or says that it holds more than it does.
    """

    def __init__(
        self, path: Path, size: int, source: Any, target: Any, *, empty: Collection[Any], without: Collection[str]
    ) -> None:
        self.notes: list[str] = []
        self._path, self._left = path, size
        self._size = size
        self._source, self._target = source.id, target.id
        self._empty = {place_of(one.id) for one in empty}
        self._without = {name.encode() for name in without}
        self._largest: int | None = None
        self._places: dict[Any, bytes] = {}
        self._types: dict[Any, Any] = {}
        self._pairs: list[tuple[Any, Any, bytes]] = []

    def make(self, taken: Callable[[], None], root_without: Collection[bytes]) -> None:
        """Copy it all.

        Args:
            taken: raises what the target's system refused.
            root_without: attributes of the root that are not copied.
        """
        self._make_objects()
        for old, new, name in self._pairs:
            with self._at(name):
                if place_of(old) not in self._empty:
                    self._values(old, new, name)
                self._attributes(old, new, name, () if name != b"/" else root_without)
            taken()

    def of(self, found: Any) -> Any:
        """The copy of a data set of the source."""
        import h5py

        return h5py.Dataset(h5py.h5o.open(self._target, self._places[place_of(found.id)]))

    def largest(self) -> int:
        """Bytes of the largest value of variable length. To be asked before HDF5 reads one: see `largest_object`."""
        if self._source.get_create_plist().get_sizes() != (8, 8):
            raise ValueError("its offsets and lengths are not of 8 bytes")
        if self._largest is None:
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                self._largest = largest_object(descriptor, self._size)
            finally:
                os.close(descriptor)
        return self._largest

    @contextmanager
    def _at(self, name: bytes) -> Iterator[None]:
        """Whatever goes wrong inside is a CubeFileError of this object of the source."""
        try:
            yield
        except (DeployError, MemoryError):
            raise
        except Exception as error:
            raise CubeFileError(
                f"cannot be copied: {reason(error)}",
                file=self._path,
                key=text_of(name),
                remedy="write another format, such as NetCDF",
            ) from error

    def _make_objects(self) -> None:
        from h5py import h5g, h5o

        old, new = h5g.open(self._source, b"/"), h5g.open(self._target, b"/")
        waiting = [(old, new, b"")]
        self._places[place_of(old)] = b"/"
        self._pairs.append((old, new, b"/"))
        while waiting:
            old, new, prefix = waiting.pop(0)
            for name in links_of(old):
                path = prefix + b"/" + name
                if path in self._without:
                    continue
                with self._at(path):
                    if not self._made_link(old, new, name, path):
                        continue
                    found = h5o.open(old, name)
                    known = self._places.get(place_of(found))
                    if known is not None:
                        new.links.create_hard(name, self._target, known)
                        continue
                    made = self._made(found, new, name, path)
                    if made is None:
                        continue
                    self._places[place_of(found)] = path
                    self._pairs.append((found, made, path))
                    if isinstance(found, h5g.GroupID):
                        waiting.append((found, made, path))

    def _made_link(self, old: Any, new: Any, name: bytes, path: bytes) -> bool:
        """Whether a link leads to an object of its own; one by name is copied as it stands."""
        from h5py import h5l

        kind = old.links.get_info(name).type
        if kind == h5l.TYPE_SOFT:
            new.links.create_soft(name, old.links.get_val(name))
        elif kind != h5l.TYPE_HARD:
            self._leave(path, "it is a link to another file")
        return bool(kind == h5l.TYPE_HARD)

    def _made(self, found: Any, new: Any, name: bytes, path: bytes) -> Any:
        from h5py import h5d, h5g, h5t

        if isinstance(found, h5g.GroupID):
            made = found.get_create_plist()
            made.set_obj_track_times(False)
            return h5g.create(new, name, gcpl=made)
        if isinstance(found, h5t.TypeID):
            kind = found.copy()
            kind.commit(new, name)
            self._types[place_of(found)] = kind
            return kind
        if pointing(found.get_type()):
            # A fill value may lie in a heap.
            self.largest()
        made = found.get_create_plist()
        why = foreign(h5d, made) or strange(found.get_type(), found.shape)
        if why:
            self._leave(path, why)
            return None
        made.set_obj_track_times(False)
        # HDF5 2.0 keeps where the source's values lie, and takes that for a place in the new file.
        if (layout := made.get_layout()) == h5d.CHUNKED:
            made.set_chunk(made.get_chunk())
        else:
            made.set_layout(layout)
        return h5d.create(new, name, self._type(found.get_type()), found.get_space(), made)

    def _leave(self, path: bytes, why: str) -> None:
        self.notes.append(f"{text_of(path)} is left out: {why}")

    def _type(self, kind: Any) -> Any:
        return (self._types.get(place_of(kind)) if kind.committed() else None) or kind.copy()

    def _attributes(self, old: Any, new: Any, path: bytes, without: Collection[bytes]) -> None:
        from h5py import h5a

        names: list[bytes] = []
        h5a.iterate(old, names.append, index_type=index_of(old, "get_attr_creation_order"))
        for name in names:
            if name in without:
                continue
            found = h5a.open(old, name)
            kind, at = found.get_type(), path + b"@" + name
            self._take(kind.get_size() * prod(found.shape or (0,)))
            why = strange(kind, found.shape)
            if why:
                self._leave(at, why)
                continue
            values = None
            if found.shape is not None and not pointing(kind):
                values, memory = np.empty(found.shape, f"V{kind.get_size()}"), kind.copy()
                found.read(values, mtype=memory)
            elif found.shape is not None:
                # One object of a heap may stand for every element.
                if prod(found.shape) * self.largest() > _MOST_EXPANDED:
                    self._leave(at, "it may be larger than is moved at once")
                    continue
                values, memory = np.empty(found.shape, found.dtype), None
                found.read(values)
                self._take(weight(values))
                if not self._moved(values):
                    self._leave(at, "it refers to something that is left out")
                    continue
            made = h5a.create(new, name, self._type(kind), found.get_space())
            if values is not None:
                made.write(values, mtype=memory)

    def _values(self, old: Any, new: Any, path: bytes) -> None:
        from h5py import h5d

        if not isinstance(old, h5d.DatasetID) or old.shape is None or old.get_storage_size() == 0:
            return
        properties = old.get_create_plist()
        chunked = properties.get_layout() == h5d.CHUNKED
        chunks: list[Any] = []
        if chunked:
            old.chunk_iter(chunks.append)
            largest = max((chunk.size for chunk in chunks), default=0)
            if largest > (_SMALL_CHUNK if pointing(old.get_type()) and properties.get_nfilters() else LINE_OF_CHUNKS):
                raise ValueError(f"a chunk of {largest} bytes is more than is moved at once")
        if pointing(old.get_type()):
            self._pointers(old, new, path)
        elif chunked:
            for chunk in chunks:
                self._take(chunk.size)
                mask, raw = old.read_direct_chunk(chunk.chunk_offset)
                new.write_direct_chunk(chunk.chunk_offset, raw, mask)
        else:
            self._take(old.get_storage_size())
            self._contiguous(old, new)

    def _contiguous(self, old: Any, new: Any) -> None:
        from h5py import h5s

        kind = old.get_type()
        memory = kind.copy()
        for start, count in boxes(old.shape, max(1, PIECE // kind.get_size())):
            values = np.empty(count, f"V{kind.get_size()}")
            there, here = old.get_space(), h5s.create_simple(count) if count else h5s.create(h5s.SCALAR)
            if count:
                there.select_hyperslab(start, count)
            old.read(here, there, values, memory)
            new.write(here, there, values, memory)

    def _pointers(self, old: Any, new: Any, path: bytes) -> None:
        from h5py import h5s

        self.largest()
        for start in product(*map(range, old.shape)):
            one = (1,) * len(start)
            values = np.empty(one, old.dtype)
            there, here = old.get_space(), h5s.create_simple(one) if one else h5s.create(h5s.SCALAR)
            if one:
                there.select_hyperslab(start, one)
            old.read(here, there, values)
            self._take(weight(values))
            if not self._moved(values):
                self._leave(path + str(list(start)).encode(), "it refers to something that is left out")
                continue
            new.write(here, there, values)

    def _moved(self, values: NDArray[Any]) -> bool:
        """Turn references to objects into those to their copies; False where one has none."""
        from h5py import h5r

        if values.dtype.names:
            return all(self._moved(values[name]) for name in values.dtype.names)
        if values.dtype.kind != "O":
            return True
        for index in np.ndindex(values.shape):
            value = values[index]
            if isinstance(value, np.ndarray):
                if not self._moved(value):
                    return False
            elif isinstance(value, h5r.Reference) and value:
                place = None
                with suppress(Exception):
                    place = self._places.get(place_of(h5r.dereference(value, self._source)))
                if place is None:
                    return False
                values[index] = h5r.create(self._target, place, h5r.OBJECT)
        return True

    def _take(self, count: int) -> None:
        """Each byte of a file is copied once: a file that has several objects share their bytes grows without end."""
        self._left -= count
        if self._left < 0:
            raise ValueError(f"it says that it holds more than its {self._size} bytes")
