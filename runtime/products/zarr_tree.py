"""A Zarr store walked once: its groups and arrays, no links, nothing but files and folders."""

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.errors import CubeFileError, MachineError
from runtime.files.disk import check_held, reason
from runtime.products.strict_json import read_object
from runtime.products.zarr_meta import Node

META = ("zarr.json", ".zarray", ".zgroup")
MOST_METADATA = 64 << 20
_DEEPEST, _MOST_ENTRIES = 48, 10_000_000


def zarr_version() -> int:
    """The version of the format that the installed zarr writes; raises ModuleNotFoundError without one."""
    try:
        major = int(version("zarr").partition(".")[0])
    except PackageNotFoundError as error:
        raise ModuleNotFoundError("No module named 'zarr'", name="zarr") from error
    return 3 if major >= 3 else 2


@dataclass(frozen=True)
class Store:
    """A store.

    Attributes:
        path: its folder.
        nodes: {name: group or array}, `/` the root.
    """

    path: Path
    nodes: dict[str, Node]

    @property
    def version(self) -> int:
        return self.nodes["/"].version

    def arrays(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.is_array]

    def beside(self, node: Node, name: str) -> Node | None:
        """The array `name` in the group of `node`, or in one around it."""
        group = node.name.rpartition("/")[0]
        while True:
            found = self.nodes.get(f"{group}/{name}")
            if found is not None and found.is_array:
                return found
            if not group:
                return None
            group = group.rpartition("/")[0]


def is_store(path: Path) -> bool:
    """Whether a folder says that it is a Zarr store."""
    return path.is_dir() and any((path / name).is_file() for name in META)


def open_store(path: Path) -> Store:
    """Walk a store.

    Raises:
        CubeFileError: it is damaged, too large, holds links or anything but files and folders.
        MachineError: it is of version 3 and the zarr that is installed is 2.
        ModuleNotFoundError: zarr is not installed.
    """
    written = zarr_version()
    if not is_store(path):
        remedy = f"give the folder that holds {', '.join(META)}"
        raise CubeFileError("is no Zarr store", file=path, remedy=remedy)
    nodes: dict[str, Node] = {}
    held = count = 0
    waiting = [(path, "", 0)]
    while waiting:
        folder, name, depth = waiting.pop()
        files, folders = _entries(folder)
        count += len(files) + len(folders)
        if depth > _DEEPEST or count > _MOST_ENTRIES:
            raise CubeFileError("is nested too deeply, or holds too many files", file=folder, remedy="cut it")
        held += sum(files[one] for one in (*META, ".zattrs") if one in files)
        if held > MOST_METADATA:
            problem = f"more than {MOST_METADATA} bytes of metadata"
            raise CubeFileError(problem, file=path, value=held, remedy="cut it")
        if any(one in files for one in META):
            nodes[name or "/"] = _node(folder, name or "/", files)
            check_held(path, len(nodes))
        waiting += [(folder / one, f"{name}/{one}", depth + 1) for one in folders]
    store = Store(path, dict(sorted(nodes.items())))
    if store.version == 3 and written == 2:
        raise MachineError(
            "is of Zarr version 3, and the zarr that is installed reads version 2 alone",
            file=path,
            remedy="install zarr 3, for which Python 3.11 or newer is needed, or write the store as version 2",
        )
    if any(node.version != store.version for node in nodes.values()):
        raise CubeFileError("holds arrays of Zarr versions 2 and 3", file=path, remedy="write it in one version")
    return store


def _entries(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Sizes of the files that are metadata, and 0 of others; names of folders."""
    files: dict[str, int] = {}
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    remedy = "copy the store with what its links point to, cp -rL"
                    raise CubeFileError("is a link inside a store", file=entry.path, remedy=remedy)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files[entry.name] = entry.stat().st_size if entry.name.startswith((".z", "zarr.json")) else 0
                else:
                    raise CubeFileError("is not a regular file", file=entry.path, remedy="copy the store again")
    except OSError as error:
        raise CubeFileError(f"cannot be read: {reason(error)}", file=folder, remedy="check the permissions") from error
    return files, sorted(folders)


def _node(folder: Path, name: str, files: dict[str, int]) -> Node:
    if "zarr.json" in files:
        meta = read_object(folder / "zarr.json", links=False, nan=True)
        kind = meta.get("node_type")
        attributes = meta.get("attributes", {})
        if meta.get("zarr_format") != 3 or kind not in ("array", "group") or ("shape" in meta) != (kind == "array"):
            problem = "is no metadata of Zarr version 3"
            raise CubeFileError(problem, file=folder / "zarr.json", key="zarr_format", remedy="copy it again")
        if not isinstance(attributes, dict):
            problem = "holds no attributes"
            raise CubeFileError(problem, file=folder / "zarr.json", key="attributes", remedy="copy it again")
        return Node(folder, name, 3, meta, attributes)
    file = folder / (".zarray" if ".zarray" in files else ".zgroup")
    meta = read_object(file, links=False, nan=True)
    if meta.get("zarr_format") != 2 or ("shape" in meta) != (file.name == ".zarray"):
        raise CubeFileError("is no metadata of Zarr version 2", file=file, key="zarr_format", remedy="copy it again")
    told: dict[str, Any] = {}
    if ".zattrs" in files:
        told = read_object(folder / ".zattrs", links=False, nan=True)
    return Node(folder, name, 2, meta, told)
