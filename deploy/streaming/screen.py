"""A running stream as one screen of a terminal, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from runtime.errors import plain

from .figures import (
    DASH,
    as_mapping,
    as_number,
    bytes_text,
    count_text,
    imbalance_text,
    off_balance,
    part_of,
    rate_text,
    seconds_text,
    share_of,
    troubles_of,
    word_text,
)

PROBLEMS = 3
FATES: Mapping[str, tuple[str, str]] = {
    "restored": ("█", "green"),
    "passed": ("▓", "blue"),
    "dropped": ("▒", "yellow"),
    "incomplete": ("░", "magenta"),
    "pending": ("·", "bright_black"),
    "lost": ("!", "bold red"),
}
"""What became of a line -> how it is drawn; the signs differ too, for terminals without colours."""
ASCII = str.maketrans("█▓▒░·–…✓✗°", "#=%:.-~+x ")


def render(snapshot: Mapping[str, Any]) -> RenderableType:
    """The screen of a snapshot of the stream, as wide as the terminal and at most as high, whatever it holds.

    Args:
        snapshot: figures as `deploy stream` gives them; what is missing is shown as a dash. Text in it is escaped.
    """
    return _Screen(snapshot)


class _Screen:
    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        self._snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, (options.height or options.size.height) - 1
        for row in _rows(self._snapshot, width, height):
            row.truncate(width, overflow="ellipsis")
            if options.ascii_only:
                row.plain = row.plain.translate(ASCII).encode("ascii", "replace").decode()
            row.no_wrap = True
            yield row


def _rows(snapshot: Mapping[str, Any], width: int, height: int) -> list[Text]:
    top = [*_head(snapshot), *_problems(snapshot), *_lines(snapshot, width), *_figures(snapshot)]
    room = height - len(top) - 1
    if room < 2:
        return top[: max(height, 1)]
    half = (width - 2) // 2
    left = _stacked([_queues(snapshot), _stages(snapshot, half)], room)
    right = _stacked([_prompt(snapshot, half), _experts(snapshot, half)], room)
    both = []
    for index in range(max(len(left), len(right))):
        row = left[index] if index < len(left) else Text()
        row.truncate(half, overflow="ellipsis", pad=True)
        both.append(Text.assemble(row, "  ", right[index] if index < len(right) else ""))
    return [*top, Text(), *both]


def _stacked(blocks: Sequence[list[Text]], room: int) -> list[Text]:
    """Blocks under one another, the longest cut until they fit; a cut block says how much is missing."""
    kept = [len(block) for block in blocks]
    while sum(kept) > room and max(kept) > 1:
        kept[kept.index(max(kept))] -= 1
    rows: list[Text] = []
    for block, count in zip(blocks, kept, strict=True):
        shown = block[:count]
        if count < len(block) and count > 1:
            shown[-1] = Text(f"and {len(block) - count + 1} rows more", style="dim")
        rows += shown
    return rows[:room]


def _head(snapshot: Mapping[str, Any]) -> list[Text]:
    state = word_text(snapshot.get("state"))
    style = {"running": "bold green", "draining": "bold yellow"}.get(state, "bold")
    seconds = as_number(snapshot.get("seconds"))
    clock = DASH
    if seconds is not None:
        minutes, whole = divmod(int(seconds), 60)
        clock = f"{minutes // 60:02}:{minutes % 60:02}:{whole:02}"
    describe = part_of(snapshot, "describe")
    first = Text.assemble(("stream ", "bold"), (state, style), f"  {clock}")
    for name in ("engine", "precision", "bundle"):
        first.append(f"  {name} ", style="dim").append(word_text(describe.get(name)))
    return [first, Text.assemble(("source ", "dim"), word_text(describe.get("source")))]


def _problems(snapshot: Mapping[str, Any]) -> list[Text]:
    troubles = troubles_of(snapshot)
    shown = [Text(f"✗ {trouble}", style="bold red") for trouble in troubles[:PROBLEMS]]
    if len(troubles) > PROBLEMS:
        shown[-1] = Text(f"✗ and {len(troubles) - PROBLEMS + 1} problems more", style="bold red")
    return shown


def _lines(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    lines, frames = part_of(snapshot, "lines"), part_of(snapshot, "frames")
    names = ("in", "recorded", "restored", "passed", "dropped", "incomplete", "pending")
    cells = []
    for name in names:
        sign, style = FATES.get(name, ("", ""))
        cells.append((Text.assemble((sign, style), f" {name}" if sign else name), count_text(lines.get(name))))
    widths = [max(label.cell_len, len(count)) for label, count in cells]
    gap = min(max((width - sum(widths)) // len(cells), 1), 4)
    labels, counts = Text(), Text(style="bold")
    for (label, count), cell in zip(cells, widths, strict=True):
        label.pad_right(cell + gap - label.cell_len)
        labels.append_text(label)
        counts.append(f"{count:<{cell + gap}}")
    off = off_balance(snapshot)
    if off is None:
        verdict = Text("balance not known", style="bold")
    elif off == 0:
        verdict = Text("✓ balanced", style="bold green")
    else:
        verdict = Text(f"✗ {imbalance_text(off)}", style="bold red")
    told = ", ".join(f"{count_text(frames.get(name))} {name}" for name in ("restored", "passed", "dropped", "failed"))
    verdict.append(f"   frames: {told}", style="not bold default")
    return [Text(), labels, counts, _fates_bar(snapshot, off, width), verdict]


def _fates_bar(snapshot: Mapping[str, Any], off: int | None, width: int) -> Text:
    """What became of the lines, to scale; the least share has one cell."""
    lines = {name: max(as_number(value) or 0.0, 0.0) for name, value in part_of(snapshot, "lines").items()}
    passed = min(lines.get("passed", 0.0), lines.get("restored", 0.0))
    parts = lines | {"restored": lines.get("restored", 0.0) - passed, "passed": passed, "lost": max(off or 0, 0)}
    if snapshot.get("state") == "stopped":
        parts["pending"] = 0.0
    shown = {name: parts[name] for name in FATES if parts.get(name, 0.0) > 0}
    if not shown:
        return Text("░" * width, style="dim")
    total = sum(shown.values())
    cells = {name: max(1, int(width * share / total)) for name, share in shown.items()}
    largest = max(cells, key=lambda name: cells[name])
    cells[largest] = max(1, cells[largest] + width - sum(cells.values()))
    return Text.assemble(*[(FATES[name][0] * count, FATES[name][1]) for name, count in cells.items()])


def _figures(snapshot: Mapping[str, Any]) -> list[Text]:
    rates, latency = part_of(snapshot, "rates"), part_of(snapshot, "latency_s")
    source, spool = part_of(snapshot, "source"), part_of(snapshot, "spool")
    temperature = as_number(source.get("temperature_c"))
    warmth = DASH if temperature is None else f"{temperature:.1f}"
    first = Text.assemble(("lines/s", "dim"))
    for name in ("in", "recorded", "restored"):
        first.append(f"  {name} {rate_text(rates.get(name))}")
    first.append("   source", style="dim").append(f"  {warmth} °C  reconnects {count_text(source.get('reconnects'))}")
    second = Text.assemble(("latency", "dim"))
    for name in ("p50", "p95", "p99"):
        second.append(f"  {name} {seconds_text(latency.get(name))}")
    used = f"  {bytes_text(spool.get('bytes'))} of {bytes_text(spool.get('limit'))}"
    second.append("   spool", style="dim").append(f"{used}, {count_text(spool.get('deleted_segments'))} deleted")
    return [Text(), first, second]


def _queues(snapshot: Mapping[str, Any]) -> list[Text]:
    rows = [Text("queues", style="dim")]
    for name, given in part_of(snapshot, "queues").items():
        queue = as_mapping(given)
        share = share_of(queue.get("level"), queue.get("capacity"))
        row = _named(name, 9).append_text(_meter(share, "yellow" if share and share >= 1 else "cyan", 6))
        row.append(f" {count_text(queue.get('level'))}/{count_text(queue.get('capacity'))}", style="bold")
        row.append(f" {word_text(queue.get('policy'))}")
        if dropped := as_number(queue.get("dropped")):
            row.append(f": {count_text(dropped)}", style="yellow")
        rows.append(row)
    return rows if len(rows) > 1 else [*rows, Text(DASH)]


def _stages(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    cells = []
    for name, given in part_of(snapshot, "stages").items():
        stage = as_mapping(given)
        sign, style = {True: ("✓", "green"), False: ("✗", "bold red")}.get(stage.get("ok", ""), ("?", ""))
        cells.append(Text.assemble((f"{sign} ", style), _named(name, 9), f" {seconds_text(stage.get('age_s'), 1)}"))
    return [Text("stages, last beat", style="dim"), *_columns(cells, width, 19)]


def _prompt(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    rows = [Text("prompt metrics", style="dim")]
    for name, value in part_of(snapshot, "prompt").items():
        number = as_number(value)
        label = _named(str(name).replace("_", " "), max(width - 12, 8))
        rows.append(label.append(f" {DASH if number is None else format(number, '.4g'):>10}", style="bold"))
    return rows if len(rows) > 1 else [*rows, Text(DASH)]


def _experts(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    given = snapshot.get("experts")
    cells = []
    for index, value in enumerate(given if isinstance(given, (list, tuple)) else ()):
        share = as_number(value)
        percent = DASH if share is None else f"{100 * share:.0f} %"
        cells.append(Text.assemble(f"{index + 1:>2} ", _meter(share, "cyan", 8), f" {percent:>5}"))
    return [Text("chosen experts", style="dim"), *_columns(cells, width, 18)]


def _columns(cells: list[Text], width: int, cell: int) -> list[Text]:
    """Cells beside one another, as many as there is room for."""
    if not cells:
        return [Text(DASH)]
    per_row = max(width // cell, 1)
    for text in cells:
        text.truncate(width // per_row - 1, overflow="ellipsis", pad=True)
    return [Text(" ").join(cells[start : start + per_row]) for start in range(0, len(cells), per_row)]


def _meter(share: float | None, style: str, cells: int) -> Text:
    full = 0 if share is None else min(max(round(share * cells), 1 if share > 0 else 0), cells)
    return Text.assemble(("█" * full, style), ("░" * (cells - full), "dim"))


def _named(name: object, cells: int) -> Text:
    text = Text(plain(name))
    text.truncate(cells, overflow="ellipsis", pad=True)
    return text
