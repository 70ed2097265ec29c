"""`watch-photos:`: rows of pictures as lines, each picture for itself, whatever its writer does to the folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.bundle import load_bundle
from runtime.errors import CubeFileError, InputError
from runtime.files import read_cube
from runtime.lines import Broken, Flag, Taken
from runtime.sources import Source, SourceOptions, open_source
from runtime.stream.opening import open_stream
from tests.contracts.bundles import known_bundle
from tests.contracts.source import PATIENCE, Cube, SourceContract, drained

SHORT = SourceOptions(idle_seconds=0.6)


def picture(lines: int = 12, samples: int = 20, seed: int = 0) -> NDArray[np.uint8]:
    """[lines, samples, 3], dark."""
    return np.random.default_rng(seed).integers(0, 120, (lines, samples, 3)).astype(np.uint8)


def put(path: Path, array: NDArray[np.uint8]) -> None:
    part = path.with_name(f".{path.name}")
    Image.fromarray(array).save(part, format="PNG")
    part.replace(path)


class TestWatchPhotos(SourceContract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        put(tmp_path / "a.png", picture())
        return tmp_path

    @pytest.fixture
    def source(self, folder: Path) -> Iterator[Source]:
        with open_source(f"watch-photos:{folder}", SHORT) as source:
            yield source

    @pytest.fixture
    def quiet(self, folder: Path) -> Iterator[Source]:
        with open_source(f"watch-photos:{folder}", SourceOptions(idle_seconds=3 * PATIENCE)) as source:
            drained(source, 12)
            yield source

    @pytest.fixture
    def expected(self) -> Cube | None:
        return picture().transpose(0, 2, 1)


def test_each_picture_begins_anew_and_others_are_skipped(tmp_path: Path) -> None:
    arrays = {"b.png": picture(9, seed=1), "a.png": picture(seed=2), "c.png": picture(samples=21), "d.png": picture(7)}
    for number, (name, array) in enumerate(arrays.items()):
        put(tmp_path / name, array)
        (tmp_path / name).touch()
        time.sleep(0.01 * (number < 3))
    (tmp_path / "e.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (tmp_path / ".f.png").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("none")
    with open_source(f"watch-photos:{tmp_path}", SHORT) as source:
        assert source.stated.photograph and source.format.scale == 255 and source.format.saturation is None
        events, lines = drained(source)
        told = source.telemetry()
    expected = np.concatenate([arrays[name] for name in ("b.png", "a.png", "d.png")]).transpose(0, 2, 1)
    np.testing.assert_array_equal(lines, expected)
    taken = [event for event in events if isinstance(event, Taken)]
    assert [n for n, event in enumerate(taken) if event.flags & Flag.BREAK] == [0, 9, 21]
    why = [event.why for event in events if isinstance(event, Broken)]
    assert why[:3] == ["next file: a.png", f"skipped c.png: {tmp_path}/c.png: other samples than the first file's",
                       "next file: d.png"]  # fmt: skip
    assert why[3].startswith("skipped e.jpg: ") and (told["files"], told["skipped"]) == (3, 2)


def test_half_written_pictures_are_waited_for_and_new_ones_under_an_old_name_are_read(tmp_path: Path) -> None:
    path, seconds = tmp_path / "now.png", SourceOptions(idle_seconds=1.2)
    put(path, picture())
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])

    def go_on() -> None:
        time.sleep(0.5)
        path.write_bytes(whole)
        time.sleep(0.6)
        path.touch()
        time.sleep(0.6)
        put(path, picture(5, seed=1))

    thread = threading.Thread(target=go_on)
    thread.start()
    with open_source(f"watch-photos:{tmp_path}", seconds) as source:
        lines = drained(source)[1]
    thread.join()
    np.testing.assert_array_equal(lines, np.concatenate([picture(), picture(5, seed=1)]).transpose(0, 2, 1))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the path is missing"):
        open_source("watch-photos:")
    with pytest.raises(CubeFileError, match="cannot be watched"):
        open_source(f"watch-photos:{tmp_path}/none", SHORT)
    with pytest.raises(CubeFileError, match=r"no complete photograph within 0\.6 s"):
        open_source(f"watch-photos:{tmp_path}", SHORT)
    put(tmp_path / "a.png", picture())
    with pytest.raises(InputError, match="2 wavelengths for 3 bands"):
        open_source(f"watch-photos:{tmp_path}", SourceOptions(idle_seconds=0.6, wavelengths=(1.0, 2.0)))


def test_a_stream_restores_black_and_even_lines_and_no_frame_has_lines_of_two_pictures(tmp_path: Path) -> None:
    dark, even = picture(19), picture(11, seed=1)
    dark[5:8], dark[15] = 0, dark[14]
    even[3:9] = 100
    even[9] = 255
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder / "1.png", dark)
    put(folder / "2.png", even)
    put(folder / "3.png", 0 * even)
    with load_bundle(known_bundle(tmp_path / "bundle", gain=2)) as bundle, \
            open_source(f"watch-photos:{folder}", SHORT) as source:  # fmt: skip
        result = open_stream(bundle, source, restored=tmp_path / "out").run()
    assert not result.failures and (result.count.restored, result.count.passed) == (41, 0)
    # Frames of 8 lines that overlap by 4: four of the first picture, two of each other.
    assert result.frames["restored"] == 8
    out = read_cube(next((tmp_path / "out").glob("*.hdr"))).cube
    made = np.concatenate([dark, even, 0 * even]).transpose(2, 0, 1)
    np.testing.assert_array_equal(out, np.minimum(255, 2 * made.astype(int)))
