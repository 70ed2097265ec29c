"""ENVI header and data pairs: a strict reader and a crash-safe writer.

Here are the files: which two belong together, and the numbers in the data file. `envi_header` says what a header means,
`envi_text` how it is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, plain, printable
from runtime.files import foreign
from runtime.files.disk import complete_pairs, opened, refuse_inputs, write_together
from runtime.files.envi_header import CODE_OF_TYPE, ORDERS, EnviHeader, is_envi, parse_header
from runtime.files.envi_text import Interleave, header_text
from runtime.files.rows import Rows, read_rows, write_rows

HEADER_BYTES = 16 << 20

DATA_SUFFIXES = (".img", ".raw", ".dat", ".bsq", ".bil", ".bip", ".bin")

SIDE_SUFFIXES = frozenset((
    ".hdr", ".npy", ".npz", ".mat", ".xml", ".enp", ".sta", ".txt", ".log", ".md", ".csv", ".json", ".yaml", ".yml",
    ".ini", ".png", ".jpg", ".jpeg", ".pdf", ".kml", ".idx", ".lock", ".reserve", ".part", ".tmp", ".bak", ".old",
))  # fmt: skip
"""Of files beside an ENVI pair that are never its data."""


def pair_of(path: str | Path) -> tuple[Path, Path]:
    """The header and data files that belong to `path`, which is either of them.

    `X.hdr` describes `X`, or `X` with any suffix but SIDE_SUFFIXES: of several the one of the size that the header
    says, else the one with one of DATA_SUFFIXES. Data file `X.img` is described by `X.hdr` or `X.img.hdr`.

    Raises:
        CubeFileError: `path` or its partner is missing, or several files could be the partner.
    """
    return _found(Path(path))[:2]


def growing_pair_of(path: str | Path) -> tuple[Path, Path]:
    """The same while the data file grows, so that its size says nothing."""
    path = Path(path)
    if path.suffix.lower() != ".hdr":
        return pair_of(path)
    names = complete_pairs(path.parent)
    with opened(path):
        return path, _data_file(path, likely(path.stem, _beside(path, names)))


def may_hold_data(name: str) -> bool:
    """Whether a file may be the data of a header, by its name."""
    return Path(_unpacked(name)).suffix.lower() not in SIDE_SUFFIXES and not name.endswith("~")


def _unpacked(name: str) -> str:
    """The name of a data file without that of its packing, which `runtime.products` undoes."""
    return name[:-3] if name.lower().endswith(".gz") else name


def likely(stem: str, names: Iterable[str]) -> list[str]:
    """Of the names that may be data of `stem`.hdr those with one of DATA_SUFFIXES or none, if there are any."""
    names = list(names)
    return [name for name in names if _usual(stem, name)] or names


def _usual(stem: str, name: str) -> bool:
    return name[len(stem) :].lower() in ("", *DATA_SUFFIXES)


def _found(path: Path) -> tuple[Path, Path, tuple[str, ...]]:
    """A pair, and the names of files that are passed over since their size is not the one that the header says."""
    names = complete_pairs(path.parent)
    with opened(path):
        pass
    if path.suffix.lower() != ".hdr":
        candidates = [_with_suffix(path, suffix) for suffix in (".hdr", ".HDR")]
        if path.suffix:
            candidates += [path.with_suffix(suffix) for suffix in (".hdr", ".HDR")]
        if (packed := Path(_unpacked(path.name))).suffix and packed.name != path.name:
            candidates += [path.with_name(packed.name).with_suffix(suffix) for suffix in (".hdr", ".HDR")]
        return _header_file(path, candidates), path, ()
    sizes = _beside(path, names)
    fits = _of_size(path, sizes) if len(sizes) > 1 else []
    data_path = _data_file(path, fits or likely(path.stem, sizes))
    passed = [name for name in sizes if fits and _usual(path.stem, name) and name != data_path.name]
    return path, data_path, tuple(passed)


def _beside(header: Path, names: Sequence[str]) -> dict[str, int]:
    """Names and sizes of the files beside a header that could be its data, each file once; `names` are all there."""
    stem = header.stem
    names = sorted(name for name in names if name.startswith(stem))
    if not names:
        # The folder cannot be read: the header itself would be there.
        names = [stem, *(stem + suffix for known in DATA_SUFFIXES for suffix in (known, known.upper()))]
    found: dict[Path, int] = {}
    for name in names:
        if stem in (name, _unpacked(name)) or (_unpacked(name).rpartition(".")[0] == stem and may_hold_data(name)):
            with suppress(OSError):
                file = header.with_name(name)
                if file.is_file() and not any(file.samefile(other) for other in found):
                    found[file] = file.stat().st_size
    return {file.name: size for file, size in found.items()}


def _of_size(header: Path, sizes: Mapping[str, int]) -> list[str]:
    """Those of the size that the header says, without those that have a header of their own where one is left."""
    try:
        wanted = _size(parse_header(read_text(header), path=header, data_path=header))
    except CubeFileError:
        return []
    fits = [name for name, size in sizes.items() if size == wanted]
    unclaimed = [name for name in fits if f"{name}.hdr" == header.name or not header.with_name(f"{name}.hdr").is_file()]
    return unclaimed if len(unclaimed) == 1 else fits


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _header_file(path: Path, candidates: Sequence[Path]) -> Path:
    found: list[Path] = []
    for candidate in candidates:
        with suppress(OSError):
            if candidate.is_file() and not any(candidate.samefile(other) for other in found):
                found.append(candidate)
    if not found and path.suffix.lower() in (".npy", ".npz", ".mat"):
        raise CubeFileError("is no ENVI file", file=path, remedy="convert it to ENVI, or restore it with `deploy run`")
    if not found:
        foreign.refuse_foreign(path)
    return _only(path, "header", found, [file for file in candidates if not file.suffix.isupper()])


def _data_file(header: Path, names: Sequence[str]) -> Path:
    stem = header.with_suffix("")
    wanted = [stem, *(_with_suffix(stem, suffix) for suffix in DATA_SUFFIXES)]
    return _only(header, "data file", [header.with_name(name) for name in names], wanted)


def _only(path: Path, kind: str, found: Sequence[Path], wanted: Sequence[Path]) -> Path:
    if not found:
        names = ", ".join(dict.fromkeys(file.name for file in wanted))
        raise CubeFileError(f"its {kind} is missing", file=path, remedy=f"put one of these beside it: {names}")
    if len(found) > 1:
        raise CubeFileError(
            f"several files could be its {kind}: {' and '.join(file.name for file in found)}",
            file=path,
            remedy=f"give the {kind} itself, or remove what does not belong to it",
        )
    return found[0]


def read_header(path: str | Path) -> EnviHeader:
    """Read and check the header of an ENVI pair.

    Args:
        path: the header or the data file.

    Raises:
        CubeFileError: the pair is incomplete or ambiguous, the header is malformed, contradicts itself or the size of
            the data file, or asks for what is not a plain image cube (spectral library, compressed, complex).
    """
    path, data_path, passed = _found(Path(path))
    header = parse_header(read_text(path), path=path, data_path=data_path)
    with opened(data_path) as (file, size):
        fits = size == _size(header)
        # Bytes that another program arranged are no rows, whatever the header says.
        kind = None if fits and is_envi(_file_type(header)) else foreign.begun(file.read(foreign.HEAD_BYTES))
    if kind is not None and not kind.rows:
        raise CubeFileError(
            f"is {kind.name}, no cube file that is read", file=data_path, remedy=kind.remedy_for(data_path)
        )
    if not fits:
        raise _wrong_size(header, size)
    others = f"{data_path.name} is read, not {' or '.join(passed)}: it alone has the size that the header says"
    return replace(header, doubts=(*header.doubts, printable(others))) if passed else header


def _size(header: EnviHeader) -> int:
    """Of the data file, in bytes."""
    return header.header_offset + header.lines * header.line_bytes


def _file_type(header: EnviHeader) -> str:
    return header.fields.get("file type", "")


def read_text(path: Path) -> str:
    """The text of a header of at most 16 MiB."""
    with opened(path) as (file, size):
        if size > HEADER_BYTES:
            raise CubeFileError(
                "the header is larger than 16 MiB",
                file=path,
                value=f"{size} bytes",
                remedy="check that this is the header",
            )
        pieces = []
        while piece := file.read(HEADER_BYTES + 1):
            pieces.append(piece)
            if sum(map(len, pieces)) > HEADER_BYTES:
                raise CubeFileError("the header grew beyond 16 MiB while it was read", file=path, remedy="try again")
    data = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _wrong_size(header: EnviHeader, size: int) -> CubeFileError:
    expected, path = _size(header), header.data_path
    excess = size - expected
    sum_of_parts = (
        f"{header.lines} lines x {header.bands} bands x {header.samples} samples x {header.dtype.itemsize} bytes"
        + (f" + header offset {header.header_offset}" if header.header_offset else "")
    )
    if excess < 0:
        whole = max(0, size - header.header_offset) // header.line_bytes
        lines = f"; {whole} whole lines are there" if header.interleave != "bsq" else ""
        problem = f"asks for {expected} ({sum_of_parts}){lines}"
        remedy = "copy the data file again or correct the header"
    else:
        problem = f"accounts for only {expected} ({sum_of_parts})"
        remedy = (
            f"correct samples, lines, bands or data type if they are wrong; if {excess} bytes lie before the image, "
            f"set 'header offset = {header.header_offset + excess}'; if they lie behind it, keep a copy and cut the "
            f"file: cp {quote(str(path))} {quote(f'{path}.bak')} && truncate -s {expected} {quote(str(path))}"
        )
    if not is_envi(_file_type(header)):
        said = f"{plain(_file_type(header))} files may hold more than rows of numbers"
        remedy = f"{said}: {foreign.converted(path)}; or {remedy}"
    return CubeFileError(
        f"the data file has {size} bytes, its header {problem}",
        file=path,
        key="lines",
        value=header.lines,
        remedy=remedy,
    )


def read_envi(path: str | Path | EnviHeader) -> NDArray[Any]:
    """The whole cube of an ENVI pair, as `read_lines` gives a part of it.

    Raises:
        CubeFileError: as `read_header`, or the cube does not fit into memory.
    """
    header = path if isinstance(path, EnviHeader) else read_header(path)
    return read_lines(header, 0, header.lines)


def read_lines(header: EnviHeader, start: int, stop: int) -> NDArray[Any]:
    """Lines `start` to `stop` (excluded) of an ENVI pair, without reading the others.

    By plain reads: a file cut short meanwhile is an error, where a memory map would end the process.

    Args:
        start, stop: 0 <= start < stop <= lines.

    Returns:
        [bands, stop - start, samples] in native byte order and the file's own type, C-contiguous.

    Raises:
        CubeFileError: the range is not within the cube, or the file ends before it.
    """
    if not 0 <= start < stop <= header.lines:
        raise CubeFileError(
            f"lines {start} to {stop} are not within the cube",
            file=header.path,
            key="lines",
            value=header.lines,
            remedy=f"ask for lines from 0 to {header.lines}",
        )
    with opened(header.data_path) as (file, _):
        return read_rows(file, header.data_path, header.rows, start, stop)


def write_envi(
    path: str | Path,
    cube: NDArray[Any],
    *,
    interleave: Interleave = "bil",
    fields: Mapping[str, str | None] | None = None,
    inputs: Sequence[Path] = (),
) -> tuple[Path, Path]:
    """Write an ENVI pair so that both files are whole afterwards, or neither is there.

    Args:
        path: the header (its data file becomes `.img`) or the data file (its header gets the suffix `.hdr`).
        cube: [bands, lines, samples], real numbers of 1 to 8 bytes (float16 and int8 have no ENVI type).
        interleave: order of the axes in the file.
        fields: more header fields, as `EnviHeader.fields` gives them or as plain text. Those that describe the layout
            are left out; per-band lists of another length and, where `samples` or `lines` are among the fields and
            differ from the cube's, georeferencing are left out too: they would no longer be true. None drops a key.
        inputs: files that must not be overwritten.

    Returns:
        the header and data files.

    Raises:
        CubeFileError: the cube has no ENVI form, the target is an input or would make the pair ambiguous, or the system
            refused to write (its reason is given); nothing has changed on disk then.
    """
    header_path, data_path = target_pair(Path(path), cube.nbytes)
    name = cube.dtype.newbyteorder("=").str[1:]
    if cube.ndim != 3 or 0 in cube.shape or name not in CODE_OF_TYPE:
        raise CubeFileError(
            "ENVI files hold 3-D cubes of " + ", ".join(str(np.dtype(name)) for name in CODE_OF_TYPE),
            file=data_path,
            value=f"{cube.dtype} {list(cube.shape)}",
            remedy="convert the cube",
        )
    for target in (header_path, data_path):
        refuse_inputs(target, inputs)
    text = header_text(cube.shape, CODE_OF_TYPE[name], interleave, fields or {}, path=header_path)

    def write_data(file: BinaryIO) -> None:
        write_rows(file, Rows(cube.shape, ORDERS[interleave], np.dtype(f"<{name}")), 0, cube)

    def write_header(file: BinaryIO) -> None:
        file.write(text.encode("utf-8", "replace"))

    write_together([(data_path, write_data), (header_path, write_header)])
    return header_path, data_path


def target_pair(path: Path, size: int | None = None) -> tuple[Path, Path]:
    """The header and data files that `write_envi` writes.

    Args:
        path: either of them.
        size: bytes of the data, where they are known.

    Raises:
        CubeFileError: a file beside them could be taken for one of them.
    """
    if not path.name:
        raise CubeFileError("is not a file name", file=path, remedy="name the header or the data file")
    if path.suffix.lower() == ".hdr":
        header_path, data_path = path, path.with_suffix(".img")
    else:
        header_path, data_path = path.with_suffix(".hdr") if path.suffix else _with_suffix(path, ".hdr"), path
    names = complete_pairs(path.parent)
    stem = header_path.stem
    rivals = [name for name, there in _beside(header_path, names).items() if _usual(stem, name) or there == size]
    rivals = [name for name in rivals if name != data_path.name]
    second = _with_suffix(data_path, ".hdr")
    if second != header_path and second.is_file():
        rivals.append(second.name)
    if rivals:
        raise CubeFileError(
            f"{rivals[0]} beside it would make the pair ambiguous", file=path, remedy="write to another name or folder"
        )
    return header_path, data_path
