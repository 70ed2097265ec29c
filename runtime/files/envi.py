"""ENVI header and data pairs: a strict reader and a crash-safe writer.

Here are the files: which two belong together, and the numbers in the data file. `envi_header` says what a header means,
`envi_text` how it is written.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import PIECE, allocated, opened, read_at, refuse_inputs, write_together
from runtime.files.envi_header import CODE_OF_TYPE, EnviHeader, parse_header
from runtime.files.envi_text import Interleave, header_text

HEADER_BYTES = 16 << 20

DATA_SUFFIXES = (".img", ".raw", ".dat", ".bsq", ".bil", ".bip", ".bin")


def pair_of(path: str | Path) -> tuple[Path, Path]:
    """The header and data files that belong to `path`, which is either of them.

    `X.hdr` describes `X` or `X` with one of DATA_SUFFIXES; data file `X.img` is described by `X.hdr` or `X.img.hdr`.

    Raises:
        CubeFileError: `path` or its partner is missing, or several files could be the partner.
    """
    path = Path(path)
    with opened(path):
        pass
    if path.suffix.lower() == ".hdr":
        stem = path.with_suffix("")
        candidates = [stem, *(_with_suffix(stem, suffix) for suffix in DATA_SUFFIXES)]
        candidates += [_with_suffix(stem, suffix.upper()) for suffix in DATA_SUFFIXES]
        return path, _partner(path, candidates, "data file")
    candidates = [_with_suffix(path, suffix) for suffix in (".hdr", ".HDR")]
    if path.suffix:
        candidates += [path.with_suffix(suffix) for suffix in (".hdr", ".HDR")]
    return _partner(path, candidates, "header"), path


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _partner(path: Path, candidates: Sequence[Path], kind: str) -> Path:
    found: list[Path] = []
    for candidate in candidates:
        with suppress(OSError):
            if candidate.is_file() and not any(candidate.samefile(other) for other in found):
                found.append(candidate)
    if not found and path.suffix.lower() in (".npy", ".npz", ".mat"):
        raise CubeFileError("is no ENVI file", file=path, remedy="convert it to ENVI, or restore it with `deploy run`")
    if not found:
        names = ", ".join(dict.fromkeys(candidate.name for candidate in candidates if not candidate.suffix.isupper()))
        raise CubeFileError(f"its {kind} is missing", file=path, remedy=f"put one of these beside it: {names}")
    if len(found) > 1:
        names = " and ".join(candidate.name for candidate in found)
        raise CubeFileError(
            f"several files could be its {kind}: {names}",
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
    path, data_path = pair_of(path)
    header = parse_header(read_text(path), path=path, data_path=data_path)
    expected = header.header_offset + header.lines * header.line_bytes
    with opened(data_path) as (_, size):
        if size != expected:
            raise _wrong_size(header, expected, size)
    return header


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


def _wrong_size(header: EnviHeader, expected: int, size: int) -> CubeFileError:
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
        remedy = "correct samples, lines, bands or data type in the header"
        if header.header_offset == 0 and excess < header.line_bytes:
            remedy = f"set 'header offset = {excess}' if the image follows a header of that size, "
            remedy += "else correct the layout keys"
    return CubeFileError(
        f"the data file has {size} bytes, its header {problem}",
        file=header.data_path,
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
    native = header.dtype.newbyteorder("=")
    cube = allocated(header.data_path, (header.bands, stop - start, header.samples), native)
    with opened(header.data_path) as (file, _):
        if header.interleave == "bsq":
            _read_bsq(file, header, start, cube.view(header.dtype))
            if header.dtype != native:
                cube.byteswap(inplace=True)
        else:
            _read_by_line(file, header, start, cube)
    return cube


def _read_bsq(file: BinaryIO, header: EnviHeader, start: int, cube: NDArray[Any]) -> None:
    line = header.samples * header.dtype.itemsize
    if cube.shape[1] == header.lines:
        _read_at(file, header, 0, cube)
        return
    for band in range(header.bands):
        _read_at(file, header, (band * header.lines + start) * line, cube[band])


def _read_by_line(file: BinaryIO, header: EnviHeader, start: int, cube: NDArray[Any]) -> None:
    bil = header.interleave == "bil"
    step = max(1, min(cube.shape[1], PIECE // header.line_bytes))
    shape = (header.bands, header.samples) if bil else (header.samples, header.bands)
    block = allocated(header.data_path, (step, *shape), header.dtype)
    for first in range(0, cube.shape[1], step):
        count = min(step, cube.shape[1] - first)
        _read_at(file, header, (start + first) * header.line_bytes, block[:count])
        cube[:, first : first + count] = block[:count].transpose((1, 0, 2) if bil else (2, 0, 1))


def _read_at(file: BinaryIO, header: EnviHeader, offset: int, array: NDArray[Any]) -> None:
    """Fill a C-contiguous array from `offset` bytes behind the header offset."""
    start = header.header_offset + offset
    count = read_at(file, header.data_path, start, array)
    if count < array.nbytes:
        raise CubeFileError(
            f"the data file ends at byte {start + count}, before the lines asked for",
            file=header.data_path,
            remedy="wait until they are written, or copy the file again",
        )


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
    header_path, data_path = target_pair(Path(path))
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
        _write_data(file, cube, np.dtype(f"<{name}"), interleave)

    def write_header(file: BinaryIO) -> None:
        file.write(text.encode("utf-8", "replace"))

    write_together([(data_path, write_data), (header_path, write_header)])
    return header_path, data_path


def target_pair(path: Path) -> tuple[Path, Path]:
    """The header and data files that `write_envi` writes. Raises CubeFileError: a file beside them is in the way."""
    if not path.name:
        raise CubeFileError("is not a file name", file=path, remedy="name the header or the data file")
    if path.suffix.lower() == ".hdr":
        header_path, data_path = path, path.with_suffix(".img")
    else:
        header_path, data_path = path.with_suffix(".hdr") if path.suffix else _with_suffix(path, ".hdr"), path
    stem = header_path.with_suffix("")
    rivals = [stem, *(_with_suffix(stem, suffix) for suffix in DATA_SUFFIXES)]
    for rival in [*rivals, _with_suffix(data_path, ".hdr")]:
        if rival not in (header_path, data_path) and rival.is_file():
            raise CubeFileError(
                f"{rival.name} beside it would make the pair ambiguous",
                file=path,
                remedy="write to another name or folder",
            )
    return header_path, data_path


def _write_data(file: BinaryIO, cube: NDArray[Any], dtype: np.dtype[Any], interleave: Interleave) -> None:
    axes = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    ordered = cube.transpose(axes)
    step = max(1, PIECE // (prod(ordered.shape[1:]) * dtype.itemsize))
    for first in range(0, ordered.shape[0], step):
        block = np.ascontiguousarray(ordered[first : first + step], dtype=dtype)
        file.write(block.data)
