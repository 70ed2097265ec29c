"""Where the weights of a loaded graph lie in the memory of this process, however its engine arranged them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 4 << 20
RUN, ALIKE = 16, 12
"""Numbers that lie side by side, and how many of them must be known."""
LOW = (1 << 24) - 1
"""Of a number's bits: nearly all of its mantissa, which tells weights apart best."""

KNOWN = """
import sys
import numpy as np
import onnx
tensors = onnx.load(sys.argv[1]).graph.initializer
weights = [onnx.numpy_helper.to_array(t).ravel() for t in tensors if t.data_type == onnx.TensorProto.FLOAT]
words = np.concatenate([w for w in weights if w.size >= 8]).view(np.uint32)
known = np.zeros(1 << 24, bool)
known[words[(words != 0) & (words != 0x3F800000)] & 0xFFFFFF] = True
np.save(sys.argv[2], np.packbits(known))
"""


class Memory:
    """The memory of this process, and the weights of a graph in it.

    Args:
        graph: an ONNX file.
        folder: for what another process says of it, so that no copy of the weights is made in this one.
    """

    def __init__(self, graph: Path, folder: Path) -> None:
        said = folder / "known.npy"
        subprocess.run([sys.executable, "-c", KNOWN, graph, said], check=True)
        self._known = np.unpackbits(np.load(said)).astype(bool)
        self._memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        self._piece = np.zeros(PIECE // 4, np.uint32)

    def places(self) -> NDArray[Any]:
        """Addresses of 64 bytes each that hold weights."""
        own = self._piece.ctypes.data
        found = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            match = re.match(r"(\w+)-(\w+) rw-p \S+ \S+ \d+ *(.*)", line)
            if match is None or match[3] not in ("", "[heap]"):
                continue
            low, high = int(match[1], 16), int(match[2], 16)
            for start in range(low, high, PIECE):
                # As far as it can be read: memory comes and goes.
                try:
                    size = os.preadv(self._memory, [memoryview(self._piece).cast("B")[: high - start]], start)
                except OSError:
                    continue
                words = self._piece[: size // 64 * RUN]
                hits = self._known[words & LOW].reshape(-1, RUN).sum(axis=1) >= ALIKE
                spots = start + 64 * np.flatnonzero(hits)
                found.append(spots[(spots + 64 <= own) | (spots >= own + PIECE)])
        return np.concatenate(found)

    def word(self, address: int) -> int:
        """What lies there now."""
        return int.from_bytes(os.pread(self._memory, 4, address), "little")

    def is_weight(self, address: int) -> bool:
        """Whether one that is known lies there."""
        return bool(self._known[self.word(address) & LOW])

    def write(self, address: int, word: int) -> None:
        os.pwrite(self._memory, word.to_bytes(4, "little"), address)

    def close(self) -> None:
        os.close(self._memory)
