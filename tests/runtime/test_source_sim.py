"""The simulator as a camera: its lines come by the clock, and what is not taken in time is missing by number."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from runtime.errors import InputError, MachineError
from runtime.lines import Ended, Flag, Missing, Quiet, Taken
from runtime.simulation.simulator import SensorModel, sense, simulate_scene
from runtime.sources import Source, SourceOptions, open_source
from runtime.sources.sim import BUFFER_LINES, SimSettings, settings_of
from tests.contracts.source import PATIENCE, Cube, SourceContract, buffer, drained, following

SMALL = "bands=4,samples=16,lines=20,seed=3"


def flown(count: int, lines: int = 20) -> Cube:
    """What the small simulator shows, [count, bands, samples]: its scene there and back."""
    scene = simulate_scene(3, 4, lines, 16)
    dn = sense(scene, SensorModel(), np.random.default_rng([3, 1])).dn.transpose(1, 0, 2)
    there_and_back = np.concatenate([dn, dn[-2:0:-1]])
    return there_and_back[np.arange(count) % len(there_and_back)]


class TestSim(SourceContract):
    @pytest.fixture
    def source(self) -> Iterator[Source]:
        with open_source(f"sim:{SMALL},rate=500,count=50") as source:
            yield source

    @pytest.fixture
    def expected(self) -> Cube | None:
        return flown(50)

    @pytest.fixture
    def quiet(self) -> Iterator[Source]:
        with open_source(f"sim:{SMALL},rate=0.01") as source:
            drained(source, 1)
            yield source


class TestEndlessSim(TestSim):
    ends = False

    @pytest.fixture
    def source(self) -> Iterator[Source]:
        with open_source(f"sim:{SMALL}", SourceOptions(rate=500.0)) as source:
            yield source


def counted(source: Source) -> tuple[int, int]:
    """Lines taken and missing until the source ended; every number is met once, in order."""
    events, _ = drained(source)
    at = taken = 0
    for event in events[:-1]:
        assert isinstance(event, (Taken, Missing)) and event.frame_id == at
        taken += isinstance(event, Taken)
        at += event.count if isinstance(event, Missing) else 1
    return taken, at - taken


def test_the_default_is_a_spectrometer_of_31_bands() -> None:
    with open_source("sim:") as source:
        form = source.format
        assert source.live
        assert form.shape == (31, 256) and form.dtype == np.uint16
        assert form.scale == form.saturation == 4095
        assert form.wavelengths == tuple(np.linspace(400, 700, 31).tolist())
        assert source.describe()["address"] == "seed=0,bands=31,samples=256,lines=512,rate=100.0,lost=0.0"
        line = buffer(source)
        assert isinstance(following(source, line), Taken)
        assert 64 < line.mean() < 4095


def test_the_scene_is_flown_over_there_and_back_without_a_seam() -> None:
    with open_source(f"sim:{SMALL},rate=100000,count=60") as source:
        np.testing.assert_array_equal(np.stack(drained(source)[1]), flown(60))
    with open_source("sim:bands=4,samples=16,lines=1,seed=3,rate=100000,count=3") as source:
        np.testing.assert_array_equal(np.stack(drained(source)[1]), flown(3, lines=1))


def test_what_is_not_taken_in_time_is_missing_by_number() -> None:
    with open_source(f"sim:{SMALL},rate=2000,count=500") as source:
        drained(source, 1)
        time.sleep(0.35)
        events, lines = drained(source)
        figures = source.telemetry()
    # The buffer held what came first; the rest of the 500 had gone by.
    assert [type(event) for event in events] == [Taken] * BUFFER_LINES + [Missing, Ended]
    missing = events[-2]
    assert missing == Missing(65, 435, "not taken in time: the buffer of 64 lines was full")
    assert figures == {"issued": 500, "lost": 0, "underruns": 435}
    np.testing.assert_array_equal(np.stack(lines), flown(65)[1:])


def test_a_reader_that_is_now_and_then_late_can_account_for_every_line() -> None:
    with open_source(f"sim:{SMALL},rate=20000,count=6000,lost=50") as source:
        line, at, gaps = buffer(source), 0, 0
        missed = False
        while not isinstance(event := following(source, line), Ended):
            assert isinstance(event, (Taken, Missing)) and event.frame_id == at
            if isinstance(event, Taken):
                np.testing.assert_array_equal(line, LONG[at])
                assert bool(event.flags & Flag.GAP) == missed
                gaps += missed
                if at % 97 == 0:
                    time.sleep(0.01)
            missed = isinstance(event, Missing)
            at += event.count if isinstance(event, Missing) else 1
        figures = source.telemetry()
    assert at == figures["issued"] == 6000
    assert gaps > 10 and figures["underruns"] > 0 and figures["lost"] > 0


LONG = flown(6000)


def lost(count: int, per_thousand: float, seed: int) -> list[int]:
    """Numbers of the lines lost; all that are not fit into the buffer, so that none can be late."""
    assert count <= BUFFER_LINES
    numbers: list[int] = []
    address = f"sim:bands=1,samples=2,lines=2,rate=5000,count={count},lost={per_thousand},seed={seed}"
    with open_source(address) as source:
        for event in drained(source)[0]:
            if isinstance(event, Missing):
                assert event.why.startswith("lost on the way")
                numbers += range(event.frame_id, event.frame_id + event.count)
    return numbers


def test_losses_are_as_many_as_asked_for_and_follow_from_the_seed() -> None:
    runs = [lost(64, 300, seed) for seed in range(10)]
    assert 140 < sum(map(len, runs)) < 245
    assert runs[1] == lost(64, 300, 1) != runs[2]
    assert lost(20, 1000, 1) == list(range(20)) and not lost(50, 0, 1)


def test_a_stall_is_a_pause_in_which_nothing_is_issued() -> None:
    with open_source(f"sim:{SMALL},rate=1000,count=10,stall=0.4@4") as source:
        line, events = buffer(source), []
        while not events or not isinstance(events[-1], Ended):
            events.append(source.read(line, 0.1))
    assert Quiet() in events
    taken = [event for event in events if isinstance(event, Taken)]
    assert [event.frame_id for event in taken] == list(range(10))
    steps = np.diff([event.utc_ns for event in taken]).tolist()
    assert steps[3] == 401_000_000 and set(steps[:3] + steps[4:]) == {1_000_000}


def test_a_stall_may_come_before_the_first_line() -> None:
    with open_source(f"sim:{SMALL},rate=1000,count=3,stall=0.2@0") as source:
        line = buffer(source)
        assert source.read(line, 0.02) == Quiet()
        assert counted(source) == (3, 0)


def test_times_are_those_the_lines_were_due_at() -> None:
    with open_source(f"sim:{SMALL},rate=640,count=30") as source:
        line = buffer(source)
        first = following(source, line)
        time.sleep(0.1)
        events = [first, *drained(source)[0][:-1]]
    times = [event.utc_ns for event in events if isinstance(event, Taken)]
    assert len(times) == 30
    assert set(np.diff(times).tolist()) == {1_562_500}


def test_the_clock_starts_with_the_first_read() -> None:
    with open_source(f"sim:{SMALL},rate=1000,count=100") as source:
        time.sleep(0.15)
        assert isinstance(source.read(buffer(source), PATIENCE), Taken)
        assert source.telemetry()["issued"] < 100


def test_the_address_beats_the_options() -> None:
    options = SourceOptions(rate=7.0, simulator={"seed": 5, "samples": "33", "lines": 9, "count": None})
    settings = settings_of("seed=6, lines=8", options, SimSettings)
    assert (settings.seed, settings.samples, settings.lines, settings.rate) == (6, 33, 8, 7.0)
    assert settings_of("rate=9", options, SimSettings).rate == 9.0
    assert settings_of("", SourceOptions(rate=7.0, simulator={"rate": 8}), SimSettings).rate == 8.0


def test_options_beat_what_the_simulator_says_of_itself() -> None:
    options = SourceOptions(wavelengths=(450.0, 550.0, 850.0), scale=3000.0, saturation=4000.0)
    with open_source("sim:samples=8,lines=4", options) as source:
        form = source.format
    assert (form.bands, form.wavelengths, form.scale, form.saturation) == (3, (450.0, 550.0, 850.0), 3000.0, 4000.0)
    with pytest.raises(InputError, match="not as many wavelengths as the 2 bands"):
        open_source("sim:bands=2,samples=8,lines=4", options)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "degradation=3",
            "--source sim: not a setting of the simulator (found 'degradation'); known are bands, count, lines",
        ),
        ("seed", "sim:seed: not a number (found ''); give a whole number from 0"),
        ("seed=1,seed=2", "sim:seed: comes twice (found 'seed=2')"),
        ("seed=-1", "sim:seed: out of range (found '-1')"),
        ("bands=1.5", "sim:bands: not a number (found '1.5'); give a whole number from 1"),
        ("bands=0", "sim:bands: out of range"),
        ("rate=0", "sim:rate: out of range"),
        ("rate=nan", "sim:rate: out of range"),
        ("rate=inf", "sim:rate: out of range"),
        ("lost=1001", "sim:lost: out of range"),
        ("count=0", "sim:count: out of range"),
        ("stall=3", "sim:stall: not a pause (found '3'); give SECONDS@LINE"),
        ("stall=-1@3", "sim:stall: not a pause"),
    ],
)
def test_what_the_simulator_does_not_know_is_refused(address: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        open_source(f"sim:{address}")
    assert said in str(caught.value)


@pytest.mark.parametrize("simulator", [{"seed": True}, {"bands": [3]}, {"faults": 1}, {"bands": 2.5}, {3: 4}])
def test_settings_from_a_file_are_checked_too(simulator: dict[str, object]) -> None:
    with pytest.raises(InputError, match="sim:"):
        open_source("sim:", SourceOptions(simulator=simulator))


def test_a_scene_beyond_this_machines_memory_is_refused() -> None:
    with pytest.raises(MachineError, match=r"sim:lines: simulating it takes .* ask for fewer"):
        open_source("sim:lines=1000000,samples=100000,bands=10000")
