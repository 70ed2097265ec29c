"""What every source of lines promises, be it a file or a camera."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from runtime.arrays import Float32
from runtime.closing import Closing
from runtime.errors import CubeFileError
from runtime.lines import Event, Line, LineFormat
from runtime.stated import NOTHING, Stated


@dataclass(frozen=True)
class SourceOptions:
    """What a configuration says of a source; each source takes what concerns it.

    Attributes:
        wavelengths: centres of the bands in nm; beats what the source says.
        scale: digital number that stands for 1.0; beats what the source says.
        saturation: digital number at which the detector is at its limit; beats what the source says.
        rate: lines per second that a file or the simulator issues; None for as fast as they are taken.
        idle_seconds: a growing file or a watched folder has ended when nothing came for so long; None for 10 seconds
            of a file, and for never of a folder.
        camera: settings of a camera, see `runtime.sources.camera.settings.CameraSettings`.
        simulator: settings of the simulator, see `runtime.sources.sim.SimSettings`.
        instrument: {name: array} of the instrument that is expected, such as its mask, for the simulator.
        frame: lines of the frames of an area detector that are expected, of one band; None of others.
        samples: that lines have, where the network takes one width only; a folder leaves out files of others.
    """

    wavelengths: tuple[float, ...] | None = None
    scale: float | None = None
    saturation: float | None = None
    rate: float | None = None
    idle_seconds: float | None = None
    camera: Mapping[str, Any] = field(default_factory=dict)
    simulator: Mapping[str, Any] = field(default_factory=dict)
    instrument: Mapping[str, Float32] = field(default_factory=dict)
    frame: int | None = None
    samples: int | None = None


class Source(Closing):
    """An open source of lines. `read` is called from one thread, `close` perhaps twice.

    Attributes:
        live: lines come whether they are taken or not; a file waits.
        format: what its lines look like; known as soon as it is open, and never changing.
        stated: what it says of its numbers beside the format.
        several: it goes on with other files than that which `sample` shows.
    """

    live: bool
    several: bool = False
    format: LineFormat
    stated: Stated = NOTHING

    @abstractmethod
    def read(self, line: Line, timeout: float) -> Event:
        """Wait for what comes next, in the order in which it was taken.

        A source that loses its camera or file gets it back by itself: it answers `Broken` once, `Quiet` while it tries.

        Args:
            line: C-contiguous [bands, samples] of the format's type; filled where the answer is `Taken`, and only then
                of any meaning.
            timeout: seconds after which the answer is `Quiet`, at most about twice that.

        Raises:
            CubeFileError: a file cannot be read any more.
            MachineError: a camera does something that reopening cannot mend.
        """

    def sample(self) -> NDArray[Any] | None:
        """Some of the lines that are there already [bands, lines, samples], none of them taken; None without any."""
        return None

    def telemetry(self) -> Mapping[str, float]:
        """Figures of its own: `temperature_c`, `underruns`, `reconnects`. Called from any thread, must not block."""
        return {}

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Kind, model, address or path, for people and logs."""


def refuse_other_frames(lines: int, frame: int | None, path: object, *, alone: bool = False) -> None:
    """Raise CubeFileError where lines are not whole frames of an area detector, or no frame `alone`."""
    if frame is not None and (lines != frame if alone else lines % frame):
        raise CubeFileError(
            f"does not hold {'one frame' if alone else 'whole frames'} of {frame} lines", file=path, key="lines",
            value=lines, remedy="give what a camera behind the bundle's mask recorded",
        )  # fmt: skip
