"""A picture of the last lines, for the eye: three bands, stretched, with its gaps and what was not restored marked.

Only the three bands of the last lines are kept. The picture is whole at any time: it is written under a temporary name
and renamed.
"""

import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from runtime.durable import write_bytes
from runtime.errors import InputError, MachineError, printable
from runtime.lines import Flag

from .contract import Block, Sink, SinkOptions, StreamFacts

NONE, RESTORED, PASSED, INTERPOLATED, GAP = range(5)
"""What a row of the picture is: not there yet, restored, passed through, made from its neighbours, missing."""
STRIP_SAMPLES = 4
STRIP_COLOURS = np.array([(0, 0, 0), (0, 0, 0), (230, 159, 0), (86, 180, 233), (64, 64, 64)], np.uint8)
"""Of the strip at the left edge, by what the row is: two colours that colour-blind people tell apart."""
GAP_GREY = 64
LEGEND = "strip at the left: orange passed through, blue interpolated; dark grey rows are missing lines"
SHARES = {"red": 3 / 4, "green": 1 / 2, "blue": 1 / 4}
"""Places in the range of bands where there are no wavelengths that would do."""


def choose_bands(facts: StreamFacts, bands_nm: Sequence[float] = (640, 550, 460)) -> tuple[tuple[int, ...], str]:
    """Bands for red, green and blue, and what to say of them.

    The nearest to `bands_nm`; at 3/4, 1/2 and 1/4 of the range where there are no wavelengths, or where the nearest
    would not be three different bands (a sensor beyond the visible).
    """
    bands, wavelengths = facts.format.bands, facts.format.wavelengths
    if wavelengths is not None:
        nearest = [int(np.argmin(np.abs(np.subtract(wavelengths, nm)))) for nm in bands_nm]
        if len(set(nearest)) == 3:
            said = (f"{name} {wavelengths[b]:g} nm (band {b + 1})" for name, b in zip(SHARES, nearest, strict=True))
            return tuple(nearest), ", ".join(said)
    placed = tuple(round((bands - 1) * share) for share in SHARES.values())
    why = "no wavelengths are known" if wavelengths is None else "the wavelengths are not of the visible range"
    said = (f"{name} band {band + 1}" for name, band in zip(SHARES, placed, strict=True))
    return placed, f"{', '.join(said)} of {bands}: {why}, bands at 3/4, 1/2 and 1/4 of the range"


def render(
    rows: NDArray[np.generic],
    kinds: NDArray[np.uint8],
    *,
    ignore_value: float | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """A PNG of rows: each channel stretched from its own 2nd to its 98th percentile over the rows that are there.

    Args:
        rows: [lines, 3, samples], real numbers: red, green, blue.
        kinds: [lines], what each row is: NONE, RESTORED, PASSED, INTERPOLATED or GAP.
        ignore_value: pixels with it in any channel are black, as those are that are not finite.
        text: more entries for the PNG's text; stretch and legend are there anyway.

    Returns:
        the PNG, `samples` + 4 wide, `lines` high.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    there = (kinds != NONE) & (kinds != GAP)
    values = rows[there].astype(np.float64)
    bad = ~np.isfinite(values)
    if ignore_value is not None:
        bad |= rows[there] == ignore_value
    valid = ~bad.any(axis=1)
    shown = np.zeros(values.shape, np.uint8)
    limits = []
    for channel in range(3):
        good = values[:, channel][valid]
        low, high = np.percentile(good, (2, 98)) if good.size else (0.0, 0.0)
        limits.append(f"{low:g} to {high:g}")
        # A channel without contrast is mid grey, neither dark nor bright.
        stretched = np.clip((good - low) / (high - low), 0, 1) if high > low else np.full(good.shape, 0.5)
        shown[:, channel][valid] = np.round(255 * stretched)
    picture = np.zeros((len(rows), STRIP_SAMPLES + rows.shape[2], 3), np.uint8)
    picture[:, :STRIP_SAMPLES] = STRIP_COLOURS[kinds][:, None]
    picture[there, STRIP_SAMPLES:] = shown.transpose(0, 2, 1)
    picture[kinds == GAP] = GAP_GREY
    info = PngInfo()
    said = {"Stretch": f"2 to 98 % of each channel: {', '.join(limits)}", "Legend": LEGEND}
    for key, entry in {**(text or {}), **said}.items():
        info.add_text(key, printable(entry))
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG", pnginfo=info, compress_level=3)
    return file.getvalue()


class Scroll:
    """The last rows of three bands, in a ring: `add` from one thread, `png` from any.

    Args:
        facts: of the stream.
        lines: rows of the picture, newest at the bottom; rows that have not come yet are black.
        bands_nm: wavelengths for red, green and blue.
    """

    def __init__(self, facts: StreamFacts, lines: int = 512, bands_nm: Sequence[float] = (640, 550, 460)) -> None:
        if lines < 1:
            raise InputError("not a number of lines", key="quicklook lines", value=lines, remedy="give 1 or more")
        self._facts = facts
        self._bands, self._said = choose_bands(facts, bands_nm)
        self._rows = np.zeros((lines, 3, facts.format.samples), facts.format.dtype)
        self._kinds = np.full(lines, NONE, np.uint8)
        self._next = 0
        self._last: int | None = None
        self._lock = Lock()

    def add(self, block: Block) -> None:
        """Append the lines of a block, with a row for every sequence number that is missing before each."""
        if not len(block.sequence):
            return
        lines = len(self._kinds)
        with self._lock:
            before = int(block.sequence[0]) - 1 if self._last is None else self._last
            places = np.cumsum(_steps(before, block.sequence, lines)) - 1
            total = int(places[-1]) + 1
            self._kinds[(self._next + np.arange(max(0, total - lines), total)) % lines] = GAP
            seen = places >= total - lines
            slots = (self._next + places[seen]) % lines
            self._rows[slots] = block.values[seen][:, self._bands]
            self._kinds[slots] = _kinds(block.flags[seen])
            self._next = (self._next + total) % lines
            self._last = int(block.sequence[-1])

    def png(self) -> bytes:
        """The picture as it is now, see `render`."""
        with self._lock:
            rows, kinds = np.roll(self._rows, -self._next, axis=0), np.roll(self._kinds, -self._next)
            last = self._last
        text = {
            "Title": "the last restored lines, newest at the bottom",
            "Description": self._facts.description,
            "Bands": self._said,
            "Last line": "none yet" if last is None else f"sequence number {last}",
        }
        return render(rows, kinds, ignore_value=self._facts.format.ignore_value, text=text)


def _steps(before: int, sequence: NDArray[np.uint64], lines: int) -> NDArray[np.int64]:
    """Rows from each line to the next, missing ones among them; a number that does not grow takes one row."""
    previous = np.concatenate([np.array([max(before, 0)], np.uint64), sequence[:-1]])
    steps = np.where(sequence > previous, sequence - previous, 1)
    # More than the picture holds is all the same, and cannot overflow.
    return np.minimum(steps, lines + 1).astype(np.int64)


def _kinds(flags: NDArray[np.uint32]) -> NDArray[np.uint8]:
    restored = np.where(flags & np.uint32(Flag.RESTORED), RESTORED, PASSED)
    restored[(flags & np.uint32(Flag.PASSED)) != 0] = PASSED
    restored[(flags & np.uint32(Flag.INTERPOLATED)) != 0] = INTERPOLATED
    return restored.astype(np.uint8)


class Quicklook(Sink):
    """A PNG file of the last restored lines, renewed while lines come.

    Args:
        path: of the PNG.
        facts: of the stream.
        lines: rows of the picture.
        bands_nm: wavelengths for red, green and blue.
        every_s: seconds between pictures, at least.

    Raises:
        InputError: `path` has no folder, or `lines` is below 1.
    """

    def __init__(
        self,
        path: Path,
        facts: StreamFacts,
        lines: int = 512,
        bands_nm: Sequence[float] = (640, 550, 460),
        every_s: float = 1.0,
    ) -> None:
        if not path.parent.is_dir():
            raise InputError("there is no such folder", file=path.parent, remedy="make it, or name another one")
        self.scroll = Scroll(facts, lines, bands_nm)
        self._path, self._every_s = path, every_s
        self._due = time.monotonic()
        self._shown = True
        self._closed = False

    def write(self, block: Block) -> None:
        """Take the lines; write the picture if the last one is old enough.

        Raises:
            InputError: the picture cannot be written.
            MachineError: the sink is closed.
        """
        if self._closed:
            raise MachineError("the sink is closed", key="quicklook", value=self._path, remedy="open it again")
        self.scroll.add(block)
        self._shown = False
        if time.monotonic() >= self._due:
            self._write()

    def close(self) -> None:
        """Write the last picture, if lines came since the one before."""
        if not self._closed:
            self._closed = True
            if not self._shown:
                self._write()

    def _write(self) -> None:
        write_bytes(self._path, self.scroll.png())
        self._shown = True
        self._due = time.monotonic() + self._every_s


def open_sink(target: str, facts: StreamFacts, options: SinkOptions) -> Quicklook:
    """A picture at the path `target`. Raises InputError."""
    path = Path(target)
    if path.suffix.lower() != ".png":
        raise InputError("is a PNG", key="--quicklook", value=path, remedy="name it .png")
    return Quicklook(path, facts, bands_nm=options.quicklook_nm)
