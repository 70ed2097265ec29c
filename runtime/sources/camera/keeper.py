"""What may take seconds on a camera that has died, in a thread of its own: closing it, opening it again, asking it."""

import queue
import threading
from contextlib import suppress

from runtime.errors import InputError, MachineError
from runtime.sources.camera.aravis_library import AravisError
from runtime.sources.camera.pixel_formats import pixel_format
from runtime.sources.camera.session import Session, opened
from runtime.sources.camera.settings import CameraSettings

KEEPER_SECONDS = 3.0
"""Between two looks at the temperature."""
CLOSE_SECONDS = 1.0
"""How long closing waits for a camera; one that answers takes a tenth of it."""


class Keeper:
    """Owns the sessions with a camera; the thread that reads from one hands it back when it is of no more use.

    Args:
        session: the first, already open.
        address, settings: what it was opened with, and the later ones will be.

    Attributes:
        state: `open`, `closed`, or `reopening` and why.
        temperature: of the camera, in degrees Celsius; None where it has told none.
    """

    def __init__(self, session: Session, address: str, settings: CameraSettings) -> None:
        self.state = "open"
        self.temperature: float | None = None
        self._session: Session | None = session
        self._image, self._address, self._settings = session.image, address, settings
        self._retired: queue.Queue[Session | None] = queue.Queue()
        self._fresh: queue.Queue[Session | MachineError] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="genicam-keeper", daemon=True)
        self._thread.start()

    # What follows, to `close`, runs in the thread that reads.

    @property
    def closed(self) -> bool:
        return self._stop.is_set()

    def retire(self, session: Session, why: str) -> None:
        """Give back a session that is broken, to have it closed and another opened."""
        self._session = None
        self.state = f"reopening: {why}"
        self._retired.put(session)

    def fresh(self, seconds: float) -> Session | None:
        """The session that takes the retired one's place, if it is open in time.

        Raises:
            MachineError: the camera came back with other images.
        """
        try:
            fresh = self._fresh.get(timeout=seconds) if seconds else self._fresh.get_nowait()
        except queue.Empty:
            return None
        if isinstance(fresh, MachineError):
            raise fresh
        self._session, self.state = fresh, "open"
        return fresh

    def close(self) -> None:
        """Have the keeper close what sessions there are, and wait for it for `CLOSE_SECONDS`.

        One that a dead camera holds up longer goes on by itself, or ends with the process. Its stack holds the
        sessions, also while the interpreter ends, so the memory that Aravis' threads write into outlives them.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        session, self._session, self.state = self._session, None, "closed"
        if session is not None:
            self._retired.put(session)
        self._retired.put(None)
        self._thread.join(CLOSE_SECONDS)

    # What follows runs in the keeper's own.

    def _keep(self) -> None:
        while True:
            self._read_temperature()
            try:
                retired = self._retired.get(timeout=KEEPER_SECONDS)
            except queue.Empty:
                continue
            if retired is None:
                break
            retired.close(stop=retired.alive)
            self._reopen()
        while not self._fresh.empty():
            unused = self._fresh.get()
            if isinstance(unused, Session):
                unused.close(stop=True)

    def _reopen(self) -> None:
        while not self._stop.is_set():
            try:
                fresh = opened(self._address, self._settings)
            except (AravisError, InputError, MachineError) as error:
                self._try_later(error)
                continue
            if fresh.image == self._image:
                try:
                    # It is waited for.
                    fresh.begin()
                except AravisError as error:
                    fresh.close(stop=False)
                    self._try_later(error)
                    continue
                self._fresh.put(fresh)
                return
            form = f"{fresh.height} x {fresh.width} {fresh.form.name}"
            fresh.close(stop=True)
            height, width, value, _ = self._image
            self._fresh.put(
                MachineError(
                    f"the camera came back with images of {form}, not {height} x {width} {pixel_format(value).name}",
                    key="--source",
                    value=f"genicam:{self._address}",
                    remedy="set its region and pixel format in camera.features, so that it comes back with them",
                )
            )
            return

    def _try_later(self, error: Exception) -> None:
        if not self._stop.is_set():
            self.state = f"reopening: {error}"
        self._stop.wait(self._settings.reopen_seconds)

    def _read_temperature(self) -> None:
        # Only the keeper closes sessions, so this one stays open meanwhile.
        session = self._session
        if session is not None and session.temperature_feature and not session.camera.lost.is_set():
            with suppress(AravisError):
                self.temperature = session.camera.get_float(session.temperature_feature)
