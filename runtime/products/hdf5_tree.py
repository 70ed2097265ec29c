"""HDF5 products opened strictly: what is in the file itself, walked link by link, and nothing else.

HDF5 follows any link of a path that it is given, into other files too, and has no switch against it (h5py issue 2891).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from runtime.closing import Closing
from runtime.errors import CubeFileError, DeployError, MachineError
from runtime.files.disk import MOST_HELD, mark_of, opened, reason
from runtime.files.hdf5 import StoredArray, is_hdf5
from runtime.files.hdf5_text import variable_text

REPACK = "copy it again, or rewrite it with `h5repack -f SHUF -f GZIP=4`"
_MOST_TEXT, _MOST_NUMBERS = 1 << 16, 1 << 16
"""Characters of a text and numbers of a list that are taken."""
_DEEPEST, _MOST_LINKS = 16, 16


@dataclass(frozen=True)
class CubePart:
    """A data set that holds bands of a cube.

    Attributes:
        path: of the data set, such as `/HDFEOS/SWATHS/PRS_L1_HCO/Data Fields/VNIR_Cube`.
        axes: `bands`, `lines` and `samples` in the order of the data set.
        bands: indices along its bands of those that the description has, in the description's order.
    """

    path: str
    axes: tuple[str, ...]
    bands: tuple[int, ...]


class Tree(Closing):
    """An open HDF5 file. Paths are absolute, such as `/location/lon`; `where` is the path of a group or data set.

    Soft links are followed within the file; links of any other kind are refused wherever they stand in a path.

    Raises:
        CubeFileError: it is no file, no HDF5, or damaged; so do all methods.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        with ExitStack() as stack:
            file, self.size = stack.enter_context(opened(path))
            if not is_hdf5(file, self.size):
                raise CubeFileError("is no HDF5 file", file=path, remedy="copy it again")
            self._raw, self._mark = file.fileno(), mark_of(path)
            with self.guarded():
                self._file = stack.enter_context(h5py.File(path, "r", locking=False))
            self._open = stack.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    @contextmanager
    def guarded(self, *, pixels: bool = False) -> Iterator[None]:
        """What HDF5 finds wrong in the block is a CubeFileError, as is a file that changed where `pixels` are read."""
        try:
            yield
            if pixels and mark_of(self.path) != self._mark:
                remedy = "read it again when nothing writes to it"
                raise CubeFileError("was changed since it was opened", file=self.path, remedy=remedy)
        except DeployError:
            raise
        except MemoryError as error:
            raise MachineError("there is not the memory to read it", file=self.path, remedy="free memory") from error
        except Exception as error:
            raise CubeFileError(f"is damaged: {reason(error)}", file=self.path, remedy="copy it again") from error

    def find(self, where: str) -> Any | None:
        """The h5py group or data set at a path, None where nothing is."""
        with self.guarded():
            return self._walk(self._file, _names(where), _MOST_LINKS)

    def names(self, where: str) -> list[str]:
        """Names in a group; none where there is no group."""
        import h5py

        group = self.find(where)
        with self.guarded():
            if not isinstance(group, h5py.Group):
                return []
            if len(group) > MOST_HELD:
                raise self.wrong(f"holds more than {MOST_HELD} objects", where, remedy="save the cube in a file alone")
            # Names that are no UTF-8 come as bytes.
            return [name if isinstance(name, str) else name.decode("utf-8", "surrogateescape") for name in group]

    def datasets(self) -> tuple[dict[str, Any], list[str]]:
        """The h5py data sets that hard links lead to, by path, of groups that hold each other once; and other links."""
        import h5py

        found: dict[str, Any] = {}
        links: list[str] = []
        with self.guarded():
            seen, left, looked = {self._file["/"]}, [("", self._file["/"])], 0
            while left:
                path, group = left.pop()
                for name in self.names(path or "/"):
                    looked += 1
                    if looked > MOST_HELD:
                        raise self.wrong(f"holds more than {MOST_HELD} objects", remedy="save the cube in a file alone")
                    where = f"{path}/{name}"
                    if group.id.links.get_info(_raw(name)).type != h5py.h5l.TYPE_HARD:
                        links.append(where)
                        continue
                    held = group[_raw(name)]
                    if isinstance(held, h5py.Dataset):
                        found[where] = held
                    elif isinstance(held, h5py.Group) and held not in seen and where.count("/") < _DEEPEST:
                        seen.add(held)
                        left.append((where, held))
        return found, links

    def array(self, where: str, shape: Sequence[int | None]) -> StoredArray | None:
        """The numbers at a path, None where nothing is; of this shape, None of which stands for any length."""
        import h5py

        held = self.find(where)
        if held is None:
            return None
        with self.guarded():
            if not isinstance(held, h5py.Dataset):
                raise self.wrong("is a group, where numbers are expected", where)
            found = StoredArray(held, self.size, self.path, where, REPACK)
            same = len(found.shape) == len(shape) and all(
                length > 0 and asked in (None, length) for length, asked in zip(found.shape, shape, strict=True)
            )
            if not same:
                asked = " x ".join("any" if length is None else str(length) for length in shape)
                raise self.wrong(f"is not of the shape {asked}", where, list(found.shape))
            return found

    def numbers(self, where: str) -> tuple[float, ...] | None:
        """A data set of one axis, None where there is none."""
        found = self.array(where, (None,))
        if found is None:
            return None
        if found.shape[0] > _MOST_NUMBERS:
            raise self.wrong(f"holds more than {_MOST_NUMBERS} numbers", where, found.shape[0])
        with self.guarded():
            return tuple(found.whole().astype(np.float64).tolist())

    def text(self, where: str, name: str) -> str | None:
        """The attribute `name` of what is at a path, None where either is not there."""
        return self._attribute(where, name, self._as_text)

    def values(self, where: str, name: str, count: int | None = None) -> tuple[float, ...] | None:
        """An attribute of `count` numbers; a text of as many is taken as well, since some products write them so."""
        found = self._attribute(where, name, self._as_numbers)
        if found is not None and count not in (None, len(found)):
            raise self.wrong(f"has {len(found)} numbers instead of {count}", f"{where} {name}")
        return found

    def value(self, where: str, name: str) -> float | None:
        """An attribute of one number."""
        found = self.values(where, name, 1)
        return None if found is None else found[0]

    def dimensions(self, held: Mapping[str, Any]) -> dict[str, dict[int, str]]:
        """Which of the data sets `held` stands for which axis of which, as NetCDF's dimensions do; all by path."""
        paths = {dataset: where for where, dataset in held.items()}
        found: dict[str, dict[int, str]] = {}
        count = 0
        with self.guarded():
            for where, dataset in held.items():
                # The list at the other end, DIMENSION_LIST, lies in a heap that HDF5 cannot be trusted with.
                if "REFERENCE_LIST" not in dataset.attrs:
                    continue
                told = dataset.attrs.get_id("REFERENCE_LIST")
                count += prod(told.shape)
                if told.dtype.names != ("dataset", "dimension") or count > _MOST_NUMBERS:
                    raise self.wrong("is no list of references", f"{where} REFERENCE_LIST")
                for reference, axis in dataset.attrs["REFERENCE_LIST"]:
                    if reference and (other := paths.get(self._file[reference])):
                        found.setdefault(other, {})[int(axis)] = where
        return found

    def wrong(self, problem: str, key: str | None = None, value: object = None, remedy: str = "") -> CubeFileError:
        """An error that names this file."""
        return CubeFileError(problem, file=self.path, key=key, value=value, remedy=remedy or "get the product again")

    def _walk(self, group: Any, names: list[str], links: int) -> Any | None:
        import h5py

        for at, name in enumerate(names):
            if not isinstance(group, h5py.Group) or not group.id.links.exists(_raw(name)):
                return None
            kind = group.id.links.get_info(_raw(name)).type
            if kind == h5py.h5l.TYPE_SOFT:
                if not links:
                    raise self.wrong("is a link that leads to itself", name, remedy="save the data set itself")
                target = group.id.links.get_val(_raw(name)).decode("utf-8", "surrogateescape")
                start = self._file["/"] if target.startswith("/") else group
                return self._walk(start, _names(target) + names[at + 1 :], links - 1)
            if kind != h5py.h5l.TYPE_HARD:
                raise self.wrong("is a link to another file", name, remedy="save what it links to into the file itself")
            group = group[_raw(name)]
        return group

    def _attribute(self, where: str, name: str, read: Callable[[Any, Any, str], Any]) -> Any | None:
        held = self.find(where)
        with self.guarded():
            if held is None or name not in held.attrs:
                return None
            told = held.attrs.get_id(name)
            if told.shape is None or prod(told.shape) > _MOST_NUMBERS:
                raise self.wrong("is empty or too long", f"{where} {name}")
            return read(held, told, name)

    def _as_text(self, held: Any, told: Any, name: str) -> str:
        import h5py

        key, kind = f"{held.name} {name}", h5py.check_string_dtype(told.dtype)
        if kind is None or prod(told.shape) != 1 or told.dtype.itemsize > _MOST_TEXT:
            raise self.wrong("is no text", key, str(told.dtype))
        if kind.length is None:
            base, header = self._file.userblock_size, h5py.h5o.get_info(held.id).addr
            found = variable_text(lambda at, count: os.pread(self._raw, count, base + at), header, _raw(name))
        else:
            found = np.asarray(held.attrs[name], object).reshape(-1)[0]
            found = found if isinstance(found, bytes) else str(found).encode()
        if found is None or len(found) > _MOST_TEXT:
            remedy = "write it as a text of fixed length, as in h5py with numpy.bytes_"
            raise self.wrong("is a text that is too long or in a place that is not read", key, remedy=remedy)
        return found.decode("utf-8", "replace").strip("\0 \t\r\n")

    def _as_numbers(self, held: Any, told: Any, name: str) -> tuple[float, ...]:
        if told.dtype.kind in "iuf" and told.dtype.itemsize <= 8:
            return tuple(np.asarray(held.attrs[name], np.float64).reshape(-1).tolist())
        text = self._as_text(held, told, name)
        try:
            return tuple(float(word) for word in text.split())
        except ValueError as error:
            raise self.wrong("is no number", f"{held.name} {name}", text) from error


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _names(where: str) -> list[str]:
    return [name for name in where.split("/") if name not in ("", ".")]


def recognised(path: Path, told: Callable[[Tree], bool]) -> bool:
    """Whether a file is HDF5 of which `told` is true; False of whatever cannot be read."""
    try:
        if not _begun(path, mark_of(path)):
            return False
        with Tree(path) as tree, tree.guarded():
            return told(tree)
    except DeployError:
        return False


@lru_cache(8)
def _begun(path: Path, mark: tuple[int, ...]) -> bool:
    """Whether a file is HDF5, which several formats ask of the same one. Raises CubeFileError."""
    with opened(path) as (file, size):
        return is_hdf5(file, size)


def chosen(tree: Tree, wheres: Sequence[str], key: str | None) -> str:
    """The one cube of several paths, by its whole path or its last name. Raises CubeFileError."""
    found = [where for where in wheres if key is None or key.strip("/") in (where.strip("/"), where.rpartition("/")[2])]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(wheres[:20])
    if key is not None:
        problem = f"no such cube in the file, which has: {listed}" if wheres else "the file holds no cube"
        raise tree.wrong(problem, "key", key, f"say --key {wheres[0]}" if wheres else "")
    if wheres:
        raise tree.wrong(f"holds {len(wheres)} cubes: {listed}", "key", remedy=f"say which, as in --key {wheres[0]}")
    raise tree.wrong("holds no cube that is read", remedy="docs/products.md has a list of what is")


def band_list(
    tree: Tree, values: Sequence[float] | None, bands: int, key: str, *, above: float | None = 0.0
) -> tuple[float, ...] | None:
    """A list of finite numbers, one per band, each greater than `above`; None of None. Raises CubeFileError."""
    if values is None:
        return None
    if len(values) != bands:
        raise tree.wrong(f"{len(values)} entries for {bands} bands", key)
    for band, value in enumerate(values):
        if not isfinite(value) or (above is not None and value <= above):
            raise tree.wrong(f"the entry of band {band + 1} is no such number", key, value)
    return tuple(values)
