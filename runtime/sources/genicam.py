"""GenICam cameras, GigE Vision and USB3 Vision, through Aravis: one image of the slit is one line.

Two threads share the work. The one that calls `read` only takes buffers; a keeper of the source's own does what may
take seconds on a camera that has died: closing, opening again, asking for the temperature.
"""

from __future__ import annotations

import atexit
import ipaddress
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import ValidationError as _Invalid

from runtime.errors import InputError, MachineError, printable
from runtime.lines import NO_FLAGS, Broken, Ended, Event, Flag, Line, LineFormat, Missing, Quiet, Taken
from runtime.sources import aravis
from runtime.sources.aravis import AravisError
from runtime.sources.contract import Source, SourceOptions
from runtime.sources.geometry import Axis, Geometry, Kind
from runtime.sources.pacing import check_buffer
from runtime.sources.pixel_formats import BY_NAME, Unpacker, pixel_format

SEARCH_SECONDS = 6.0
"""How long opening looks for a camera that does not answer."""
BUSY_SECONDS = 10.0
"""How long opening waits for one that another program controls: the heartbeat of a killed one ends after 3 s."""
RETENTION_SECONDS = 0.1
"""How long Aravis waits for packets of an image that were lost and asked for again."""
LATE_SECONDS = 0.15
"""How long whole lines wait for one before them that has not come."""
KEEPER_SECONDS = 3.0
FIGURES_SECONDS = 0.5
BUFFER_BYTES = 512 << 20
"""Most memory that the default number of buffers takes."""
LOOPBACK_PACKET = 9000
SOCKET_BYTES = 32 << 20
NARROW = 65535
"""Frame ids of GigE Vision 1.x count from 1 to it, and again from 1."""


def _pattern(value: object) -> object:
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d{1,3})\s*[xX×]\s*(\d{1,3})\s*", value)):
        return int(found[1]), int(found[2])
    return value


class CameraSettings(BaseModel):
    """What `camera` of a configuration may say.

    Attributes:
        geometry, spectral_axis, flip_bands, flip_samples, pattern, band_order: see `runtime.sources.geometry`;
            `pattern` is rows x columns, as 4x4 or [4, 4].
        pixel_format: name in the PFNC; None leaves the camera's own.
        frame_rate: images per second. exposure_us: in microseconds. None leaves the camera's own.
        features: any others by their GenICam names; set in this order, before the others and again after them.
        packet_size: bytes of a GigE Vision packet; None lets Aravis find the largest that comes through.
        buffers: images that Aravis may fill ahead; None for half a second's worth, at least 64, at most 512 MiB.
        packet_resend: ask again for packets that were lost (GigE Vision).
        stall_seconds: without a line for so long, the camera is opened again; None waits for ever (external trigger).
        reopen_seconds: between tries to open it again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: Kind = "line-scan"
    spectral_axis: Axis = "rows"
    flip_bands: StrictBool = False
    flip_samples: StrictBool = False
    pattern: Annotated[tuple[StrictInt, StrictInt] | None, BeforeValidator(_pattern)] = None
    band_order: tuple[StrictInt, ...] | None = None
    pixel_format: StrictStr | None = None
    frame_rate: Annotated[float, Field(gt=0, le=1e6, strict=True)] | None = None
    exposure_us: Annotated[float, Field(gt=0, le=1e9, strict=True)] | None = None
    features: dict[StrictStr, StrictBool | StrictInt | StrictFloat | StrictStr] = Field(default_factory=dict)
    packet_size: Annotated[int, Field(ge=576, le=65500, strict=True)] | None = None
    buffers: Annotated[int, Field(ge=8, le=8192, strict=True)] | None = None
    packet_resend: StrictBool = True
    stall_seconds: Annotated[float, Field(gt=0, le=1e6, strict=True)] | None = 5.0
    reopen_seconds: Annotated[float, Field(gt=0, le=3600, strict=True)] = 1.0

    @classmethod
    def of(cls, camera: Mapping[str, Any]) -> CameraSettings:
        """The settings that a configuration gives.

        Raises:
            InputError: an unknown key or an unfit value.
        """
        try:
            settings = cls.model_validate(dict(camera))
        except _Invalid as error:
            first = error.errors(include_url=False)[0]
            unknown = first["type"] == "extra_forbidden"
            raise InputError(
                "there is no such key" if unknown else first["msg"].removeprefix("Value error, "),
                key=".".join(
                    ("camera", *(str(part) for part in first["loc"][: 2 if first["loc"][0] == "features" else 1]))
                ),
                value=None if unknown else first["input"],
                remedy="use " + ", ".join(cls.model_fields) if unknown else "",
            ) from error
        if settings.pixel_format is not None and settings.pixel_format not in BY_NAME:
            raise InputError(
                "not a pixel format that is read here",
                key="camera.pixel_format",
                value=settings.pixel_format,
                remedy="use " + ", ".join(BY_NAME),
            )
        settings.laid_out()
        return settings

    def laid_out(self) -> Geometry:
        return Geometry(
            self.geometry, self.spectral_axis, self.flip_bands, self.flip_samples, self.pattern, self.band_order
        )


class FrameIds:
    """Unrolls frame ids to 64 bits by the signed difference to the highest one so far.

    It takes a jump of up to 32767 for what it is. Ids beyond 65535 show that the camera counts in 64 bits. GigE Vision
    leaves out 0; a camera that uses it counts modulo 65536.

    Args:
        start: what the first id becomes; None leaves it as it is.
        wide: the ids have 64 bits from the first (USB3 Vision).
    """

    def __init__(self, start: int | None = None, *, wide: bool = False) -> None:
        self._start = start
        self._modulus = None if wide else NARROW
        self._highest: tuple[int, int] | None = None

    def unroll(self, raw: int) -> int:
        if self._modulus is not None and (raw > NARROW or raw == 0):
            self._modulus = None if raw else NARROW + 1
        if self._highest is None:
            self._highest = raw, raw if self._start is None else self._start
        highest_raw, highest = self._highest
        step = raw - highest_raw
        if self._modulus is not None:
            half = self._modulus // 2
            step = (step + half) % self._modulus - half
        if step > 0:
            self._highest = raw, highest + step
        return highest + step


@dataclass(frozen=True)
class Image:
    """A whole image in a buffer that was popped."""

    buffer: Any
    place: int
    utc_ns: int


@dataclass(frozen=True)
class Skipped:
    """Ids `first` to `first + count - 1` never came."""

    first: int
    count: int


class Order:
    """Puts images in the order of their ids; whole ones wait a while for those before them.

    Args:
        wait: seconds that one waits at most.
        depth: images that wait at most.
    """

    def __init__(self, wait: float, depth: int) -> None:
        self._wait, self._depth = wait, depth
        self.next_id: int | None = None
        self._held: dict[int, tuple[Image | str, float]] = {}

    def put(self, frame_id: int, image: Image | str, now: float) -> bool:
        """Take an image, or in its place what is wrong with it.

        Returns:
            False where its turn is over, or it is already here.
        """
        if self.next_id is None:
            self.next_id = frame_id
        if frame_id < self.next_id or frame_id in self._held:
            return False
        self._held[frame_id] = (image, now)
        return True

    def due(self) -> float | None:
        """When the image that waits longest has waited enough; None where none waits."""
        return next(iter(self._held.values()))[1] + self._wait if self._held else None

    def take(self, now: float, *, flush: bool = False) -> tuple[int, Image | str] | Skipped | None:
        """What comes next, if it is time for it; `flush` waits no longer."""
        if self.next_id is None or not self._held:
            return None
        if self.next_id in self._held:
            image, _ = self._held.pop(self.next_id)
            self.next_id += 1
            return self.next_id - 1, image
        due = self.due()
        if flush or len(self._held) >= self._depth or (due is not None and now >= due):
            skipped = Skipped(self.next_id, min(self._held) - self.next_id)
            self.next_id += skipped.count
            return skipped
        return None


@contextmanager
def _setting(key: str, value: object, remedy: str = "") -> Iterator[None]:
    """What the camera refuses becomes an InputError; that it does not answer stays what it is."""
    try:
        yield
    except AravisError as error:
        if "timeout" in str(error):
            raise
        raise InputError(
            f"the camera refuses it: {error}", key=f"camera.{key}", value=value, remedy=remedy or "correct or drop it"
        ) from error


def _configure(camera: aravis.Camera, settings: CameraSettings, name: str) -> None:
    # A killed program may have left it running, and it takes no settings then.
    with suppress(AravisError):
        camera.stop()
    _set_features(camera, settings)
    if settings.pixel_format is not None:
        offered = "the camera offers " + ", ".join(camera.pixel_formats())
        with _setting("pixel_format", settings.pixel_format, offered):
            camera.set_pixel_format(settings.pixel_format)
    # The exposure before the rate that it limits.
    if settings.exposure_us is not None:
        with _setting("exposure_us", settings.exposure_us):
            camera.set_exposure_us(settings.exposure_us)
    if settings.frame_rate is not None:
        with _setting("frame_rate", settings.frame_rate):
            camera.set_frame_rate(settings.frame_rate)
        # With the rate, Aravis sets others: it switches triggers off.
        _set_features(camera, settings)
        with _setting("frame_rate", settings.frame_rate):
            _require_near("frame_rate", settings.frame_rate, camera.frame_rate())
    if settings.exposure_us is not None:
        with _setting("exposure_us", settings.exposure_us):
            _require_near("exposure_us", settings.exposure_us, camera.exposure_us())
    if camera.gige:
        if settings.packet_size is not None:
            with _setting("packet_size", settings.packet_size):
                camera.set_packet_size(settings.packet_size)
        elif camera.negotiate_packet_size() < LOOPBACK_PACKET and name.startswith("127."):
            # No network lies between, whatever the camera cannot negotiate.
            with suppress(AravisError):
                camera.set_packet_size(LOOPBACK_PACKET)


def _set_features(camera: aravis.Camera, settings: CameraSettings) -> None:
    for name, value in settings.features.items():
        with _setting(f"features.{name}", value):
            _set_feature(camera, name, value)


def _set_feature(camera: aravis.Camera, name: str, value: bool | int | float | str) -> None:
    try:
        camera.set(name, value)
    except AravisError:
        # A whole number may be meant for a feature of real numbers.
        if isinstance(value, bool) or not isinstance(value, int):
            raise
        try:
            camera.set(name, float(value))
        except AravisError:
            camera.set(name, value)
        return
    if isinstance(value, float):
        return
    kept: object = value
    # Some can only be written.
    with suppress(AravisError):
        kept = camera.get(name, value)
    if kept != value:
        raise InputError(f"the camera made {kept} of it", key=f"camera.features.{name}", value=value)


def _require_near(key: str, asked: float, got: float) -> None:
    if abs(got - asked) > 0.02 * asked:
        raise InputError(
            f"the camera made {got:g} of it", key=f"camera.{key}", value=asked, remedy="ask for what it can do"
        )


class _Session:
    """An open camera with its stream running, until the next trouble.

    Raises:
        AravisError: it does not answer, or another program controls it.
        InputError: it refuses a setting. MachineError: its images cannot be read.
    """

    def __init__(self, name: str, settings: CameraSettings) -> None:
        self.name = name
        self.camera = aravis.Camera(name)
        self.stream: aravis.Stream | None = None
        self.alive = True
        try:
            if not self.camera.controlled:
                raise AravisError("another program controls it")
            _configure(self.camera, settings, name)
            self._start(settings)
        except BaseException:
            self.close(stop=False)
            raise

    def _start(self, settings: CameraSettings) -> None:
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
        self.temperature_feature = next(filter(self._has, ("DeviceTemperature", "SensorTemperature")), None)
        camera.start()
        self.came = time.monotonic()

    def _has(self, feature: str) -> bool:
        with suppress(AravisError):
            return self.camera.has(feature)
        return False

    @property
    def image(self) -> tuple[int, int, int, int]:
        """Height, width, PFNC value and padding that each image must have."""
        return self.height, self.width, self.form.value, 0

    def judge(self, buffer: Any, filled: aravis.Filled) -> Image | str:
        """The image in a popped buffer, or what is wrong with it."""
        if filled.status != aravis.SUCCESS:
            return aravis.STATUS.get(filled.status, f"status {filled.status}")
        if filled.received < self.unpacker.image_bytes:
            return f"{filled.received} bytes of {self.unpacker.image_bytes}"
        if aravis.image_of(buffer) != self.image:
            return "another size or format"
        return Image(buffer, self._places[filled.data], filled.utc_ns)

    def values(self, place: int) -> NDArray[Any]:
        """Image [rows, columns] of a buffer, where its pixels have bytes of their own."""
        data = self.memory[place, : self.unpacker.image_bytes]
        return data.view("<u2" if self.form.stored == 16 else "u1").reshape(self.height, self.width)

    def close(self, *, stop: bool) -> None:
        """Give all back. Each step takes seconds where the camera does not answer; `stop` is one of them."""
        if stop and not self.camera.lost.is_set():
            with suppress(AravisError):
                self.camera.stop()
        if self.stream is not None:
            self.stream.close()
        self.camera.close()


def _named(address: str, there: tuple[aravis.Device, ...]) -> str | None:
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


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _opened(address: str, settings: CameraSettings) -> _Session:
    """One try. Raises AravisError where the camera is not there or not to be had, and what `_Session` raises."""
    # An address needs no search, which takes a second and ends at the next router.
    if _is_ip(address):
        with suppress(aravis.NotFoundError):
            return _Session(address, settings)
    there = aravis.devices()
    name = _named(address, there)
    if name is None:
        raise _NotThereError("; ".join(printable(str(device)) for device in there) or "none")
    return _Session(name, settings)


class _NotThereError(AravisError):
    """The camera is not among those that answer; the message lists them."""


def _opened_first(address: str, settings: CameraSettings) -> _Session:
    """Try for a while.

    Raises:
        InputError: several cameras answer, or the camera refuses a setting.
        MachineError: it is not there, or cannot be had.
    """
    begun = time.monotonic()
    sought = printable(f"camera {address}") if address else "camera"
    while True:
        try:
            return _opened(address, settings)
        except _NotThereError as error:
            if time.monotonic() - begun > SEARCH_SECONDS:
                raise MachineError(
                    f"no {sought} answers; there are: {error}",
                    key="--source",
                    value=f"genicam:{address}",
                    remedy="check power, cable, and that its address is in this computer's network",
                ) from error
        except AravisError as error:
            if time.monotonic() - begun > BUSY_SECONDS:
                raise MachineError(
                    f"the {sought} cannot be opened: {error}",
                    key="--source",
                    value=f"genicam:{address}",
                    remedy="close other programs that use the camera; check power, cable and its address",
                ) from error
        time.sleep(0.3)


class GenicamSource(Source):
    """An open camera; see `open_source`."""

    live = True

    def __init__(self, address: str, options: SourceOptions) -> None:
        self._settings = CameraSettings.of(options.camera)
        self._geometry = self._settings.laid_out()
        session = _opened_first(address, self._settings)
        try:
            lines, bands, samples = self._geometry.shape(session.height, session.width)
            if options.wavelengths is not None and len(options.wavelengths) != bands:
                raise InputError(
                    f"{len(options.wavelengths)} wavelengths for {bands} bands",
                    key="wavelengths",
                    remedy="give one each",
                )
            self._about = session.camera.describe()
        except BaseException:
            session.close(stop=True)
            raise
        self._format = LineFormat(
            bands,
            samples,
            session.form.dtype,
            scale=session.form.largest if options.scale is None else options.scale,
            saturation=session.form.largest if options.saturation is None else options.saturation,
            wavelengths=options.wavelengths,
        )
        self._lines, self._image_shape, self._address = lines, session.image, address
        self._scratch = np.empty((session.height, session.width), session.form.dtype)
        self._figures = {"reconnects": 0.0, "damaged": 0.0, "skipped": 0.0, "late": 0.0}
        self._figures_before = {"underruns": 0.0, "resent_packets": 0.0}
        self._figures_at = 0.0
        self._temperature: float | None = None
        self._state = "open"
        self._next_id: int | None = None
        self._session: _Session | None = None
        self._adopt(session)
        self._retired: queue.Queue[_Session | None] = queue.Queue()
        self._fresh: queue.Queue[_Session | MachineError] = queue.Queue()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="genicam-keeper", daemon=True)
        self._keeper.start()
        # Aravis' threads write into memory of ours and must not outlive it.
        atexit.register(self.close)

    @property
    def format(self) -> LineFormat:
        return self._format

    def describe(self) -> dict[str, str]:
        height, width, value, _ = self._image_shape
        rate = self._rate
        return {
            "kind": "genicam",
            "address": self._address or self._name,
            **self._about,
            "pixel_format": pixel_format(value).name,
            "image": f"{height} x {width}",
            **({} if rate is None else {"frame_rate": f"{rate:g}"}),
            "state": self._state,
        }

    def telemetry(self) -> Mapping[str, float]:
        """temperature_c, reconnects, images damaged, skipped and late, packets resent and underrun, buffers."""
        figures = dict(self._figures)
        if self._temperature is not None:
            figures["temperature_c"] = self._temperature
        return figures

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self._format)
        if self._stop.is_set():
            return Ended()
        deadline = time.monotonic() + timeout
        left = timeout
        while True:
            event = self._in_order(line)
            if event is not None:
                return event
            if self._loss is not None:
                return self._broken(self._loss)
            if left < 0:
                return Quiet()
            if self._session is None:
                self._await(max(0.0, left))
            else:
                self._collect(self._session, max(0.0, left))
            left = min(deadline - time.monotonic(), left - 1e-9)

    def close(self) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        atexit.unregister(self.close)
        self._retired.put(None)
        self._keeper.join()
        left: list[object] = [self._session]
        for line in (self._fresh, self._retired):
            while not line.empty():
                left.append(line.get())
        for session in left:
            if isinstance(session, _Session):
                session.close(stop=session.alive)
        self._session, self._state = None, "closed"

    # What follows, to `_broken`, runs in the thread that reads.

    def _adopt(self, session: _Session) -> None:
        """Begin with a session that has just been opened."""
        self._session, self._name, self._rate = session, session.name, session.rate
        self._ids = FrameIds(self._next_id, wide=not session.camera.gige)
        self._order = Order(LATE_SECONDS, max(2, len(session.memory) // 2))
        self._current: tuple[int, Image] | None = None
        self._index = 0
        self._flags = Flag.BREAK
        self._loss: str | None = None
        session.came = time.monotonic()

    def _await(self, seconds: float) -> None:
        try:
            fresh = self._fresh.get(timeout=seconds) if seconds else self._fresh.get_nowait()
        except queue.Empty:
            return
        if isinstance(fresh, MachineError):
            raise fresh
        self._adopt(fresh)
        self._figures["reconnects"] += 1
        self._state = "open"

    def _collect(self, session: _Session, seconds: float) -> None:
        """Pop a buffer, if one comes in time, and put it in its place; or find that the camera is gone."""
        assert session.stream is not None
        due, now = self._order.due(), time.monotonic()
        wait = seconds if due is None else max(0.0, min(seconds, due - now))
        lost = session.camera.lost.is_set()
        buffer = session.stream.pop(0 if lost else wait)
        then = time.monotonic()
        if then >= self._figures_at:
            self._figures_at = then + FIGURES_SECONDS
            self._count(session)
        if buffer is None:
            limit = self._settings.stall_seconds
            if lost:
                self._loss = "the camera no longer answers, or another program took it"
            elif limit is not None and then - session.came > limit:
                self._loss = f"no line for {limit:g} s"
            elif then - now < 0.5 * wait:
                # A stream that has ended answers at once.
                time.sleep(min(wait, 0.02))
            return
        session.came = then
        filled = aravis.filled(buffer)
        if filled.frame_id is None:
            # The gap that it leaves shows later.
            session.stream.push(buffer)
            return
        image = session.judge(buffer, filled)
        frame_id = self._ids.unroll(filled.frame_id)
        expected = self._order.next_id
        if expected is not None and frame_id < expected - len(session.memory):
            session.stream.push(buffer)
            self._loss = "the camera's frame ids start again"
            return
        kept = self._order.put(frame_id, image, then)
        if isinstance(image, str) or not kept:
            session.stream.push(buffer)
            self._figures["damaged"] += isinstance(image, str)
            self._figures["late"] += not kept

    def _in_order(self, line: Line) -> Event | None:
        """The next line or gap whose turn it is."""
        if self._current is None:
            if self._session is None:
                return None
            found = self._order.take(time.monotonic(), flush=self._loss is not None)
            if found is None:
                return None
            if isinstance(found, Skipped):
                self._figures["skipped"] += found.count
                return self._missing(found.first, found.count, "never came")
            frame_id, image = found
            if isinstance(image, str):
                return self._missing(frame_id, 1, image)
            self._current, self._index = (frame_id, image), 0
        return self._taken(line, *self._current)

    def _missing(self, frame_id: int, count: int, why: str) -> Missing:
        self._flags |= Flag.GAP
        return Missing(frame_id * self._lines, count * self._lines, why)

    def _taken(self, line: Line, frame_id: int, image: Image) -> Taken:
        session, index = self._session, self._index
        assert session is not None and session.stream is not None
        if session.form.packing is None:
            self._geometry.copy(session.values(image.place), index, line)
        elif self._geometry.plain:
            session.unpacker.unpack(session.memory[image.place], line)
        else:
            if index == 0:
                session.unpacker.unpack(session.memory[image.place], self._scratch)
            self._geometry.copy(self._scratch, index, line)
        # Each snapshot of a mosaic stands for itself.
        flags = self._flags | (Flag.BREAK if self._lines > 1 and index == 0 else NO_FLAGS)
        self._flags = NO_FLAGS
        self._index += 1
        if self._index == self._lines:
            self._current = None
            session.stream.push(image.buffer)
        return Taken(frame_id * self._lines + index, image.utc_ns, flags)

    def _count(self, session: _Session) -> None:
        assert session.stream is not None
        free, filled = session.stream.levels()
        self._figures["buffers_free"], self._figures["buffers_filled"] = free, filled
        for key, name in (("underruns", "n_underruns"), ("resent_packets", "n_resent_packets")):
            self._figures[key] = self._figures_before[key] + session.stream.count(name)

    def _broken(self, why: str) -> Broken:
        session, self._session, self._loss = self._session, None, None
        assert session is not None
        session.alive = False
        self._count(session)
        self._figures_before = {key: self._figures[key] for key in self._figures_before}
        self._next_id = self._order.next_id
        self._state = f"reopening: {why}"
        self._retired.put(session)
        return Broken(why)

    # What follows runs in the keeper.

    def _keep(self) -> None:
        while not self._stop.is_set():
            self._read_temperature()
            try:
                retired = self._retired.get(timeout=KEEPER_SECONDS)
            except queue.Empty:
                continue
            if retired is not None:
                retired.close(stop=retired.alive)
                self._reopen()

    def _reopen(self) -> None:
        while not self._stop.is_set():
            try:
                fresh = _opened(self._address, self._settings)
            except (AravisError, InputError, MachineError) as error:
                self._state = f"reopening: {error}"
                self._stop.wait(self._settings.reopen_seconds)
                continue
            if fresh.image == self._image_shape:
                self._fresh.put(fresh)
                return
            form = f"{fresh.height} x {fresh.width} {fresh.form.name}"
            fresh.close(stop=True)
            height, width, value, _ = self._image_shape
            self._fresh.put(
                MachineError(
                    f"the camera came back with images of {form}, not {height} x {width} {pixel_format(value).name}",
                    key="--source",
                    value=f"genicam:{self._address}",
                    remedy="set its region and pixel format in camera.features, so that it comes back with them",
                )
            )
            return

    def _read_temperature(self) -> None:
        # Only the keeper closes sessions, so this one stays open meanwhile.
        session = self._session
        if session is not None and session.temperature_feature and not session.camera.lost.is_set():
            with suppress(AravisError):
                self._temperature = session.camera.get_float(session.temperature_feature)


def open_source(address: str, options: SourceOptions) -> GenicamSource:
    """Open a camera and start it.

    Args:
        address: its IP address, MAC, serial number or Aravis id; empty for the only one there is.
        options: `camera` as `CameraSettings` says.

    Raises:
        InputError: several cameras answer, an unknown key, or a setting that the camera refuses.
        MachineError: libaravis is not installed, or there is no such camera.
    """
    return GenicamSource(address, options)
