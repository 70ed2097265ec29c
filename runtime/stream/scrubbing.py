"""A look at the files of a bundle while it flies: a flipped bit on disk is known before the bundle is needed again."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.closing import Closing
from runtime.descriptors import is_shortage
from runtime.manifest import FileRecord

PIECE, PIECE_S = 4 << 20, 1.0
"""So much is read at a time, and then nothing for so long."""


class Scrubber(Closing):
    """A thread that reads a bundle's files round by round and compares their hashes.

    Args:
        folder: of the bundle.
        files: {inner path: what it is}.
        found: called once for a file that changed, or cannot be read, from this thread.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileRecord], found: Callable[[Path, str], None]) -> None:
        self._folder, self._files, self._found = folder, files, found
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._rounds, name="scrub", daemon=True)
        self._thread.start()

    def _rounds(self) -> None:
        told = set[str]()
        while self._files and not self._stop.is_set():
            for name, record in self._files.items():
                if (problem := self._problem(name, record)) and name not in told:
                    told.add(name)
                    self._found(self._folder / name, problem)

    def _problem(self, name: str, record: FileRecord) -> str:
        digest = hashlib.sha256()
        try:
            with (self._folder / name).open("rb", buffering=0) as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
                    if self._stop.wait(PIECE_S):
                        return ""
        except OSError as error:
            self._stop.wait(PIECE_S)
            return "" if is_shortage(error) else f"cannot be read: {error.strerror or error}"
        return "" if digest.hexdigest() == record.sha256 else "changed on disk since the bundle was opened"

    def close(self) -> None:
        """Stop looking; may be called twice."""
        self._stop.set()
        self._thread.join(PIECE_S)
