"""What every sink of restored lines promises."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.lines import LineFormat


@dataclass(eq=False)
class Block:
    """Restored lines, in order; the arrays belong to the stream and are used again when `write` has returned.

    Attributes:
        values: [lines, bands, samples] (bil), of the format's type.
        sequence: uint64 [lines], the stream's numbers; they have gaps where lines were dropped.
        frame_id: uint64 [lines], the source's numbers.
        utc_ns: uint64 [lines], when they were taken, nanoseconds since 1970 UTC.
        flags: uint32 [lines], see `runtime.lines.Flag`; RESTORED, PASSED or INTERPOLATED is set on each.
        frame: number of the frame that they are from.
        metrics: prompt metrics by name, of the frame (means over its band groups).
        experts: share of layers, tiles and band groups in which each expert was chosen, float [experts].
        latency_s: from the taking of the frame's last line to its restoration.
    """

    values: NDArray[Any]
    sequence: NDArray[np.uint64]
    frame_id: NDArray[np.uint64]
    utc_ns: NDArray[np.uint64]
    flags: NDArray[np.uint32]
    frame: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    experts: tuple[float, ...] = ()
    latency_s: float = 0.0


@dataclass(frozen=True)
class StreamFacts:
    """What a sink may want to know of the stream that it serves.

    Attributes:
        format: of the restored lines.
        description: one line for headers: network, precision, source.
    """

    format: LineFormat
    description: str = ""


@dataclass(frozen=True)
class SinkOptions:
    """What a configuration says of sinks; each takes what concerns it.

    Attributes:
        quicklook_nm: wavelengths for red, green and blue of a picture.
    """

    quicklook_nm: tuple[float, ...] = (640, 550, 460)


class Sink(Closing):
    """An open sink. A context manager; `write` is called from one thread, which is the sink's own.

    Attributes:
        address: where others find what it gives, for people; empty where that goes without saying.
        resumed: what was found of an earlier run's unclean end and done about it; empty after a clean one.
        policy: what happens when it cannot keep up: it misses blocks, or restoration waits, as for the restored cube.
        stays_open: it is closed after a last `tell`, with the final counts, instead of behind its last line.
    """

    address: str = ""
    resumed: str = ""
    policy: Literal["drop-oldest", "block"] = "drop-oldest"
    stays_open: bool = False

    @abstractmethod
    def write(self, block: Block) -> None:
        """Take the lines; what is kept is copied.

        Raises:
            DeployError: they could not be taken, and later ones will not be either; the stream goes on without it.
        """

    def tick(self) -> None:
        """Called after every `write`, and now and then while nothing comes; raises as it does."""

    def tell(self, snapshot: Mapping[str, Any]) -> None:
        """Called about once a second with the counts, as the log has them, from a thread that is not `write`'s.

        Raises:
            DeployError: they could not be told, which is no event.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish what was begun, within a second; may be called twice."""
