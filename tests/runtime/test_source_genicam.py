"""The source of GenICam cameras against an independent GigE Vision camera, and its parts by themselves.

What talks to the camera runs in the camera's own network, in a process started by `Spectrometer.call`: the functions
that come first here.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import DeployError, InputError, MachineError
from runtime.lines import NO_FLAGS, Broken, Flag, Line, Missing, Quiet, Taken
from runtime.sources import Source, SourceOptions, open_source
from runtime.sources.camera import aravis_library
from runtime.sources.camera import session as camera_session
from runtime.sources.camera.genicam import GenicamSource
from runtime.sources.camera.order import BEHIND, FrameIds, Image, Order, Restarts, Skipped
from runtime.sources.camera.settings import CameraSettings
from tests.contracts.source import SourceContract, buffer
from tests.contracts.spectrometer import ADDRESS, SERIAL, Spectrometer, spectrometer, wait_until

FAST = {"frame_rate": 900.0, "packet_size": 9000}


# In the camera's network.


class Log:
    """What a source answered, and whether every line is one that was served, at the place that its id says.

    A line says by its first value which line of the cube it is.
    """

    def __init__(self, source: Source, cube: NDArray[Any]) -> None:
        self.source, self.cube = source, cube
        self.line: Line = np.zeros(source.format.shape, source.format.dtype)
        self.events: list[tuple[str, int, int, str]] = []
        self.taken = self.wrong = 0
        self.phases: set[int] = set()
        self.ages: list[int] = []

    def read(self, count: int, seconds: float) -> None:
        """Until `count` more lines were taken."""
        end, goal = time.monotonic() + seconds, self.taken + count
        while self.taken < goal and time.monotonic() < end:
            self.one()

    def one(self) -> None:
        event = self.source.read(self.line, 0.2)
        if isinstance(event, Taken):
            index = int(self.line[0, 0]) >> (0 if self.line.dtype == np.uint8 else 4)
            self.taken += 1
            self.wrong += index >= len(self.cube) or not np.array_equal(self.line, self.cube[index])
            self.phases.add((index - event.frame_id) % len(self.cube))
            self.ages.append(time.time_ns() - event.utc_ns)
            self.events.append(("taken", event.frame_id, 1, str(int(event.flags))))
        elif isinstance(event, Missing):
            self.events.append(("missing", event.frame_id, event.count, event.why))
        elif isinstance(event, Broken):
            self.events.append(("broken", 0, 0, event.why))
        elif isinstance(event, Quiet):
            self.events.append(("quiet", 0, 0, ""))

    def report(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "wrong": self.wrong,
            "phases": len(self.phases),
            "oldest_s": max(self.ages) / 1e9,
            "youngest_s": min(self.ages) / 1e9,
            "telemetry": dict(self.source.telemetry()),
            "about": self.source.describe(),
            "format": [*self.source.format.shape, self.source.format.scale, self.source.format.saturation],
        }


def served(path: str, form: str = "Mono12") -> NDArray[Any]:
    """The cube as the camera sends it in a format."""
    cube = np.load(path)
    return (cube >> 4).astype(np.uint8) if form == "Mono8" else cube


def take(path: str, count: int, seconds: float = 60, **camera: Any) -> dict[str, Any]:
    with open_source(f"genicam:{ADDRESS}", SourceOptions(camera={**FAST, **camera})) as source:
        log = Log(source, served(path, camera.get("pixel_format", "")))
        log.read(count, seconds)
        return log.report()


def take_late(path: str, count: int) -> dict[str, Any]:
    """Read when more lines have been served than the buffers hold."""
    with open_source(f"genicam:{ADDRESS}", SourceOptions(camera={**FAST, "buffers": 16})) as source:
        time.sleep(0.5)
        log = Log(source, served(path))
        log.read(count, 60)
        return log.report()


def take_in_formats(path: str, count: int, forms: list[str]) -> dict[str, Any]:
    return {form: take(path, count, pixel_format=form) for form in forms}


def take_until_told(path: str, told: str, **camera: Any) -> dict[str, Any]:
    """Read until the file `told` appears; from the 50th on, each line makes `told`.begun appear."""
    with open_source(f"genicam:{ADDRESS}", SourceOptions(camera={**FAST, **camera})) as source:
        log = Log(source, served(path))
        begun = Path(told + ".begun")
        for _ in range(10**6):
            log.one()
            if log.taken >= 50 and log.events[-1][0] == "taken" and not begun.exists():
                begun.touch()
            if Path(told).exists():
                break
        return log.report()


def take_mosaic(path: str, count: int) -> dict[str, Any]:
    """Lines of a mosaic of 4 x 4 filters, compared with the image by hand."""
    cube, order = np.load(path), [15, *range(15)]
    camera = {**FAST, "geometry": "mosaic", "pattern": "4x4", "band_order": order, "features": {"Height": 62}}
    with open_source(f"genicam:{ADDRESS}", SourceOptions(camera=camera, wavelengths=tuple(range(400, 416)))) as source:
        line = np.zeros(source.format.shape, source.format.dtype)
        found, wrong, number = [], 0, 0
        while len(found) < count:
            event = source.read(line, 0.5)
            if isinstance(event, Taken):
                place = event.frame_id % 15
                if place == 0:
                    number = int(line[1, 0]) >> 4
                right = [cube[number, place * 4 + at // 4, at % 4 :: 4] for at in order]
                wrong += not np.array_equal(line, right)
                found.append([event.frame_id, int(event.flags)])
        return {"lines": found, "wrong": wrong, "format": [*source.format.shape], "bands": source.format.wavelengths}


def take_turned(path: str) -> int:
    """How many of 50 lines are the image turned and mirrored; packed, so that the image is unpacked before."""
    camera = {**FAST, "pixel_format": "Mono12p", "features": {"Height": 64}}
    camera |= {"spectral_axis": "columns", "flip_bands": True, "flip_samples": True}
    turned = np.load(path)[:, ::-1, ::-1].transpose(0, 2, 1)
    with open_source(f"genicam:{ADDRESS}", SourceOptions(camera=camera)) as source:
        line = np.zeros(source.format.shape, source.format.dtype)
        same, taken = 0, 0
        while taken < 50:
            if isinstance(source.read(line, 2), Taken):
                taken += 1
                same += np.array_equal(line, turned[int(line[-1, -1]) >> 4])
    return same


def refused(address: str, **camera: Any) -> tuple[str, str]:
    camera_session.SEARCH_SECONDS = camera_session.BUSY_SECONDS = 0.0
    try:
        open_source(f"genicam:{address}", SourceOptions(camera=camera)).close()
    except DeployError as error:
        return type(error).__name__, str(error)
    return "", ""


def refused_each(cases: list[list[Any]]) -> list[tuple[str, str]]:
    return [refused(address, **camera) for address, camera in cases]


class InsideGenicam(SourceContract):
    """Collected only where the camera is: see `test_the_contract_of_sources`."""

    ends = False

    @pytest.fixture
    def source(self) -> Iterator[Source]:
        with open_source(
            f"genicam:{ADDRESS}", SourceOptions(camera={**FAST, "features": {"TriggerMode": "Off"}})
        ) as it:
            yield it

    @pytest.fixture
    def quiet(self) -> Iterator[Source]:
        waiting = {"features": {"TriggerSelector": "FrameStart", "TriggerMode": "On", "TriggerSource": "Software"}}
        with open_source(f"genicam:{ADDRESS}", SourceOptions(camera={**FAST, **waiting})) as it:
            # The camera may send one image that it had begun.
            while it.read(buffer(it), 0.2) != Quiet():
                pass
            yield it


# Here.


def numbered(lines: int, bands: int, samples: int, bits: int = 12) -> NDArray[np.uint16]:
    """Noise over all values, but for the first value of each line, which is its number * 16."""
    cube = np.random.default_rng(bits).integers(0, 1 << bits, (lines, bands, samples), dtype=np.uint16)
    cube[:, 0, 0] = np.arange(lines) << 4
    return cube


CUBE = numbered(250, 64, 160)


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spectrometer]:
    """A camera that every test finds switched on and in nobody's hands."""
    with spectrometer(CUBE, folder=tmp_path_factory.mktemp("camera")) as there:
        yield there


@pytest.fixture
def path(camera: Spectrometer, request: pytest.FixtureRequest) -> str:
    return str(camera._folder / "served.npy")


def accounted(events: list[list[Any]]) -> tuple[list[int], list[int]]:
    """Ids taken and missing; each comes once and in order."""
    ids: list[tuple[int, bool]] = []
    for kind, first, count, _ in events:
        if kind in ("taken", "missing"):
            ids += [(first + step, kind == "taken") for step in range(count)]
    numbers = [number for number, _ in ids]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return [n for n, good in ids if good], [n for n, good in ids if not good]


def checked(report: dict[str, Any], *, breaks: int = 1, most_missing: float = 0.1) -> tuple[list[int], list[int]]:
    """Ids taken and missing: each once, in order, under flags that say so, and every line what was served for its id.

    A busy computer may lose packets by itself; `most_missing` is the share of lines that are let pass.
    """
    assert report["wrong"] == 0
    # The camera's lines follow its ids without a gap, so one line at a wrong id would be a second phase.
    assert report["phases"] == breaks
    taken, missing = accounted(report["events"])
    assert len(missing) <= most_missing * (len(taken) + len(missing)), report["telemetry"]
    expected, found = Flag.BREAK, []
    for kind, _, _, said in report["events"]:
        if kind == "taken":
            found.append(int(said) == expected)
            expected = NO_FLAGS
        elif kind == "missing":
            expected |= Flag.GAP
        elif kind == "broken":
            expected = Flag.BREAK
    assert all(found)
    figures = report["telemetry"]
    assert figures["damaged"] + figures["skipped"] >= len(missing)
    return taken, missing


@pytest.mark.data
def test_every_format_comes_as_it_was_served(camera: Spectrometer, path: str) -> None:
    camera.restart()
    found = camera.call(take_in_formats, path, 250, ["Mono8", "Mono12", "Mono12p", "Mono14", "Mono16"])
    for form, report in found.items():
        bits = int(form.removeprefix("Mono").removesuffix("p"))
        assert report["format"] == [64, 160, 2**bits - 1, 2**bits - 1], form
        taken, _ = checked(report)
        assert len(taken) == 250, form
        # A camera just switched on counts from shortly before its ids wrap.
        assert (taken[0] < 65535 < taken[-1]) == (form == "Mono8")
        assert report["about"]["pixel_format"] == form
        assert report["telemetry"]["temperature_c"] == 21.5
        assert 0 <= report["youngest_s"] < report["oldest_s"] < 5


@pytest.mark.data
def test_the_contract_of_sources(camera: Spectrometer) -> None:
    inside = ("-o", "python_classes=Inside*", "-k", "InsideGenicam", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = camera.run(sys.executable, "-m", "pytest", "-q", *inside, __file__)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    camera.restart()


@pytest.mark.data
def test_a_mosaic_and_a_turned_line(camera: Spectrometer, path: str) -> None:
    found = camera.call(take_mosaic, path, 600)
    assert (found["format"], found["wrong"], found["bands"]) == ([16, 40], 0, list(range(400, 416)))
    ids = [frame_id for frame_id, _ in found["lines"]]
    assert ids[0] % 15 == 0
    assert len(set(ids)) == 600
    # Each image stands for itself.
    assert [bool(flags & Flag.BREAK) for _, flags in found["lines"]] == [frame_id % 15 == 0 for frame_id in ids]
    assert camera.call(take_turned, path) == 50


@pytest.mark.data
def test_a_camera_sends_nothing_before_somebody_reads(camera: Spectrometer, path: str) -> None:
    report = camera.call(take_late, path, 50)
    taken, missing = accounted(report["events"])
    assert len(taken) == 50
    # The buffers would have been full: the first gap would follow on their sixteenth line.
    assert taken[15] - taken[0] == 15 and (not missing or missing[0] != taken[0] + 16)


@pytest.mark.data
def test_lost_packets(camera: Spectrometer, path: str) -> None:
    camera.kill()
    camera.start(CUBE, lost_per_thousand=5)
    try:
        # Fifteen packets to a line: seven lines of a hundred lack one, some of them the first, which has the id.
        report = camera.call(take, path, 500, frame_rate=330.0, packet_size=1400)
    finally:
        camera.kill()
        camera.start(CUBE)
    taken, missing = checked(report, most_missing=0.25)
    assert len(taken) == 500
    assert len(missing) >= 10
    assert "missing packets" in {why for kind, _, _, why in report["events"] if kind == "missing"}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("resend", [True, False])
def test_a_third_of_the_lines_damaged(tmp_path: Path, resend: bool) -> None:
    with spectrometer(numbered(100, 224, 640), folder=tmp_path, lost_per_thousand=2) as there:
        camera = {"frame_rate": 200.0, "packet_size": 1400, "packet_resend": resend}
        report = there.call(take, str(tmp_path / "served.npy"), 1500, **camera)
    taken, missing = checked(report, most_missing=0.6)
    assert len(taken) == 1500
    assert len(missing) > 300


@pytest.mark.data
def test_a_camera_that_dies_and_comes_back(camera: Spectrometer, path: str, tmp_path: Path) -> None:
    camera.restart()
    told = tmp_path / "told"
    begun = Path(f"{told}.begun")
    reader = camera.start_call(take_until_told, path, str(told), reopen_seconds=0.2)
    wait_until(begun.exists)
    camera.kill()
    time.sleep(0.3)
    begun.unlink()
    camera.start(CUBE)
    # The reader makes it again at its next line.
    wait_until(begun.exists, 40)
    told.touch()
    came_back(camera.finish_call(reader), "the camera no longer answers, or another program took it")


def came_back(report: dict[str, Any], why: str) -> None:
    """It broke once, for this reason, was quiet, and went on; the ids go on too."""
    kinds = [kind for kind, *_ in report["events"]]
    at = kinds.index("broken")
    assert kinds.count("broken") == 1
    assert report["events"][at][3] == why
    assert "quiet" not in kinds[at + kinds[at:].index("taken") :]
    # Nobody knows how many lines lie between, so the lines after it may be at another phase.
    assert report["phases"] <= 2
    taken, _ = checked(report, breaks=report["phases"])
    assert taken[0] == 65401
    assert (report["telemetry"]["reconnects"], report["about"]["state"]) == (1, "open")


@pytest.mark.slow
@pytest.mark.data
def test_a_camera_that_is_away_for_a_while(camera: Spectrometer, path: str, tmp_path: Path) -> None:
    camera.restart()
    told = tmp_path / "told"
    begun = Path(f"{told}.begun")
    reader = camera.start_call(take_until_told, path, str(told), stall_seconds=1.0, reopen_seconds=0.2)
    wait_until(begun.exists)
    camera.kill()
    time.sleep(12)
    begun.unlink()
    camera.start(CUBE)
    wait_until(begun.exists, 40)
    told.touch()
    came_back(camera.finish_call(reader), "no line for 1 s")


@pytest.mark.data
@pytest.mark.slow
def test_after_a_program_that_was_killed(camera: Spectrometer, path: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    reader = camera.start_call(take_until_told, path, str(told))
    wait_until(Path(f"{told}.begun").exists)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    taken, _ = checked(camera.call(take, path, 100))
    assert len(taken) == 100


@pytest.mark.data
def test_what_is_refused(camera: Spectrometer) -> None:
    cases: list[list[Any]] = [
        ["10.255.255.1", {}],
        ["NOSUCH", {}],
        [ADDRESS, {"features": {"Nonsense": 1}}],
        [ADDRESS, {"features": {"ShutterClosed": 2}}],
        [ADDRESS, {"features": {"ShutterClosed": True}}],
        [ADDRESS, {"pixel_format": "Mono10p"}],
        [ADDRESS, {"frame_rate": 100_000.0}],
        [ADDRESS, {"exposure_us": 1e9}],
        [ADDRESS, {"geometry": "mosaic", "pattern": "65x4"}],
        [SERIAL, {"features": {"ExposureTimeAbs": 1000, "ShutterClosed": 0}}],
    ]
    found = camera.call(refused_each, cases)
    for (kind, message), (expected, words) in zip(
        found,
        [
            ("MachineError", "no camera 10.255.255.1 answers; there are: Aravis-Fake-HSI01 (127.0.0.1, 00:00"),
            ("MachineError", "no camera NOSUCH answers; there are: Aravis-Fake-HSI01"),
            ("InputError", "camera.features.Nonsense: the camera refuses it: [Nonsense] Not found (found 1)"),
            ("InputError", "camera.features.ShutterClosed: the camera refuses it: [ShutterClosed] Value '2' greater"),
            ("InputError", "camera.features.ShutterClosed: the camera refuses it"),
            ("InputError", "(found 'Mono10p'); the camera offers Mono8, Mono12, Mono12p, Mono14, Mono16"),
            ("InputError", "camera.frame_rate: the camera made 5000 of it (found 100000.0)"),
            ("InputError", "camera.exposure_us: the camera refuses it"),
            ("InputError", "camera.pattern: the image of 64 x 160 is smaller than the pattern (found '65x4')"),
            ("", ""),
        ],
        strict=True,
    ):
        assert kind == expected, message
        assert words in message


@pytest.mark.slow
@pytest.mark.data
def test_without_any_camera(camera: Spectrometer) -> None:
    camera.kill()
    try:
        assert camera.call(refused, "")[1].startswith("--source: no camera answers; there are: none")
    finally:
        camera.start(CUBE)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("form", ["Mono12", "Mono12p"])
def test_a_whole_spectrometer_without_loss(tmp_path: Path, form: str) -> None:
    with spectrometer(numbered(100, 224, 640), folder=tmp_path) as there:
        # A computer that is busy with something else may lose some; not three times.
        for _ in range(3):
            report = there.call(take, str(tmp_path / "served.npy"), 5000, frame_rate=330.0, pixel_format=form)
            taken, missing = checked(report)
            if not missing:
                break
        assert (len(taken), len(missing)) == (5000, 0)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a right to packet sockets that it can drop")
def test_without_a_right_to_packet_sockets(tmp_path: Path) -> None:
    if int(Path("/proc/sys/net/core/rmem_max").read_text()) < 1 << 20:
        pytest.skip("net.core.rmem_max is smaller than a few lines")
    under = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    with spectrometer(numbered(100, 224, 640), folder=tmp_path) as there:
        path = str(tmp_path / "served.npy")
        report = there.finish_call(there.start_call(take, path, 1500, under=under, frame_rate=330.0))
    taken, _ = checked(report)
    assert len(taken) == 1500


@pytest.mark.slow
@pytest.mark.data
def test_all_frame_ids(tmp_path: Path) -> None:
    with spectrometer(numbered(200, 4, 16), folder=tmp_path) as there:
        report = there.call(take, str(tmp_path / "served.npy"), 66_500, frame_rate=5000.0, timeout=400, seconds=300)
    taken, missing = checked(report)
    assert len(taken) == 66_500
    assert taken[-1] - taken[0] == len(taken) + len(missing) - 1
    # It wrapped twice: shortly after the start, and after all of its ids.
    assert taken[0] < 65535
    assert taken[-1] > 2 * 65535


@pytest.mark.slow
@pytest.mark.data
def test_a_camera_in_use(camera: Spectrometer, path: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    reader = camera.start_call(take_until_told, path, str(told))
    wait_until(Path(f"{told}.begun").exists)
    kind, message = camera.call(refused, ADDRESS)
    told.touch()
    assert kind == "MachineError"
    assert "the camera 127.0.0.1 cannot be opened: another program controls it" in message
    # Who has it notices nothing.
    taken, _ = checked(camera.finish_call(reader))
    assert len(taken) > 1000


def close_while_it_hangs(path: str, told: str) -> dict[str, Any]:
    """Close when `told` appears; whether the memory that Aravis writes into is there after, and how the keeper ends."""
    source = open_source(f"genicam:{ADDRESS}", SourceOptions(camera=FAST))
    assert isinstance(source, GenicamSource)
    log = Log(source, served(path))
    log.read(50, 20)
    assert source._session is not None
    memory, keeper = weakref.ref(source._session.memory), source._keeper._thread
    Path(told + ".begun").touch()
    wait_until(Path(told).exists)
    source.close()
    closing = keeper.is_alive()
    del source, log
    gc.collect()
    kept = memory() is not None
    Path(told + ".closed").touch()
    keeper.join(20)
    return {"still_closing": closing, "kept": kept, "ended": not keeper.is_alive(), "freed": memory() is None}


@pytest.mark.data
def test_closing_does_not_wait_for_a_camera_that_hangs(camera: Spectrometer, path: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    reader = camera.start_call(close_while_it_hangs, path, str(told))
    wait_until(Path(f"{told}.begun").exists)
    camera.pause()
    told.touch()
    wait_until(Path(f"{told}.closed").exists)
    camera.resume()
    # The keeper goes on, and stops the camera after all.
    found = camera.finish_call(reader)
    assert found == {"still_closing": True, "kept": True, "ended": True, "freed": True}
    taken, _ = checked(camera.call(take, path, 50))
    assert len(taken) == 50


@pytest.mark.slow
@pytest.mark.data
def test_a_camera_that_hangs(camera: Spectrometer, path: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    reader = camera.start_call(take_until_told, path, str(told))
    wait_until(Path(f"{told}.begun").exists)
    camera.pause()
    time.sleep(9)
    camera.resume()
    time.sleep(15)
    told.touch()
    events = camera.finish_call(reader)["events"]
    assert sum(kind == "broken" for kind, *_ in events) >= 1
    assert events[-1][0] == "taken"
    accounted(events)


def test_frame_ids_of_16_bits() -> None:
    count = 300_000
    raw = (np.arange(count) + 65_400 - 1) % 65535 + 1
    ids = FrameIds()
    assert [ids.unroll(int(number)) for number in raw] == list(range(65_400, 65_400 + count))


@pytest.mark.parametrize("jump", [1, 2, 999, 32_767])
def test_frame_ids_with_gaps_and_steps_back(jump: int) -> None:
    ids, true = FrameIds(60_000), 60_000
    assert ids.unroll(true) == true
    rng = np.random.default_rng(jump)
    for _ in range(500):
        true += jump
        assert ids.unroll((true - 1) % 65535 + 1) == true
        back = int(rng.integers(0, 9))
        assert ids.unroll((true - back - 1) % 65535 + 1) == true - back


def test_frame_ids_of_64_bits() -> None:
    for wide in (False, True):
        ids = FrameIds(wide=wide)
        assert [ids.unroll(n) for n in range(65_000, 140_000)] == list(range(65_000, 140_000))
    assert [FrameIds(wide=True).unroll(n) for n in (0, 2**40)] == [0, 2**40]
    ids = FrameIds(wide=True)
    assert [ids.unroll(n) for n in (0, 1, 65_535, 1)] == [0, 1, 65_535, 1]


def test_frame_ids_that_count_from_0() -> None:
    ids = FrameIds()
    assert [ids.unroll(n) for n in (65_534, 65_535, 0, 1, 2)] == [65_534, 65_535, 65_536, 65_537, 65_538]


def test_frame_ids_go_on_after_the_camera_came_back() -> None:
    ids = FrameIds(1_000_001)
    assert [ids.unroll(n) for n in (65_535, 1, 3)] == [1_000_001, 1_000_002, 1_000_004]


def noticed_at(
    raws: list[int], *, rate: float | None = 330.0, depth: int = 64, waits: dict[int, float] | None = None
) -> int | None:
    """Place in `raws` of the image that shows that the counter began again, or None; one each 1/330 s, given in turn.

    `waits` are seconds that passed before an image, by its place.
    """
    ids, order, restarts, utc = FrameIds(), Order(0.15, 32), Restarts(rate, depth), 0.0
    for place, raw in enumerate(raws):
        utc += (waits or {}).get(place, 1 / 330)
        frame_id = ids.unroll(raw)
        if restarts.noticed(raw, frame_id, order.next_id, round(utc * 1e9), utc):
            return place
        order.put(frame_id, IMAGE, utc)
        while order.take(utc) is not None:
            pass
    return None


@pytest.mark.parametrize("images", [BEHIND, 50, 60, 64, 65, 400, 32_767, 32_768, 32_769, 40_000, 60_000])
@pytest.mark.parametrize("rate", [330.0, None])
def test_a_counter_that_begins_again_is_noticed(images: int, rate: float | None) -> None:
    for depth in (64, 500):
        for pause in (1 / 330, 1.0):
            raws = [*range(1, images + 1), *range(1, 100)]
            found = noticed_at(raws, rate=rate, depth=depth, waits={images: pause})
            assert found is not None
            assert images <= found < images + BEHIND


@pytest.mark.parametrize("rate", [330.0, 1.0, None])
def test_a_counter_that_goes_on_is_not_taken_for_one_that_begins_again(rate: float | None) -> None:
    # All ids, and the wrap.
    assert noticed_at([*range(1, 65_536), *range(1, 100)], rate=rate) is None
    # Images in a row that were late, but fewer; the same ones again and again; more of them that are in no row.
    late = [7, 8, 9]
    assert noticed_at([*range(1, 60), *late, *range(60, 90)], rate=rate) is None
    assert noticed_at([*range(1, 60), *late, 60, *late, 61, *late, *range(62, 90)], rate=rate) is None
    assert noticed_at([*range(1, 60), *[58] * 20, 57, 55, 53, 51, 49, 47, *range(60, 90)], rate=rate) is None
    # Gaps, short and as long as the time that passed.
    assert noticed_at([*range(1, 60), *range(1_000, 1_060)], rate=rate) is None
    assert noticed_at([*range(1, 400), *range(10_300, 10_400)], rate=rate, waits={399: 30.0}) is None


@pytest.mark.parametrize(
    ("images", "packets", "noticed"), [(6, 3, True), (99, 15, True), (50, 0, False), (50, 1, False)]
)
def test_a_counter_whose_images_the_library_throws_away(images: int, packets: int, noticed: bool) -> None:
    """The next image that comes has the next id; but time has passed, and packets were thrown away."""
    restarts = Restarts(None, 64)
    for number in range(1, images + 1):
        assert not restarts.noticed(number, number, number, number * 10_000_000, number / 100, 7)
    after, later = images + 1, (2 * images + 1) * 10_000_000
    assert restarts.noticed(after, after, after, later, later / 1e9, 7 + packets * images) == noticed


@pytest.mark.parametrize("rate", [None, 80.0])
def test_a_gap_in_a_burst_is_a_gap(rate: float | None) -> None:
    """A trigger gives 5000 images in a second of every minute; the mean is 83 per second."""
    burst = [(60 * minute + image / 5000, 5000 * minute + image + 1) for minute in range(4) for image in range(5000)]
    restarts = Restarts(rate, 64)
    for utc, raw in burst:
        if not 11_000 < raw <= 12_750:
            assert not restarts.noticed(raw, raw, raw, round(utc * 1e9), utc)


@pytest.mark.parametrize("rate", [None, 30_000.0])
@pytest.mark.parametrize("step", [0.0, 86_400.0, -5.0])
@pytest.mark.parametrize("at", [30_000, 61_500])
def test_a_clock_that_is_set_makes_no_restart_of_a_gap(rate: float | None, step: float, at: int) -> None:
    restarts = Restarts(rate, 64)
    for raw in [*range(1, 60_000), *range(61_500, 62_000)]:
        passed = raw / 30_000
        utc = 1e6 + passed + (step if raw >= at else 0)
        assert not restarts.noticed(raw, raw, raw, round(utc * 1e9), passed)


def test_a_pause_in_which_late_packets_came_is_no_restart() -> None:
    restarts = Restarts(100.0, 64)
    for raw in range(1, 51):
        assert not restarts.noticed(raw, raw, raw, raw * 10_000_000, raw / 100)
    assert not restarts.noticed(51, 51, 51, 600_000_000, 0.6, 20)


def test_a_jump_that_the_time_has_no_room_for() -> None:
    assert noticed_at([*range(1, 400), *range(10_300, 10_400)]) == 399
    assert noticed_at([*range(1, 400), *range(10_300, 10_400)], waits={399: 2.0}) == 399


IMAGE = Image(None, 0, 0)


@given(
    fates=st.lists(st.tuples(st.sampled_from(["whole", "whole", "damaged", "lost"]), st.integers(0, 12)), min_size=1),
    depth=st.integers(2, 9),
)
def test_every_id_once_and_in_order(fates: list[tuple[str, int]], depth: int) -> None:
    """Images come up to 12 places late, one each 10 ms; those that were given up on before are not taken any more."""
    arrivals = sorted((place + late, place) for place, (fate, late) in enumerate(fates) if fate != "lost")
    order, given_out, refused = Order(0.05, depth), [], set()

    def drain(now: float, *, flush: bool = False) -> None:
        while found := order.take(now, flush=flush):
            if isinstance(found, Skipped):
                given_out.extend((number, "skipped") for number in range(found.first, found.first + found.count))
            else:
                given_out.append((found[0], "whole" if found[1] is IMAGE else "damaged"))

    for when, place in arrivals:
        drain(when * 0.01)
        if not order.put(place, IMAGE if fates[place][0] == "whole" else "missing packets", when * 0.01):
            refused.add(place)
    assert len(order._held) <= depth
    drain(1e9, flush=True)
    numbers = [number for number, _ in given_out]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else not arrivals
    for number, kind in given_out:
        assert (kind == "skipped") == (number in refused or fates[number][0] == "lost")
        assert kind == "skipped" or kind == fates[number][0]


def test_a_line_waits_for_one_before_it_only_so_long() -> None:
    order = Order(0.15, 99)
    order.put(5, IMAGE, 0.0)
    assert order.take(0.0) == (5, IMAGE)
    order.put(8, IMAGE, 1.0)
    assert order.take(1.1) is None
    assert order.due() == pytest.approx(1.15)
    assert order.take(1.16) == Skipped(6, 2)
    assert not order.put(7, IMAGE, 1.17)
    assert order.take(1.17) == (8, IMAGE)
    assert not order.put(8, IMAGE, 1.18)
    assert order.take(9.0) is None


def test_settings() -> None:
    settings = CameraSettings.of({"geometry": "mosaic", "pattern": "2 x 3", "band_order": [5, 4, 3, 2, 1, 0]})
    assert (settings.pattern, settings.band_order) == ((2, 3), (5, 4, 3, 2, 1, 0))
    features = {"A": True, "B": 1, "C": 1.0, "D": "1"}
    kept = CameraSettings.of({"features": features}).features
    assert [(key, type(value)) for key, value in kept.items()] == [("A", bool), ("B", int), ("C", float), ("D", str)]


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        ({"exposure": 5}, "camera.exposure: there is no such key; use geometry, spectral_axis,"),
        ({"frame_rate": 0}, r"camera.frame_rate: Input should be greater than 0 \(found 0\)"),
        ({"frame_rate": "330"}, "camera.frame_rate: Input should be a valid number"),
        ({"frame_rate": True}, "camera.frame_rate: "),
        ({"pixel_format": "YUV422_8"}, "camera.pixel_format: not a pixel format that is read here.*Mono12p"),
        ({"geometry": "whisk"}, "camera.geometry: Input should be 'line-scan', 'mosaic', 'colour' or 'area'"),
        ({"pattern": "4"}, "camera.pattern: "),
        ({"geometry": "mosaic"}, "camera.pattern: a mosaic needs"),
        ({"features": {"Gain": [1]}}, "camera.features.Gain: "),
        ({"buffers": 2}, "camera.buffers: "),
        ({"packet_size": 100}, "camera.packet_size: "),
        ({"flip_bands": 1}, "camera.flip_bands: "),
    ],
)
def test_settings_that_are_wrong(camera: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_source("genicam:", SourceOptions(camera=camera))


def test_without_aravis(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    aravis_library.functions.cache_clear()
    monkeypatch.setattr(aravis_library.ctypes, "CDLL", missing)
    with pytest.raises(MachineError, match=r"need libaravis-0.8: libaravis-0.8.so.0.*apt install libaravis-0.8-0"):
        open_source("genicam:", SourceOptions())
