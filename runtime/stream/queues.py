"""Bounded queues between stages, each with a policy that has a name."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Policy = Literal["block", "drop-oldest"]
WAKE_S = 0.25


class Queue(Generic[T]):
    """A queue of at most `capacity` items between one thread that puts and one that gets.

    Attributes:
        policy: what `put` does when it is full: `block` waits until there is room, `drop-oldest` takes out what waited
            longest and gives it to `dropped`, which must be quick.
        drops: items that were taken out.
    """

    def __init__(
        self, name: str, capacity: int, policy: Policy, dropped: Callable[[T], None] = lambda item: None
    ) -> None:
        self.name, self.capacity, self.policy = name, capacity, policy
        self.drops = 0
        self._dropped = dropped
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._out = 0
        self._enough = 1
        """Items from which on who gets is woken."""

    def put(
        self, item: T, waiting: Callable[[], None] = lambda: None, given_up: Callable[[], bool] = lambda: False
    ) -> bool:
        """Add an item; False where it was not taken.

        Args:
            waiting: called now and then while there is no room.
            given_up: asked then; the item is not taken once it says so.
        """
        with self._changed:
            while self.policy == "block" and len(self._items) + self._out >= self.capacity and not self._closed:
                waiting()
                if given_up():
                    return False
                self._changed.wait(WAKE_S)
            if self._closed:
                return False
            while len(self._items) >= self.capacity:
                # Told before anybody can get a later item, so that the one who gets knows of all that came before.
                self._dropped(self._items.popleft())
                self.drops += 1
            self._items.append(item)
            if len(self._items) >= self._enough:
                self._changed.notify_all()
        return True

    def get(self, timeout: float) -> T | None:
        """The oldest item; None where none comes within `timeout` seconds, or the queue is closed and empty."""
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(timeout)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def several(self, timeout: float, most: int, linger: float = 0.0) -> list[T]:
        """The oldest items, as `get`; until the next call they take room as if they were still in the queue.

        Args:
            linger: seconds that more are waited for, up to `most` or half of the capacity: one wake-up for all of them.
        """
        with self._changed:
            if self._out:
                self._out = 0
                self._changed.notify_all()
            if not self._items and not self._closed:
                self._changed.wait(timeout)
            if linger and self._items:
                ends, self._enough = time.monotonic() + linger, min(most, max(1, self.capacity // 2))
                while (left := ends - time.monotonic()) > 0 and len(self._items) < self._enough and not self._closed:
                    self._changed.wait(left)
                self._enough = 1
            found = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._out = len(found)
        return found

    def close(self) -> None:
        """Take no more; what is in it can still be got, and who waits to put is let go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def done(self) -> bool:
        """Closed and empty."""
        with self._changed:
            return self._closed and not self._items

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def level(self) -> int:
        return len(self._items)
