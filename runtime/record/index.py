"""Index files beside line files: 32 bytes on each line, and what they prove of the data.

The data file NAME.raw holds whole lines, [bands, samples] little endian, one after the other; NAME.idx holds their
records in the same order; NAME.hdr is the ENVI header. In a ring, NAME is NAME-0001, NAME-0002 and so on.
"""

import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.descriptors import insisting
from runtime.errors import CubeFileError
from runtime.files.envi_header import EnviHeader, parse_header

RECORD = np.dtype([("sequence", "<u8"), ("frame_id", "<u8"), ("utc_ns", "<u8"), ("crc32", "<u4"), ("flags", "<u4")])
"""One record: the stream's number, the source's number, time of taking, CRC-32 (zlib) of the line as stored, flags."""
CHECKED_LINES = 64
"""Lines at the end of a file that are read again before more are appended, checkpoint or not."""
CHECKED_BYTES = 1 << 30
"""Most that is walked back over at the end of a file before it is left to a person."""
PIECE = 4 << 20
"""Bytes of data that are read at a time."""
Records = NDArray[Any]


def suffixed(stem: Path, suffix: str) -> Path:
    """A file of the three that belong together: `suffix` is `.raw`, `.idx` or `.hdr`."""
    return stem.with_name(stem.name + suffix)


def segment_stem(folder: Path, name: str, number: int) -> Path:
    """Path of a ring's segment without its suffixes."""
    return folder / f"{name}-{number:04d}"


def segment_numbers(folder: Path, name: str) -> list[int]:
    """Numbers of a ring's segments of which any file is there, oldest first."""
    pattern = re.compile(rf"{re.escape(name)}-([0-9]{{4,}})\.(?:raw|idx|hdr)", re.ASCII)
    return sorted({int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))})


def stems(folder: Path, name: str) -> list[Path]:
    """Paths without suffixes of all line files of that name: one, or a ring's segments, oldest first."""
    numbers = segment_numbers(folder, name)
    plain = [folder / name] if any(suffixed(folder / name, end).exists() for end in (".raw", ".idx", ".hdr")) else []
    return plain + [segment_stem(folder, name, number) for number in numbers]


def read_index(path: Path) -> Records:
    """The whole records of an index file, as an array of RECORD [lines].

    Raises:
        CubeFileError: the file cannot be read.
    """
    try:
        return np.fromfile(path, RECORD)
    except OSError as error:
        raise CubeFileError(
            f"cannot be read: {error.strerror or error}", file=path, remedy="check the path and the permissions"
        ) from error


def last_sequence(stem: Path) -> int:
    """The last sequence number in the index of a line file, -1 where there is none."""
    try:
        with suffixed(stem, ".idx").open("rb", buffering=0) as index:
            count = os.fstat(index.fileno()).st_size // RECORD.itemsize
            return int(records_at(index.fileno(), count - 1, 1)["sequence"][0]) if count else -1
    except OSError:
        return -1


Runs = list[tuple[int, int]]
"""(first, last) of sequence numbers that follow on each other, in order."""


def runs_of(found: Iterable[Path]) -> Runs:
    """Of the lines of files, oldest first, by their indexes; a file whose index cannot be read has none."""
    runs: Runs = []
    for stem in found:
        with suppress(OSError), suffixed(stem, ".idx").open("rb", buffering=0) as index:
            place = 0
            while len(sequence := records_at(index.fileno(), place, PIECE // RECORD.itemsize)["sequence"]):
                place += len(sequence)
                ends = np.flatnonzero(sequence[1:] != sequence[:-1] + 1)
                firsts, lasts = sequence[np.append(0, ends + 1)], sequence[np.append(ends, len(sequence) - 1)]
                if runs and runs[-1][1] + 1 == firsts[0]:
                    firsts[0] = runs.pop()[0]
                runs += zip(firsts.tolist(), lasts.tolist(), strict=True)
    return runs


def without(runs: Runs, others: Runs) -> Runs:
    """What of these runs is in none of the others."""
    left: Runs = []
    rest = iter(others)
    other = next(rest, None)
    for first, last in runs:
        start = first
        while other is not None and other[0] <= last:
            if start < other[0]:
                left.append((start, other[0] - 1))
            start = max(start, other[1] + 1)
            if other[1] > last:
                break
            other = next(rest, None)
        if start <= last:
            left.append((start, last))
    return left


def read_line_header(stem: Path) -> EnviHeader | None:
    """The header of a line file, None where it has none yet. Raises CubeFileError: it is damaged."""
    path = suffixed(stem, ".hdr")
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CubeFileError(f"cannot be read: {error.strerror}", file=path, remedy="check the permissions") from error
    return parse_header(text, path=path, data_path=suffixed(stem, ".raw"))


def records_at(index: int, first: int, count: int) -> Records:
    """Records `first` to `first + count` of an open index file, fewer where it ends."""
    data = os.pread(index, count * RECORD.itemsize, first * RECORD.itemsize)
    return np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)


def rising(records: Records) -> NDArray[np.bool_]:
    """Which records [n] have a higher sequence number than the one before; the first has."""
    sequence = records["sequence"]
    return np.concatenate([np.ones(min(1, len(sequence)), np.bool_), sequence[1:] > sequence[:-1]])


def checked(data: int, records: Records, first: int, line_bytes: int) -> Iterator[NDArray[np.bool_]]:
    """Read lines from an open data file and compare their CRC-32 with their records, a few megabytes at a time.

    Args:
        data: file descriptor.
        records: of lines `first` and on.

    Yields:
        for the next lines, whether each is whole and right.
    """
    step = max(1, PIECE // line_bytes)
    buffer = bytearray(min(step, max(1, len(records))) * line_bytes)
    view = memoryview(buffer)
    for start in range(0, len(records), step):
        part = records[start : start + step]
        wanted, done = len(part) * line_bytes, 0
        while done < wanted:
            count = os.preadv(data, [view[done:wanted]], (first + start) * line_bytes + done)
            if count == 0:
                break
            done += count
        _forget(data, (first + start) * line_bytes, done)
        crcs = [zlib.crc32(view[n * line_bytes : (n + 1) * line_bytes]) for n in range(done // line_bytes)]
        good = np.zeros(len(part), np.bool_)
        good[: len(crcs)] = np.array(crcs, "<u4") == part["crc32"][: len(crcs)]
        yield good


def _forget(data: int, start: int, count: int) -> None:
    """Leave the page cache to those who need it, and read from the disk next time; `count` 0 is to the end."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(data, start, count, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Tail:
    """What the end of a line file is worth.

    Attributes:
        lines: to keep, from the first on.
        damaged: lines before the checkpoint that are not what they were, and have good ones after them.
    """

    lines: int
    damaged: int


def intact(data: int, index: int, whole: int, promised: int, line_bytes: int) -> Tail | None:
    """Find the lines of a file that was left in the middle of writing.

    Behind the last checkpoint the first line that is not right ends the file, since a power cut loses pages in any
    order. Before it nothing should be wrong; where the very end is (a disk that had not stored what it said), the file
    ends with the last right line.

    Args:
        data, index: file descriptors.
        whole: lines of which both data and record are there in full.
        promised: lines at the last checkpoint.

    Returns:
        None where nothing is right as far back as CHECKED_BYTES.
    """
    promised = min(promised, whole)
    first = max(0, min(promised, whole - CHECKED_LINES))
    before = min(first, 1)
    records = records_at(index, first - before, whole - first + before)
    in_order = rising(records)[before:]
    records = records[before:]
    good = np.zeros(len(records), np.bool_)
    done = 0
    for part in checked(data, records, first, line_bytes):
        good[done : done + len(part)] = part & in_order[done : done + len(part)]
        done += len(part)
        if not good[max(0, promised - first) : done].all():
            break
    behind = good[promised - first :]
    end = promised + (len(behind) if behind.all() else int(np.argmin(behind)))
    if end == promised:
        while end > first and not good[end - 1 - first]:
            end -= 1
        if end == first:
            right = _last_right(data, index, end, line_bytes)
            if right is None:
                return None
            end = right
    return Tail(end, int((~good[: max(0, min(end, promised) - first)]).sum()))


def _last_right(data: int, index: int, end: int, line_bytes: int) -> int | None:
    for line in range(end, max(-1, end - max(1, CHECKED_BYTES // line_bytes)), -1):
        if line == 0 or next(checked(data, records_at(index, line - 1, 1), line - 1, line_bytes)).all():
            return line
    return None


@dataclass(frozen=True)
class Report:
    """What the files of a record prove.

    Attributes:
        lines: whole lines in the files.
        bad: those of them that are not what was written, or whose number does not rise.
        gaps: places where sequence numbers are left out.
        missing: sequence numbers that are left out there.
        last: the last sequence number, None without lines.
        problems: one for each file with something wrong, torn ends among them.
    """

    lines: int = 0
    bad: int = 0
    gaps: int = 0
    missing: int = 0
    last: int | None = None
    problems: tuple[str, ...] = ()


def verify(folder: Path, name: str) -> Report:
    """Read a record or restored cube again, all of it, and compare each line with its record.

    Raises:
        CubeFileError: there is none. A file that is missing or cannot be read is among the problems.
    """
    found = stems(folder, name) if folder.is_dir() else []
    if not found:
        raise CubeFileError(f"there are no lines of the name {name}", file=folder, remedy="check the path and the name")
    report = Report()
    for stem in found:
        report = report if _never_used(stem) else _counted_on(stem, report)
    return report


def _counted_on(stem: Path, report: Report) -> Report:
    try:
        return check_file(stem, report)
    except CubeFileError as error:
        return replace(report, problems=(*report.problems, error.one_line()))


def _never_used(stem: Path) -> bool:
    """Files that were made for lines of which none came have no header."""
    with suppress(OSError):
        empty = not any(suffixed(stem, suffix).stat().st_size for suffix in (".raw", ".idx"))
        return empty and not suffixed(stem, ".hdr").exists()
    return False


def check_file(stem: Path, before: Report | None = None, stop: Callable[[], bool] = bool) -> Report:
    """Compare the lines of one file with their records.

    Args:
        before: of the files before it; the answer counts on from there.
        stop: asked every few megabytes; the answer is of the lines until then.

    Raises:
        CubeFileError: a file is missing or cannot be read.
    """
    header = insisting(lambda: read_line_header(stem))
    if header is None:
        raise CubeFileError("the header is missing", file=suffixed(stem, ".hdr"), remedy="record on, or look for it")
    try:
        with (
            insisting(lambda: suffixed(stem, ".raw").open("rb", buffering=0)) as data,
            insisting(lambda: suffixed(stem, ".idx").open("rb", buffering=0)) as index,
        ):
            return _check_open(stem, header, data.fileno(), index.fileno(), before or Report(), stop)
    except OSError as error:
        file = error.filename or suffixed(stem, ".raw")
        raise CubeFileError(f"cannot be read: {error.strerror or error}", file=file, remedy="check the disk") from error


def _check_open(
    stem: Path, header: EnviHeader, data: int, index: int, before: Report, stop: Callable[[], bool]
) -> Report:
    size = header.line_bytes
    bytes_there = os.fstat(data).st_size, os.fstat(index).st_size
    whole = min(bytes_there[0] // size, bytes_there[1] // RECORD.itemsize)
    _forget(data, 0, 0)
    step = max(1, PIECE // size)
    bad, gaps, missing, last, first_bad = 0, 0, 0, before.last, -1
    for start in range(0, whole, step):
        if stop():
            break
        records = records_at(index, start, min(step, whole - start))
        good = next(checked(data, records, start, size))
        sequence = records["sequence"]
        if last is not None:
            sequence = np.concatenate([np.array([last], "<u8"), sequence])
        up = sequence[1:] > sequence[:-1]
        skipped = (sequence[1:] - sequence[:-1])[up] - 1
        good[len(good) - len(up) :] &= up
        gaps, missing = gaps + int((skipped > 0).sum()), missing + int(skipped.sum(dtype=object))
        if not good.all() and first_bad < 0:
            first_bad = start + int(np.argmin(good))
        bad += int((~good).sum())
        last = int(sequence[-1])
    problems = [f"{bad} damaged lines, the first is line {first_bad}"] if bad else []
    if bytes_there != (header.lines * size, header.lines * RECORD.itemsize):
        problems.append(
            f"the header says {header.lines} lines, data and index have {bytes_there[0] / size:g} and "
            f"{bytes_there[1] / RECORD.itemsize:g}"
        )
    text = (f"{stem.name}: {'; '.join(problems)}",) if problems else ()
    return Report(
        before.lines + whole,
        before.bad + bad,
        before.gaps + gaps,
        before.missing + missing,
        last,
        before.problems + text,
    )
