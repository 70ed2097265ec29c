"""A cube restored in parts, each a file of its own, and joined: byte for byte what one go gives."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import Bundle
from runtime.by_lines.memory import planned
from runtime.by_lines.product import opened_writer, outcome, write_block
from runtime.by_lines.provenance import digest_of, provenance
from runtime.by_lines.rows import Block, Row, restore_lines
from runtime.by_lines.survey import Survey
from runtime.by_lines.ways import Outcome, Tally, Ways, result_of
from runtime.durable import replacing
from runtime.errors import CubeFileError
from runtime.products import open_cube
from runtime.products.contract import Quality


def restore_part(bundle: Bundle, path: Path, part: Path, ways: Ways, found: Survey, start: int, stop: int) -> str:
    """Restore the lines `start` to `stop` of a product into a part file, whole or absent.

    Args:
        found: what `restore_product.judged` made of the whole product.

    Returns:
        SHA-256 of the part file.

    Raises:
        CubeError, CubeFileError, MachineError: as `restore_product`.
    """
    tally = Tally()
    with open_cube(path, ways.reading) as reader, replacing(part) as temporary, temporary.open("wb") as file:
        for step in restore_lines(bundle, reader, found, start, stop, clip=ways.clip, unit=ways.unit):
            if isinstance(step, Row):
                tally.rows[step.line] = step
                continue
            tally.take(step)
            counts = np.array([step.start, step.missing, step.saturated, step.moved], np.int64)
            for array in (counts, step.cube, step.quality.seen, step.quality.expert):
                np.save(file, array, allow_pickle=False)
        rows = json.dumps([row._asdict() for row in tally.rows.values()]).encode()
        np.save(file, np.full(4, -1, np.int64), allow_pickle=False)
        np.save(file, np.frombuffer(rows, np.uint8), allow_pickle=False)
    return digest_of(part)


def join_parts(
    bundle: Bundle, path: Path, parts: Sequence[tuple[Path, str]], out: Path, ways: Ways, found: Survey
) -> Outcome:
    """Join part files, in the order of their lines, to a product.

    Args:
        parts: of all lines, each with its SHA-256.
        found: with which they were made.

    Raises:
        CubeFileError: a part is not the one that was made, lines are missing, or the output cannot be written.
    """
    began = time.monotonic()
    tally = Tally()
    with open_cube(path, ways.reading) as reader:
        result = result_of(reader.description, reader, found.meaning, ways, found.missing)
        with opened_writer(out, result, ways) as writer:
            for part, sha256 in parts:
                if digest_of(part) != sha256:
                    raise CubeFileError("is not the part that was made", file=part, remedy="restore it again")
                with part.open("rb") as file:
                    while (counts := _next(file, part))[0] >= 0:
                        cube, seen, expert = (_next(file, part) for _ in range(3))
                        start, *rest = map(int, counts)
                        block = Block(start, cube, Quality(seen, expert), *rest)
                        write_block(writer, block, result, found.meaning, tally, ways)
                    for row in json.loads(_next(file, part).tobytes()):
                        row["experts"] = {int(expert): count for expert, count in row["experts"].items()}
                        row["metrics"] = tuple(row["metrics"])
                        tally.rows[row["line"]] = Row(**row)
            files = writer.finish(provenance(bundle, reader.description, found.meaning, ways, tally))
        needed = planned(bundle.manifest, reader, ways)
    return outcome(files, found.meaning, tally, time.monotonic() - began, needed)


def _next(file: Any, part: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CubeFileError("cannot be read", file=part, remedy="restore it again") from error
    return array
