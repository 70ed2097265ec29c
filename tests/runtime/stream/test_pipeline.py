"""Whole streams in one process: real threads and queues, an engine that does as it is told, books that balance."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import CubeError, DeployError, MachineError
from runtime.lines import Broken, Event, Flag, Line, LineFormat, Missing, Quiet
from runtime.prompts import Prompts
from runtime.radiometry import load_radiometry
from runtime.restore import Infer
from runtime.sinks.contract import Block, Sink
from runtime.stream.intake import PATIENCE
from runtime.stream.pipeline import NamedSink, Restoring, Stream, StreamOptions, StreamResult, bytes_needed
from runtime.stream.preparing import RestorerFacts
from runtime.stream.snapshot import Snapshot
from tests.contracts.coded import CODE, CODED, decode, decoded
from tests.contracts.graphs import damp_like
from tests.contracts.spectrometer import wait_until
from tests.runtime.stream.lines import FORMAT, SHAPE, Script, line

LINES, OVERLAP = 8, 2
SIGNATURE = damp_like(SHAPE[0], LINES, SHAPE[1], layers=2, experts=3)
FACTS = RestorerFacts(SIGNATURE, OVERLAP, Prompts(SIGNATURE))
ROUTING = np.ones((2, 3), np.float32) / 3
FILES = StreamOptions(line_buffers=16)


def engine(function: Callable[[Any], Any]) -> Infer:
    """An engine that makes this of a frame."""

    def infer(feeds: Mapping[str, Any]) -> dict[str, Any]:
        assert list(feeds) == ["frame", "metrics"]
        return {"restored": function(feeds["frame"]), "routing": ROUTING}

    return infer


@engine
def same(frame: Any) -> Any:
    """An engine that restores a frame to itself."""
    return frame.copy()


class Kept(Sink):
    """Keeps what it is given."""

    def __init__(self, pause: float = 0.0, fails_at: int | None = None) -> None:
        self.pause, self.fails_at = pause, fails_at
        self.lines: dict[int, Line] = {}
        self.flags: dict[int, int] = {}
        self.blocks = 0
        self.closed = False

    def write(self, block: Block) -> None:
        time.sleep(self.pause)
        self.blocks += 1
        if self.fails_at is not None and self.blocks >= self.fails_at:
            raise MachineError("the disk is full", key="disk")
        for number, values, flags in zip(block.sequence.tolist(), block.values, block.flags.tolist(), strict=True):
            assert number not in self.lines, "a line was given out twice"
            self.lines[number], self.flags[number] = values.copy(), flags

    def close(self) -> None:
        self.closed = True


class Record:
    """A record in memory."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.lines: dict[int, Line] = {}
        self.flags: dict[int, int] = {}
        self.fails_at, self.closed, self.checkpoints, self.appended = fails_at, False, 0, 0
        self.waiting: Callable[[], object] = lambda: None

    def append_lines(self, lines: Sequence[Line], sequence: Sequence[int], *columns: Any) -> None:
        for one, number, flags in zip(lines, sequence, columns[2], strict=True):
            self.append(one, number, flags)
            self.appended += 1

    def append(self, line: Line, sequence: int, flags: int) -> None:
        if self.fails_at is not None and len(self.lines) >= self.fails_at:
            raise MachineError("the disk is full", key="disk")
        self.lines[sequence], self.flags[sequence] = line.copy(), flags

    def checkpoint(self) -> None:
        self.checkpoints += 1

    def close(self) -> None:
        self.closed = True


def stream_of(
    source: Script,
    infer: Infer = same,
    record: Record | None = None,
    sinks: Sequence[NamedSink] = (),
    options: StreamOptions = FILES,
    output: LineFormat = FORMAT,
    log: Callable[..., None] = lambda kind, **fields: None,
    radiometry: dict[str, Any] | None = None,
    facts: RestorerFacts = FACTS,
) -> Stream:
    restoring = Restoring(facts, infer, load_radiometry(radiometry or {}, source.format), output)
    return Stream(source, restoring, record, sinks, options, log=log)


def balanced(snapshot: Snapshot) -> None:
    lines = snapshot.as_json()["lines"]
    assert lines["in"] == lines["restored"] + lines["dropped"] + lines["incomplete"] + lines["pending"]
    assert lines["pending"] >= 0
    assert lines["passed"] <= lines["restored"]


def run(stream: Stream) -> StreamResult:
    result = stream.run(lambda: balanced(stream.snapshot()))
    count = result.count
    assert count.pending == 0
    assert count.issued == count.restored + count.dropped + count.incomplete
    return result


def test_every_line_of_a_file_is_recorded_and_restored() -> None:
    record, kept = Record(), Kept()
    result = run(stream_of(Script(range(100)), record=record, sinks=[NamedSink("kept", kept, "block", True)]))
    assert result.count.as_json() == {
        "in": 100, "recorded": 100, "restored": 100, "passed": 0, "dropped": 0, "incomplete": 0,
    }  # fmt: skip
    assert (result.ended_by, result.failures, result.hung) == ("source", {}, ())
    for kept_lines in (record.lines, kept.lines):
        assert sorted(kept_lines) == list(range(100))
        assert all(np.array_equal(kept_lines[number], line(number)) for number in range(100))
    assert record.closed
    assert kept.closed
    # 16 full frames of a step of 6, and a last one of 4 lines.
    assert result.frames == {"restored": 17, "passed": 0, "dropped": 0, "failed": 0, "unfit": 0, "cut_off": 0}
    padded = {number for number, flags in kept.flags.items() if flags & Flag.PADDED}
    assert padded == {96, 97, 98, 99}


def test_numbers_go_on_where_a_record_ends() -> None:
    record = Record()
    restoring = Restoring(FACTS, same, load_radiometry({}, FORMAT), FORMAT)
    stream = Stream(Script(range(5)), restoring, record, [], FILES, first_sequence=40)
    run(stream)
    assert sorted(record.lines) == [40, 41, 42, 43, 44]


def test_missing_lines_are_counted_and_bridged_or_left_out() -> None:
    record, kept, events = Record(), Kept(), []
    script: list[Any] = [*range(10), Missing(11, 2, "lost"), *range(12, 20), Missing(21, 9, "lost"), *range(29, 40)]
    result = run(
        stream_of(
            Script(script), record=record, sinks=[NamedSink("kept", kept, "block", True)],
            log=lambda kind, **fields: events.append((kind, fields)),
        )
    )  # fmt: skip
    missing = {10, 11, *range(20, 29)}
    assert result.count.incomplete == 11
    assert result.count.issued == 40
    assert result.count.recorded == result.count.restored == 29
    assert set(record.lines) == set(range(40)) - missing
    assert record.flags[12] & Flag.GAP
    assert record.flags[29] & Flag.GAP
    assert set(kept.lines) == set(range(40)) - set(range(20, 29))
    assert {number for number, flags in kept.flags.items() if flags & Flag.INTERPOLATED} == {10, 11}
    gaps = [fields for kind, fields in events if kind == "gap"]
    assert [(gap["sequence"], gap["count"], gap["why"]) for gap in gaps] == [(10, 2, "lost"), (20, 9, "lost")]
    for _, fields in events:
        books = fields["books"]
        assert books["in"] == books["restored"] + books["dropped"] + books["incomplete"] + books["pending"]


def test_what_follows_a_break_is_not_joined_with_what_came_before() -> None:
    frames: list[int] = []

    @engine
    def noted(frame: Any) -> Any:
        frames.append(frame.shape[2])
        return frame.copy()

    kept, record = Kept(), Record()
    script: list[Any] = [*range(11), Broken("the camera vanished"), Quiet(), *range(11, 30)]
    result = run(stream_of(Script(script), noted, record, [NamedSink("kept", kept, "block", True)]))
    assert result.count.restored == 30
    assert record.flags[11] & Flag.BREAK
    assert all(np.array_equal(kept.lines[number], line(number)) for number in range(30))
    # 0-7, 6-10 padded; 11-18, 17-24, 23-29 padded.
    assert result.frames["restored"] == 5


def test_restoration_that_is_behind_drops_whole_frames_and_counts_them_exactly() -> None:
    @engine
    def slow(frame: Any) -> Any:
        time.sleep(0.05)
        return frame.copy()

    record, kept, dropped = Record(), Kept(), []
    gone: list[int] = []

    def log(kind: str, **fields: Any) -> None:
        if kind == "drop-frame":
            dropped.append(fields["frame"])
        if kind == "drop":
            assert fields["lines"] == fields["last"] + 1 - fields["sequence"]
            gone.extend(range(fields["sequence"], fields["last"] + 1))

    source = Script(range(600), live=True, pause=0.001)
    result = run(stream_of(source, slow, record, [NamedSink("kept", kept, "block", True)], log=log))
    assert result.count.recorded == 600, "a line was not recorded"
    assert result.count.dropped > 0
    assert result.count.restored == len(kept.lines)
    assert result.count.dropped == 600 - len(kept.lines)
    assert result.frames["dropped"] == len(dropped) == len(set(dropped))
    assert sorted([*gone, *kept.lines]) == list(range(600)), "the log names every line that was dropped, once"
    assert all(np.array_equal(values, line(number)) for number, values in kept.lines.items())


def test_unfit_lines_are_passed_through_and_told() -> None:
    lines: list[Any] = [line(number) for number in range(24)]
    lines[5] = np.full(SHAPE, 7, np.uint16)
    lines[9] = lines[8].copy()
    lines[13] = np.full(SHAPE, 4095, np.uint16)
    lines[13][0, 0] = 1
    kept, record = Kept(), Record()

    @engine
    def brighter(frame: Any) -> Any:
        return frame + np.float32(100 / 4095)

    stream = stream_of(Script(lines), brighter, record, [NamedSink("kept", kept, "block", True)])
    result = run(stream)
    assert (result.count.restored, result.count.passed) == (24, 3)
    assert stream.snapshot().flags == {"empty": 1, "repeated": 1, "saturated": 1}
    for number, flag in ((5, Flag.EMPTY), (9, Flag.REPEATED), (13, Flag.SATURATED)):
        assert kept.flags[number] == flag | Flag.PASSED
        assert record.flags[number] & flag
        np.testing.assert_array_equal(kept.lines[number], lines[number])
    np.testing.assert_array_equal(kept.lines[4], lines[4] + 100)


def test_values_that_the_type_cannot_hold_are_clipped_and_counted() -> None:
    kept = Kept()

    @engine
    def darker(frame: Any) -> Any:
        return frame - 2

    stream = stream_of(Script(range(8)), darker, None, [NamedSink("kept", kept, "block", True)])
    run(stream)
    assert stream.snapshot().clipped == 8 * SHAPE[0] * SHAPE[1]
    assert all((values == 0).all() for values in kept.lines.values())


class Told(Prompts):
    """Prompts that tell of every frame that they are made of."""

    def __init__(self, made: Callable[[int], None]) -> None:
        super().__init__(FACTS.signature)
        self._made, self._frames = made, count()

    def __call__(self, part: Any) -> dict[str, Any]:
        self._made(next(self._frames))
        return super().__call__(part)


def test_the_next_frame_is_prepared_while_the_engine_runs() -> None:
    prepared, frames = [threading.Event() for _ in range(6)], count(1)

    @engine
    def held(frame: Any) -> Any:
        following = next(frames)
        if following < len(prepared) and not prepared[following].wait(20):
            raise RuntimeError("nobody prepares the next frame")
        return frame.copy()

    facts = replace(FACTS, prompts=Told(lambda number: prepared[number].set()))
    kept = Kept()
    # Six frames, each of which begins six lines behind the one before.
    result = run(stream_of(Script(range(38)), held, sinks=[NamedSink("kept", kept, "block", True)], facts=facts))
    assert result.frames == {"restored": 6, "passed": 0, "dropped": 0, "failed": 0, "unfit": 0, "cut_off": 0}
    assert list(kept.lines) == list(range(38))


@pytest.mark.parametrize("error", [MachineError("no memory", key="metrics"), CubeError("too large", key="cube")])
def test_what_goes_wrong_before_the_engine_is_the_frames_own(error: DeployError) -> None:
    events: list[tuple[str, dict[str, Any]]] = []

    def made(number: int) -> None:
        if number == 2:
            raise error

    kept = Kept()
    result = run(
        stream_of(
            Script(range(38)), sinks=[NamedSink("kept", kept, "block", True)],
            facts=replace(FACTS, prompts=Told(made)), log=lambda kind, **fields: events.append((kind, fields)),
        )
    )  # fmt: skip
    unfit = isinstance(error, CubeError)
    assert (result.frames["restored"], result.frames["passed"], result.frames["failed"]) == (5, unfit, not unfit)
    assert [fields["frame"] for kind, fields in events if kind == ("unfit" if unfit else "failed")] == [2]
    # What frame 2 shares with its neighbours they restored.
    alone = set(range(14, 18))
    assert set(range(38)) - set(kept.lines) == (set() if unfit else alone)
    assert {number for number, flags in kept.flags.items() if flags & Flag.PASSED} == (alone if unfit else set())


def test_frames_dropped_while_an_earlier_one_is_prepared_are_counted_behind_it() -> None:
    record, kept = Record(), Kept()

    def slow(number: int) -> None:
        if number == 0:
            wait_until(lambda: len(record.lines) == 200)
            # The engine's stage has looked for a frame in vain, and newer ones were dropped.
            time.sleep(2 * PATIENCE)

    facts = replace(FACTS, prompts=Told(slow))
    source, sinks = Script(range(200), live=True), [NamedSink("kept", kept, "block", True)]
    result = run(stream_of(source, record=record, sinks=sinks, facts=facts))
    assert result.failures == {}
    assert result.frames["dropped"] > 20
    assert list(kept.lines) == sorted(kept.lines)
    assert len(kept.lines) >= 8


@pytest.mark.parametrize("sinks", [0, 2])
def test_the_memory_that_is_told_is_the_memory_that_is_taken(sinks: int) -> None:
    lines = LineFormat(40, 300, np.dtype(np.uint16), scale=4095.0)
    signature = damp_like(40, 64, 300, layers=2, experts=3)
    facts = RestorerFacts(signature, 8, Prompts(signature))
    outlets = [NamedSink(f"kept {number}", Kept()) for number in range(sinks)]
    source, restoring = Script([], format=lines), Restoring(facts, same, load_radiometry({}, lines), lines)
    tracemalloc.start()
    try:
        stream = Stream(source, restoring, None, outlets, FILES)
        taken, told = tracemalloc.get_traced_memory()[0], bytes_needed(facts, FILES, lines, lines, sinks)
    finally:
        tracemalloc.stop()
    assert stream.snapshot().lines.issued == 0
    assert taken == pytest.approx(told, rel=0.02)


def test_an_engine_that_raises_once_costs_one_frame() -> None:
    runs: list[int] = []

    @engine
    def once(frame: Any) -> Any:
        runs.append(0)
        if len(runs) == 2:
            raise RuntimeError("a hiccup")
        return frame.copy()

    record, kept = Record(), Kept()
    result = run(stream_of(Script(range(50)), once, record, [NamedSink("kept", kept, "block", True)]))
    assert not result.failures
    assert result.frames["failed"] == 1
    # Frame 1 has lines 6 to 13; 6 and 7 are frame 0's too, 12 and 13 frame 2's.
    assert sorted(set(range(50)) - set(kept.lines)) == [8, 9, 10, 11]
    assert (result.count.dropped, result.count.recorded) == (4, 50)


def test_an_engine_that_always_raises_is_asked_no_more_and_the_record_goes_on() -> None:
    runs: list[int] = []

    @engine
    def broken(frame: Any) -> Any:
        runs.append(0)
        raise MachineError("out of memory", key="gpu")

    record = Record()
    result = run(stream_of(Script(range(100)), broken, record))
    assert len(runs) == 3
    assert (result.count.recorded, result.count.restored, result.count.dropped) == (100, 0, 100)
    assert result.ended_by == "failure"
    assert "failed on 3 frames in a row" in result.failures["restore"].one_line()
    assert "out of memory" in result.failures["restore"].one_line()


def test_a_record_that_cannot_be_written_ends_the_stream_and_the_books_balance() -> None:
    record, kept = Record(fails_at=30), Kept()
    source = Script(range(100_000), pause=0.0005)
    result = run(stream_of(source, same, record, [NamedSink("kept", kept, "block", True)]))
    assert result.failures["record"].one_line().startswith("disk: the disk is full")
    count = result.count
    assert count.recorded == 30 == count.issued - count.incomplete
    assert set(kept.lines) <= set(record.lines), "a line was restored that is not in the record"
    assert record.closed
    assert count.issued < 100_000


def test_a_sink_that_fails_is_left_out_and_its_lines_are_no_longer_restored() -> None:
    record, kept, other = Record(), Kept(fails_at=3), Kept()
    sinks = [NamedSink("restored", kept, "block", True), NamedSink("other", other, "block")]
    result = run(stream_of(Script(range(100)), same, record, sinks))
    assert result.count.recorded == 100
    assert result.count.restored == len(kept.lines) == 12
    assert result.count.dropped == 88
    assert sorted(other.lines) == list(range(100))
    assert list(result.failures) == ["restored"]


def test_a_slow_preview_loses_blocks_and_stalls_nobody() -> None:
    record, kept, slow = Record(), Kept(), Kept(pause=0.05)
    sinks = [NamedSink("restored", kept, "block", True), NamedSink("preview", slow)]
    stream = stream_of(Script(range(600)), same, record, sinks)
    result = run(stream)
    assert result.count.restored == 600
    assert 0 < len(slow.lines) < 600
    assert stream.snapshot().queues["preview"].dropped > 0


def test_a_signal_ends_it_within_its_time_and_what_was_on_its_way_is_counted() -> None:
    record, kept = Record(), Kept()
    source = Script(range(1_000_000), live=True, pause=0.001)
    stream = stream_of(source, same, record, [NamedSink("restored", kept, "block", True)])
    threading.Timer(0.5, stream.stop).start()
    result = run(stream)
    assert result.ended_by == "signal"
    assert result.count.recorded == result.count.issued == len(record.lines) > 0
    assert result.count.restored == len(kept.lines)


def test_an_engine_that_hangs_does_not_keep_the_stream_from_ending() -> None:
    release = threading.Event()

    @engine
    def hangs(frame: Any) -> Any:
        release.wait(60)
        return frame.copy()

    record, kept = Record(), Kept()
    source = Script(range(1_000_000), live=True, pause=0.001)
    stream = stream_of(source, hangs, record, [NamedSink("restored", kept, "block", True)])
    threading.Timer(0.3, stream.stop).start()
    began = time.monotonic()
    result = stream.run()
    try:
        assert time.monotonic() - began < 30, "it waited for the engine"
        assert "restore" in result.hung
        count = result.count
        assert count.recorded == count.issued == count.dropped == len(record.lines)
        assert record.closed
    finally:
        release.set()


def test_a_file_whose_engine_is_slow_ends_in_time_with_a_whole_record() -> None:
    release = threading.Event()

    @engine
    def slow(frame: Any) -> Any:
        release.wait(60)
        return frame.copy()

    record = Record()
    stream = stream_of(Script(range(1_000_000)), slow, record)
    threading.Timer(0.3, stream.stop).start()
    result = stream.run()
    try:
        count = result.count
        assert "record" not in result.hung
        assert record.closed
        assert count.recorded == len(record.lines) == count.issued - count.incomplete
        assert count.issued == count.restored + count.dropped + count.incomplete
    finally:
        release.set()


def test_lines_that_a_hanging_disk_did_not_take_are_incomplete() -> None:
    hangs, release = threading.Event(), threading.Event()

    class Hangs(Record):
        def append(self, *arguments: Any, **more: Any) -> None:
            if len(self.lines) == 20:
                hangs.set()
                release.wait(60)
            super().append(*arguments, **more)

    record = Hangs()
    stream = stream_of(Script(range(1_000_000), live=True, pause=0.001), same, record)
    threading.Thread(target=lambda: hangs.wait(60) and stream.stop()).start()
    result = stream.run()
    try:
        count = result.count
        assert "record" in result.hung
        # Of lines that were handed over together with those that hang, nobody knows.
        assert 0 < count.recorded <= 20 and count.recorded == count.issued - count.incomplete
        assert count.issued == count.restored + count.dropped + count.incomplete
    finally:
        release.set()


def test_numbers_that_no_network_should_see_are_not_the_engines_fault() -> None:
    kept, events = Kept(), []

    @engine
    def picky(frame: Any) -> Any:
        if frame.max() > 0.99:
            raise CubeError("the values are too large")
        return frame.copy()

    lines: list[Any] = [line(number) for number in range(100)]
    for number in range(10, 60):
        lines[number][0, 0] = 4090
    result = run(
        stream_of(
            Script(lines), picky, None, [NamedSink("kept", kept, "block", True)],
            log=lambda kind, **fields: events.append(kind),
        )
    )  # fmt: skip
    assert not result.failures
    assert result.count.restored == 100
    assert result.count.passed > 40
    assert result.frames["failed"] == 0
    assert "unfit" in events
    assert all(np.array_equal(kept.lines[number], lines[number]) for number in range(100))


def test_a_duration_ends_a_live_source_and_works_off_what_is_on_its_way() -> None:
    record, kept = Record(), Kept()
    options = StreamOptions(seconds=0.4, line_buffers=16)
    source = Script(range(1_000_000), live=True, pause=0.002)
    result = run(stream_of(source, same, record, [NamedSink("restored", kept, "block", True)], options))
    assert result.ended_by == "duration"
    assert result.count.restored + result.count.dropped == result.count.issued


def test_a_source_that_fails_ends_the_stream_with_its_own_words() -> None:
    record = Record()
    result = run(stream_of(Script([*range(20), MachineError("the cable is cut", key="cable")]), record=record))
    assert result.failures["source"].one_line() == "cable: the cable is cut"
    assert result.count.recorded == result.count.restored == 20


def test_a_bug_in_a_stage_is_told_and_ends_the_stream() -> None:
    class Buggy(Record):
        def checkpoint(self) -> None:
            raise ZeroDivisionError("a bug")

    events = []
    source = Script(range(1_000_000), live=True, pause=0.001)
    result = run(stream_of(source, same, Buggy(), log=lambda kind, **fields: events.append((kind, fields))))
    assert "ZeroDivisionError: a bug" in result.failures["record"].one_line()
    assert result.failures["record"].exit_code == 70
    assert result.ended_by == "failure"
    assert any(kind == "failed" and "ZeroDivisionError" in fields["error"] for kind, fields in events)


@pytest.mark.parametrize("principal", [True, False])
def test_a_bug_in_a_sink_is_told_and_ends_nothing(principal: bool) -> None:
    class Buggy(Kept):
        def write(self, block: Block) -> None:
            raise ZeroDivisionError("a bug")

    events = []
    sinks = [NamedSink("buggy", Buggy(), "block", principal), NamedSink("preview", Kept())]
    record = Record()
    stream = stream_of(
        Script(range(200)), same, record, sinks, log=lambda kind, **fields: events.append((kind, fields))
    )
    result = run(stream)
    assert "ZeroDivisionError: a bug" in result.failures["buggy"].one_line()
    assert result.failures["buggy"].exit_code == 70
    assert result.count.recorded == len(record.lines) == 200
    assert (result.count.restored, result.count.dropped) == ((0, 200) if principal else (200, 0))
    assert any(kind == "failed" and "ZeroDivisionError" in fields["error"] for kind, fields in events)


@pytest.mark.slow
def test_nothing_grows_while_it_runs() -> None:
    sizes, frames = np.zeros(2000, np.int64), [0]

    @engine
    def measured(frame: Any) -> Any:
        gc.collect()
        sizes[frames[0]] = tracemalloc.get_traced_memory()[0]
        frames[0] += 1
        return frame.copy()

    # What other tests left behind is not looked through each time.
    gc.collect()
    gc.freeze()
    tracemalloc.start()
    try:
        run(
            stream_of(Script([line(0), line(1)] * 1500), measured, None, [NamedSink("none", _Nothing(), "block", True)])
        )
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert frames[0] == 500
    # The latencies of the last 256 frames are kept. A frame that stayed would be 3,000 bytes, 200 of them 600,000.
    early, late = np.median(sizes[260:300]), np.median(sizes[450:500])
    assert late - early < 40_000, f"{late - early:.0f} bytes more after 200 frames"


class _Nothing(Sink):
    def write(self, block: Block) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("slots", [1, 3])
def test_a_live_source_never_waits_for_restoration(slots: int) -> None:
    gate = threading.Event()

    @engine
    def held(frame: Any) -> Any:
        gate.wait(20)
        return frame.copy()

    record = Record()
    options = StreamOptions(line_buffers=8, frame_buffers=slots)
    source = Script(range(400), live=True)
    stream = stream_of(source, held, record, options=options)
    worker = threading.Thread(target=run, args=(stream,))
    worker.start()
    deadline = time.monotonic() + 20
    while len(record.lines) < 400 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(record.lines) == 400, "the record waited for the engine"
    gate.set()
    worker.join(20)
    assert not worker.is_alive()


# A network of other planes, with a constant, without metrics and experts, whose frames have one place

CODED_FACTS = RestorerFacts(CODED, 0, Prompts(CODED, {"code": CODE}))
MADE = LineFormat(5, SHAPE[1], np.dtype(np.float32))


def coded_stream(
    lines: Sequence[int | Line | Event], infer: Infer = decode, format: LineFormat = FORMAT
) -> tuple[Stream, Kept, Record, list[dict[str, Any]]]:
    """A stream of such a network; what it gives out, what it records, and what it logs of what it drops."""
    kept, record, dropped = Kept(), Record(), []

    def log(kind: str, **fields: Any) -> None:
        if kind in ("drop-frame", "drop"):
            dropped.append({"kind": kind, **fields})

    sinks = [NamedSink("kept", kept, "block", True)]
    stream = stream_of(
        Script(lines, format), infer, record, sinks, output=MADE, log=log, facts=CODED_FACTS,
    )  # fmt: skip
    return stream, kept, record, dropped


def as_made(raw: Line) -> Line:
    """What comes out of a line, [5, samples]."""
    unit = (raw / np.float64(4095)).astype(np.float32)
    return decoded(unit[:, None])[:, 0]


def test_lines_of_other_bands_come_out_and_a_frame_that_is_not_full_is_dropped() -> None:
    stream, kept, record, dropped = coded_stream(range(100))
    result = run(stream)
    assert result.count.as_json() == {
        "in": 100, "recorded": 100, "restored": 96, "passed": 0, "dropped": 4, "incomplete": 0,
    }  # fmt: skip
    assert result.frames == {"restored": 12, "passed": 0, "dropped": 0, "failed": 0, "unfit": 0, "cut_off": 1}
    assert not result.failures and result.ended_by == "source"
    assert sorted(kept.lines) == list(range(96)) and sorted(record.lines) == list(range(100))
    for number, values in kept.lines.items():
        assert values.shape == (5, SHAPE[1]) and values.dtype == np.float32
        np.testing.assert_array_equal(values, as_made(line(number)))
        assert kept.flags[number] & ~Flag.BREAK == Flag.RESTORED
    frame, lines = dropped
    assert (frame["kind"], frame["sequence"], frame["last"]) == ("drop-frame", 96, 99)
    assert frame["why"] == "the end cut it off"
    assert (lines["kind"], lines["sequence"], lines["last"], lines["lines"]) == ("drop", 96, 99, 4)
    told = stream.snapshot()
    assert (told.prompt, told.prompt_by, told.experts, told.clipped) == ({}, "", (), 0)
    assert told.peak is not None and told.latency_s


def test_frames_with_gaps_are_bridged_or_dropped_and_never_passed() -> None:
    # One lost line is bridged; nine end the frame, whose lines are dropped. Where the next one begins nobody knows,
    # until the source begins anew.
    script: list[Any] = [*range(10), Missing(11, 1, "lost"), *range(11, 20), Missing(21, 9, "lost"), *range(29, 45)]
    stream, kept, record, dropped = coded_stream([*script, Broken("a new one"), *range(45, 53)])
    result = run(stream)
    assert sorted(kept.lines) == [*range(16), *range(45, 53)]
    assert {number for number, flags in kept.flags.items() if flags & Flag.INTERPOLATED} == {10}
    assert len(record.lines) == result.count.recorded == 43
    assert (result.count.restored, result.count.dropped, result.count.incomplete) == (23, 20, 10)
    assert (result.count.passed, result.frames["passed"], result.frames["unfit"]) == (0, 0, 3)
    ends = [(each["sequence"], each["last"]) for each in dropped if each["kind"] == "drop-frame"]
    assert ends == [(16, 19), (29, 36), (37, 44)]


def test_frames_of_mostly_unfit_lines_are_dropped_and_never_passed() -> None:
    lines: list[Any] = [line(number) for number in range(32)]
    for number in (*range(8, 13), 17):
        lines[number] = np.full(SHAPE, 7, np.uint16)
    stream, kept, _, dropped = coded_stream(lines)
    result = run(stream)
    assert sorted(kept.lines) == [*range(8), *range(16, 32)]
    assert (result.count.restored, result.count.dropped, result.count.passed) == (24, 8, 0)
    assert result.frames == {"restored": 3, "passed": 0, "dropped": 0, "failed": 0, "unfit": 1, "cut_off": 0}
    assert kept.flags[17] == Flag.EMPTY | Flag.RESTORED and not any(
        flags & Flag.PASSED for flags in kept.flags.values()
    )
    assert [each["sequence"] for each in dropped] == [8, 8]


def test_frames_with_missing_pixels_are_dropped_and_those_with_saturated_ones_are_not() -> None:
    lines: list[Any] = [line(number) for number in range(24)]
    lines[10][1, 3] = 0
    lines[18][2, 5] = 4095
    stream, kept, _, dropped = coded_stream(lines, format=replace(FORMAT, ignore_value=0.0))
    result = run(stream)
    assert sorted(kept.lines) == [*range(8), *range(16, 24)]
    assert (result.count.restored, result.count.dropped, result.count.passed) == (16, 8, 0)
    assert [each["sequence"] for each in dropped] == [8, 8]
    assert kept.flags[18] == Flag.SOME_SATURATED | Flag.RESTORED
    np.testing.assert_array_equal(kept.lines[18], as_made(lines[18]))


def test_frames_that_the_engine_does_not_take_are_dropped_and_never_passed() -> None:
    def picky(feeds: Any) -> Any:
        if feeds["shot"].max() > 0.99:
            raise CubeError("the values are too large")
        return decode(feeds)

    lines: list[Any] = [line(number) for number in range(80)]
    for number in range(20, 60):
        lines[number][0, 0] = 4090
    stream, kept, record, dropped = coded_stream(lines, picky)
    result = run(stream)
    assert not result.failures and result.frames == {
        "restored": 4,
        "passed": 0,
        "dropped": 0,
        "failed": 0,
        "unfit": 6,
        "cut_off": 0,
    }
    assert (result.count.restored, result.count.dropped, result.count.passed) == (32, 48, 0)
    assert sorted(kept.lines) == [*range(16), *range(64, 80)] and len(record.lines) == 80
    whys = [each["why"] for each in dropped if each["kind"] == "drop-frame"]
    assert whys == ["the values are too large"] * 6


def lines_of(count: int, low: int = 50, format: LineFormat = FORMAT) -> list[Line]:
    rng = np.random.default_rng(0)
    return [rng.integers(low, 4000, format.shape).astype(format.dtype) for _ in range(count)]


def given_out(
    lines: Sequence[Line | Event],
    mark: float,
    infer: Infer = same,
    output: LineFormat | None = None,
    format: LineFormat = FORMAT,
    **more: Any,
) -> tuple[np.ndarray[Any, Any], list[Flag]]:
    """What a principal sink gets of lines with an ignore value: [lines, bands, samples], and the flags."""
    kept = Kept()
    format = replace(format, ignore_value=mark)
    source, sinks = Script(lines, format), [NamedSink("kept", kept, "block", True)]
    run(stream_of(source, infer, None, sinks, output=output or format, **more))
    order = sorted(kept.lines)
    return np.stack([kept.lines[number] for number in order]), [Flag(kept.flags[number]) for number in order]


def listed(folder: Path, band: int, sample: int, bands: int = SHAPE[0]) -> dict[str, Any]:
    """Radiometry that replaces one element."""
    bad = np.zeros((bands, SHAPE[1]), np.uint8)
    bad[band, sample] = 1
    np.save(folder / "bad.npy", bad)
    return {"bad_pixels": str(folder / "bad.npy")}


def test_an_ignore_value_leaves_floats_alone() -> None:
    lines = lines_of(24)
    lines[5][:, 3] = 0
    values, _ = given_out(lines, 0.0, output=replace(FORMAT, dtype=np.dtype(np.float32), scale=None, ignore_value=0.0))
    expected = np.stack(lines) / np.float32(4095)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert ((values == 0) == (expected == 0)).all()


def test_restored_values_never_read_as_the_ignore_value() -> None:
    lines = lines_of(24)
    lines[4][0, 0] = 3

    @engine
    def darker(frame: Any) -> Any:
        return frame - np.float32(10 / 4095)

    values, flags = given_out(lines, 0.0, darker)
    assert values[4, 0, 0] == 1, "what was clipped to the ignore value reads as missing"
    assert flags[4] == Flag.RESTORED
    runs: list[int] = []

    @engine
    def around(frame: Any) -> Any:
        runs.append(1)
        return np.full_like(frame, (999.2 if len(runs) % 2 else 1000.8) / 4095)

    values, _ = given_out(lines_of(24, 2000), 1000.0, around)
    assert not (values == 1000).any(), "what was blended to the ignore value reads as missing"
    assert set(np.unique(values)) <= {999, 1001}


def test_a_pixel_that_is_missing_in_one_band_comes_out_as_it_came() -> None:
    lines = lines_of(24)
    lines[5][1] = 0
    lines[9][2, 7] = 0
    values, flags = given_out(lines, 0.0, engine(lambda frame: frame + np.float32(0.1)))
    np.testing.assert_array_equal(values[5], lines[5])
    assert flags[5] == Flag.PASSED
    np.testing.assert_array_equal(values[9, :, 7], lines[9][:, 7])
    assert (values[9, :, 6] != lines[9][:, 6]).all(), "its neighbour was not restored"


@pytest.mark.parametrize("mark", [0, 65535])
def test_a_listed_element_of_a_missing_pixel_is_missing(tmp_path: Path, mark: int) -> None:
    lines = lines_of(24)
    for noisy in lines:
        noisy[:, 4] = mark
    values, flags = given_out(lines, mark, radiometry=listed(tmp_path, 1, 4))
    assert (values[:, :, 4] == mark).all()
    assert (values[:, :, [3, 5]] != mark).all()
    assert all(flag & Flag.RESTORED for flag in flags)


def test_what_smile_makes_of_missing_values_is_missing() -> None:
    lines = lines_of(24)
    lines[9][1, 7] = 0
    values, _ = given_out(lines, 0, radiometry={"smile": [0.5] * SHAPE[1]})
    assert values[9, :, 7].tolist()[:2] == [0, 0] and values[9, 2, 7] == lines[9][2, 7]
    assert (np.delete(values[9], 7, axis=1) != 0).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("rest", ["whole", "half"])
def test_a_lost_line_between_missing_ones_is_missing(dtype: type, rest: str) -> None:
    """In frames that are passed as a whole, in restored ones, and where the edge of a frame lies at it."""
    format = replace(FORMAT, dtype=np.dtype(dtype), scale=4095.0 if dtype is np.uint16 else None, saturation=None)
    for lost in range(1, 23):
        lines: list[Any] = lines_of(24, format=format)
        for gone in lines:
            gone[:, 8 if rest == "half" else 0 :] = 7
        lines[lost] = Missing(lost, 1, "lost")
        values, flags = given_out(lines, 7, format=format)
        assert flags[lost] == Flag.INTERPOLATED
        assert (values[:, :, 8:] == 7).all()
        assert rest == "whole" or (values[:, :, :8] != 7).all()


def test_floats_never_read_as_the_ignore_value_that_were_not() -> None:
    format = replace(FORMAT, dtype=np.dtype(np.float32), scale=None, saturation=None)
    lines = [np.float32(5) + (line(number, format) % 3) for number in range(24)]
    lines[9] = lines[8].copy()
    lines[12][2, 3] = 0
    values, flags = given_out(lines, 0, format=format, radiometry={"dark": 5, "scale": 1.0})
    assert flags[9] & Flag.PASSED
    assert np.argwhere(values[:, 2] == 0).tolist() == [[12, 3]]
    np.testing.assert_allclose(values[9], lines[9] - 5, atol=1e-30)
    runs: list[int] = []

    @engine
    def around(frame: Any) -> Any:
        runs.append(1)
        return np.full_like(frame, -1.0 if len(runs) % 2 else 1.0)

    values, _ = given_out(lines_of(24, format=format), 0, around, format=format)
    assert not (values == 0).any(), "what was blended to the ignore value reads as missing"


@pytest.mark.parametrize("what", ["empty", "repeated"])
def test_a_listed_element_does_not_hide_an_unfit_line(tmp_path: Path, what: str) -> None:
    bad = np.zeros(SHAPE, np.uint8)
    bad[1, 4] = 1
    np.save(tmp_path / "bad.npy", bad)
    lines = [np.zeros(SHAPE, np.uint16) if what == "empty" else line(3) for _ in range(16)]
    for number, noisy in enumerate(lines):
        noisy[1, 4] = 500 + number
    kept = Kept()
    source = Script(lines)
    radiometry = load_radiometry({"bad_pixels": str(tmp_path / "bad.npy")}, FORMAT)
    restoring = Restoring(FACTS, same, radiometry, FORMAT)
    stream = Stream(source, restoring, None, [NamedSink("kept", kept, "block", True)], FILES)
    result = run(stream)
    assert result.count.passed >= 15
    assert stream.snapshot().flags[what] >= 15


def test_lines_are_judged_by_the_bands_that_are_restored() -> None:
    format = replace(FORMAT, bands=12)
    lines = lines_of(16, format=format)
    lines[6][:3] = 4095
    lines[9][:3] = 0
    lines[11][8] = 4095
    kept = Kept()
    facts = replace(FACTS, chosen=(0, 1, 2))
    restoring = Restoring(facts, same, load_radiometry({}, format), FORMAT)
    stream = Stream(Script(lines, format), restoring, None, [NamedSink("kept", kept, "block", True)], FILES)
    run(stream)
    assert stream.snapshot().flags == {"saturated": 1, "empty": 2}, "a line of one value is empty, too"
    assert {number for number, flags in kept.flags.items() if flags & Flag.PASSED} == {6, 9}


@pytest.mark.parametrize("how", ["replaced", "smile"])
def test_lines_are_judged_by_all_that_the_restored_bands_are_made_of(tmp_path: Path, how: str) -> None:
    """Band 3 is not restored, but the value of band 2 at sample 5 is made of it."""
    radiometry = listed(tmp_path, 2, 5, bands=12) if how == "replaced" else {"smile": [0.5] * SHAPE[1]}
    facts = replace(FACTS, chosen=(0, 1, 2))

    def seen(format: LineFormat, value: float) -> tuple[Kept, dict[str, int], list[Line]]:
        kept, lines = Kept(), lines_of(16, format=format)
        lines[6][3, 5] = value
        lines[9][8, 5] = value
        half = engine(lambda frame: frame * np.float32(0.5))
        sinks = [NamedSink("kept", kept, "block", True)]
        stream = stream_of(
            Script([each.copy() for each in lines], format), half, None, sinks, output=replace(format, bands=3),
            radiometry=radiometry, facts=facts,
        )  # fmt: skip
        assert not run(stream).failures
        return kept, stream.snapshot().flags, lines

    whole = replace(FORMAT, bands=12)
    kept, flags, lines = seen(whole, 4095)
    assert flags == {"some_saturated": 1}
    neighbour = lines[6][1, 5] if how == "replaced" else lines[6][2, 5]
    assert abs(int(kept.lines[6][2, 5]) - (int(neighbour) + 4095) / 2) <= 1, "a saturated value was restored"
    kept, flags, _ = seen(replace(whole, dtype=np.dtype(np.float32), scale=None, saturation=None), np.nan)
    assert flags == {"not_finite": 1}
    assert [number for number, found in kept.flags.items() if found & Flag.PASSED] == [6]
    assert [number for number, values in kept.lines.items() if not np.isfinite(values).all()] == [6]


def test_nobody_waits_for_ever_for_a_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.stream.pipeline.OPTIONAL_GRACE_S", 0.5)
    hang = threading.Event()

    class Hanging(Kept):
        def write(self, block: Block) -> None:
            hang.wait(60)

    result = run(stream_of(Script(range(60)), sinks=[NamedSink("preview", Hanging())]))
    hang.set()
    assert result.hung == ("preview",)
    assert result.count.restored == 60


def test_sinks_may_save_while_nothing_comes() -> None:
    class Ticked(Kept):
        ticks = 0

        def tick(self) -> None:
            self.ticks += 1

    kept = Ticked()
    run(stream_of(Script([*range(8), Quiet(), Quiet(), Quiet()]), sinks=[NamedSink("kept", kept, "block", True)]))
    assert kept.ticks > kept.blocks


def test_a_record_is_saved_while_restoration_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.stream.recording.CHECKPOINT_SECONDS", 0.1)

    @engine
    def slow(frame: Any) -> Any:
        time.sleep(0.7)
        return frame.copy()

    record = Record()
    run(stream_of(Script(range(30)), slow, record))
    assert record.checkpoints >= 3
