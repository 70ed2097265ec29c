"""Every output of an archive read back: the bytes that were written, of the shape and with the provenance they had."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.by_lines.provenance import digest_of
from runtime.errors import GateError
from runtime.products import open_cube
from runtime.products.contract import Reading
from runtime.products.provenance import lacking

from .. import console
from .apart import each
from .ledger import WRONG, Ledger, Row
from .order import FOLDER, Order, kept
from .plan import LOOKING
from .work import made_with, of_error, of_output, reading_back

LISTED = 100


@dataclass(frozen=True)
class Claim:
    """What the ledger says of an output. `sha256` is None where it was read from outputs, which do not know theirs.
    `doubted`: it was found wrong before, and there is no hash to tell whether it is right now."""

    out: str
    key: str
    shape: tuple[int, ...] | None
    files: tuple[str, ...]
    sha256: str | None
    reading: Reading
    doubted: bool


def verify_archive(out: Path) -> dict[str, Any]:
    """Read every output back; returns what `--json` prints.

    Raises:
        InputError: it is no archive.
        GateError: an output is not what was written, or is gone.
    """
    order = kept(out)
    with Ledger(out / FOLDER) as ledger:
        rows = [row for row in ledger.rows(current=True) if row.out is not None and row.key is not None]
        rows = [row for row in rows if row.state in ("done", "present") or row.changed == WRONG]
    claims = {_claim(row, out, order): row for row in rows}
    marks: dict[str, dict[str, Any]] = {}
    wrong, unknown = list[str](), sum(claim.sha256 is None for claim in claims if not claim.doubted)
    with console.progress("reading back") as moved:
        answers = each(verified, list(claims), memory=LOOKING)
        for number, (claim, problem) in enumerate(answers, 1):
            moved(number, len(claims))
            if problem != "":
                marks[claims[claim].path] = {"state": "planned", "changed": WRONG}
                wrong.append(f"{claim.out}: {problem or 'the process that reads it ends'}")
                console.complain(wrong[-1])
            elif claims[claim].changed == WRONG:
                # Somebody put back what had been there.
                marks[claims[claim].path] = {"state": "present", **of_output(Path(claim.out))}
    if marks:
        with Ledger(out / FOLDER) as ledger:
            for path, columns in marks.items():
                ledger.mark(path, **columns)
    if not claims:
        raise GateError(
            "has no output to verify", file=out, remedy=f"`deploy archive resume {out}` restores what is left"
        )
    told = {"out": str(out), "verified": len(claims) - len(wrong), "wrong": wrong[:LISTED], "without_hash": unknown}
    if unknown:
        console.say(f"note        {unknown} were found by a scan: their provenance was read, their hash is not known")
    if wrong:
        error = GateError(
            f"{len(wrong)} of {len(claims)} outputs are not what was written",
            file=out,
            remedy=f"`deploy archive resume {out}` restores them again",
        )
        error.report = told
        raise error
    console.say(f"verified    {len(claims)} outputs", "bold green")
    return told


def _claim(row: Row, out: Path, order: Order) -> Claim:
    assert row.out is not None and row.key is not None, "it was restored"
    result = row.result or {}
    place = out / row.out
    files = tuple(str(place.parent / name) for name in result.get("files", ()))
    shape = None if order.ortho or row.shape is None else row.shape
    sha256 = result.get("sha256")
    doubted = sha256 is None and row.changed == WRONG
    return Claim(str(place), row.key, shape, files, sha256, reading_back(order), doubted)


def verified(claim: Claim) -> str:
    """What is wrong with an output, as a clause; empty for nothing."""
    out = Path(claim.out)
    try:
        if not out.exists():
            return "is gone"
        if claim.doubted:
            return "was wrong before, and has not been restored since"
        if claim.sha256 is not None and _digest(tuple(map(Path, claim.files))) != claim.sha256:
            return "other bytes than were written"
        if made_with(out, claim.key) is None:
            return "its provenance is gone, or another's"
        if gone := lacking(out):
            return f"{gone[0].name} is gone"
        with open_cube(out, claim.reading) as reader:
            shape = reader.description.shape
            if claim.shape is not None and shape != claim.shape:
                return f"is of the shape {shape}, not {claim.shape}"
            # A reader's limits hold when its lines are read.
            reader.read_lines(0, 1)
    except Exception as error:
        return str(of_error(error, out)["line"])
    return ""


def _digest(files: tuple[Path, ...]) -> str:
    """As `runtime.by_lines.ways.Outcome.sha256` is made."""
    digests = [(str(file.relative_to(files[0].parent)), digest_of(file)) for file in files]
    return digests[0][1] if len(digests) == 1 else hashlib.sha256(json.dumps(digests).encode()).hexdigest()
