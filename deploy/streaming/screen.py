"""A running stream as one screen of a terminal, whatever its size."""

from collections.abc import Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from runtime.errors import plain
from runtime.stream.snapshot import Snapshot

from .figures import (
    DASH,
    bytes_text,
    count_text,
    imbalance_text,
    number_text,
    off_balance,
    rate_text,
    seconds_text,
    troubles_of,
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


class Screen:
    """The screen of a snapshot of the stream, as wide as the terminal and at most as high, whatever it holds."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, (options.height or options.size.height) - 1
        for row in _rows(self._snapshot, width, height):
            row.truncate(width, overflow="ellipsis")
            if options.ascii_only:
                row.plain = row.plain.translate(ASCII).encode("ascii", "replace").decode()
            row.no_wrap = True
            yield row


def _rows(snapshot: Snapshot, width: int, height: int) -> list[Text]:
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


def _head(snapshot: Snapshot) -> list[Text]:
    style = {"running": "bold green", "draining": "bold yellow"}.get(snapshot.state, "bold")
    minutes, seconds = divmod(int(snapshot.seconds), 60)
    clock = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
    first = Text.assemble(("stream ", "bold"), (snapshot.state, style), f"  {clock}")
    for name in ("engine", "precision", "bundle"):
        first.append(f"  {name} ", style="dim").append(plain(snapshot.describe.get(name, DASH)))
    return [first, Text.assemble(("source ", "dim"), plain(snapshot.describe.get("source", DASH)))]


def _problems(snapshot: Snapshot) -> list[Text]:
    troubles = troubles_of(snapshot)
    shown = [Text(f"✗ {trouble}", style="bold red") for trouble in troubles[:PROBLEMS]]
    if len(troubles) > PROBLEMS:
        shown[-1] = Text(f"✗ and {len(troubles) - PROBLEMS + 1} problems more", style="bold red")
    return shown


def _lines(snapshot: Snapshot, width: int) -> list[Text]:
    cells = []
    for name, number in snapshot.lines.told().items():
        sign, style = FATES.get(name, ("", ""))
        cells.append((Text.assemble((sign, style), f" {name}" if sign else name), count_text(number)))
    widths = [max(label.cell_len, len(count)) for label, count in cells]
    gap = min(max((width - sum(widths)) // len(cells), 1), 4)
    labels, counts = Text(), Text(style="bold")
    for (label, count), cell in zip(cells, widths, strict=True):
        label.pad_right(cell + gap - label.cell_len)
        labels.append_text(label)
        counts.append(f"{count:<{cell + gap}}")
    off = off_balance(snapshot)
    verdict = Text(f"✗ {imbalance_text(off)}", style="bold red") if off else Text("✓ balanced", style="bold green")
    # Before the end nothing is cut off by it.
    fates = {name: number for name, number in snapshot.frames.items() if number or name != "cut_off"}
    told = ", ".join(f"{count_text(number)} {name.replace('_', ' ')}" for name, number in fates.items())
    verdict.append(f"   frames: {told}", style="not bold default")
    return [Text(), labels, counts, _fates_bar(snapshot, off, width), verdict]


def _fates_bar(snapshot: Snapshot, off: int, width: int) -> Text:
    """What became of the lines, to scale; the least share has one cell."""
    lines = snapshot.lines
    parts = lines.told() | {"restored": lines.restored - lines.passed, "lost": off}
    if snapshot.state == "stopped":
        parts["pending"] = 0
    shown = {name: parts[name] for name in FATES if parts[name] > 0}
    if not shown:
        return Text("░" * width, style="dim")
    total = sum(shown.values())
    cells = {name: max(1, int(width * share / total)) for name, share in shown.items()}
    largest = max(cells, key=lambda name: cells[name])
    cells[largest] = max(1, cells[largest] + width - sum(cells.values()))
    return Text.assemble(*[(FATES[name][0] * count, FATES[name][1]) for name, count in cells.items()])


def _figures(snapshot: Snapshot) -> list[Text]:
    source, spool = snapshot.source, snapshot.spool
    first = Text.assemble(("lines/s", "dim"))
    for name in ("in", "recorded", "restored"):
        first.append(f"  {name} {rate_text(snapshot.rates.get(name))}")
    warmth, reconnects = number_text(source.get("temperature_c"), ".1f"), count_text(source.get("reconnects"))
    first.append("   source", style="dim").append(f"  {warmth} °C  reconnects {reconnects}")
    second = Text.assemble(("latency", "dim"))
    for name in ("p50", "p95", "p99"):
        second.append(f"  {name} {seconds_text(snapshot.latency_s.get(name))}")
    used, limit, deleted = (spool.bytes, spool.limit, spool.deleted_segments) if spool else (None, None, None)
    told = f"  {bytes_text(used)} of {bytes_text(limit)}, {count_text(deleted)} deleted"
    second.append("   spool", style="dim").append(told)
    return [Text(), first, second, _watch(snapshot)]


def _watch(snapshot: Snapshot) -> Text:
    found, tests = snapshot.restoration, snapshot.restoration.tests
    row = Text.assemble(("restoration ", "dim"), (found.state, "bold green" if found.state == "on" else "bold red"))
    row.append("   self-tests", style="dim").append(
        f"  {count_text(tests.tests)}, last {seconds_text(tests.age_s, 0)} ago"
    )
    row.append("   repairs", style="dim").append(f"  {count_text(tests.repairs)}")
    row.append("   suspect lines", style="dim")
    return row.append(f"  {count_text(found.suspect_lines)}", style="bold red" if found.suspect_lines else "")


def _queues(snapshot: Snapshot) -> list[Text]:
    rows = [Text("queues", style="dim")]
    for name, queue in snapshot.queues.items():
        share = queue.level / queue.capacity
        row = _named(name, 9).append_text(_meter(share, "yellow" if share >= 1 else "cyan", 6))
        row.append(f" {count_text(queue.level)}/{count_text(queue.capacity)}", style="bold")
        row.append(f" {queue.policy}")
        if queue.dropped:
            row.append(f": {count_text(queue.dropped)}", style="yellow")
        rows.append(row)
    return rows


def _stages(snapshot: Snapshot, width: int) -> list[Text]:
    cells = []
    for name, stage in snapshot.stages.items():
        sign = ("✓ ", "green") if stage.ok else ("✗ ", "bold red")
        cells.append(Text.assemble(sign, _named(name, 9), f" {seconds_text(stage.seconds, 1)}"))
    return [Text("stages, last beat", style="dim"), *_columns(cells, width, 19)]


def _prompt(snapshot: Snapshot, width: int) -> list[Text]:
    rows = [Text("prompt metrics", style="dim")]
    for name, value in snapshot.prompt.items():
        label = _named(name.replace("_", " "), max(width - 12, 8))
        rows.append(label.append(f" {number_text(value, '.4g'):>10}", style="bold"))
    return rows if len(rows) > 1 else [*rows, Text(DASH)]


def _experts(snapshot: Snapshot, width: int) -> list[Text]:
    cells = []
    for number, share in enumerate(snapshot.experts, 1):
        cells.append(Text.assemble(f"{number:>2} ", _meter(share, "cyan", 8), f" {100 * share:>3.0f} %"))
    return [Text("chosen experts", style="dim"), *_columns(cells, width, 18)]


def _columns(cells: list[Text], width: int, cell: int) -> list[Text]:
    """Cells beside one another, as many as there is room for."""
    if not cells:
        return [Text(DASH)]
    per_row = max(width // cell, 1)
    for text in cells:
        text.truncate(width // per_row - 1, overflow="ellipsis", pad=True)
    return [Text(" ").join(cells[start : start + per_row]) for start in range(0, len(cells), per_row)]


def _meter(share: float, style: str, cells: int) -> Text:
    full = min(max(round(share * cells), 1 if share > 0 else 0), cells)
    return Text.assemble(("█" * full, style), ("░" * (cells - full), "dim"))


def _named(name: str, cells: int) -> Text:
    text = Text(plain(name))
    text.truncate(cells, overflow="ellipsis", pad=True)
    return text
