"""Whether every stage still answers, and the word of it for systemd.

As in F Prime's Health component: each part gives a sign of life, and the watchdog is stroked only while all do that the
stream cannot be without. A preview on a mount that hangs is told, and is no reason to end the record.
The protocol is that of sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, Thread

from runtime.closing import Closing
from runtime.errors import MachineError, printable

CHECK_S = 1.0
"""Stages are looked at that often, or at an eighth of systemd's interval where that is shorter."""
SEND_S = 1.0
STATUS_CHARACTERS = 400


class Stage:
    """The heartbeat of one stage; `beat` and `busy` are called by the stage's own thread.

    Args:
        name: for reports.
        limit_s: seconds between beats after which the stage counts as hung.
        vital: the stream is worth nothing without it.

    Attributes:
        well: what it does is right, as far as it can tell; may be set.
    """

    def __init__(self, name: str, limit_s: float, vital: bool = True) -> None:
        self.name, self.vital = name, vital
        self.well = True
        self._limit_s = limit_s
        self._seen = (time.monotonic(), limit_s)

    def beat(self) -> None:
        """A sign of life: costs less than a microsecond."""
        self._seen = (time.monotonic(), self._limit_s)

    @contextmanager
    def busy(self, limit_s: float) -> Iterator[None]:
        """Long work without beats, up to `limit_s` seconds; a beat at its begin and its end."""
        usual, self._limit_s = self._limit_s, limit_s
        self.beat()
        try:
            yield
        finally:
            self._limit_s = usual
            self.beat()

    def seen(self) -> StageHealth:
        """How long ago it beat, from any thread."""
        last, limit_s = self._seen
        seconds = max(0.0, time.monotonic() - last)
        return StageHealth(seconds, limit_s, seconds <= limit_s and self.well, self.vital)


@dataclass(frozen=True)
class StageHealth:
    """What is known of a stage.

    Attributes:
        seconds: since it last beat.
        limit_s: how long it may take now.
        ok: it answered within that time, and is well.
        vital: the watchdog is not stroked while it does not answer.
    """

    seconds: float
    limit_s: float
    ok: bool
    vital: bool


class Health:
    """The stages that must answer; from any thread."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._lock = Lock()

    def stage(self, name: str, limit_s: float, vital: bool = True) -> Stage:
        """Watch a new stage from now on; one of the same name is forgotten. See `Stage`."""
        stage = Stage(name, limit_s, vital)
        with self._lock:
            self._stages[name] = stage
        return stage

    def remove(self, stage: Stage) -> None:
        """Watch it no longer: it has finished. May be called twice."""
        with self._lock:
            if self._stages.get(stage.name) is stage:
                del self._stages[stage.name]

    def report(self) -> dict[str, StageHealth]:
        """By the stage's name, in the order in which they came."""
        with self._lock:
            stages = list(self._stages.values())
        return {stage.name: stage.seen() for stage in stages}

    def hung(self, *, vital: bool = False) -> tuple[str, ...]:
        """Names of the stages that do not answer; `vital`: of those among them that the stream cannot be without."""
        return tuple(name for name, stage in self.report().items() if not stage.ok and (stage.vital or not vital))


class Notifier:
    """Datagrams to systemd; says nothing where there is none to hear it.

    Args:
        environment: with NOTIFY_SOCKET (a path, or `@` and a name for an abstract one), WATCHDOG_USEC, WATCHDOG_PID.

    Attributes:
        interval_s: systemd restarts the service when no stroke came for so long; None where it does not watch.

    Raises:
        MachineError: NOTIFY_SOCKET or WATCHDOG_USEC is not what systemd writes.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        if name and (name[0] not in "/@" or len(name) < 2):
            raise MachineError("not a socket of systemd", key="NOTIFY_SOCKET", value=name, remedy="unset it")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.interval_s = _interval_s(environment) if name else None
        # Open from the start: a service that has no descriptor left is not killed for it.
        self._speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if name else None

    def send(self, *assignments: str) -> bool:
        """Send `KEY=value` lines as one datagram, waiting a second at most; False where nobody took it."""
        if self._speaker is None:
            return False
        try:
            self._speaker.settimeout(SEND_S)
            self._speaker.sendto("\n".join(assignments).encode(errors="replace"), self._address)
        except OSError:
            return False
        return True


def _interval_s(environment: Mapping[str, str]) -> float | None:
    told, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    # The watchdog of a parent that left its environment behind is not ours.
    if not told or (process and process != str(os.getpid())):
        return None
    if not told.isascii() or not told.isdigit() or int(told) == 0:
        raise MachineError("not a number of microseconds", key="WATCHDOG_USEC", value=told, remedy="unset it")
    return int(told) / 1e6


class Watchdog(Closing):
    """A thread that strokes systemd at half of its interval while every vital stage answers, and names all that do not.

    Args:
        health: the stages.
        notifier: by default, to the socket of this process' environment.
        on_change: called from the watchdog's thread with the names of the hung stages whenever they change; must not
            raise.
    """

    def __init__(
        self,
        health: Health,
        notifier: Notifier | None = None,
        on_change: Callable[[tuple[str, ...]], None] | None = None,
    ) -> None:
        self._health = health
        self._notifier = notifier or Notifier()
        self._on_change = on_change
        self._status = "starting"
        self._hung: tuple[str, ...] = ()
        self._lock = Lock()
        self._stop = Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def ready(self, status: str = "running") -> None:
        """Lines are being taken: systemd may start what waits for us."""
        self._say(status, "READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; while a stage hangs, its name goes before it."""
        self._say(text)

    def stopping(self, status: str = "stopping") -> None:
        """The end has begun."""
        self._say(status, "STOPPING=1")

    def close(self) -> None:
        """End the strokes; may be called twice."""
        self._stop.set()
        self._thread.join(timeout=2 * SEND_S)

    def _say(self, status: str, *more: str) -> None:
        with self._lock:
            self._status = printable(status)[:STATUS_CHARACTERS]
            self._notifier.send(*more, f"STATUS={self._shown()}")

    def _shown(self) -> str:
        hung = f"not answering: {printable(', '.join(self._hung))}; " if self._hung else ""
        return (hung + self._status)[:STATUS_CHARACTERS]

    def _watch(self) -> None:
        half = self._notifier.interval_s / 2 if self._notifier.interval_s else None
        due = time.monotonic()
        while True:
            hung = self._health.hung()
            if hung != self._hung:
                with self._lock:
                    self._hung = hung
                    self._notifier.send(f"STATUS={self._shown()}")
                if self._on_change is not None:
                    self._on_change(hung)
            # Not stroked while a vital stage hangs, and again as soon as it answers.
            well = half is not None and not self._health.hung(vital=True)
            if half is not None and well and time.monotonic() >= due and self._notifier.send("WATCHDOG=1"):
                due = time.monotonic() + half
            if self._stop.wait(CHECK_S if half is None else min(CHECK_S, half / 4)):
                return
