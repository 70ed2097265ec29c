"""What a running stream tells the outside now and then: the log, systemd, ZeroMQ, CCSDS housekeeping."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from runtime.board import read_board
from runtime.errors import DeployError
from runtime.stream.health import Watchdog
from runtime.stream.intake import Log
from runtime.stream.snapshot import Snapshot

TICK_S = 0.25
OUTSIDE_S = 1.0
"""Seconds between two messages to those outside."""
LAST_S = 0.5
"""How long the end waits for somebody who cannot be told."""
BOARD_S = 5.0


class BoardTemperature:
    """The board's hottest sensor, read from the kernel every few seconds.

    Attributes:
        figures: `board_temperature_c`; empty where the board tells none.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._due = 0.0

    def look(self, now: float) -> None:
        """Read it, if that is due."""
        if now < self._due:
            return
        self._due = now + BOARD_S
        # The kernel's own files: NVIDIA's tools take seconds.
        told = read_board(tell=lambda command, first_line: None).temperatures_c
        self.figures = {"board_temperature_c": max(told.values())} if told else {}


class Teller:
    """What is told to the outside now and then, in a thread of its own: who cannot be told stalls nobody else.

    Args:
        snapshot: of the stream.
        telling: called about once a second with a snapshot as JSON.
        watchdog: told the counts, for `systemctl status`.
        board: looked at now and then.
        log: takes the telemetry.
        log_seconds: between two lines of it.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        telling: Sequence[Callable[[Mapping[str, Any]], None]],
        watchdog: Watchdog,
        board: BoardTemperature,
        log: Log,
        log_seconds: float,
    ) -> None:
        self._snapshot, self._telling, self._watchdog, self._log = snapshot, telling, watchdog, log
        self._board = board
        self._log_seconds = log_seconds
        self._log_due = self._tell_due = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(LAST_S)

    def _run(self) -> None:
        while not self._end.wait(TICK_S):
            self._tell_all()
        # The last word is the final count.
        self._log_due = self._tell_due = 0.0
        self._tell_all()

    def _tell_all(self) -> None:
        try:
            self._tell()
        # Who tells must not fall silent over one thing that cannot be told.
        except Exception as error:
            self._log("failed", stage="teller", error=f"{type(error).__name__}: {error}")

    def _tell(self) -> None:
        now = time.monotonic()
        if now >= self._log_due:
            self._log_due = now + self._log_seconds
            self._log("telemetry", **self._snapshot().as_json())
        if now >= self._tell_due:
            self._tell_due = now + OUTSIDE_S
            self._board.look(now)
            found = self._snapshot()
            lines, told = found.lines, found.as_json()
            self._watchdog.status(
                f"lines in {lines.issued}, restored {lines.restored}, dropped {lines.dropped}, "
                f"incomplete {lines.incomplete}"
            )
            for tell in self._telling:
                # Who cannot be told is a sink too, and fails there with a word in the log.
                with suppress(DeployError):
                    tell(told)
