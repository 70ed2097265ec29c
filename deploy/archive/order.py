"""What was asked of an archive: kept in its folder, so that `deploy archive resume` needs no more than that."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.durable import write_bytes
from runtime.errors import InputError
from runtime.products.contract import PROVENANCE
from runtime.untrusted import TooLargeError, read_untrusted

FOLDER = f".{PROVENANCE}"
"""Of an archive: what is known of it lies here; outputs lie beside."""
ORDER = "archive.json"
LARGEST = 64 << 20
Kind = Literal["like", "cog", "netcdf", "zarr", "envi"]


class Order(BaseModel):
    """What is restored, with what, and how. Paths are absolute.

    Attributes:
        bundle, seal: its folder, and `runtime.by_lines.provenance.seal_of` it.
        inputs: files, folders and catalogues. outside: of these, whether what lies outside their folder is read.
        kind: format of the outputs.
        metrics, ortho, clip, replace: as the options of those names.
        scale, marks, constant_bands: of the numbers. layout, key, missing_chunks: of reading.
        split: whether giant cubes are restored in parts.
        engine, prompt: of the bundle.
    """

    # JSON has no number that is none: as text.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    version: Literal[1] = 1
    bundle: str
    seal: str
    inputs: tuple[str, ...] = Field(max_length=100_000)
    outside: bool = False
    kind: Kind = "like"
    metrics: Literal["frame"] = "frame"
    ortho: bool = False
    clip: bool = False
    replace: bool = False
    scale: float | None = None
    marks: tuple[float, ...] | None = None
    constant_bands: Literal["leave", "restore"] | None = None
    layout: str | None = None
    key: str | None = None
    missing_chunks: Literal["refuse", "fill"] = "refuse"
    split: bool = False
    engine: str | None = None
    prompt: str | None = None


def question_of(order: Order) -> str:
    """All that decides what a product becomes, and is not of the product, as JSON."""
    return order.model_dump_json(exclude={"version", "bundle", "inputs", "outside", "replace", "split"})


def asked_of(order: Order) -> str:
    """SHA-256 of that."""
    return hashlib.sha256(question_of(order).encode()).hexdigest()


def keep(order: Order, out: Path) -> None:
    """Write it into an archive's folder, whole or not at all. Raises InputError."""
    write_bytes(out / FOLDER / ORDER, order.model_dump_json(indent=1).encode() + b"\n")


def kept(out: Path) -> Order:
    """What was asked of the archive `out`. Raises InputError: nothing was, or it cannot be read."""
    file = out / FOLDER / ORDER
    remedy = "give the folder that was --out of `deploy archive run`, or run that again with --replace"
    try:
        return Order.model_validate_json(read_untrusted(file, LARGEST))
    except FileNotFoundError as error:
        raise InputError("is no archive", file=out, remedy=remedy) from error
    except (OSError, TooLargeError) as error:
        raise InputError(f"cannot be read: {error}", file=file, remedy=remedy) from error
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or None
        raise InputError("is damaged", file=file, key=where, remedy=remedy) from error
