"""A running stream on the terminal: one screen that renews itself, or a line now and then where nobody watches."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from numbers import Real
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from deploy import console as words
from runtime.errors import plain

SCREEN_SECONDS = 0.5
LINE_SECONDS = 10.0
LAST_SECONDS = 1.0
"""How long the end waits for a terminal that takes nothing."""
PROBLEMS = 3
DASH = "–"

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


def plain_line(snapshot: Mapping[str, Any]) -> str:
    """The snapshot in one line for logs: counts, rate, latency and the fullest queue; what is wrong, if anything."""
    lines = _map(snapshot, "lines")
    counts = " ".join(f"{name} {_count(lines.get(name), '')}" for name in _LINE_COUNTS)
    rate = _rate(_map(snapshot, "rates").get("in"))
    parts = [f"lines {counts}", f"{rate} lines/s", f"latency p95 {_seconds(_map(snapshot, 'latency_s').get('p95'), 1)}"]
    queues = [(name, _mapping(queue)) for name, queue in _map(snapshot, "queues").items()]
    if queues:
        name, queue = max(queues, key=lambda item: _share(item[1].get("level"), item[1].get("capacity")) or 0.0)
        parts.append(f"queue {plain(name)} {_count(queue.get('level'), '')}/{_count(queue.get('capacity'), '')}")
    if off := off_balance(snapshot):
        parts.append(_imbalance(off))
    if snapshot.get("state") not in (None, "running"):
        parts.append(plain(snapshot["state"]))
    troubles = _troubles(snapshot)
    if troubles:
        more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
        parts.append(f"problem: {troubles[0]}{more}")
    return " | ".join(parts).replace(DASH, "-")


_LINE_COUNTS = ("in", "recorded", "restored", "dropped", "incomplete")


def off_balance(snapshot: Mapping[str, Any]) -> int | None:
    """Lines in less restored, dropped, incomplete and pending ones; when all has stopped nothing may be pending.

    Returns:
        0 where the books balance, more where lines are unaccounted for, less where too many are counted; None where
        a figure is missing.
    """
    lines = _map(snapshot, "lines")
    figures = [_number(lines.get(name)) for name in ("in", "restored", "dropped", "incomplete", "pending")]
    known = [int(figure) for figure in figures if figure is not None]
    if len(known) < len(figures):
        return None
    total, *settled, pending = known
    still_open = total - sum(settled)
    underway = 0 if snapshot.get("state") == "stopped" else max(pending, 0)
    return still_open if still_open < 0 else still_open - underway


class LiveView:
    """The view of a running stream on standard error, until the end of the `with` block.

    On a terminal the screen is renewed twice a second; elsewhere a plain line is written every ten seconds and a last
    one at the end. It has a thread of its own; a terminal that goes away or takes nothing does not hold the stream.

    Args:
        snapshot: figures of the stream; called from the view's thread. What it raises is shown as a problem.
        console: where to; None for standard error.
    """

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]], console: Console | None = None) -> None:
        self._snapshot = snapshot
        self._console = words.errors if console is None else console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._live: Live | None = None
        if self._console.is_terminal:
            # Standard output may be a file or a pipe that wants nothing but results.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),
                vertical_overflow="crop",
            )

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            return
        with suppress(OSError):
            self._show()
            if self._live is not None:
                self._live.stop()

    def _run(self) -> None:
        with suppress(OSError):
            while not self._stop.wait(LINE_SECONDS if self._live is None else SCREEN_SECONDS):
                self._show()

    def _show(self) -> None:
        try:
            snapshot = self._snapshot()
        except Exception as error:
            snapshot = {"problems": [f"the stream gave no figures ({type(error).__name__}: {error})"]}
        if self._live is None:
            self._console.print(Text(plain_line(snapshot)), soft_wrap=True)
        else:
            self._live.update(render(snapshot), refresh=True)


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
    state = _word(snapshot.get("state"))
    style = {"running": "bold green", "draining": "bold yellow"}.get(state, "bold")
    seconds = _number(snapshot.get("seconds"))
    clock = DASH
    if seconds is not None:
        minutes, whole = divmod(int(seconds), 60)
        clock = f"{minutes // 60:02}:{minutes % 60:02}:{whole:02}"
    describe = _map(snapshot, "describe")
    first = Text.assemble(("stream ", "bold"), (state, style), f"  {clock}")
    for name in ("engine", "precision", "bundle"):
        first.append(f"  {name} ", style="dim").append(_word(describe.get(name)))
    return [first, Text.assemble(("source ", "dim"), _word(describe.get("source")))]


def _problems(snapshot: Mapping[str, Any]) -> list[Text]:
    troubles = _troubles(snapshot)
    shown = [Text(f"✗ {trouble}", style="bold red") for trouble in troubles[:PROBLEMS]]
    if len(troubles) > PROBLEMS:
        shown[-1] = Text(f"✗ and {len(troubles) - PROBLEMS + 1} problems more", style="bold red")
    return shown


def _lines(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    lines, frames = _map(snapshot, "lines"), _map(snapshot, "frames")
    names = ("in", "recorded", "restored", "passed", "dropped", "incomplete", "pending")
    cells = []
    for name in names:
        sign, style = FATES.get(name, ("", ""))
        cells.append((Text.assemble((sign, style), f" {name}" if sign else name), _count(lines.get(name))))
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
        verdict = Text(f"✗ {_imbalance(off)}", style="bold red")
    told = ", ".join(f"{_count(frames.get(name))} {name}" for name in ("restored", "passed", "dropped", "failed"))
    verdict.append(f"   frames: {told}", style="not bold default")
    return [Text(), labels, counts, _fates_bar(snapshot, off, width), verdict]


def _fates_bar(snapshot: Mapping[str, Any], off: int | None, width: int) -> Text:
    """What became of the lines, to scale; the least share has one cell."""
    lines = {name: max(_number(value) or 0.0, 0.0) for name, value in _map(snapshot, "lines").items()}
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
    rates, latency = _map(snapshot, "rates"), _map(snapshot, "latency_s")
    source, spool = _map(snapshot, "source"), _map(snapshot, "spool")
    temperature = _number(source.get("temperature_c"))
    warmth = DASH if temperature is None else f"{temperature:.1f}"
    first = Text.assemble(("lines/s", "dim"))
    for name in ("in", "recorded", "restored"):
        first.append(f"  {name} {_rate(rates.get(name))}")
    first.append("   source", style="dim").append(f"  {warmth} °C  reconnects {_count(source.get('reconnects'))}")
    second = Text.assemble(("latency", "dim"))
    for name in ("p50", "p95", "p99"):
        second.append(f"  {name} {_seconds(latency.get(name))}")
    used = f"  {_bytes(spool.get('bytes'))} of {_bytes(spool.get('limit'))}"
    second.append("   spool", style="dim").append(f"{used}, {_count(spool.get('deleted_segments'))} deleted")
    return [Text(), first, second]


def _queues(snapshot: Mapping[str, Any]) -> list[Text]:
    rows = [Text("queues", style="dim")]
    for name, given in _map(snapshot, "queues").items():
        queue = _mapping(given)
        share = _share(queue.get("level"), queue.get("capacity"))
        row = _named(name, 9).append_text(_meter(share, "yellow" if share and share >= 1 else "cyan", 6))
        row.append(f" {_count(queue.get('level'))}/{_count(queue.get('capacity'))}", style="bold")
        row.append(f" {_word(queue.get('policy'))}")
        if dropped := _number(queue.get("dropped")):
            row.append(f": {_count(dropped)}", style="yellow")
        rows.append(row)
    return rows if len(rows) > 1 else [*rows, Text(DASH)]


def _stages(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    cells = []
    for name, given in _map(snapshot, "stages").items():
        stage = _mapping(given)
        sign, style = {True: ("✓", "green"), False: ("✗", "bold red")}.get(stage.get("ok", ""), ("?", ""))
        cells.append(Text.assemble((f"{sign} ", style), _named(name, 9), f" {_seconds(stage.get('age_s'), 1)}"))
    return [Text("stages, last beat", style="dim"), *_columns(cells, width, 19)]


def _prompt(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    rows = [Text("prompt metrics", style="dim")]
    for name, value in _map(snapshot, "prompt").items():
        number = _number(value)
        label = _named(str(name).replace("_", " "), max(width - 12, 8))
        rows.append(label.append(f" {DASH if number is None else format(number, '.4g'):>10}", style="bold"))
    return rows if len(rows) > 1 else [*rows, Text(DASH)]


def _experts(snapshot: Mapping[str, Any], width: int) -> list[Text]:
    given = snapshot.get("experts")
    cells = []
    for index, value in enumerate(given if isinstance(given, (list, tuple)) else ()):
        share = _number(value)
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


def _troubles(snapshot: Mapping[str, Any]) -> list[str]:
    """What a person should know first: stages that do not answer, then what the stream says itself."""
    stages = _map(snapshot, "stages").items()
    silent = [f"stage {plain(name)} is silent" for name, stage in stages if _mapping(stage).get("ok") is False]
    given = snapshot.get("problems")
    return silent + [plain(problem) for problem in (given if isinstance(given, (list, tuple)) else ())]


def _imbalance(off: int) -> str:
    amount = f"{abs(off)} line{'s' if abs(off) != 1 else ''}"
    return f"{amount} unaccounted for" if off > 0 else f"{amount} more than came in"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _map(snapshot: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _mapping(snapshot.get(key))


def _number(value: object) -> float | None:
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    return float(value) if isfinite(value) else None


def _share(level: object, capacity: object) -> float | None:
    part, whole = _number(level), _number(capacity)
    return part / whole if part is not None and whole else None


def _word(value: object) -> str:
    return plain(value) if value not in (None, "") else DASH


def _count(value: object, between: str = " ") -> str:
    number = _number(value)
    return DASH if number is None else f"{round(number):,}".replace(",", between)


def _rate(value: object) -> str:
    number = _number(value)
    return DASH if number is None else f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def _seconds(value: object, decimals: int = 2) -> str:
    number = _number(value)
    return f"{DASH} s" if number is None else f"{number:.{decimals if number < 100 else 0}f} s"


def _bytes(value: object) -> str:
    number = _number(value)
    if number is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
