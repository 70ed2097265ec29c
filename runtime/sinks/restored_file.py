"""Restored lines as a crash-safe ENVI cube with its index, the same files as the record's."""

import time

from runtime.record.writer import LineWriter
from runtime.sinks.contract import Block, Sink

CHECKPOINT_SECONDS = 1.0


class RestoredFile(Sink):
    """Appends blocks to an open line writer and makes a checkpoint every second."""

    def __init__(self, writer: LineWriter) -> None:
        self.writer = writer
        self._due = time.monotonic() + CHECKPOINT_SECONDS

    def write(self, block: Block) -> None:
        """Append the lines. Raises MachineError: the disk does not take them."""
        self.writer.append_block(block.values, block.sequence, block.frame_id, block.utc_ns, block.flags)

    def tick(self) -> None:
        """Make the lines safe once a second. Raises MachineError: the disk does not take them."""
        if time.monotonic() >= self._due:
            self.writer.checkpoint()
            self._due = time.monotonic() + CHECKPOINT_SECONDS

    def close(self) -> None:
        """Save what there is. Raises MachineError: the disk does not take it."""
        self.writer.close()
