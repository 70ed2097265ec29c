"""The stage that prepares frames, one ahead of the one that the engine restores."""

from collections.abc import Callable
from dataclasses import dataclass

from runtime.errors import CubeError
from runtime.priority import yield_to_others

from .frames import Frame
from .health import Stage
from .intake import PATIENCE
from .preparing import AbandonedError, Prepared, Preparer, Space
from .queues import Queue

PREPARING_LIMIT_S = 300.0
"""One frame may take so long before the stage counts as hung."""


@dataclass(frozen=True, eq=False)
class Ready:
    """A frame that waits for the engine.

    Attributes:
        frame, space: its lines, and memory that goes back when the frame has been worked off.
        made: of it; None where nothing was, since nothing is restored any more, or for the error.
        error: why it cannot be restored.
    """

    frame: Frame
    space: Space
    made: Prepared | None = None
    error: Exception | None = None


class Preparation:
    """Takes frames, and prepares them as far as there is memory for; the order stays.

    Args:
        frames: whole frames.
        preparer: what prepares them.
        spaces: memory for the frames that are on their way from here to the end of the next stage.
        stage: its heartbeat.
        idle: whether nothing is restored any more.

    Attributes:
        ready: what the next stage takes; `free` is where it puts the memory back.
    """

    def __init__(
        self, frames: Queue[Frame], preparer: Preparer, spaces: list[Space], stage: Stage, idle: Callable[[], bool]
    ) -> None:
        self._frames, self._preparer, self._stage, self._idle = frames, preparer, stage, idle
        self.ready: Queue[Ready] = Queue("ready", len(spaces), "block")
        self.free: Queue[Space] = Queue("free", len(spaces), "block")
        for space in spaces:
            self.free.put(space)

    def run(self) -> None:
        """Work until the last frame has come through, or the next stage takes no more."""
        yield_to_others()
        space: Space | None = None
        try:
            while not (self._frames.done or self.free.closed):
                self._stage.beat()
                # First the memory: a frame that waits for it in here could not be dropped for a newer one.
                space = space or self.free.get(PATIENCE)
                frame = None if space is None else self._frames.get(PATIENCE)
                if frame is not None and space is not None:
                    self.ready.put(self._prepared(frame, space))
                    space = None
        finally:
            # Whoever still puts something in is let go.
            self._frames.close()
            self.ready.close()

    def _prepared(self, frame: Frame, space: Space) -> Ready:
        if self._idle():
            return Ready(frame, space)
        with self._stage.busy(PREPARING_LIMIT_S):
            try:
                return Ready(frame, space, self._preparer.prepare(frame, space, self._stage.beat, self._idle))
            except AbandonedError:
                return Ready(frame, space)
            except CubeError as error:
                if not self._preparer.passes_through:
                    return Ready(frame, space, error=error)
                made = self._preparer.pass_through(frame, space, self._stage.beat)
                return Ready(frame, space, made, error)
            # Told where the engine's are, in the frame's turn.
            except Exception as error:
                return Ready(frame, space, error=error)
