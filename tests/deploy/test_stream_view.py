"""The stream on a terminal: what fits, what is told, and that a terminal in trouble holds nobody."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from deploy.streaming import view as stream_view
from deploy.streaming.figures import off_balance
from deploy.streaming.screen import Screen
from deploy.streaming.view import LiveView, plain_line
from runtime.stream.books import Count
from runtime.stream.snapshot import QueueFigures, Snapshot
from tests.contracts.snapshots import NOTHING, USUAL, stages

EVIL = "\x1b[2J\x1b]0;owned\x07\r\nbad \u202etxt [bold red]x[/] 宽字" + "z" * 300


METRICS = ("high_frequency_ratio", "spectral_flatness", "curvature_mean", "curvature_std", "gradient_std")
STAGES = stages(**dict.fromkeys(("source", "record", "frames", "radiometry", "engine", "sinks"), 0.1))


def snapshot(**more: Any) -> Snapshot:
    prompt = dict.fromkeys((*METRICS, "adjacent_correlation_mean"), 0.0412)
    return replace(USUAL, **{"prompt": prompt, "stages": STAGES} | more)


def screen(given: Snapshot, width: int = 80, height: int = 24, encoding: str = "utf-8") -> str:
    """What stands on a terminal of this size, without its colours."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(width=width, height=height, file=file, force_terminal=True, color_system="truecolor")
    console.print(Screen(given))
    file.flush()
    raw = file.buffer.getvalue().decode(encoding)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", raw)
    assert "\x1b" not in shown
    return shown


def cells(row: str) -> int:
    return Console().render_str(row, markup=False, highlight=False).cell_len


BUSY = snapshot(
    lines=Count(123_456_789, 123_456_788, 23_000_000, 5_000_000, 100_000_000, 456_000),
    queues={f"a queue {i}": QueueFigures(i, 9, "drop-oldest", 10**7) for i in range(12)},
    stages=stages(**{f"stage number {i}": 0.0 if i % 2 == 0 else 1000.0 * i for i in range(20)}),
    prompt={f"metric with quite a long name {i}": 1.5e-7 * i for i in range(15)},
    experts=[1 / 16] * 16,
    problems=[EVIL] * 9,
    describe=dict.fromkeys(("source", "bundle", "engine", "precision"), EVIL),
)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10), (20, 5), (300, 100)])
@pytest.mark.parametrize("given", [snapshot(), BUSY, NOTHING], ids=["usual", "busy", "empty"])
def test_screen_fits(given: Snapshot, width: int, height: int) -> None:
    rows = screen(given, width, height).splitlines()
    assert len(rows) < height
    assert max(cells(row) for row in rows) <= width


def test_usual_screen_tells_everything_on_80_by_24() -> None:
    text = screen(snapshot())
    for told in (
        "stream running  01:02:05",
        "engine CPU  precision fp16  bundle small",
        "source envi:line_0007.hdr",
        "░ incomplete  · pending",
        "3 300  3 299",
        "✓ balanced   frames: 8 restored, 1 passed, 40 dropped, 0 failed",
        "in 330  recorded 330  restored 51.2   source  41.5 °C  reconnects 1",
        "p50 0.61 s  p95 0.82 s  p99 1.24 s   spool  3.2 GB of 20 GB, 0 deleted",
        "restore  ███░░░ 1/2 drop-oldest: 40",
        "✓ engine    0.1 s",
        "✓ sinks     0.1 s",
        "adjacent correlation mean       0.0412",
        " 4 ██░░░░░░  19 %",
    ):
        assert told in text, told
    assert "…" not in text.replace("radiomet…", "")
    assert "more" not in text


def test_what_has_no_room_is_cut_where_one_sees_it() -> None:
    rows = screen(BUSY).splitlines()
    assert rows[0].endswith("…")
    assert sum("rows more" in row for row in rows) >= 2
    for heading in ("queues", "stages, last beat", "prompt metrics", "chosen experts"):
        assert any(heading in row for row in rows), heading


def test_bar_is_to_scale_and_shows_the_least_share() -> None:
    bar = screen(snapshot()).splitlines()[5]
    assert re.fullmatch("█+▓▒+░·+", bar)
    assert len(bar) == 80
    assert bar.count("▒") == pytest.approx(80 * 2700 / 3300, abs=3)


def test_what_is_wrong_is_told() -> None:
    text = screen(snapshot(stages=stages(engine=12.4), problems=["camera vanished", "b", "c", "d"]))
    rows = text.splitlines()
    assert rows[2:5] == ["✗ stage engine is silent", "✗ camera vanished", "✗ and 3 problems more"]
    assert "✗ engine    12.4 s" in text


@pytest.mark.parametrize(
    ("dropped", "state", "off", "told"),
    [
        (2700, "running", 0, "✓ balanced"),
        (2801, "running", -30, "✗ 30 lines more than came in"),
        (2700, "stopped", 71, "✗ 71 lines unaccounted for"),
        (2770, "stopped", 1, "✗ 1 line unaccounted for"),
        (2771, "stopped", 0, "✓ balanced"),
    ],
)
def test_balance(dropped: int, state: str, off: int, told: str) -> None:
    given = snapshot(state=state, lines=replace(USUAL.lines, dropped=dropped))
    assert off_balance(given) == off
    assert told in screen(given)


def test_what_is_not_known_is_a_dash() -> None:
    text = screen(replace(NOTHING, prompt={"noise": float("nan")}, source={"temperature_c": float("nan")}))
    for told in (
        "engine –  precision –  bundle –",
        "in –  recorded –  restored –   source  – °C  reconnects –",
        "p50 – s  p95 – s  p99 – s   spool  – of –, – deleted",
    ):
        assert told in text, told
    assert re.search(r" noise +–$", text, re.MULTILINE)
    assert "| - lines/s | latency p95 - s | queue" in plain_line(snapshot(rates={}, latency_s={}))


def test_strangers_text_commands_no_terminal() -> None:
    given = snapshot(
        queues={EVIL: QueueFigures(1, 2, "block", 0)}, stages=stages(**{EVIL: 12.0}), prompt={EVIL: 1.0},
        problems=[EVIL], describe=dict.fromkeys(USUAL.describe, EVIL), source={EVIL: 1.0},
    )  # fmt: skip
    text = screen(given) + plain_line(given)
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "\\x1b[2J" in text
    assert "[bold red]" in text


def test_terminal_without_unicode_gets_ascii() -> None:
    text = screen(snapshot(problems=["camera Köln"]), encoding="ascii")
    assert "+ balanced" in text
    assert "camera K?ln" in text


def test_plain_line() -> None:
    assert plain_line(snapshot()) == (
        "lines in 3300 recorded 3299 restored 512 dropped 2700 incomplete 17 pending 71 | 330 lines/s | "
        "latency p95 0.8 s | queue restore 1/2"
    )
    given = snapshot(state="draining", problems=["a", "b"], lines=replace(USUAL.lines, dropped=2773))
    assert plain_line(given).endswith("| 2 lines more than came in | draining | problem: a (and 1 more)")


def until(true: Callable[[], bool]) -> None:
    """Wait for it; the time only stops a hang."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_log_gets_lines_and_a_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_view, "LINE_SECONDS", 0.02)
    file = io.StringIO()
    total = iter(range(1, 10**9))
    with LiveView(lambda: snapshot(seconds=next(total)), Console(file=file, width=30)):
        until(lambda: file.getvalue().count("\n") >= 3)
    rows = file.getvalue().splitlines()
    assert set(rows) == {plain_line(snapshot())}
    assert "\x1b" not in file.getvalue()


def test_short_stream_leaves_one_line() -> None:
    file = io.StringIO()
    with LiveView(snapshot, Console(file=file)):
        pass
    assert file.getvalue() == plain_line(snapshot()) + "\n"


def test_figures_that_fail_are_told_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_view, "LINE_SECONDS", 0.02)
    file = io.StringIO()
    fails = [True]

    def sometimes() -> Snapshot:
        if fails[0]:
            raise KeyError("lines")
        return snapshot()

    with LiveView(sometimes, Console(file=file)):
        until(lambda: "problem: the stream gave no figures (KeyError: 'lines')" in file.getvalue())
        fails[0] = False
        until(lambda: plain_line(snapshot()) in file.getvalue())


class Terminal:
    """A pseudo-terminal of 80x24: what is written to it, and the end that a person would read."""

    def __init__(self) -> None:
        self.person, ours = pty.openpty()
        self.file = os.fdopen(ours, "w", encoding="utf-8")
        self.console = Console(file=self.file, width=80, height=24, color_system="standard", force_terminal=True)
        self.seen = b""

    def read(self) -> str:
        while select.select([self.person], [], [], 0)[0]:
            self.seen += os.read(self.person, 65536)
        return self.seen.decode("utf-8", "replace")

    def hang_up(self) -> None:
        if self.person >= 0:
            os.close(self.person)
            self.person = -1


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(stream_view, "SCREEN_SECONDS", 0.02)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    opened = Terminal()
    yield opened
    opened.hang_up()
    with suppress(OSError):
        opened.file.close()


def test_terminal_gets_a_screen_that_renews_itself(terminal: Terminal) -> None:
    total = iter(range(3300, 10**9))
    with LiveView(lambda: snapshot(lines=Count(next(total)), problems=[EVIL]), terminal.console):
        until(lambda: "3 305" in terminal.read())
    shown = terminal.read()
    assert "\x1b[?25l" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"
    assert "\x1b[2J\x1b]0" not in shown
    assert shown.removesuffix("\x1b[?25h").endswith("\n")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_terminal_that_goes_away_holds_nobody(terminal: Terminal) -> None:
    with LiveView(snapshot, terminal.console) as view:
        until(lambda: "3 300" in terminal.read())
        terminal.hang_up()
        until(lambda: not view._thread.is_alive())


def test_terminal_that_takes_nothing_holds_nobody(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_view, "LAST_SECONDS", 0.05)
    asked = []

    def counted() -> Snapshot:
        asked.append(time.monotonic())
        return snapshot()

    with LiveView(counted, terminal.console) as view:
        # Nobody reads: the terminal's buffer is full after some screens.
        until(lambda: bool(asked) and time.monotonic() - asked[-1] > 0.3)
    assert view._thread.is_alive()
    terminal.hang_up()
    view._thread.join(20)
    assert not view._thread.is_alive()
