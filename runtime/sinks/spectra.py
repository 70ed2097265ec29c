"""The spectra of a few samples in the newest line, for those who watch."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.sinks.contract import Block, Sink, StreamFacts


class Spectra(Sink):
    """Keeps the last line's spectra at some samples.

    Args:
        facts: of the stream.
        samples: places in a line, from 0; none for three that are spread over it.

    Raises:
        InputError: a sample is not within a line.
    """

    def __init__(self, facts: StreamFacts, samples: Sequence[int] = ()) -> None:
        width = facts.format.samples
        self._samples = np.array(samples or [width // 4, width // 2, width * 3 // 4], np.intp)
        if self._samples.min() < 0 or self._samples.max() >= width:
            raise InputError(
                "not a sample of a line", key="stream.spectra", value=list(samples), remedy=f"0 to {width - 1}"
            )
        self._wavelengths = facts.format.wavelengths
        self._lock = Lock()
        self._line = 0
        self._values = np.zeros((facts.format.bands, len(self._samples)))

    def write(self, block: Block) -> None:
        with self._lock:
            self._line = int(block.sequence[-1])
            self._values[:] = block.values[-1][:, self._samples]

    def close(self) -> None:
        """Nothing is held."""

    def spectra(self) -> dict[str, Any]:
        """`wavelengths` in nm or None, and for each sample its `line` (sequence number) and `values` [bands]."""
        with self._lock:
            return {
                "wavelengths": None if self._wavelengths is None else list(self._wavelengths),
                "spectra": [
                    {"sample": int(sample), "line": self._line, "values": self._values[:, place].tolist()}
                    for place, sample in enumerate(self._samples)
                ],
            }
