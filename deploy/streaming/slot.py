"""The slot that a stream flies from: opened with a try counted, good once it has proved itself, bad where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime import slots
from runtime.bundle import Bundle
from runtime.closing import Closing
from runtime.errors import BundleError, DeployError, GateError, InputError, MachineError, UntrustedError
from runtime.manifest import Manifest
from runtime.stream.intake import Log
from runtime.stream.selftest import check_same

from .. import console

TESTS, SECONDS = 3, 60.0
"""A new bundle is good after so many self-tests in flight, and so long of restored lines."""
PAUSE_S = 5.0
"""Lines that come less often than that count as none."""


def _blames(error: DeployError) -> bool:
    """Whether it is the bundle's fault, not that of this computer, its keyring or an option."""
    return isinstance(error, BundleError | GateError) and not isinstance(error, UntrustedError)


class Flying(Closing):
    """The slots of a store, for one stream.

    Args:
        store: see `runtime.slots`.
        load: opens a bundle and proves it, on every golden frame if it is told so.

    Attributes:
        name: of the slot that flies; None where none does.
    """

    def __init__(self, store: Path, load: Callable[[Path, bool], Bundle]) -> None:
        self.store, self._load = store, load
        self.name: str | None = None
        self._early: list[dict[str, Any]] = []
        self._log: Log = lambda kind, **fields: self._early.append(fields)
        self._failed: list[str] = []
        self._flies: Manifest | None = None
        self._proved = self._ended = self._wrong = False
        self._restored = 0
        self._seconds, self._seen = 0.0, time.monotonic()

    def log_to(self, log: Log) -> None:
        """What happens to slots, and what did before there was a log, goes there as `slot`."""
        self._log = log
        for fields in self._early:
            log("slot", **fields)

    @property
    def told(self) -> dict[str, Any]:
        """The slot that flies and its serial, for `--json`."""
        return {"slot": self.name, "serial": None if self._flies is None else self._flies.serial}

    def close(self) -> None:
        """A new slot that did nothing wrong gets its try back; may be called twice."""
        if self.name is not None and not self._ended and not self._wrong:
            with suppress(DeployError):
                slots.untried(self.store, self.name)
        self._ended = True

    def open(self) -> Bundle:
        """The first bundle that works, of the active slot or the other one.

        Raises:
            DeployError: why the last one that was tried does not; or this is no store.
        """
        why: DeployError = BundleError(
            "no slot has a bundle that may be tried", file=self.store, remedy="`deploy slots install` one"
        )
        while (name := slots.next_slot(self.store, self._failed)) is not None:
            found = self._opened(name)
            if isinstance(found, Bundle):
                return found
            why = found
        raise why

    def _opened(self, name: str) -> Bundle | DeployError:
        # Where another slot would fly in its place, it is proved before it flies.
        doubtful = self.name is not None or slots.read_state(self.store).slots[name].state == "new"
        try:
            bundle = self._load(self.store / name, doubtful)
        except (InputError, GateError, MachineError) as error:
            self._failed.append(name)
            if _blames(error):
                slots.bad(self.store, name, error.one_line())
            else:
                slots.untried(self.store, name)
            console.warn(f"slot {name} does not fly: {error.one_line()}")
            self._log("slot", slot=name, ok=False, why=error.one_line())
            return error
        if self._flies is not None:
            try:
                check_same(self._flies, bundle.manifest, bundle.path)
            except BundleError as error:
                # It is for the next start, and no worse for that.
                bundle.close()
                self._failed.append(name)
                return error
        self.name, self._flies = name, bundle.manifest
        self._log("slot", slot=name, ok=True, serial=bundle.manifest.serial)
        slot = slots.read_state(self.store).slots[name]
        if slot.state == "new":
            left = "is" if slot.tries == 1 else "are"
            console.warn(
                f"slot {name} is new: good after {TESTS} self-tests and {SECONDS:g} s of restored lines; until then an "
                f"end that is not a clean one costs a try, and {slot.tries} {left} left after this one"
            )
        bundle.again = self._again
        return bundle

    def _again(self) -> Bundle:
        """The same slot anew, or the other one where it no longer works and that one holds the same network."""
        self._failed = []
        assert self.name is not None, "one flies"
        found = self._opened(self.name)
        # A keyring that changed meanwhile is no fault of the slot, whatever follows.
        self._ended |= isinstance(found, InputError) and not _blames(found)
        return found if isinstance(found, Bundle) else self.open()

    def look(self, snapshot: Mapping[str, Any]) -> None:
        """Called about once a second: a slot becomes good, or bad where restoration has ended."""
        self._wrong = snapshot["restoration"]["tests"]["failed"] > 0
        now, restored, told = time.monotonic(), snapshot["lines"]["restored"], snapshot["restoration"]
        if restored > self._restored:
            self._seconds += now - self._seen if now - self._seen <= PAUSE_S else 0.0
            self._restored, self._seen = restored, now
        if self.name is None or self._ended:
            return
        tests = told["tests"]["tests"] - told["tests"]["failed"]
        try:
            if told["state"] == "off":
                self._ended = True
                slots.bad(self.store, self.name, "; ".join(snapshot["problems"]))
                self._log("slot", slot=self.name, ok=False, why="restoration is off")
            elif not self._proved and tests >= TESTS and self._seconds >= SECONDS:
                self._proved = True
                slots.good(self.store, self.name)
                self._log("slot", slot=self.name, ok=True, state="good")
        except DeployError as error:
            self._log("slot", slot=self.name, ok=False, why=error.one_line())
