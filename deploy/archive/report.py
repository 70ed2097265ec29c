"""An archive as one HTML page that needs nothing else: totals, what was refused and why, experts, the slowest."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from runtime.durable import write_bytes
from runtime.errors import printable
from runtime.products import open_cube
from runtime.products.contract import CubeReader, Reading
from runtime.sinks.quicklook import RESTORED, SHARES, render
from runtime.untrusted import TooLargeError, read_untrusted

from .apart import each
from .ledger import Ledger, Row, doubts_of, totals
from .order import FOLDER, Order, kept
from .plan import LOOKING
from .watch import EVENTS
from .work import reading_back

PAGE = "report.html"
SLOWEST, MOST_ROWS, SIDE = 20, 2000, 256
"""Products in the table of the slowest, rows of any table, and pixels of a quicklook's longer side."""
VISIBLE_NM = (640.0, 550.0, 460.0)
MOST_EVENTS = 256 << 20
STYLE = """
:root { color-scheme: light dark; --card: #fff; --line: #dfe3e8; --dim: #5b6470; --bar: #2f6db3; background: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --card: #1d2127; --line: #333a43; --dim: #a3abb6; background: #14171b; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 3rem;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); }
caption { text-align: left; font-weight: 600; padding: 1.6rem 0 .4rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem; border-top: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { background: var(--bar); height: .9rem; } .bars td:last-child { width: 60%; } p { color: var(--dim); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-size: .87rem; }
"""


def report_archive(out: Path, page: Path | None, quicklooks: int) -> dict[str, Any]:
    """Write the page; returns what `--json` prints. Raises InputError."""
    order = kept(out)
    with Ledger(out / FOLDER) as ledger:
        rows = ledger.rows(current=True)
    page = page or out / PAGE
    restored = [row for row in rows if row.state in ("done", "present") and row.out is not None]
    chosen = [restored[i] for i in np.linspace(0, len(restored) - 1, min(quicklooks, len(restored))).astype(int)]
    made = each(
        partial(quicklook, reading=reading_back(order)), [str(out / str(r.out)) for r in chosen], memory=LOOKING
    )
    pictures = sorted((path, png) for path, png in made if png) if chosen else []
    write_bytes(page, page_of(order, rows, pictures, dashboard_of(out)).encode())
    return {"page": str(page), "products": totals(row.state for row in rows), "quicklooks": len(pictures)}


def dashboard_of(out: Path) -> str | None:
    """Link to Dask's page of a run that has not ended."""
    link = None
    with suppress(OSError, TooLargeError):
        for line in read_untrusted(out / FOLDER / EVENTS, MOST_EVENTS).splitlines():
            with suppress(ValueError, AttributeError):
                told = json.loads(line)
                if told.get("event") in ("started", "ended"):
                    link = None
                elif told.get("event") == "dashboard":
                    link = str(told.get("link"))
    return link


def page_of(order: Order, rows: Sequence[Row], pictures: Sequence[tuple[str, bytes]], dashboard: str | None) -> str:
    """The page as HTML; every text may be a stranger's, and is escaped."""
    counted = totals(row.state for row in rows)
    restored = [row for row in rows if row.state in ("done", "present")]
    wrong = [row for row in rows if row.state in ("refused", "failed", "quarantined")]
    tried = sorted((row for row in rows if row.seconds), key=lambda row: -(row.seconds or 0))[:SLOWEST]
    doubtful = [(row.path, odd) for row in restored for odd in doubts_of(row)]
    parts = [
        f"<p>{_text(order.bundle)} · seal {order.seal[:16]} · {len(order.inputs)} inputs</p>",
        _link(dashboard),
        _table("Products", ("what became of them", "products"), [(k, f"{v}") for k, v in counted.items()], (1,)),
        _table(
            "Not restored", ("product", "", "why", "what to do", "attempts"),
            [(row.path, row.state, *_why(row), f"{row.attempts}") for row in wrong], (4,),
        ),
        _table("Restored, and to be looked at", ("product", "what is odd or doubtful"), doubtful),
        _experts(restored),
        _table(
            "The slowest", ("product", "s", "Mpixel/s", "attempts", "worker"),
            [(r.path, f"{r.seconds:.2f}", _pace(r), f"{r.attempts}", r.worker or "") for r in tried], (1, 2, 3),
        ),
        _pictures(pictures),
    ]  # fmt: skip
    title = f"Archive: {counted['done'] + counted['present']} of {counted['planned']} restored"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n'
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _table(
    caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: tuple[int, ...] = ()
) -> str:
    if not rows:
        return ""
    more = f"; the first {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    styles = [' class="number"' if number in numbers else "" for number in range(len(columns))]
    head = "".join(f"<th{style}>{_text(name)}</th>" for name, style in zip(columns, styles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{_text(cell)}</td>" for cell, style in zip(row, styles, strict=True)) + "</tr>\n"
        for row in rows[:MOST_ROWS]
    )
    return f"<table><caption>{_text(caption + more)}</caption><tr>{head}</tr>\n{body}</table>"


def _link(dashboard: str | None) -> str:
    # Whatever is in the log: only what this program writes there becomes a link.
    if dashboard is None or not dashboard.startswith(("http://127.0.0.1:", "https://127.0.0.1:")):
        return ""
    return f'<p>It is running: <a href="{escape(dashboard)}">{_text(dashboard)}</a></p>'


def _why(row: Row) -> tuple[str, str]:
    error = row.error or {}
    key, value = error.get("key"), error.get("value")
    told = str(error.get("message", row.line or "")) + (f" ({key}" if key else "") + (f" {value}" if value else "")
    return told + (")" if key else ""), str(error.get("remedy") or "")


def _experts(rows: Sequence[Row]) -> str:
    chosen = Counter[str]()
    for row in rows:
        for expert, count in ((row.result or {}).get("experts") or {}).items():
            chosen[str(expert)] += int(count)
    if not chosen:
        return ""
    most, total = max(chosen.values()), sum(chosen.values())
    bars = "".join(
        f'<tr><td class="number">{_text(expert)}</td><td class="number">{count / total:.1%}</td>'
        f'<td><div class="bar" style="width: {100 * count / most:.1f}%"></div></td></tr>\n'
        for expert, count in sorted(chosen.items(), key=lambda item: item[0].zfill(4))
    )
    head = "<tr><th>expert</th><th>tiles</th><th></th></tr>"
    caption = f"Experts that weighed most, of {total} tiles"
    return f'<table class="bars"><caption>{caption}</caption>{head}{bars}</table>'


def _pace(row: Row) -> str:
    if not row.seconds or row.shape is None:
        return ""
    return f"{float(np.prod(row.shape[1:])) / row.seconds / 1e6:.3f}"


def _pictures(pictures: Sequence[tuple[str, bytes]]) -> str:
    if not pictures:
        return ""
    shown = "".join(
        f'<figure><img alt="{_text(Path(path).name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{_text(Path(path).name)}</figcaption></figure>\n"
        for path, png in pictures
    )
    return f'<h2>Quicklooks</h2><div class="pictures">{shown}</div>'


@dataclass(frozen=True)
class _Thinning:
    """Every how many lines and samples are shown."""

    step: int
    bands: tuple[int, ...]


def quicklook(path: str, reading: Reading) -> bytes:
    """A PNG of an output, every so many lines and samples; nothing where it cannot be read."""
    try:
        with open_cube(path, reading) as reader:
            thin = _thinning(reader)
            lines = reader.description.shape[1]
            rows = [
                reader.read_lines(line, line + 1)[list(thin.bands), 0, :: thin.step]
                for line in range(0, lines, thin.step)
            ]
            marks = reader.description.stated.marks
        shown = np.stack(rows)
        mark = float(marks[0]) if marks else None
        return render(shown, np.full(len(shown), RESTORED, np.uint8), ignore_value=mark)
    except Exception:
        return b""


def _thinning(reader: CubeReader) -> _Thinning:
    described = reader.description
    bands, lines, samples = described.shape
    wavelengths = described.stated.wavelengths
    chosen = tuple(round((bands - 1) * share) for share in SHARES.values())
    if wavelengths is not None and len(wavelengths) == bands:
        nearest = tuple(int(np.argmin(np.abs(np.subtract(wavelengths, nm)))) for nm in VISIBLE_NM)
        chosen = nearest if len(set(nearest)) == 3 else chosen
    return _Thinning(max(1, -(-max(lines, samples) // SIDE)), chosen)
