"""GenICam cameras, GigE Vision and USB3 Vision, through Aravis: one image of the slit is one line; of a
colour camera each row of an image is one.

Two threads share the work. The one that calls `read` only takes buffers; a keeper of the source's own does what may
take seconds on a camera that has died: closing, opening again, asking for the temperature.
"""

import atexit
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.lines import NO_FLAGS, Broken, Ended, Event, Flag, Line, LineFormat, Missing, Quiet, Taken
from runtime.sources.camera.aravis_library import AravisError
from runtime.sources.camera.aravis_stream import filled
from runtime.sources.camera.colours import Demosaic
from runtime.sources.camera.keeper import Keeper
from runtime.sources.camera.order import FrameIds, Image, Order, Restarts, Skipped
from runtime.sources.camera.pixel_formats import PixelFormat, pixel_format
from runtime.sources.camera.session import Session, opened_first
from runtime.sources.camera.settings import CameraSettings
from runtime.sources.contract import Source, SourceOptions
from runtime.sources.pacing import check_buffer
from runtime.stated import Stated

LATE_SECONDS = 0.15
"""How long whole lines wait for one before them that has not come."""
FIGURES_SECONDS = 0.5
"""Between two looks at the stream's counters."""


class GenicamSource(Source):
    """An open camera; see `open_source`."""

    live = True

    def __init__(self, address: str, options: SourceOptions) -> None:
        self._settings = CameraSettings.of(options.camera)
        session = opened_first(address, self._settings)
        try:
            _refuse_colours(self._settings, session.form)
            lines, bands, samples = self._settings.shape(session.height, session.width)
            if options.frame not in (None, lines):
                raise InputError(
                    f"an image of the camera is {lines} lines, a frame of the bundle {options.frame}",
                    key="camera",
                    value=f"{session.height} x {session.width}, geometry {self._settings.geometry}",
                    remedy="say geometry: area, and have the camera send the part of it that lies behind the mask",
                )
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
        picture = self._settings.geometry == "colour"
        # Lamps and skies are at the limit in what is a picture, as in photographs.
        limit = None if picture else session.form.largest
        self.format = LineFormat(
            bands,
            samples,
            session.form.dtype,
            scale=session.form.largest if options.scale is None else options.scale,
            saturation=limit if options.saturation is None else options.saturation,
            wavelengths=options.wavelengths,
        )
        self.stated = Stated(photograph=picture)
        self._lines, self._image_shape, self._address = lines, session.image, address
        self._make_buffers(session)
        self._figures = {"reconnects": 0.0, "damaged": 0.0, "skipped": 0.0, "late": 0.0}
        self._figures_before = {"underruns": 0.0, "resent_packets": 0.0}
        self._figures_at = 0.0
        self._next_id: int | None = None
        self._session: Session | None = None
        self._adopt(session)
        self._keeper = Keeper(session, address, self._settings)
        # Aravis' threads write into memory of ours; a camera that answers is told to stop.
        atexit.register(self.close)

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
            "state": self._keeper.state,
        }

    def telemetry(self) -> Mapping[str, float]:
        """temperature_c, reconnects, images damaged, skipped and late, packets resent and underrun, buffers."""
        figures = dict(self._figures)
        if self._keeper.temperature is not None:
            figures["temperature_c"] = self._keeper.temperature
        return figures

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self.format)
        if self._keeper.closed:
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
                fresh = self._keeper.fresh(max(0.0, left))
                if fresh is not None:
                    self._adopt(fresh)
                    self._figures["reconnects"] += 1
            else:
                self._collect(self._session, max(0.0, left))
            left = min(deadline - time.monotonic(), left - 1e-9)

    def close(self) -> None:
        if self._keeper.closed:
            return
        atexit.unregister(self.close)
        self._keeper.close()
        self._session = None

    def _adopt(self, session: Session) -> None:
        """Begin with a session that has just been opened."""
        self._session, self._name, self._rate = session, session.name, session.rate
        self._ids = FrameIds(self._next_id, wide=not session.camera.gige)
        self._restarts = Restarts(session.rate, len(session.memory))
        self._order = Order(LATE_SECONDS, max(2, len(session.memory) // 2))
        self._current: tuple[int, Image] | None = None
        self._index = 0
        self._flags = Flag.BREAK
        self._loss: str | None = None
        session.came = time.monotonic()

    def _collect(self, session: Session, seconds: float) -> None:
        """Pop a buffer, if one comes in time, and put it in its place; or find that the camera is gone."""
        assert session.stream is not None
        if not session.begun:
            try:
                session.begin()
            except AravisError as error:
                self._loss = f"the camera does not begin: {error}"
                return
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
        known = filled(buffer)
        if known.frame_id is None:
            # The gap that it leaves shows later.
            session.stream.push(buffer)
            return
        image = session.judge(buffer, known)
        frame_id = self._ids.unroll(known.frame_id)
        ignored = session.stream.count("n_ignored_packets")
        if self._restarts.noticed(known.frame_id, frame_id, self._order.next_id, known.utc_ns, then, ignored):
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
        if self._colours is not None:
            if index == 0:
                self._make_colours(session, image.place, self._colours)
            self._settings.copy_line(self._colours, index, line)
        elif session.form.packing is None:
            self._settings.copy_line(session.values(image.place), index, line)
        elif self._settings.plain:
            session.unpacker.unpack(session.memory[image.place], line)
        else:
            if index == 0:
                session.unpacker.unpack(session.memory[image.place], self._scratch)
            self._settings.copy_line(self._scratch, index, line)
        flags, last = self._flags, index == self._lines - 1
        if self._lines > 1:
            # Each picture, and each snapshot of a mosaic, stands for itself.
            flags |= (Flag.BREAK if index == 0 else NO_FLAGS) | (Flag.END if last else NO_FLAGS)
        self._flags = NO_FLAGS
        self._index += 1
        if last:
            self._current = None
            session.stream.push(image.buffer)
        return Taken(frame_id * self._lines + index, image.utc_ns, flags)

    def _make_buffers(self, session: Session) -> None:
        size, form = (session.height, session.width), session.form
        coloured = self._settings.geometry == "colour"
        self._scratch = np.empty(size, form.dtype)
        self._colours = np.empty((3, *size), form.dtype) if coloured else None
        self._demosaic = Demosaic(form.colours, *size, form.largest) if coloured and form.values == 1 else None

    def _make_colours(self, session: Session, place: int, out: NDArray[Any]) -> None:
        """Fill `out`, [3, rows, columns], with what the image in a buffer shows."""
        if session.form.packing is None:
            pixels = session.values(place)
        else:
            pixels = self._scratch
            session.unpacker.unpack(session.memory[place], pixels)
        if self._demosaic is None:
            np.copyto(out, np.moveaxis(pixels, 2, 0))
        else:
            self._demosaic.colours(pixels, out)

    def _count(self, session: Session) -> None:
        assert session.stream is not None
        free, full = session.stream.levels()
        self._figures["buffers_free"], self._figures["buffers_filled"] = free, full
        for key, name in (("underruns", "n_underruns"), ("resent_packets", "n_resent_packets")):
            self._figures[key] = self._figures_before[key] + session.stream.count(name)

    def _broken(self, why: str) -> Broken:
        session, self._session, self._loss = self._session, None, None
        assert session is not None
        session.alive = False
        self._count(session)
        self._figures_before = {key: self._figures[key] for key in self._figures_before}
        self._next_id = self._order.next_id
        self._keeper.retire(session, why)
        return Broken(why)


def _refuse_colours(settings: CameraSettings, form: PixelFormat) -> None:
    """Raises InputError where geometry and pixel format do not go together; a Bayer pattern may be a mosaic of four."""
    colour = settings.geometry == "colour"
    if colour and not form.colours:
        raise InputError(
            "the camera sends no colours", key="camera.geometry", value="colour",
            remedy=f"set a camera.pixel_format of colours; it sends {form.name}",
        )  # fmt: skip
    if not colour and form.colours and (form.values == 3 or settings.geometry == "line-scan"):
        raise InputError(
            f"the camera sends {form.name}", key="camera.geometry", value=settings.geometry,
            remedy="set it to colour for pictures, or camera.pixel_format to a grey one",
        )  # fmt: skip


def open_source(address: str, options: SourceOptions) -> GenicamSource:
    """Open a camera; it sends from the first `read`.

    Args:
        address: its IP address, MAC, serial number or Aravis id; empty for the only one there is.
        options: `camera` as `CameraSettings` says.

    Raises:
        InputError: several cameras answer, an unknown key, or a setting that the camera refuses.
        MachineError: libaravis is not installed, or there is no such camera.
    """
    return GenicamSource(address, options)
