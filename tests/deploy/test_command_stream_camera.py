"""`deploy stream` with the independent virtual spectrometer: GigE Vision, losses, a camera that dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.lines import Flag
from runtime.record.index import read_index, verify
from tests.contracts.line_files import assert_others_read
from tests.contracts.spectrometer import Spectrometer, spectrometer, wait_until

pytestmark = pytest.mark.data
LINES, BANDS, SAMPLES = 500, 31, 96
MOST_LOST = 0.1
"""On a busy machine the receiver may lose a line now and then; it is told, and that is what is tested."""


def served(samples: int = SAMPLES, bands: int = BANDS, lines: int = LINES) -> NDArray[np.uint16]:
    """No two lines are equal, and none holds the largest value."""
    return np.random.default_rng(0).integers(0, 4095, (lines, bands, samples)).astype(np.uint16)


def arguments(bundle: Path, folder: Path, rate: float, *more: object, stall_seconds: float = 5) -> list[str]:
    config = folder / "deploy.yaml"
    camera = f"{{pixel_format: Mono12, frame_rate: {rate:g}, stall_seconds: {stall_seconds:g}}}"
    config.write_text(f"stream:\n  camera: {camera}\n  drain_seconds: 5\n")
    return [
        sys.executable, "-m", "deploy", "stream", str(bundle), "--source", "genicam:127.0.0.1", "--record",
        str(folder / "out"), "--restored", str(folder / "out"), "--config", str(config), "--no-self-test", "--json",
        *map(str, more),
    ]  # fmt: skip


def finished(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    lines = result["lines"]
    assert lines["in"] == lines["restored"] + lines["dropped"] + lines["incomplete"]
    assert lines["recorded"] == lines["in"] - lines["incomplete"]
    return result


def popen(camera: Spectrometer, *command: object) -> subprocess.Popen[str]:
    return camera.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def assert_as_served(folder: Path, cube: NDArray[np.uint16], recorded: int) -> NDArray[Any]:
    """Every recorded line is the one that was served, run by run, and others read the same; returns the index."""
    report = verify(folder, "lines")
    assert (report.lines, report.bad) == (recorded, 0)
    assert assert_others_read(folder) == recorded
    index = read_index(folder / "lines.idx")
    raw = np.fromfile(folder / "lines.raw", "<u2").reshape(len(index), *cube.shape[1:])
    for run in np.split(np.arange(len(index)), np.flatnonzero(index["flags"] & Flag.BREAK)[1:]):
        start = next(place for place in range(len(cube)) if np.array_equal(cube[place], raw[run[0]]))
        ids = index["frame_id"][run].astype(np.int64)
        assert (np.diff(ids) > 0).all()
        wanted = cube[(start + ids - ids[0]) % len(cube)]
        np.testing.assert_array_equal(raw[run], wanted)
    return index


def test_every_recorded_line_is_the_one_that_was_served(tiny_bundle: Path, tmp_path: Path) -> None:
    cube = served()
    with spectrometer(cube, folder=tmp_path) as camera:
        result = finished(popen(camera, *arguments(tiny_bundle, tmp_path, 200, "--duration", 3)))
    assert result["ended_by"] == "duration"
    assert result["lines"]["in"] > 200
    assert result["lines"]["restored"] > 0
    assert result["lines"]["incomplete"] <= MOST_LOST * result["lines"]["in"]
    assert_as_served(tmp_path / "out", cube, result["lines"]["recorded"])
    assert verify(tmp_path / "out", "restored").bad == 0


def test_lost_packets_are_lines_that_are_known_to_be_missing(tiny_bundle: Path, tmp_path: Path) -> None:
    cube = served(samples=256)
    with spectrometer(cube, folder=tmp_path, lost_per_thousand=20) as camera:
        result = finished(popen(camera, *arguments(tiny_bundle, tmp_path, 100, "--duration", 3)))
    lines = result["lines"]
    assert lines["incomplete"] > 0
    index = assert_as_served(tmp_path / "out", cube, lines["recorded"])
    # Sequence numbers and frame ids have the same gaps: no missing line was forgotten, none invented.
    steps = np.diff(index["sequence"].astype(np.int64))
    np.testing.assert_array_equal(steps, np.diff(index["frame_id"].astype(np.int64)))
    assert ((index["flags"][1:][steps > 1] & Flag.GAP) > 0).all()


def recorded_lines(folder: Path) -> int:
    index = folder / "lines.idx"
    return index.stat().st_size // 32 if index.exists() else 0


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Events of a kind in the log; its last row may not be whole yet."""
    path = folder / "stream.jsonl"
    rows = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [row for row in map(json.loads, (row for row in rows if row.endswith("\n"))) if row["kind"] == kind]


def test_a_camera_that_dies_and_comes_back(tiny_bundle: Path, tmp_path: Path) -> None:
    cube, out = served(), tmp_path / "out"
    with spectrometer(cube, folder=tmp_path) as camera:
        process = popen(camera, *arguments(tiny_bundle, tmp_path, 200))
        wait_until(lambda: recorded_lines(out) > 100)
        camera.kill()
        time.sleep(0.5)
        before = recorded_lines(out)
        camera.start(cube)
        wait_until(lambda: recorded_lines(out) > before + 100, 60)
        process.send_signal(signal.SIGTERM)
        result = finished(process)
    assert result["ended_by"] == "signal"
    found = assert_as_served(out, cube, result["lines"]["recorded"])
    assert np.count_nonzero(found["flags"] & Flag.BREAK) == 2
    assert len(told(out, "broken")) == 1


def test_it_ends_though_its_camera_has_died(tiny_bundle: Path, tmp_path: Path) -> None:
    cube, out = served(), tmp_path / "out"
    with spectrometer(cube, folder=tmp_path) as camera:
        process = popen(camera, *arguments(tiny_bundle, tmp_path, 200))
        wait_until(lambda: recorded_lines(out) > 100)
        camera.kill()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        result = finished(process)
        # Less than two by itself; waiting for the camera's library took more than twelve.
        assert time.monotonic() - began < 10
    assert result["ended_by"] == "signal"
    assert_as_served(out, cube, result["lines"]["recorded"])


@pytest.mark.slow
def test_a_camera_that_stalls_and_goes_on(tiny_bundle: Path, tmp_path: Path) -> None:
    cube, out = served(), tmp_path / "out"
    with spectrometer(cube, folder=tmp_path) as camera:
        process = popen(camera, *arguments(tiny_bundle, tmp_path, 200, stall_seconds=1))
        wait_until(lambda: recorded_lines(out) > 100)
        camera.pause()
        wait_until(lambda: bool(told(out, "broken")))
        before, waited = recorded_lines(out), len(told(out, "telemetry"))
        # It is told while nothing comes: the stream is alive, and waits.
        wait_until(lambda: len(told(out, "telemetry")) > waited + 2)
        camera.resume()
        wait_until(lambda: recorded_lines(out) > before + 100, 60)
        process.send_signal(signal.SIGTERM)
        result = finished(process)
    assert result["ended_by"] == "signal"
    found = assert_as_served(out, cube, result["lines"]["recorded"])
    assert np.count_nonzero(found["flags"] & Flag.BREAK) == 1 + len(told(out, "broken"))


@pytest.mark.slow
def test_a_whole_spectrometer_in_a_ring(tiny_bundle: Path, tmp_path: Path) -> None:
    cube = served(640, 224, 300)
    with spectrometer(cube, folder=tmp_path) as camera:
        result = finished(
            popen(camera, *arguments(tiny_bundle, tmp_path, 330, "--duration", 20, "--spool-limit", "600MiB"))
        )
    lines = result["lines"]
    assert lines["incomplete"] <= MOST_LOST * lines["in"]
    spool = result["spool"]
    assert spool["deleted_segments"] > 0
    assert spool["bad_segments"] == 0
    assert spool["lines"] + spool["deleted_lines"] == lines["recorded"]
    report = verify(tmp_path / "out", "lines")
    assert (report.lines, report.bad) == (spool["lines"], 0)
