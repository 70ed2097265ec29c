"""Pictures of cubes in natural colours, and what is drawn on them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from runtime.errors import CubeError
from runtime.files.disk import write_together

Picture: TypeAlias = NDArray[np.uint8]
Stretch: TypeAlias = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
Pixel: TypeAlias = tuple[int, int]
RED_GREEN_BLUE_NM = (640.0, 550.0, 460.0)
# Where these three lie from 400 to 700 nm: the guess for a cube that does not tell its wavelengths.
RED_GREEN_BLUE_PLACE = (0.8, 0.5, 0.2)
STRETCH_PERCENTILES = (2.0, 98.0)
STRETCH_SAMPLES = 1_000_000
ERROR_PERCENTILE = 99.5
ERROR_COLOURS = ("#000004", "#280b54", "#65156e", "#9f2a63", "#d44842", "#f57d15", "#fac127", "#fcffa4")
"""No error to the largest, evenly spaced. Lightness rises all the way: it reads in grey and for the colour-blind."""
NOT_A_NUMBER = (128, 128, 128)
MARK_COLOURS = ("#ffd60a", "#00e5ff", "#ff5ca8", "#7dff6a", "#ff9f1c", "#c4a7ff")
LABEL_CHARACTERS = 40
SHOWN_PIXELS = ((0.25, 0.3), (0.5, 0.62), (0.75, 0.4))


def pixels_shown(shape: tuple[int, ...]) -> list[Pixel]:
    """Three places in a cube [bands, lines, samples] whose spectra are drawn."""
    return [(int(line * shape[1]), int(sample * shape[2])) for line, sample in SHOWN_PIXELS]


def bands_shown(bands: int, wavelengths: Sequence[float] | None = None) -> tuple[int, int, int]:
    """Indices of the bands that stand for red, green and blue.

    The bands nearest to 640, 550 and 460 nm; where these are not three different ones (few bands, or none in the
    visible), or without wavelengths, the bands at four fifths, half and one fifth of the range.
    """
    if wavelengths is not None:
        centres = np.asarray(wavelengths, np.float64)
        if centres.shape != (bands,):
            raise CubeError(
                f"{centres.size} wavelengths for {bands} bands",
                key="wavelengths",
                remedy="give one wavelength per band",
            )
        nearest = [int(np.argmin(np.abs(centres - wanted))) for wanted in RED_GREEN_BLUE_NM]
        if len(set(nearest)) == 3:
            return nearest[0], nearest[1], nearest[2]
    order = np.arange(bands) if wavelengths is None else np.argsort(np.asarray(wavelengths, np.float64), kind="stable")
    red, green, blue = (int(order[round(place * (bands - 1))]) for place in RED_GREEN_BLUE_PLACE)
    return red, green, blue


def stretch_limits(cube: ArrayLike, wavelengths: Sequence[float] | None = None) -> Stretch:
    """The 2nd and 98th percentile of the red, green and blue band of `cube` [bands, lines, samples].

    Limits of one cube (the truth) passed to `rgb` for the others make their pictures comparable.
    """
    values = checked_cube(cube)
    red, green, blue = (limits_of(values[band]) for band in bands_shown(len(values), wavelengths))
    return red, green, blue


def rgb(cube: ArrayLike, wavelengths: Sequence[float] | None = None, stretch: Stretch | None = None) -> Picture:
    """Quicklook of `cube` [bands, lines, samples] in natural colours, or the nearest to them its bands allow.

    Args:
        cube: numbers of any kind; NaN is shown black.
        wavelengths: centre of every band in nm.
        stretch: values shown as 0 and 255 for red, green and blue; None takes the cube's own percentiles.

    Returns:
        uint8 [lines, samples, 3].

    Raises:
        CubeError: it is no cube of numbers, or the wavelengths do not match it.
    """
    values = checked_cube(cube)
    limits = stretch_limits(values, wavelengths) if stretch is None else stretch
    planes = []
    for band, (low, high) in zip(bands_shown(len(values), wavelengths), limits, strict=True):
        span = high - low if high > low else 1.0
        with np.errstate(all="ignore"):
            shown = np.nan_to_num((values[band].astype(np.float64) - low) / span, nan=0.0, posinf=1.0, neginf=0.0)
        planes.append(np.clip(shown, 0.0, 1.0))
    return np.rint(255.0 * np.stack(planes, axis=-1)).astype(np.uint8)


def error_map(restored: ArrayLike, truth: ArrayLike) -> tuple[Picture, float]:
    """Mean absolute error over the bands of two cubes [bands, lines, samples], in colours from black to yellow.

    Returns:
        uint8 [lines, samples, 3] and the error from which its last colour stands, the one that 99.5 % of the pixels
        keep: a few glints would otherwise leave all else black. A pixel without a number is grey.

    Raises:
        CubeError: they are no cubes of numbers, or differ in shape.
    """
    left, right = checked_cube(restored), checked_cube(truth)
    if left.shape != right.shape:
        raise CubeError(f"a cube of {left.shape} against one of {right.shape}", remedy="compare cubes of one shape")
    error = np.zeros(left.shape[1:], np.float64)
    with np.errstate(all="ignore"):
        for a, b in zip(left, right, strict=True):
            error += np.abs(a.astype(np.float64) - b.astype(np.float64))
        error /= len(left)
    known = np.isfinite(error)
    limit = float(np.percentile(error[known], ERROR_PERCENTILE)) if known.any() else 0.0
    limit = limit or float(error[known].max(initial=0.0))
    place = np.where(known, error, 0.0) / (limit if limit > 0 else 1.0)
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in ERROR_COLOURS], np.float64)
    steps = np.linspace(0.0, 1.0, len(anchors))
    picture = np.stack([np.interp(place, steps, anchors[:, channel]) for channel in range(3)], axis=-1)
    picture[~known] = NOT_A_NUMBER
    return np.rint(picture).astype(np.uint8), limit


def fitted(picture: Picture, *, shortest: int = 384, longest: int = 1024) -> Picture:
    """`picture` in a size fit for a page: large ones averaged down, small ones with every pixel repeated."""
    lines, samples = picture.shape[:2]
    if max(lines, samples) > longest:
        scale = longest / max(lines, samples)
        size = (max(1, round(samples * scale)), max(1, round(lines * scale)))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    times = min(-(-shortest // min(lines, samples)), longest // max(lines, samples))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def marked(picture: Picture, pixels: Sequence[Pixel], cube_shape: tuple[int, int]) -> Picture:
    """`picture` with a numbered ring around each of `pixels`; `spectra_plot` numbers its panels alike.

    Args:
        picture: uint8 [lines, samples, 3] of the whole cube, in any size.
        pixels: (line, sample) in the cube.
        cube_shape: lines and samples of the cube.
    """
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    draw = ImageDraw.Draw(image)
    font = _font(max(12, min(image.size) // 16))
    radius = max(5, min(image.size) // 34)
    for number, (line, sample) in enumerate(pixels):
        x = (sample + 0.5) * image.width / cube_shape[1]
        y = (line + 0.5) * image.height / cube_shape[0]
        for grown, colour, width in ((2, "#000000", 7), (0, MARK_COLOURS[number % len(MARK_COLOURS)], 3)):
            reach = radius + grown
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=width)
        text = str(number + 1)
        _, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        # The number goes to the side that has room for it.
        at_x = x + radius + 5 if x + radius + 10 + right < image.width else x - radius - 5 - right
        at_y = min(max(y - (top + bottom) / 2, -top), image.height - bottom - 1)
        draw.text((at_x, at_y), text, font=font, fill="#ffffff", stroke_width=2, stroke_fill="#000000")
    return np.asarray(image)


def side_by_side(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Pictures [lines, samples, 3] in a row, with `gap` white samples between them, and white below what is lower."""
    lines = max(len(picture) for picture in pictures)
    row = np.full((lines, sum(picture.shape[1] + gap for picture in pictures) - gap, 3), 255, np.uint8)
    at = 0
    for picture in pictures:
        row[: len(picture), at : at + picture.shape[1]] = picture
        at += picture.shape[1] + gap
    return row


def png_bytes(picture: Picture) -> bytes:
    """PNG of uint8 [lines, samples, 3] or [lines, samples], without a date."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def save_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all: temporary name, fsync, rename.

    Raises:
        InputError: the system refused; what was there before still is.
    """

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_together([(Path(path), write)])


def checked_cube(cube: ArrayLike) -> NDArray[Any]:
    values = np.asarray(cube)
    if values.ndim != 3 or values.size == 0 or values.dtype.kind not in "buif":
        raise CubeError(
            f"an array of {values.dtype}, shape {values.shape}, where a cube should be",
            remedy="give numbers [bands, lines, samples]",
        )
    return values


def limits_of(plane: NDArray[Any]) -> tuple[float, float]:
    step = max(1, int(np.sqrt(plane.size / STRETCH_SAMPLES)))
    values = plane[::step, ::step].astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    # Values that occur, not points between them: the difference of two of them may overflow.
    low, high = (float(limit) for limit in np.percentile(values, STRETCH_PERCENTILES, method="nearest"))
    # A plane of one value is shown in middle grey.
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size=size)
    except (TypeError, ImportError, OSError):
        return ImageFont.load_default()  # Pillow 10.0, or one built without FreeType


def drawn_label(text: str) -> str:
    """Text of a plot: printable, short, and not starting with the `_` that hides a label."""
    shown = "".join(c for c in text if c.isprintable()).lstrip("_ ")
    return shown if len(shown) <= LABEL_CHARACTERS else shown[: LABEL_CHARACTERS - 1] + "…"
