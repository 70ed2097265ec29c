"""A camera from its opening to the next trouble: found, configured, begun, streaming into memory of ours."""

import ipaddress
import time
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, MachineError, printable
from runtime.priority import let_go_first
from runtime.sources.camera.aravis import Camera, Device, NotFoundError, devices
from runtime.sources.camera.aravis_library import AravisError
from runtime.sources.camera.aravis_stream import STATUS, SUCCESS, Filled, Stream, image_of
from runtime.sources.camera.order import Image
from runtime.sources.camera.pixel_formats import Unpacker, pixel_format
from runtime.sources.camera.settings import CameraSettings, configure

SEARCH_SECONDS = 6.0
"""How long opening looks for a camera that does not answer."""
BUSY_SECONDS = 10.0
"""How long opening waits for one that another program controls: the heartbeat of a killed one ends after 3 s."""
RETENTION_SECONDS = 0.1
"""How long Aravis waits for packets of an image that were lost and asked for again."""
BUFFER_BYTES = 512 << 20
"""Most memory that the default number of buffers takes."""
SOCKET_BYTES = 32 << 20
RECEIVER = "arv_gv_stream"
"""Name of the thread of Aravis that takes the packets."""


class Session:
    """An open camera with its stream, until the next trouble. It sends nothing before `begin`.

    Attributes:
        begun: whether it was told to send.

    Raises:
        AravisError: it does not answer, or another program controls it.
        InputError: it refuses a setting. MachineError: its images cannot be read.
    """

    def __init__(self, name: str, settings: CameraSettings) -> None:
        self.name = name
        self.camera = Camera(name)
        self.stream: Stream | None = None
        self.alive = True
        self.begun = False
        try:
            if not self.camera.controlled:
                raise AravisError("another program controls it")
            configure(self.camera, settings, name)
            self._prepare(settings)
        except BaseException:
            self.close(stop=False)
            raise

    def _prepare(self, settings: CameraSettings) -> None:
        camera = self.camera
        self.height, self.width = camera.size()
        self.form = pixel_format(*camera.pixel_format())
        self.unpacker = Unpacker(self.form, self.height * self.width)
        self.rate: float | None = None
        with suppress(AravisError):
            self.rate = camera.frame_rate()
        size = max(camera.payload(), self.unpacker.image_bytes)
        self.stream = camera.stream()
        if camera.gige:
            self.stream.retain(RETENTION_SECONDS)
            self.stream.socket_buffer(SOCKET_BYTES)
            if not settings.packet_resend:
                self.stream.no_resend()
        count = settings.buffers or max(8, min(max(64, int(0.5 * (self.rate or 0))), BUFFER_BYTES // size))
        self.memory = np.empty((count, size), np.uint8)
        self.memory.fill(0)
        self._places = {row.ctypes.data: place for place, row in enumerate(self.memory)}
        for address in self._places:
            self.stream.push_memory(address, size)
        self.temperature_feature = next(filter(camera.has, ("DeviceTemperature", "SensorTemperature")), None)
        # Packets that wait too long for their thread are lost.
        let_go_first(RECEIVER)
        self.came = time.monotonic()

    def begin(self) -> None:
        """Have the camera send, when somebody is there to read: its buffers hold half a second. Raises AravisError."""
        self.begun = True
        self.camera.start()
        self.came = time.monotonic()

    @property
    def image(self) -> tuple[int, int, int, int]:
        """Height, width, PFNC value and padding that each image must have."""
        return self.height, self.width, self.form.value, 0

    def judge(self, buffer: Any, filled: Filled) -> Image | str:
        """The image in a popped buffer, or what is wrong with it."""
        if filled.status != SUCCESS:
            return STATUS.get(filled.status, f"status {filled.status}")
        if filled.received < self.unpacker.image_bytes:
            return f"{filled.received} bytes of {self.unpacker.image_bytes}"
        if image_of(buffer) != self.image:
            return "another size or format"
        return Image(buffer, self._places[filled.data], filled.utc_ns)

    def values(self, place: int) -> NDArray[Any]:
        """Image [rows, columns], of RGB [rows, columns, 3], of a buffer whose pixels have bytes of their own."""
        data = self.memory[place, : self.unpacker.image_bytes]
        values = data.view("<u2" if self.form.stored == 16 else "u1")
        return values.reshape(self.height, self.width, *[3] * (self.form.values == 3))

    def close(self, *, stop: bool) -> None:
        """Give all back. Each step takes seconds where the camera does not answer; `stop` is one of them."""
        if stop and self.begun and not self.camera.lost.is_set():
            with suppress(AravisError):
                self.camera.stop()
        if self.stream is not None:
            self.stream.close()
        self.camera.close()


class NotThereError(AravisError):
    """The camera is not among those that answer; the message lists them."""


def opened_first(address: str, settings: CameraSettings) -> Session:
    """Open a camera as `opened` does, trying for a while.

    Raises:
        InputError: several cameras answer, or the camera refuses a setting.
        MachineError: it is not there, or cannot be had.
    """
    begun = time.monotonic()
    sought = printable(f"camera {address}") if address else "camera"
    while True:
        try:
            return opened(address, settings)
        except AravisError as error:
            if isinstance(error, NotThereError):
                patience, problem = SEARCH_SECONDS, f"no {sought} answers; there are: {error}"
                remedy = "check power, cable, and that its address is in this computer's network"
            else:
                patience, problem = BUSY_SECONDS, f"the {sought} cannot be opened: {error}"
                remedy = "close other programs that use the camera; check power, cable and its address"
            if time.monotonic() - begun > patience:
                raise MachineError(problem, key="--source", value=f"genicam:{address}", remedy=remedy) from error
        time.sleep(0.3)


def opened(address: str, settings: CameraSettings) -> Session:
    """Open a camera by its IP address, MAC, serial number or Aravis id, the only one if empty; one try.

    Raises:
        NotThereError: it is not there. Also what `Session` raises.
        InputError: several cameras answer, or the camera refuses a setting.
    """
    # An address needs no search, which takes a second and ends at the next router.
    try:
        ipaddress.ip_address(address)
    except ValueError:
        pass
    else:
        with suppress(NotFoundError):
            return Session(address, settings)
    there = devices()
    name = _named(address, there)
    if name is None:
        raise NotThereError("; ".join(printable(str(device)) for device in there) or "none")
    return Session(name, settings)


def _named(address: str, there: tuple[Device, ...]) -> str | None:
    """Id of the camera that is meant, or None where it is not among them."""
    found = {device.id: device for device in there if not address or device.answers_to(address)}
    if len(found) > 1:
        raise InputError(
            "several cameras answer: " + "; ".join(printable(str(device)) for device in found.values()),
            key="--source",
            value=f"genicam:{address}",
            remedy="name one by its address, MAC, serial number or id",
        )
    return next(iter(found), None)
