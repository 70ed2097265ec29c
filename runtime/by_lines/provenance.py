"""How an output was made, and what tells it from every other."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.bundle_files import Head
from runtime.by_lines.ways import Tally, Ways
from runtime.errors import InputError
from runtime.files.disk import opened
from runtime.meaning import Meaning, words
from runtime.products.contract import Description
from runtime.versions import PROGRAM

FORMAT = 1
"""Of what an output holds: part of every key."""
MOST_ROWS = 1024
"""Of the table of rows in a provenance; of more, they are those spread evenly."""


def seal_of(head: Head) -> str:
    """What tells a bundle, and the engine that was made of it, from every other: a SHA-256."""
    digest = hashlib.sha256()
    for name in ("manifest.json", "made.json"):
        digest.update(head.files.get(name, b"") + b"\0")
    return digest.hexdigest()


def key_of(description: Description, seal: str, ways: Ways) -> str:
    """What tells an output from others without a look into its input, as a SHA-256: names and sizes, bundle, ways.

    Of two inputs of one name and size `input_digest` tells which it was.
    """
    files = [(file.name, _size(file)) for file in description.files]
    told = json.dumps([FORMAT, files, seal, _options(ways)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise InputError("cannot be read", file=file, remedy="check the path and the permissions") from error


def plain_files(description: Description) -> tuple[Path, ...]:
    """Of the files that a product is read from those that are files, not folders."""
    return tuple(file for file in description.files if file.is_file())


def provenance(bundle: Bundle, description: Description, meaning: Meaning, ways: Ways, tally: Tally) -> dict[str, Any]:
    """How an output was made, as plain values: the same whenever, wherever and in how many parts it is."""
    manifest, engine = bundle.manifest, bundle.engine.describe()
    seal = seal_of(bundle.contents)
    rows = [tally.rows[line] for line in sorted(tally.rows)]
    if len(rows) > MOST_ROWS:
        rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, MOST_ROWS)]
    names = manifest.signature.metric_names
    return {
        "program": "damp-deploy",
        "version": PROGRAM,
        "key": key_of(description, seal, ways),
        "bundle": seal,
        "network": manifest.network.architecture,
        "checkpoint": manifest.network.checkpoint_sha256,
        "precision": bundle.choice.precision,
        "engine": engine["engine"],
        "computes_in": engine["computes in"],
        "prompt": bundle.prompts.chosen,
        "metrics_of": ways.metrics,
        "options": _options(ways),
        "input": {"name": description.path.name, "format": description.format, "sha256": input_digest(description)},
        "scale": None if meaning.scale_from is None else meaning.conversion.scale,
        "scale_from": meaning.scale_from,
        "bands_left_out": {str(band + 1): why for band, why in sorted(meaning.bad.items())},
        "frames": tally.frames,
        "missing": tally.missing,
        "moved": tally.moved,
        "saturated": tally.saturated,
        "suspect": list(tally.told(lambda row: row.odd)),
        "experts": {str(expert): count for expert, count in tally.experts.items()},
        "rows": {
            "columns": ["line", "expert", *names],
            "values": [[r.line, _most(r.experts), *(float(f"{m:.5g}") for m in r.metrics)] for r in rows],
        },
    }


def _most(experts: Mapping[int, int]) -> int:
    return max(experts, key=lambda expert: (experts[expert], -expert)) if experts else 0


def _options(ways: Ways) -> dict[str, Any]:
    """Those that are not what they are by themselves."""
    plain, told = asdict(Ways()), asdict(ways)
    found: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            found |= {inner: one for inner, one in value.items() if one != plain[name][inner]}
        elif value != plain[name]:
            found[name] = value
    if found.get("marks"):
        # JSON has no NaN.
        found["marks"] = [words.number(mark) for mark in found["marks"]]
    return found


def input_digest(description: Description) -> str:
    """SHA-256 of the file, or of the names and digests of all that a product is read from. Raises CubeFileError."""
    found = []
    for file in plain_files(description):
        digest = hashlib.sha256()
        with opened(file) as (stream, _):
            while piece := stream.read(1 << 20):
                digest.update(piece)
        found.append((file.name, digest.hexdigest()))
    return found[0][1] if len(found) == 1 else hashlib.sha256(json.dumps(found).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of all files of a folder."""
    if path.is_dir():
        inner = sorted(file for file in path.rglob("*") if file.is_file())
        told = [(str(file.relative_to(path)), digest_of(file)) for file in inner]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
