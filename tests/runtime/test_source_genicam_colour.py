"""A colour camera of GigE Vision, image for image, against the paper's filters; and pictures made of its stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.files import read_cube
from runtime.lines import Flag, Taken
from runtime.sources import SourceOptions, open_source
from runtime.sources.camera.pixel_formats import BY_NAME
from tests.contracts.bundles import known_bundle
from tests.contracts.colour_camera import colour_camera
from tests.contracts.spectrometer import ADDRESS, Spectrometer
from tests.runtime.test_colours import by_the_paper

pytestmark = pytest.mark.data
IMAGES, ROWS, COLUMNS = 5, 24, 32
FORMS = ("BayerRG8", "BayerRG12", "BayerRG12p", "BayerRG12Packed", "RGB8")


# In the camera's network.


def take(expected: str, form: str, count: int) -> dict[str, Any]:
    """So many images in a format: how many were as expected, at the place that their frame id says."""
    wanted = np.load(expected)[form]
    camera = {"geometry": "colour", "pixel_format": form, "frame_rate": 50.0}
    same, flags, first = 0, set(), None
    with open_source(f"genicam:{ADDRESS}", SourceOptions(camera=camera)) as source:
        line, image = np.zeros(source.format.shape, source.format.dtype), np.zeros_like(wanted[0])
        while same < count:
            event = source.read(line, 5)
            if not isinstance(event, Taken):
                # A busy computer may lose an image.
                continue
            number, row = divmod(event.frame_id, ROWS)
            image[:, row] = line
            flags.add((row, int(event.flags & ~Flag.GAP)))
            if row == ROWS - 1:
                found = next(place for place in range(IMAGES) if np.array_equal(image, wanted[place]))
                first = (found - number) % IMAGES if first is None else first
                assert found == (first + number) % IMAGES
                same += 1
        return {"flags": sorted(flags), "format": [*source.format.shape, source.format.scale], "same": same}


def take_in_formats(expected: str, count: int) -> dict[str, Any]:
    return {form: take(expected, form, count) for form in FORMS}


# Here.


def stored(pixels: NDArray[np.uint16], form: str) -> NDArray[np.uint8]:
    """Images as a format has them, [images, bytes]."""
    if form.endswith("8"):
        return pixels.astype(np.uint8).reshape(IMAGES, -1)
    if form == "BayerRG12":
        return pixels.astype("<u2").reshape(IMAGES, -1).view(np.uint8)
    one, two = pixels.reshape(IMAGES, -1, 2).astype(int).transpose(2, 0, 1)
    if form == "BayerRG12p":
        parts = (one & 255, one >> 8 | (two & 15) << 4, two >> 4)
    else:
        parts = (one >> 4, one & 15 | (two & 15) << 4, two >> 4)
    return np.stack(parts, axis=-1).astype(np.uint8).reshape(IMAGES, -1)


@pytest.fixture(scope="module")
def expected() -> dict[str, NDArray[Any]]:
    """What lines of each format should hold, [images, bands, rows, columns]."""
    return {}


@pytest.fixture(scope="module")
def camera(expected: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spectrometer]:
    served = {}
    for form in map(BY_NAME.__getitem__, FORMS):
        shape = (IMAGES, ROWS, COLUMNS, *[3] * (form.values == 3))
        # Half of the range: the network of the stream doubles.
        pixels = np.random.default_rng(form.value).integers(0, form.largest // 2, shape, dtype=np.uint16)
        served[form.name] = stored(pixels, form.name)
        made = pixels.transpose(0, 3, 1, 2) if form.values == 3 else np.stack(
            [by_the_paper(image, "RG", form.largest) for image in pixels]
        )  # fmt: skip
        expected[form.name] = made.astype(form.dtype)
    with colour_camera(served, ROWS, COLUMNS, tmp_path_factory.mktemp("camera")) as there:
        yield there


def test_every_colour_format_comes_as_it_was_served(
    camera: Spectrometer, expected: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    np.savez(tmp_path / "expected.npz", **expected)
    found = camera.call(take_in_formats, str(tmp_path / "expected.npz"), 2 * IMAGES)
    inside = [[row, 0] for row in range(1, ROWS - 1)]
    for form, report in found.items():
        assert report["same"] == 2 * IMAGES
        assert report["flags"] == [[0, int(Flag.BREAK)], *inside, [ROWS - 1, int(Flag.END)]], form
        assert report["format"] == [3, COLUMNS, BY_NAME[form].largest]


@pytest.mark.parametrize("form", ["BayerRG8", "BayerRG12p"])
def test_a_stream_makes_pictures_of_its_images(
    camera: Spectrometer, expected: dict[str, NDArray[Any]], tmp_path: Path, form: str
) -> None:
    bundle, out = known_bundle(tmp_path / "bundle", gain=2), tmp_path / "out"
    out.mkdir()
    config = f"{{geometry: colour, pixel_format: {form}, frame_rate: 20}}"
    (tmp_path / "deploy.yaml").write_text(f"stream: {{policy: block, camera: {config}}}\n")
    done = camera.run(
        sys.executable, "-m", "deploy", "stream", bundle, "--source", f"genicam:{ADDRESS}", "--no-self-test",
        "--config", tmp_path / "deploy.yaml", "--sink", f"pictures:{out}", "--duration", 2, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout.splitlines()[-1])["lines"]
    assert lines["passed"] == 0
    made = np.minimum(255, 2.0 * expected[form])
    if form == "BayerRG12p":
        # What stands for 1.0 becomes 65535.
        made = np.minimum(65535, np.rint(2.0 * expected[form] * 65535 / 4095))
    whole = [path for path in out.iterdir() if path.stem.isdecimal()]
    assert len(whole) >= 3
    for path in whole:
        picture = read_cube(path).cube
        assert any(np.array_equal(picture, one) for one in made), path
