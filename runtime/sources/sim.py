"""`sim:` is a line-scan spectrometer over a simulated scene, for demonstrations and tests without a camera.

Like a camera it issues its lines by the clock, whether they are taken or not, and keeps only the oldest 64 that nobody
took yet. The scene is flown over back and forth, so that it has no seam. `runtime.simulation.simulator` makes it.
`sim:snapshot` is a coded-aperture snapshot spectrometer in its place, whose frames come line by line
(`runtime.simulation.cassi`).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Float32
from runtime.errors import InputError, MachineError
from runtime.files.disk import available_memory
from runtime.lines import NO_FLAGS, Ended, Event, Flag, Line, LineFormat, Missing, Quiet, Taken
from runtime.simulation import cassi
from runtime.simulation.simulator import SensorModel, sense, simulate_scene
from runtime.sources.contract import Source, SourceOptions
from runtime.sources.pacing import check_buffer

BUFFER_LINES = 64
SNAPSHOT = "snapshot"
SNAPSHOT_SCALE, SNAPSHOT_TOP = 2000.0, 4095.0
"""Number that stands for 1.0, of which a measurement may be twice as much, and the largest of 12 bits."""
LOST = "lost on the way, as asked for"
OVERRUN = f"not taken in time: the buffer of {BUFFER_LINES} lines was full"


@dataclass(frozen=True)
class SimSettings:
    """What can be said of the simulator, as `key=value,key=value` in the address or as a mapping; the address wins.

    Attributes:
        seed: of scene, noise and losses, at least 0.
        bands: number of bands; as many as the options have wavelengths, or 31.
        samples: pixels across track.
        lines: length of the scene, which is repeated.
        rate: lines per second; that of the options, or 100.
        count: lines that are issued before the source ends; None for no end.
        lost: lines of a thousand that never come, at random.
        stall: `SECONDS@LINE`, a pause before that line is issued; empty for none.
    """

    seed: int = 0
    bands: int = 31
    samples: int = 256
    lines: int = 512
    rate: float = 100.0
    count: int | None = None
    lost: float = 0.0
    stall: str = ""


@dataclass(frozen=True)
class SnapshotSettings:
    """The same of `sim:snapshot`, as `sim:snapshot,key=value`.

    Attributes:
        mask: its file, or `random:SEED`; that of the instrument which is expected, or `random:0`.
        seed: of scenes, noise and losses, at least 0.
        frames: different ones, which are repeated.
        electrons: that the detector collects where the measurement is 1; read: read noise, electrons rms.
        rate, count, lost, stall: as of `SimSettings`; a frame has as many lines as the mask.
    """

    mask: str = ""
    seed: int = 0
    frames: int = 4
    electrons: float = 20000.0
    read: float = 10.0
    rate: float = 256.0
    count: int | None = None
    lost: float = 0.0
    stall: str = ""


def open_source(address: str, options: SourceOptions) -> Simulated:
    """Simulate the scene and stand ready; the first line is issued when the first is asked for.

    Raises:
        InputError: a key is not one of SimSettings, or of SnapshotSettings, or its value is out of range.
        CubeFileError: the mask cannot be read.
        MachineError: the scene does not fit into memory.
    """
    kind, _, rest = address.partition(",")
    if kind == SNAPSHOT:
        settings = settings_of(rest, options, SnapshotSettings)
        return Simulated(settings, options, _snapshots(settings, options))
    scan = settings_of(address, options, SimSettings)
    return Simulated(scan, options, _scan(scan, options))


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What a detector records: digital numbers [lines, bands, samples], and of them.

    Attributes:
        scale: number that stands for 1.0; top: the detector's limit.
        frame: lines of a frame that stands for itself; 0 where lines follow on each other for ever.
        wavelengths: of the bands in nm, None where they are mixed.
    """

    dn: NDArray[np.uint16]
    scale: float
    top: float
    frame: int
    wavelengths: tuple[float, ...] | None
    model: str


def _scan(settings: SimSettings, options: SourceOptions) -> _Recorded:
    _check_memory(settings)
    sensor, seed = SensorModel(), settings.seed
    scene = simulate_scene(seed, settings.bands, settings.lines, settings.samples, options.wavelengths)
    sensed = sense(scene, sensor, np.random.default_rng([seed, 1]))
    top, dn = 2.0**sensor.bit_depth - 1, np.ascontiguousarray(sensed.dn.transpose(1, 0, 2))
    return _Recorded(dn, top, top, 0, tuple(scene.wavelengths.tolist()), "simulated line-scan spectrometer")


def _snapshots(settings: SnapshotSettings, options: SourceOptions) -> _Recorded:
    if options.wavelengths is not None:
        raise InputError("a coded frame has no wavelengths of its own", key="wavelengths", remedy="leave them out")
    mask = _mask(settings, options)
    _check_memory(SimSettings(bands=cassi.BANDS, lines=mask.shape[0], samples=mask.shape[1]))
    made = []
    for number in range(settings.frames):
        truth = simulate_scene(
            settings.seed + number, cassi.BANDS, mask.shape[0], mask.shape[1], cassi.WAVELENGTHS
        ).truth
        rng = np.random.default_rng([settings.seed, 1, number])
        measurement = cassi.noisy(cassi.measure(truth, mask), rng, settings.electrons, settings.read)
        made.append(np.clip(np.rint(measurement * SNAPSHOT_SCALE), 0, SNAPSHOT_TOP))
    dn = np.concatenate(made)[:, None].astype(np.uint16)
    return _Recorded(dn, SNAPSHOT_SCALE, SNAPSHOT_TOP, len(mask), None, "simulated snapshot spectrometer")


def _mask(settings: SnapshotSettings, options: SourceOptions) -> Float32:
    """The mask of the settings, else of the instrument that is expected."""
    known = options.instrument.get("mask")
    if settings.mask or (known is None and options.frame is None):
        mask = cassi.mask_of(settings.mask or "random:0")
    elif known is None:
        raise InputError("the bundle keeps no mask", key="sim:mask", remedy="say sim:snapshot,mask=FILE")
    else:
        mask = cassi.checked_mask(known.astype(np.float64), "the bundle's")
    if options.frame not in (None, len(mask)):
        raise InputError(
            f"a mask of {len(mask)} lines, and frames of {options.frame}", key="sim:mask", value=settings.mask,
            remedy="leave it out: the bundle's own is taken",
        )  # fmt: skip
    return mask


class Simulated(Source):
    """A simulated spectrometer. Frame ids count the lines that it issued, from 0; times are those they were due at."""

    live = True

    def __init__(self, settings: SimSettings | SnapshotSettings, options: SourceOptions, recorded: _Recorded) -> None:
        self._recorded = recorded
        _, bands, samples = recorded.dn.shape
        # Losses repeat after 65536 lines, so that they do not depend on which lines were looked at.
        self._lost = np.random.default_rng([settings.seed, 2]).random(1 << 16) < settings.lost / 1000
        self.format = LineFormat(
            bands,
            samples,
            recorded.dn.dtype,
            scale=recorded.scale if options.scale is None else options.scale,
            saturation=recorded.top if options.saturation is None else options.saturation,
            wavelengths=recorded.wavelengths,
        )
        self._settings = settings
        seconds, _, line = settings.stall.partition("@")
        self._stall = (round(float(seconds) * 1e9), int(line)) if line else (0, 0)
        self._start_ns: int | None = None
        self._utc_ns = 0
        self._issued = 0
        self._waiting: deque[int | Missing] = deque()
        self._held = 0
        self._after_gap = False
        self._counts = {"issued": 0.0, "lost": 0.0, "underruns": 0.0}
        self._open = True

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self.format)
        if self._start_ns is None:
            self._start_ns, self._utc_ns = time.monotonic_ns(), time.time_ns()
        deadline = time.monotonic_ns() + round(timeout * 1e9)
        while self._open:
            self._issue(time.monotonic_ns())
            if self._waiting:
                return self._given(self._waiting.popleft(), line)
            if self._issued == self._settings.count:
                break
            now = time.monotonic_ns()
            if now >= deadline:
                return Quiet()
            time.sleep(max(0, min(deadline, self._due_ns(self._issued)) - now) / 1e9)
        return Ended()

    def telemetry(self) -> Mapping[str, float]:
        return dict(self._counts)

    def describe(self) -> dict[str, str]:
        said = asdict(self._settings).items()
        kind = [SNAPSHOT] if self._recorded.frame else []
        address = ",".join([*kind, *(f"{key}={value}" for key, value in said if value not in (None, ""))])
        return {"kind": "sim", "model": self._recorded.model, "address": address}

    def close(self) -> None:
        self._open = False
        self._waiting.clear()

    def _due_ns(self, number: int) -> int:
        """When a line is issued, by the monotonic clock."""
        stall, line = self._stall
        assert self._start_ns is not None
        return self._start_ns + round(number * 1e9 / self._settings.rate) + (stall if number >= line else 0)

    def _issue(self, now: int) -> None:
        """Issue all lines that are due: those there is room for wait to be taken, the others are gone."""
        count = self._settings.count
        end = self._due_before(now) if count is None else min(count, self._due_before(now))
        while self._issued < end and self._held < BUFFER_LINES:
            if self._lost[self._issued % len(self._lost)]:
                self._miss(1, LOST)
            else:
                self._waiting.append(self._issued)
                self._held += 1
                self._issued += 1
        if self._issued < end:
            self._miss(end - self._issued, OVERRUN)
        self._counts["issued"] = self._issued

    def _due_before(self, now: int) -> int:
        """How many lines have been issued by then: those due at `now` or before."""
        stall, line = self._stall
        assert self._start_ns is not None
        period = 1e9 / self._settings.rate
        passed = now - self._start_ns
        number = int(passed / period) + 1
        if stall and number > line:
            number = max(line, int((passed - stall) / period) + 1)
        # The division may be off by one where a line is due at this very moment.
        while number and self._due_ns(number - 1) > now:
            number -= 1
        return max(number, self._issued)

    def _miss(self, count: int, why: str) -> None:
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, Missing) and last.why == why:
            self._waiting[-1] = replace(last, count=last.count + count)
        else:
            self._waiting.append(Missing(self._issued, count, why))
        self._issued += count
        self._counts["lost" if why == LOST else "underruns"] += count

    def _given(self, item: int | Missing, line: Line) -> Event:
        if isinstance(item, Missing):
            self._after_gap = True
            return item
        self._held -= 1
        length, frame = len(self._recorded.dn), self._recorded.frame
        if frame:
            place, begins, ends = item % length, item % frame == 0, item % frame == frame - 1
        else:
            # There and back without the turning points twice.
            place = item % max(1, 2 * length - 2)
            place, begins, ends = min(place, 2 * length - 2 - place), not item, False
        np.copyto(line, self._recorded.dn[place])
        flags = (Flag.GAP if self._after_gap else NO_FLAGS) | (Flag.BREAK if begins else NO_FLAGS)
        flags |= Flag.END if ends else NO_FLAGS
        self._after_gap = False
        assert self._start_ns is not None
        return Taken(item, self._utc_ns + self._due_ns(item) - self._start_ns, flags)


Settings = TypeVar("Settings", SimSettings, SnapshotSettings)


def settings_of(address: str, options: SourceOptions, kind: type[Settings]) -> Settings:
    """Settings from the address, over those of the options, over the defaults.

    Raises:
        InputError: a key is unknown or comes twice, or its value is out of range.
    """
    said: dict[str, Any] = dict(options.simulator)
    seen: set[str] = set()
    for item in address.split(",") if address else ():
        key, _, value = (part.strip() for part in item.partition("="))
        if key in seen:
            raise InputError("comes twice", key=f"sim:{key}", value=item, remedy="give it once")
        seen.add(key)
        said[key] = value
    known = {field.name for field in fields(kind)}
    for key in said:
        if key not in known:
            raise InputError(
                "not a setting of the simulator",
                key="--source sim",
                value=key,
                remedy="known are " + ", ".join(sorted(known)),
            )
    defaults: dict[str, Any] = {}
    if options.rate is not None:
        defaults["rate"] = options.rate
    if options.wavelengths is not None and "bands" in known:
        defaults["bands"] = len(options.wavelengths)
    given = {key: value for key, value in (defaults | said).items() if value is not None}
    checked: dict[str, Any] = {key: _CHECKS[key](key, value) for key, value in given.items()}
    return kind(**checked)


def _number(key: str, value: Any, low: float, high: float, *, whole: bool) -> float:
    number = None
    if not isinstance(value, bool):
        with suppress(TypeError, ValueError):
            number = int(value) if whole and isinstance(value, str) else float(value)
    if number is None or not isfinite(number) or not low <= number <= high or (whole and number != int(number)):
        raise InputError(
            "out of range" if number is not None else "not a number",
            key=f"sim:{key}",
            value=value,
            remedy=f"give a {'whole ' if whole else ''}number from {low:g} to {high:g}",
        )
    return int(number) if whole else float(number)


def _stall(key: str, value: Any) -> str:
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)@([0-9]{1,12})", str(value), re.ASCII)
    if value and found is None:
        raise InputError("not a pause", key=f"sim:{key}", value=value, remedy="give SECONDS@LINE, for example 2.5@1000")
    return str(value) if value else ""


_CHECKS: dict[str, Callable[[str, Any], float | str]] = {
    "seed": lambda key, value: _number(key, value, 0, 2**63, whole=True),
    "bands": lambda key, value: _number(key, value, 1, 10_000, whole=True),
    "samples": lambda key, value: _number(key, value, 1, 100_000, whole=True),
    "lines": lambda key, value: _number(key, value, 1, 1_000_000, whole=True),
    "rate": lambda key, value: _number(key, value, 1e-3, 1e6, whole=False),
    "count": lambda key, value: _number(key, value, 1, 2**53, whole=True),
    "lost": lambda key, value: _number(key, value, 0, 1000, whole=False),
    "stall": _stall,
    "mask": lambda key, value: str(value),
    "frames": lambda key, value: _number(key, value, 1, 1000, whole=True),
    "electrons": lambda key, value: _number(key, value, *cassi.ELECTRONS, whole=False),
    "read": lambda key, value: _number(key, value, *cassi.READ, whole=False),
}


def _check_memory(settings: SimSettings) -> None:
    # The scene is made at once: its layout in finer detail, and several copies of its bands.
    needed = settings.lines * settings.samples * (32 * settings.bands + 600)
    if needed > (available := available_memory()):
        raise MachineError(
            f"simulating it takes {needed} bytes of memory, {available} are available",
            key="sim:lines",
            value=settings.lines,
            remedy="ask for fewer lines, samples or bands; the scene is repeated",
        )
