"""Demosaicing against the filters of the paper's figures, and the colours of an area camera line by line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import correlate

from runtime.errors import InputError
from runtime.lines import Flag, Taken
from runtime.sources.camera.colours import Demosaic
from runtime.sources.camera.genicam import GenicamSource, _refuse_colours
from runtime.sources.camera.order import Image
from runtime.sources.camera.pixel_formats import BY_NAME, Unpacker
from runtime.sources.camera.session import Session
from runtime.sources.camera.settings import CameraSettings

PATTERNS = ("RG", "GR", "GB", "BG")
# Figure 2 of the paper, in eighths.
GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]])
IN_ROW = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]])
DIAGONAL = np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]])


def places(pattern: str, rows: int, columns: int) -> NDArray[np.int64]:
    """Which of red, green and blue each pixel sees."""
    tile = {"RG": [[0, 1], [1, 2]], "GR": [[1, 0], [2, 1]], "GB": [[1, 2], [0, 1]], "BG": [[2, 1], [1, 0]]}[pattern]
    return np.tile(tile, (rows, columns))[:rows, :columns]


def by_the_paper(image: NDArray[Any], pattern: str, largest: int) -> NDArray[np.int64]:
    """Every filter at every pixel, and of them the one that belongs there."""
    filters = (GREEN, IN_ROW, IN_ROW.T, DIAGONAL)
    green, in_row, in_column, diagonal = (correlate(image.astype(float), f, mode="mirror") / 8 for f in filters)
    seen = places(pattern, *image.shape)
    out = np.zeros((3, *image.shape))
    for line in range(image.shape[0]):
        for column in range(image.shape[1]):
            own, beside = seen[line, column], seen[line, column ^ 1 if (column ^ 1) < image.shape[1] else column - 1]
            for band in range(3):
                if band == own:
                    out[band, line, column] = image[line, column]
                elif own != 1:
                    out[band, line, column] = (green if band == 1 else diagonal)[line, column]
                else:
                    out[band, line, column] = (in_row if band == beside else in_column)[line, column]
    return np.clip(np.floor(out + 0.5), 0, largest).astype(np.int64)


def demosaiced(image: NDArray[Any], pattern: str, largest: int) -> NDArray[Any]:
    out = np.empty((3, *image.shape), image.dtype)
    Demosaic(pattern, *image.shape, largest).colours(image, out)
    return out


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("size", [(3, 3), (8, 10), (9, 7)])
def test_every_pixel_is_what_the_papers_filters_make(pattern: str, size: tuple[int, int]) -> None:
    for dtype, largest in ((np.uint8, 255), (np.uint16, 4095)):
        image = np.random.default_rng(0).integers(0, largest + 1, size).astype(dtype)
        np.testing.assert_array_equal(demosaiced(image, pattern, largest), by_the_paper(image, pattern, largest))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_known_answers(pattern: str) -> None:
    seen = places(pattern, 12, 14)
    # One colour all over is that colour.
    colour = np.array([200, 100, 50], np.uint8)
    assert (demosaiced(colour[seen], pattern, 255) == colour[:, None, None]).all()
    # A grey ramp is itself, but where it is reflected.
    line, column = np.mgrid[:12, :14]
    ramp = (5 * line + 3 * column).astype(np.uint8)
    assert (demosaiced(ramp, pattern, 255)[:, 2:-2, 2:-2] == ramp[2:-2, 2:-2]).all()
    # Nothing goes beyond the limits.
    edge = np.where(column < 7, 0, 255).astype(np.uint8)
    found = demosaiced(edge, pattern, 255)
    assert found[:, :, :4].max() == 0 and found[:, :, -4:].min() == 255


def image_of(name: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Bytes of an image of 6 x 8, and its colours."""
    form = BY_NAME[name]
    if name == "RGB8":
        pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
        return pixels.reshape(-1), np.moveaxis(pixels, 2, 0)
    pixels = np.random.default_rng(0).integers(0, 1 << form.bits, (6, 8)).astype(form.dtype)
    colours = by_the_paper(pixels, form.colours, form.largest)
    if name.endswith("p"):
        bits = (pixels.reshape(-1)[:, None] >> np.arange(12)) & 1
        return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little"), colours
    return pixels.reshape(-1).view(np.uint8), colours


@pytest.mark.parametrize("name", ["BayerRG8", "BayerRG12", "BayerGB12p", "RGB8"])
def test_an_image_becomes_as_many_lines_as_it_has_rows(name: str) -> None:
    data, colours = image_of(name)
    form = BY_NAME[name]
    session = SimpleNamespace(
        form=form, height=6, width=8, unpacker=Unpacker(form, 48), memory=data[None], stream=SimpleNamespace(push=int)
    )
    session.values = lambda place: Session.values(session, place)  # type: ignore[arg-type]
    source = GenicamSource.__new__(GenicamSource)
    source._settings, source._session = CameraSettings.of({"geometry": "colour", "flip_samples": True}), session  # type: ignore[assignment]
    source._lines, bands, samples = source._settings.shape(6, 8)
    source._make_buffers(session)  # type: ignore[arg-type]
    source._flags, source._index = Flag(0), 0
    assert (source._lines, bands, samples) == (6, 3, 8)
    line = np.zeros((3, 8), form.dtype)
    for row in range(6):
        taken = source._taken(line, 5, Image(0, 0, 1))
        assert taken == Taken(30 + row, 1, {0: Flag.BREAK, 5: Flag.END}.get(row, Flag(0)))
        np.testing.assert_array_equal(line, colours[:, row, ::-1])


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        ({"geometry": "colour"}, "Mono12", "the camera sends no colours.*it sends Mono12"),
        ({}, "BayerRG8", "the camera sends BayerRG8.*set it to colour"),
        ({"geometry": "mosaic", "pattern": "2x2"}, "RGB8", "the camera sends RGB8"),
    ],
)
def test_geometry_and_colours_must_go_together(settings: dict[str, Any], name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _refuse_colours(CameraSettings.of(settings), BY_NAME[name])
    _refuse_colours(CameraSettings.of({"geometry": "mosaic", "pattern": "2x2"}), BY_NAME["BayerRG8"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"spectral_axis": "columns"}, "such an image has no spectral axis"), ({"pattern": "2x2"}, "belongs to mosaics")],
)
def test_settings_of_other_geometries(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        CameraSettings.of({"geometry": "colour", **settings})
    with pytest.raises(InputError, match="too small for colours"):
        CameraSettings.of({"geometry": "colour"}).shape(2, 100)
