"""The watch over an engine in flight: does it still give what it gave on the ground, and in its first answers here?

As in NASA's checksum component for flight software, finding is kept apart from acting: `SelfTest` finds, the stage that
restores acts. It is used by that stage's thread alone; its figures are for everybody.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.bundle import Bundle
from runtime.closing import Closing
from runtime.errors import BundleError, DeployError, GateError, MachineError
from runtime.manifest import Manifest

SHARE = 0.02
"""Of the time, at most, that tests take."""
IDLE_SHARE = 0.1
"""Where nothing waits to be restored, a test comes after so much of the time between two."""
START_S = 0.5
"""The start waits for golden frames no longer; the first has come out then, and those that are left follow at once."""
AGAIN = "where lines are still to come the engine is opened anew"


@dataclass(frozen=True)
class TestFigures:
    """What is known of an engine.

    Attributes:
        tests, failed: tests since the start, and those that found something.
        repairs: engines that took the place of one that was wrong.
        age_s: since the last test that found nothing; None before the first.
    """

    tests: int = 0
    failed: int = 0
    repairs: int = 0
    age_s: float | None = None


class SelfTest(Closing):
    """Tests the engine of a bundle on its golden frames, one after the other, and opens it anew.

    Args:
        bundle: open; whoever opened it closes it.
        again: opens it anew, every byte verified, or another one in its place.
        seconds: between two tests; 0 for none.
        refresh_seconds: after so long the engine is opened anew though nothing was found; 0 for never.

    Attributes:
        reached: number of the line behind the last one that is settled; kept by whoever restores.
    """

    def __init__(
        self, bundle: Bundle, again: Callable[[], Bundle], seconds: float = 60.0, refresh_seconds: float = 0.0
    ) -> None:
        self._bundle, self._opened, self._again = bundle, bundle, again
        self._seconds, self._refresh_seconds = seconds, refresh_seconds
        self._exact = True
        self.reached = 0
        self._tests = self._failed = self._repairs = 0
        self._last_good: float | None = None
        self._begin()

    def _begin(self) -> None:
        """With an engine that was just proved, on the first golden frames at least."""
        now = time.monotonic()
        self._first = {place: answer.checksum for place, answer in enumerate(self._bundle.answers)}
        self._good_at = [self.reached] * len(self._bundle.manifest.proofs)
        self._place, self._alarmed = len(self._first) % len(self._good_at), False
        self._tested = self._refreshed = now
        self._not_before = self._alarm_after = now

    def begin_at(self, first: int) -> None:
        """Lines before this one are of an earlier stream."""
        self.reached = first
        self._good_at = [first] * len(self._good_at)

    @property
    def oldest(self) -> int:
        """Number of the line up to which every proof was good."""
        return min(self._good_at)

    @property
    def in_flight(self) -> bool:
        """Whether there are tests at all but those after an alarm."""
        return self._seconds > 0

    @property
    def figures(self) -> TestFigures:
        last = self._last_good
        age = None if last is None else round(time.monotonic() - last, 3)
        return TestFigures(self._tests, self._failed, self._repairs, age)

    def alarm(self) -> None:
        """Something looks wrong: test all there is now, or where alarms come often when they may take time again."""
        self._alarmed = True

    def due(self, *, idle: bool) -> bool:
        """Whether a test is to be run now."""
        now, unproved = time.monotonic(), len(self._first) < len(self._good_at)
        alarm = self._alarmed and now >= self._alarm_after
        if alarm or not self.in_flight:
            return alarm
        wait = 0.0 if unproved else self._seconds * (IDLE_SHARE if idle else 1.0)
        return (unproved and idle) or (now >= self._not_before and now - self._tested >= wait)

    def refresh_due(self) -> bool:
        """Whether the engine is to be opened anew, though nothing was found."""
        return 0 < self._refresh_seconds <= time.monotonic() - self._refreshed

    def test(self) -> DeployError | None:
        """Run the next proof, after an alarm all of them; what was found, if anything.

        `since` then tells from which line on what was restored may be wrong.
        """
        proofs = len(self._good_at)
        began, found = time.monotonic(), None
        alarmed = self._alarmed
        for _ in range(proofs if alarmed else 1):
            self._tests += 1
            found = self._found(self._place)
            if found is not None:
                self._failed += 1
                break
            self._good_at[self._place] = self.reached
            self._place = (self._place + 1) % proofs
        self._alarmed = False
        self._tested = time.monotonic()
        self._last_good = self._last_good if found else self._tested
        self._not_before = self._tested + (self._tested - began) / SHARE
        self._alarm_after = self._not_before if alarmed else self._alarm_after
        return found

    @property
    def since(self) -> int:
        """Number of the first line that was restored since the proof that fails was last good."""
        return self._good_at[self._place]

    @property
    def ever_good(self) -> bool:
        """Whether the proof that fails ever did not, with this engine."""
        return self._place in self._first

    def _found(self, place: int) -> DeployError | None:
        try:
            made = self._bundle.prove(place).checksum
            if made == self._first.setdefault(place, made) or not self._exact:
                return None
            # An engine that never gives the same bits twice is held to its tolerance alone.
            self._exact = self._bundle.prove(place).checksum == made
        except DeployError as error:
            error.remedy = AGAIN
            return error
        # Whatever a library raises, the engine is not to be trusted.
        except Exception as error:
            return MachineError(f"the engine failed: {type(error).__name__}: {error}", key="engine")
        if not self._exact:
            return None
        return GateError("the engine does not give the bits that it gave at its start", key="golden", remedy=AGAIN)

    def renew(self, *, repair: bool) -> Bundle:
        """Another engine, proved on every golden frame; the one before is closed.

        Args:
            repair: the one before is wrong, and is closed first: there may be no memory for two.

        Raises:
            DeployError: there is none that does what it should. After a refresh the one before goes on.
        """
        self._refreshed = time.monotonic()
        if repair:
            self._bundle.close()
        fresh = self._again()
        try:
            check_same(self._bundle.manifest, fresh.manifest, fresh.path)
            fresh.self_test()
        except BaseException:
            fresh.close()
            raise
        if not repair:
            self._bundle.close()
        # What a fresh engine answers otherwise, too, no flipped bit has done.
        known, self._bundle = self._first, fresh
        self._begin()
        self._exact = self._exact and all(self._first.get(place, answer) == answer for place, answer in known.items())
        self._repairs += repair
        return fresh

    def close(self) -> None:
        """Close what was opened here; may be called twice."""
        if self._bundle is not self._opened:
            self._bundle.close()


def check_same(before: Manifest, after: Manifest, path: Path) -> None:
    """Refuse in flight what would restore other lines than those before it."""
    for key in ("signature", "scale", "overlap", "wavelengths", "network"):
        if getattr(before, key) != getattr(after, key):
            raise BundleError(
                "another bundle lies there now than the one that flies",
                file=path,
                key=key,
                remedy="start the stream anew",
            )
