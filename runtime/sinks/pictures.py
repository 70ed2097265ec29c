"""Pictures of a network of red, green and blue: each a PNG in a folder, numbered on from those that lie there.

A picture is whole when every line from its BREAK to its END came, followed on the one before and was restored. Of any
other each run of lines that did come becomes a file whose name says so: what is behind a gap may be of another picture.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, MachineError
from runtime.files.pictures import write_picture
from runtime.lines import Flag

from .contract import Block, Sink, SinkOptions, StreamFacts

INCOMPLETE = "-incomplete"
MOST_BYTES = 1 << 28
"""Of a picture: its lines are kept until it ends, and twice while it is written. A longer one is cut."""
BREAK, END, RESTORED = int(Flag.BREAK), int(Flag.END), int(Flag.RESTORED)


class Pictures(Sink):
    """Collects the lines of one picture at a time. Raises InputError: no folder, or lines that make no pictures."""

    policy = "block"

    def __init__(self, folder: Path, facts: StreamFacts) -> None:
        self._format = known = facts.format
        if known.bands != 3 or known.dtype not in (np.uint8, np.uint16):
            raise InputError(
                "pictures are made of 3 bands of 8 or 16 bits", key="--sink pictures",
                value=f"{known.bands} of {known.dtype.name}", remedy="use --restored, or --quicklook for the eye",
            )  # fmt: skip
        if not folder.is_dir():
            raise InputError("there is no such folder", file=folder, remedy="make it, or name another one")
        names = [path.stem.removesuffix(INCOMPLETE) for path in folder.glob("*.png")]
        self._number = max((int(name) for name in names if name.isdecimal()), default=0)
        self._folder, self._most = folder, max(1, MOST_BYTES // known.line_bytes)
        self._lines: list[NDArray[Any]] = []
        self._whole = self._closed = False
        self._next = 0

    def write(self, block: Block) -> None:
        """Take the lines; write each picture that ends. Raises InputError; MachineError: it is closed."""
        if self._closed:
            raise MachineError("the sink is closed", key="pictures", value=self._folder, remedy="open it again")
        for line, sequence, flags in zip(block.values, block.sequence.tolist(), block.flags.tolist(), strict=True):
            if flags & BREAK or sequence != self._next or len(self._lines) == self._most:
                self._finish(whole=False)
            self._whole = bool(flags & RESTORED and (self._whole if self._lines else flags & BREAK))
            self._lines.append(self._shown(line))
            self._next = sequence + 1
            if flags & END:
                self._finish(whole=self._whole)

    def close(self) -> None:
        """Write what there is of a picture that did not end."""
        if not self._closed:
            self._closed = True
            self._finish(whole=False)

    def _finish(self, *, whole: bool) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._number += 1
            # Another stream may write here too.
            while any((self._folder / f"{self._number:06}{end}.png").exists() for end in ("", INCOMPLETE)):
                self._number += 1
            path = self._folder / f"{self._number:06}{'' if whole else INCOMPLETE}.png"
            write_picture(path, np.stack(lines, axis=1), None, ())

    def _shown(self, line: NDArray[Any]) -> NDArray[Any]:
        """A copy in which 65535 stands for 1.0, as 16 bits are shown: 12 bits would be dark."""
        scale = self._format.scale
        if line.dtype == np.uint8 or scale is None or scale == 65535:
            return np.array(line)
        shown: NDArray[Any] = np.minimum(np.rint(line * (65535 / scale)), 65535).astype(np.uint16)
        return shown


def open_sink(target: str, facts: StreamFacts, options: SinkOptions) -> Pictures:
    """Pictures in the folder `target`. Raises InputError."""
    return Pictures(Path(target), facts)
