"""STAC items, catalogues and collections on disk (versions 1.0 and 1.1) as lists of products.

SpatioTemporal Asset Catalog specification, with its extensions eo, raster and projection. Only local files are named,
and only such as lie in the folder of the file that was asked for, unless somebody says that they may lie outside.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from runtime.errors import CubeFileError
from runtime.products.contract import Description
from runtime.products.strict_json import number_in, read_object

MOST_LINKS, DEEPEST = 10_000, 16
"""Files of a catalogue that are read, and how far below the first one."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_WANTED = ("reflectance", "radiance")
_UNWANTED = frozenset(
    {"thumbnail", "overview", "metadata", "visual", "graphic", "data-mask", "cloud", "date", "iso-19115"}
)
_TYPES = ("image/tiff", "image/jp2", "application/x-hdf", "application/x-netcdf", "application/netcdf",
          "application/vnd+zarr", "application/vnd.zarr", "application/octet-stream")  # fmt: skip
_SUFFIXES = (".tif", ".tiff", ".nc", ".h5", ".he5", ".zarr", ".hdr", ".img")
_NO_CUBES = ("application/json", "application/geo+json", "application/xml", "application/pdf", "text/", "image/png",
             "image/jpeg", "image/webp")  # fmt: skip


@dataclass(frozen=True)
class Item:
    """What an item says of the numbers of one of its assets; empty where it does not say.

    Attributes:
        name: of the item.
        asset: its key.
        wavelengths: nm, one per band.
        scales, offsets, marks: one per band, None of a band of which it says none.
        shape: lines and samples.
    """

    name: str
    asset: str
    wavelengths: tuple[float | None, ...] = ()
    scales: tuple[float | None, ...] = ()
    offsets: tuple[float | None, ...] = ()
    marks: tuple[float | None, ...] = ()
    shape: tuple[int, int] | None = None


class Asked(NamedTuple):
    """A product that an item names.

    Attributes:
        path: of the asset; nobody has looked whether it is there.
        notes: for people.
        item: what the item says of it.
    """

    path: Path
    notes: tuple[str, ...]
    item: Item


def is_stac(path: Path) -> bool:
    """Whether a file is named like JSON and says that it is STAC; False of one that cannot be read."""
    if path.suffix.lower() not in (".json", ".geojson") or not path.is_file():
        return False
    try:
        content = read_object(path)
    except CubeFileError:
        return False
    return "stac_version" in content or content.get("type") in ("Catalog", "Collection")


def items(path: Path, *, outside: bool = False) -> tuple[Asked, ...]:
    """The products that a STAC item, catalogue or collection names, in its order, each once.

    Args:
        outside: assets and links may lie anywhere on this computer, by absolute paths, `file:` and `..`.

    Raises:
        CubeFileError: a file is missing, damaged, of another version, of more than MOST_LINKS links or too deep; a
            reference is remote or leads outside; nothing in it is a product.
    """
    found: dict[Path, Asked] = {}
    seen: set[Path] = set()
    waiting = [(path, 0)]
    while waiting:
        file, depth = waiting.pop(0)
        if (real := _real(file)) in seen:
            continue
        seen.add(real)
        if depth > DEEPEST or len(seen) > MOST_LINKS:
            problem = f"links to more than {MOST_LINKS} files, or more than {DEEPEST} deep"
            raise CubeFileError(problem, file=path, remedy="give a part of the catalogue")
        content = read_object(file)
        kind = content.get("type")
        if kind in ("Catalog", "Collection"):
            _check_version(file, content)
            waiting += [(link, depth + 1) for link in _links(file, content, path, outside=outside)]
        items_of = content.get("features") if kind == "FeatureCollection" else [content]
        if kind not in ("Catalog", "Collection", "Feature", "FeatureCollection") or not isinstance(items_of, list):
            raise CubeFileError("is no STAC item, catalogue or collection", file=file, key="type", value=kind,
                                remedy="give one, or the product itself")  # fmt: skip
        for item in items_of if kind in ("Feature", "FeatureCollection") else ():
            for asked in _assets(file, item, path, outside=outside):
                found.setdefault(asked.path, asked)
    if not found:
        remedy = f"give an item with an asset of the role data, {' or '.join(_WANTED)}"
        raise CubeFileError("names no product", file=path, key="assets", remedy=remedy)
    return tuple(found.values())


def _real(file: Path) -> Path:
    try:
        return file.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CubeFileError("leads nowhere", file=file, remedy="check the path") from error


def _check_version(file: Path, content: Mapping[str, Any]) -> None:
    version = content.get("stac_version")
    if not isinstance(version, str) or not re.fullmatch(r"1\.[01]\.[0-9]{1,3}(?:-[\w.]{1,20})?", version):
        raise CubeFileError("is of a STAC version that is not read", file=file, key="stac_version", value=version,
                            remedy="1.0 and 1.1 are read")  # fmt: skip


def _links(file: Path, content: Mapping[str, Any], first: Path, *, outside: bool) -> Iterator[Path]:
    links = content.get("links", [])
    if not isinstance(links, list):
        raise CubeFileError("is no list", file=file, key="links", remedy="get the file again")
    for link in links[: MOST_LINKS + 1]:
        if isinstance(link, dict) and link.get("rel") in ("child", "item", "items"):
            yield _local(file, link.get("href"), "links", first, outside=outside)


def _local(file: Path, href: object, key: str, first: Path, *, outside: bool) -> Path:
    """The file that a reference names. Raises CubeFileError unless it is a local one that is allowed."""

    def refused(problem: str, remedy: str) -> CubeFileError:
        return CubeFileError(problem, file=file, key=key, value=href, remedy=remedy)

    if not isinstance(href, str) or not href or not href.isprintable():
        raise refused("is no reference to a file", "get the file again")
    if href.lower().startswith("file://") and outside:
        parts = urlsplit(href)
        if parts.netloc not in ("", "localhost"):
            raise refused("is not on this computer", "copy it here, and name it by a path")
        href = unquote(parts.path)
    if _SCHEME.match(href):
        raise refused("is not a path on this computer", "download it, and name it by a path beside the item")
    if href.startswith("/vsi") or "\\" in href or "\0" in href:
        raise refused("is no plain path", "name it by a path beside the item")
    allowed = "move it there, or say that assets may lie outside"
    if not outside and (href.startswith("/") or ".." in Path(href).parts):
        raise refused("leads out of the folder of its item", allowed)
    path = file.parent / href
    # What a link inside the folder points to may lie outside, too.
    if not outside and _real(first.parent) not in _real(path).parents:
        raise refused("leads out of the folder of its item", allowed)
    return path


def _assets(file: Path, item: object, first: Path, *, outside: bool) -> Iterator[Asked]:
    if not isinstance(item, dict) or item.get("type") != "Feature":
        raise CubeFileError("holds what is no item", file=file, key="features", remedy="get the file again")
    _check_version(file, item)
    assets = item.get("assets")
    if not isinstance(assets, dict):
        raise CubeFileError("has no assets", file=file, key="assets", remedy="give an item with assets")
    chosen = {key: rank for key, asset in assets.items() if (rank := _rank(asset))}
    best = max(chosen.values(), default=0)
    for key, rank in chosen.items():
        if rank == best:
            asset = assets[key]
            path = _local(file, asset.get("href"), f"assets.{key[:60]}.href", first, outside=outside)
            said, notes = _said(item, key, asset)
            yield Asked(path, notes, said)


def _rank(asset: object) -> int:
    """How much an asset is a product: by name of what it measures, by `data`, by its type alone; 0 where it is none."""
    if not isinstance(asset, dict):
        return 0
    roles = asset.get("roles", [])
    roles = {role.lower() for role in roles if isinstance(role, str)} if isinstance(roles, list) else set()
    kind = asset.get("type")
    kind = kind.lower() if isinstance(kind, str) else ""
    if roles & _UNWANTED or kind.startswith(_NO_CUBES):
        return 0
    if roles.intersection(_WANTED):
        return 3
    if "data" in roles:
        return 2
    href = asset.get("href")
    known = kind.startswith(_TYPES) or (not kind and isinstance(href, str) and href.lower().endswith(_SUFFIXES))
    return int(not roles and known)


def _said(item: Mapping[str, Any], key: str, asset: Mapping[str, Any]) -> tuple[Item, tuple[str, ...]]:
    """What an item says of the bands of an asset: `eo:bands` and `raster:bands` of 1.0, `bands` of 1.1."""
    listed = {name: _dicts(asset.get(name)) for name in ("bands", "eo:bands", "raster:bands")}
    notes = [f"{name} is no list of bands" for name in listed if name in asset and listed[name] is None]
    spectral = listed["bands"] or listed["eo:bands"] or []
    raster = listed["bands"] or listed["raster:bands"] or []

    def each(bands: list[dict[str, Any]], *names: str) -> tuple[float | None, ...]:
        found = tuple(_first(band, names, asset) for band in bands)
        return found if any(value is not None for value in found) else ()

    micrometres = each(spectral, "eo:center_wavelength", "center_wavelength")
    wavelengths = tuple(None if value is None else float(f"{value * 1e3:.12g}") for value in micrometres)
    properties = item.get("properties")
    for said in (asset, properties if isinstance(properties, dict) else {}):
        lines_samples = said.get("proj:shape")
        if isinstance(lines_samples, list) and len(lines_samples) == 2 and all(map(number_in, lines_samples)):
            shape = int(lines_samples[0]), int(lines_samples[1])
            break
    else:
        shape = None
    name = item.get("id")
    found = Item(
        name=name if isinstance(name, str) else "",
        asset=key,
        wavelengths=wavelengths,
        scales=each(raster, "raster:scale", "scale"),
        offsets=each(raster, "raster:offset", "offset"),
        marks=each(raster, "nodata"),
        shape=shape,
    )
    return found, tuple(notes)


def _dicts(value: object) -> list[dict[str, Any]] | None:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        return None
    return value


def _first(band: Mapping[str, Any], names: tuple[str, ...], asset: Mapping[str, Any]) -> float | None:
    """A number of a band, or of all bands where it is said of the asset."""
    for said in (band, asset):
        for name in names:
            value = said.get(name)
            if value in ("nan", "inf", "-inf"):
                return float(value)
            if (number := number_in(value)) is not None:
                return number
    return None


def differences(item: Item, description: Description) -> tuple[str, ...]:
    """In words, where an item says something else than its file, which wins."""
    bands, stated = description.shape[0], description.stated
    ones, zeros = (1.0,) * bands, (0.0,) * bands
    found = []
    if item.shape is not None and item.shape != description.shape[1:]:
        found.append(f"the item says {_by(item.shape)} lines x samples, the file has {_by(description.shape[1:])}")
    for name, said, has, near in (
        ("wavelength", item.wavelengths, stated.wavelengths or (), 0.1),
        ("scale", item.scales, stated.gains or ones, 0.0),
        ("offset", item.offsets, stated.offsets or zeros, 0.0),
    ):
        if said and len(said) != bands:
            found.append(f"the item says {len(said)} bands with a {name}, the file has {bands}")
        elif said and not has:
            found.append(f"the item says {name}s, the file says none")
        else:
            apart = [
                (number, one, other)
                for number, (one, other) in enumerate(zip(said, has, strict=False), start=1)
                if one is not None and not math.isclose(one, other, rel_tol=1e-6, abs_tol=near)
            ]
            if apart:
                number, one, other = apart[0]
                more = f" and so in {len(apart)} bands" if len(apart) > 1 else ""
                found.append(f"the item says {name} {one:g} in band {number}, the file {other:g}{more}")
    said_marks = {str(mark) for mark in item.marks if mark is not None}
    # An item may give a mark as a decimal number that the file's type holds only nearly.
    held = {*map(str, stated.marks), *(str(float(np.float64(mark))) for mark in stated.marks)}
    if said_marks - held:
        told = ", ".join(f"{mark:g}" for mark in stated.marks) or "none"
        found.append(f"the item says nodata {', '.join(sorted(said_marks - held)[:4])}, the file {told}")
    return tuple(f"{text}: the file's counts" for text in found)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
