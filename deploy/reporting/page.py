"""A report as one HTML page that needs nothing else: no network, no scripts, pictures inside.

The page is described by frozen dataclasses and written by `write_report` from page.html and page.css. Every text may
come from a file of a stranger: it is escaped here, so callers pass it as it is. The same report gives the same bytes.
"""

import base64
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from runtime.errors import printable

from ..checking.gates import GateResult
from .quicklooks import ERROR_COLOURS, save_bytes

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Fact:
    """One thing to know.

    Args:
        label: what it is, a word or two.
        value: what it comes to.
        note: why, or what it means; one sentence.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What it all comes to.

    Args:
        outcome: unjudged when every gate is switched off.
        text: one sentence a person in a hurry reads.
        detail: what to do next, or the one number that counts.
    """

    outcome: Literal["passed", "failed", "unjudged"]
    text: str
    detail: str = ""


@dataclass(frozen=True)
class ColourScale:
    """What the colours of an error map stand for: `low` for black, `high` for yellow."""

    low: str
    high: str


@dataclass(frozen=True)
class Picture:
    """One picture: PNG bytes, what it is, and the words for who cannot see it."""

    caption: str
    png: bytes
    alt: str
    scale: ColourScale | None = None


@dataclass(frozen=True)
class Case:
    """Pictures that belong side by side, such as degraded, restored, truth and error of one degradation."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing over the page's full width."""

    title: str
    png: bytes
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; a column in which every cell is a number is set flush right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Command:
    """A command line and what it does."""

    text: str
    meaning: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is on the page, from top to bottom; what is empty is left out. `routing`: its network has experts."""

    title: str
    verdict: Verdict
    subtitle: str = ""
    summary: tuple[Fact, ...] = ()
    gates: tuple[GateResult, ...] = ()
    cases: tuple[Case, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    built: tuple[Fact, ...] = ()
    commands: tuple[Command, ...] = ()
    routing: bool = False
    footnotes: tuple[str, ...] = ()


def render_report(report: Report) -> str:
    """The page as HTML text. Raises ValueError where a picture is no PNG."""
    return _PAGES.get_template("page.html").render(report=report, error_colours=ERROR_COLOURS)


def write_report(path: str | Path, report: Report) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        InputError: the system refused; what was there before still is.
    """
    save_bytes(path, render_report(report).encode("utf-8"))


def figure_text(value: float, digits: int = 4, unit: str = "") -> str:
    """`value` for a cell of a table, at `digits` significant digits; a dash where it is no finite number."""
    if not isfinite(value):
        return "–"
    text = f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{text} {unit}" if unit else text


def _shown(value: object) -> object:
    """What cannot be printed, such as marks that reverse the reading direction, is spelt out; a macro's HTML stays."""
    return value if hasattr(value, "__html__") else "\n".join(map(printable, str(value).split("\n")))


def _image(png: bytes) -> tuple[int, int, str]:
    """(width, height, base64) of a picture: with its size, the page does not jump while it is being read."""
    if not png.startswith(PNG_SIGNATURE) or len(png) < 24:
        raise ValueError("not a PNG")
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return width, height, base64.b64encode(png).decode("ascii")


_NUMBER = re.compile(r"\s*([-+−±<≤>≥]?\s*[0-9][0-9.,]*(e[-+]?[0-9]+)?\s*(%|°|dB|ms|s|x|×)?|–|—|-)\s*", re.IGNORECASE)


def _numeric(table: Table) -> list[bool]:
    """Whether every cell of a column is a number."""
    columns = zip(table.columns, *table.rows, strict=True)
    return [bool(cells) and all(map(_NUMBER.fullmatch, cells)) for _, *cells in columns]


_PAGES = Environment(
    loader=PackageLoader("deploy.reporting", ""), autoescape=True, undefined=StrictUndefined, finalize=_shown,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_PAGES.filters |= {"figure": figure_text, "image": _image, "numeric": _numeric}
