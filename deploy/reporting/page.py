"""A report as one HTML page that needs nothing else: no network, no scripts, pictures inside.

The page is described by frozen dataclasses and written by `write_report`. Every text may come from a file of a
stranger: it is escaped here, so callers pass it as it is. The same report gives the same bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path
from typing import Literal

from .quicklooks import ERROR_COLOURS, save_bytes

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Nothing may be loaded or run, even if some text should slip through the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


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
class Gate:
    """An accuracy gate.

    Args:
        name: what is measured, in plain words.
        measured: the figure.
        limit: the bound with its direction, for example "at most 0.001".
        passed: None when the gate is switched off.
        meaning: what the figure says, one sentence.
    """

    name: str
    measured: str
    limit: str
    passed: bool | None
    meaning: str = ""


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


WORDS = (
    Fact(
        "PSNR", "peak signal-to-noise ratio", "How small the error is, in dB. Higher is better; 1 dB is just visible."
    ),
    Fact("SSIM", "structural similarity", "How alike the edges and textures are. 1 is identical."),
    Fact("SAM", "spectral angle", "How far the shape of the spectra is off, in degrees. Lower is better."),
    Fact("ERGAS", "relative error over all bands", "In percent. Lower is better."),
    Fact("gates, experts", "the network's choice", "Parts of the network take turns, chosen by the damage it sees."),
)
"""The words on the page, for who does not use them every day."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is on the page, from top to bottom; what is empty is left out."""

    title: str
    verdict: Verdict
    subtitle: str = ""
    summary: tuple[Fact, ...] = ()
    gates: tuple[Gate, ...] = ()
    cases: tuple[Case, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    built: tuple[Fact, ...] = ()
    commands: tuple[Command, ...] = ()
    words: tuple[Fact, ...] = WORDS
    footnotes: tuple[str, ...] = ()


def render_report(report: Report) -> str:
    """The page as HTML text."""
    body = [
        _header(report),
        _verdict(report.verdict),
        _summary(report.summary),
        _gates(report.gates),
        _cases(report.cases),
        _plots(report.plots),
        _tables(report.tables),
        _built(report.built),
        _commands(report.commands),
        _words(report.words),
        _footnotes(report.footnotes),
    ]
    head = (
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(report.title)}</title>\n<style>\n{_STYLE}</style>"
    )
    content = "\n".join(part for part in body if part)
    page = f"<head>\n{head}\n</head>\n<body>\n<main>\n{content}\n</main>\n</body>"
    return f'<!doctype html>\n<html lang="en">\n{page}\n</html>\n'


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


def _text(value: str) -> str:
    """Escaped for HTML; what cannot be printed, such as marks that reverse the reading direction, is spelt out."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in value)
    return escape(shown, quote=True)


def _section(title: str, content: str, name: str) -> str:
    return f'<section class="{name}">\n<h2>{title}</h2>\n{content}\n</section>'


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>' if text else ""


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def _header(report: Report) -> str:
    subtitle = f"<p>{_text(report.subtitle)}</p>" if report.subtitle else ""
    return f"<header>\n<h1>{_text(report.title)}</h1>\n{subtitle}</header>"


_OUTCOMES = {"passed": ("✓", "Passed"), "failed": ("✗", "Failed"), "unjudged": ("–", "Not judged")}


def _verdict(verdict: Verdict) -> str:
    sign, word = _OUTCOMES[verdict.outcome]
    detail = f"<p>{_text(verdict.detail)}</p>" if verdict.detail else ""
    return (
        f'<section class="verdict {verdict.outcome}">\n<span class="sign" aria-hidden="true">{sign}</span>\n'
        f"<div><h2>{word}: {_text(verdict.text)}</h2>{detail}</div>\n</section>"
    )


def _summary(facts: Sequence[Fact]) -> str:
    if not facts:
        return ""
    cards = (
        f"<div><dt>{_text(fact.label)}</dt><dd>{_text(fact.value)}{_small(fact.note)}</dd></div>" for fact in facts
    )
    return f'<dl class="summary">\n{_lines(cards)}\n</dl>'


def _small(text: str) -> str:
    return f"<small>{_text(text)}</small>" if text else ""


def _gates(gates: Sequence[Gate]) -> str:
    if not gates:
        return ""
    outcomes = {True: ("good", "✓ passed"), False: ("bad", "✗ failed"), None: ("off", "off")}
    rows = []
    for gate in gates:
        name, word = outcomes[gate.passed]
        rows.append(
            f'<tr class="{name}"><th scope="row">{_text(gate.name)}{_small(gate.meaning)}</th>'
            f'<td class="number" data-label="measured ">{_text(gate.measured)}</td>'
            f'<td class="number">{_text(gate.limit)}</td><td class="outcome">{word}</td></tr>'
        )
    head = '<tr><th scope="col">Gate</th><th scope="col" class="number">Measured</th>'
    head += '<th scope="col" class="number">Limit</th><th scope="col">Result</th></tr>'
    table = f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{_lines(rows)}\n</tbody>\n</table></div>'
    return _section("Accuracy gates", table, "gates")


def _cases(cases: Sequence[Case]) -> str:
    if not cases:
        return ""
    parts = (
        f"<h3>{_text(case.title)}</h3>\n{_note(case.note)}\n"
        f'<div class="pictures">\n{_lines(_picture(picture) for picture in case.pictures)}\n</div>'
        for case in cases
    )
    hint = '<p class="note">Touch or click a picture to see it large, and again to put it back.</p>'
    return _section("Pictures", f"{hint}\n{_lines(parts)}", "cases")


def _picture(picture: Picture) -> str:
    image = _image(picture.png, picture.alt)
    scale = ""
    if picture.scale is not None:
        scale = (
            f'<span class="scale"><span>{_text(picture.scale.low)}</span><i aria-hidden="true"></i>'
            f"<span>{_text(picture.scale.high)}</span></span>"
        )
    label = _text(f"Enlarge: {picture.caption}")
    return (
        f'<figure><label><input type="checkbox" aria-label="{label}">{image}</label>'
        f"<figcaption>{_text(picture.caption)}{scale}</figcaption></figure>"
    )


def _image(png: bytes, alt: str) -> str:
    """An inline picture with its size, so that the page does not jump while it is being read."""
    if not png.startswith(PNG_SIGNATURE) or len(png) < 24:
        raise ValueError("not a PNG")
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{_text(alt)}">'


def _plots(plots: Sequence[Plot]) -> str:
    if not plots:
        return ""
    parts = (
        f'<h3>{_text(plot.title)}</h3>\n{_note(plot.note)}\n<div class="scroll plot">{_image(plot.png, plot.alt)}</div>'
        for plot in plots
    )
    return _section("Plots", _lines(parts), "plots")


_NUMBER = re.compile(r"\s*([-+−±<≤>≥]?\s*[0-9][0-9.,]*(e[-+]?[0-9]+)?\s*(%|°|dB|ms|s|x|×)?|–|—|-)\s*", re.IGNORECASE)


def _tables(tables: Sequence[Table]) -> str:
    return _section("Figures", _lines(_table(table) for table in tables), "tables") if tables else ""


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(i < len(row) and _NUMBER.fullmatch(row[i]) for row in table.rows)
        for i in range(len(table.columns))
    ]
    classes = [' class="number"' if number else "" for number in numeric]
    head = "".join(
        f'<th scope="col"{name}>{_text(column)}</th>' for column, name in zip(table.columns, classes, strict=True)
    )
    rows = (
        "<tr>" + "".join(f"<td{name}>{_text(cell)}</td>" for cell, name in zip(row, classes, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table>\n<caption>{_text(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{_lines(rows)}\n</tbody>\n</table></div>\n{_note(table.note)}"
    )


def _facts(facts: Sequence[Fact]) -> str:
    rows = (f"<div><dt>{_text(fact.label)}</dt><dd>{_text(fact.value)}{_small(fact.note)}</dd></div>" for fact in facts)
    return f'<dl class="facts">\n{_lines(rows)}\n</dl>'


def _built(facts: Sequence[Fact]) -> str:
    return _section("What was built", _facts(facts), "built") if facts else ""


def _commands(commands: Sequence[Command]) -> str:
    if not commands:
        return ""
    parts = (f"{_note(command.meaning)}<pre><code>{_text(command.text)}</code></pre>" for command in commands)
    return _section("To do it again", _lines(parts), "commands")


def _words(words: Sequence[Fact]) -> str:
    if not words:
        return ""
    return f'<details class="words">\n<summary>The words on this page</summary>\n{_facts(words)}\n</details>'


def _footnotes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f"<footer>\n{_lines(f'<p>{_text(note)}</p>' for note in notes)}\n</footer>"


_STYLE = (
    """\
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #16191d; --dim: #5b6470; --line: #dfe3e8;
  --good: #14713d; --good-card: #e3f5ea; --bad: #b3261e; --bad-card: #fdeae8; --off-card: #eceff3; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1d2127; --text: #e8eaed; --dim: #a3abb6; --line: #333a43;
    --good: #6fd699; --good-card: #16301f; --bad: #ff9a91; --bad-card: #3a1a18; --off-card: #262b32; }
  .plot img { filter: brightness(.92); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
header p { margin: .3rem 0 0; color: var(--dim); }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
.note, small { color: var(--dim); font-size: .87rem; }
.note { margin: .2rem 0 .6rem; max-width: 46rem; }
small { display: block; font-weight: 400; line-height: 1.4; }
.verdict { display: flex; gap: 1rem; align-items: center; margin: 1.3rem 0; padding: 1.1rem 1.3rem; border-radius: 12px;
  background: var(--off-card); }
.verdict h2 { margin: 0; font-size: clamp(1.25rem, 3.6vw, 1.75rem); line-height: 1.25; }
.verdict p { margin: .3rem 0 0; }
.sign { flex: none; width: 3rem; height: 3rem; border-radius: 50%; background: var(--dim); color: var(--card);
  font-size: 1.8rem; line-height: 3rem; text-align: center; }
.passed { background: var(--good-card); } .passed h2 { color: var(--good); } .passed .sign { background: var(--good); }
.failed { background: var(--bad-card); } .failed h2 { color: var(--bad); } .failed .sign { background: var(--bad); }
dl, dd { margin: 0; }
.summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; }
.summary div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.summary dt { color: var(--dim); font-size: .87rem; }
.summary dd { font-size: 1.15rem; font-weight: 600; line-height: 1.35; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin: 0 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .7rem .9rem .4rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--dim); font-weight: 500; font-size: .87rem; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 13rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.outcome { white-space: nowrap; font-weight: 600; }
.gates td { white-space: normal; }
.good .outcome { color: var(--good); } .bad .outcome { color: var(--bad); } .off .outcome { color: var(--dim); }
.bad { background: var(--bad-card); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figcaption { padding: .5rem .7rem .6rem; font-size: .9rem; line-height: 1.4; }
.pictures img { display: block; width: 100%; height: auto; cursor: zoom-in; }
.pictures input { position: absolute; opacity: 0; }
.pictures input:focus-visible + img { outline: 3px solid #1763c6; outline-offset: -3px; }
.pictures input:checked + img { position: fixed; inset: 0; z-index: 1; width: 100vw; height: 100vh; object-fit: contain;
  background: rgba(10, 12, 14, .92); cursor: zoom-out; image-rendering: pixelated; }
.scale { display: flex; gap: .4rem; align-items: center; margin-top: .3rem; color: var(--dim); font-size: .8rem;
  white-space: nowrap; }
.scale i { flex: 1; height: .55rem; border-radius: 3px; background: linear-gradient(to right, """
    + ", ".join(ERROR_COLOURS)
    + """); }
.plot { background: #fff; padding: .4rem; }
.plot img { display: block; width: 100%; min-width: 640px; max-width: 1080px; height: auto; margin: 0 auto; }
.facts { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.facts div { display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr; gap: .2rem 1rem; padding: .5rem .9rem;
  border-top: 1px solid var(--line); }
.facts div:first-child { border-top: 0; }
.facts dt { color: var(--dim); }
pre { margin: 0 0 1rem; padding: .7rem .9rem; white-space: pre-wrap; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px;
  font: .87rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details { margin-top: 2.2rem; } details > summary { cursor: pointer; font-weight: 600; margin-bottom: .6rem; }
footer { margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: .8rem; color: var(--dim);
  font-size: .87rem; }
footer p { margin: .2rem 0; }
@media (max-width: 34rem) {
  .verdict { padding: .9rem 1rem; } .sign { width: 2.3rem; height: 2.3rem; line-height: 2.3rem; font-size: 1.4rem; }
  .facts div { grid-template-columns: 1fr; gap: 0; } th, td { padding: .5rem .6rem; } tbody th { min-width: 9rem; }
  .gates thead { display: none; }
  .gates tr { display: flex; flex-wrap: wrap; border-top: 1px solid var(--line); }
  .gates tr:first-child { border-top: 0; }
  .gates tbody th { flex: 0 0 calc(100% - 7rem); padding-bottom: 0; border-top: 0; }
  .gates td { order: 2; border-top: 0; padding: .2rem .6rem .5rem; }
  .gates .outcome { order: 1; padding-top: .5rem; margin-left: auto; }
  .gates td[data-label]::before { content: attr(data-label); }
}
@media print { body { background: #fff; } section, figure, .scroll { break-inside: avoid; } details { display: none; } }
"""
)
