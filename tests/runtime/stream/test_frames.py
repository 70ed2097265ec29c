"""Lines to frames and back: every line is settled exactly once, whatever comes, goes missing or is dropped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.lines import Flag
from runtime.stream.frames import Assembler, Frame
from runtime.stream.joining import Joiner, Piece
from runtime.stream.pool import LinePool
from runtime.stream.report import FrameReport, stamps
from runtime.tiles import Tiling
from tests.runtime.stream.lines import FORMAT


class Line:
    """Feeds an assembler and a joiner, and notes what became of each line."""

    def __init__(self, lines: int, overlap: int, bridge: int, dropped: set[int]) -> None:
        self.pool = LinePool(FORMAT, 4 * lines + 8)
        self.assembler = Assembler(lines, overlap, bridge)
        self.joiner = Joiner(1, 2, lines, overlap, self.emit, self.lose)
        self.dropped, self.sequence = dropped, 0
        self.out: list[int] = []
        self.values: list[float] = []
        self.interpolated: list[int] = []
        self.lost = 0
        self.gone: set[int] = set()
        self.frames: list[Frame] = []
        self.came: set[int] = set()

    def take(self, flags: Flag = Flag(0)) -> None:  # noqa: B008
        slot = self.pool.acquire(0)
        assert slot is not None, "frames hold more lines than they may"
        slot.sequence, slot.flags, slot.frame_id, slot.utc_ns = self.sequence, flags, self.sequence, self.sequence
        self.came.add(self.sequence)
        self.sequence += 1
        self.work(self.assembler.take(slot))
        slot.release()

    def miss(self, count: int) -> None:
        self.sequence += count
        self.work(self.assembler.miss(count, 0.0))

    def end(self) -> None:
        self.work(self.assembler.end(0.0))
        self.joiner.ended()

    def work(self, frames: list[Frame]) -> None:
        for frame in frames:
            self.frames.append(frame)
            if frame.number in self.dropped:
                self.joiner.dropped(frame)
            else:
                sequence, frame_id, utc_ns, flags = stamps(frame)
                values = np.repeat(sequence.astype(np.float32)[None, :, None], 2, axis=2)
                self.joiner.restored(frame, values, FrameReport(frame.number, sequence, frame_id, utc_ns, flags))
            frame.release()

    def emit(self, piece: Piece) -> None:
        part = slice(piece.start, piece.start + piece.values.shape[1])
        report = piece.report
        came = (report.flags[part] & Flag.INTERPOLATED) == 0
        self.out += report.sequence[part][came].tolist()
        self.interpolated += report.sequence[part][~came].tolist()
        self.values += piece.values[0, :, 0][came].tolist()
        np.testing.assert_array_equal(report.frame_id[part], report.sequence[part])

    def lose(self, first: int, last: int, count: int) -> None:
        gone = self.came & set(range(first, last + 1))
        assert len(gone) == count
        assert not gone & (self.gone | set(self.out)), "a line was settled twice"
        self.gone |= gone
        self.lost += count


EVENTS = st.lists(
    st.one_of(st.just("line"), st.just("line"), st.just("line"), st.just("break"), st.integers(1, 6)), max_size=120
)


@settings(max_examples=300, deadline=None)
@given(
    events=EVENTS,
    lines=st.integers(2, 9),
    share=st.integers(0, 4),
    bridge=st.integers(0, 3),
    dropped=st.sets(st.integers(0, 30)),
)
def test_every_line_is_settled_once(
    events: list[str | int], lines: int, share: int, bridge: int, dropped: set[int]
) -> None:
    run = Line(lines, min(share, lines // 2), bridge, dropped)
    for event in events:
        if isinstance(event, int):
            run.miss(event)
        else:
            run.take(Flag.BREAK if event == "break" else Flag(0))
    run.end()
    assert run.out == sorted(set(run.out)), "a line was given out twice or out of order"
    assert set(run.out) <= run.came
    assert len(run.out) + run.lost == len(run.came)
    assert set(run.out) | run.gone == run.came
    assert run.values == run.out, "a line came out as another"
    assert not set(run.interpolated) & run.came
    assert len(run.interpolated) == len(set(run.interpolated))
    assert run.pool.free == run.pool.count, "a line is still held"
    if not any(frame.number in dropped for frame in run.frames):
        assert set(run.out) == run.came


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 40), lines=st.integers(2, 9), share=st.integers(0, 4))
def test_frames_overlap_by_as_much_as_asked(count: int, lines: int, share: int) -> None:
    overlap = min(share, lines // 2)
    run = Line(lines, overlap, 0, set())
    for _ in range(count):
        run.take()
    run.end()
    firsts = [frame.first for frame in run.frames]
    assert firsts == [number * (lines - overlap) for number in range(len(firsts))]
    assert [len(frame.slots) for frame in run.frames[:-1]] == [lines] * (len(firsts) - 1)
    assert run.frames[-1].first + len(run.frames[-1].slots) == count


def test_neighbours_are_blended_as_the_tiles_of_a_cube_are() -> None:
    lines, overlap = 8, 4
    out: list[NDArray[np.float32]] = []
    joiner = Joiner(1, 1, lines, overlap, lambda piece: out.append(piece.values.copy()), lambda *lost: None)
    run = Line(lines, overlap, 0, set())
    for _ in range(12):
        run.take()
    run.end()
    for frame, level in zip(run.frames, (1.0, 3.0), strict=False):
        values = np.full((1, len(frame.slots), 1), level, np.float32)
        joiner.restored(frame, values, FrameReport(frame.number, *stamps_of(frame)))
    joiner.ended()
    tiling = Tiling((12, 1), (lines, 1), overlap)
    joined = np.zeros(12)
    for tile, share, level in zip(tiling.tiles(), tiling.shares(), (1.0, 3.0), strict=True):
        joined[tile.line : tile.line + lines] += level * share[:, 0]
    np.testing.assert_allclose(np.concatenate(out, axis=1)[0, :, 0], joined, rtol=1e-6)


@pytest.mark.parametrize("whole", ["first", "second"])
def test_a_line_that_was_passed_through_is_never_blended(whole: str) -> None:
    lines, overlap = 8, 4
    out: list[tuple[NDArray[np.float32], NDArray[np.uint32]]] = []

    def emit(piece: Piece) -> None:
        part = slice(piece.start, piece.start + piece.values.shape[1])
        out.append((piece.values.copy(), piece.report.flags[part].copy()))

    joiner = Joiner(1, 1, lines, overlap, emit, lambda *lost: None)
    run = Line(lines, overlap, 0, set())
    for _ in range(12):
        run.take()
    run.end()
    for frame, name in zip(run.frames, ("first", "second"), strict=False):
        passed = name == whole
        values = np.full((1, len(frame.slots), 1), np.inf if passed else 2.0, np.float32)
        sequence, frame_id, utc_ns, flags = stamps_of(frame)
        flags[:] = Flag.PASSED if passed else Flag.RESTORED
        joiner.restored(frame, values, FrameReport(frame.number, sequence, frame_id, utc_ns, flags))
    joiner.ended()
    values = np.concatenate([piece[0, :, 0] for piece, _ in out])
    flags = np.concatenate([flags for _, flags in out])
    # What both have is the one's that restored it.
    count = 4 if whole == "first" else 8
    restored = values[count:] if whole == "first" else values[:count]
    assert (restored == 2.0).all()
    assert (np.isinf(values) == ((flags & Flag.PASSED) > 0)).all()
    assert np.count_nonzero(flags & Flag.RESTORED) == 8


def stamps_of(frame: Frame) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
    sequence = np.arange(frame.first, frame.first + len(frame.slots), dtype=np.uint64)
    return sequence, sequence, sequence, np.full(len(sequence), Flag.RESTORED, np.uint32)


@pytest.mark.parametrize("bridge", [0, 2])
def test_a_gap_is_bridged_or_ends_the_frame(bridge: int) -> None:
    run = Line(8, 2, bridge, set())
    for _ in range(3):
        run.take()
    run.miss(2)
    run.take()
    run.end()
    if bridge:
        assert [frame.taken for frame in run.frames] == [(True, True, True, False, False, True)]
        assert run.interpolated == [3, 4]
    else:
        assert [(frame.first, len(frame.slots)) for frame in run.frames] == [(0, 3), (5, 1)]
        assert run.interpolated == []


def test_times_and_numbers_of_missing_lines_lie_between_their_neighbours() -> None:
    run = Line(8, 0, 4, set())
    pool = LinePool(FORMAT, 4)
    frame_ids, times = (2**40, 2**40 + 4), (2**62, 2**62 + 400)
    slots = []
    for frame_id, utc_ns in zip(frame_ids, times, strict=True):
        slot = pool.acquire(0)
        assert slot is not None
        slot.frame_id, slot.utc_ns, slot.flags = frame_id, utc_ns, Flag.GAP
        slots.append(slot)
    frame = Frame(0, 7, 7, (slots[0], None, None, None, slots[1]), 0, 0.0)
    sequence, frame_id, utc_ns, flags = stamps(frame)
    assert sequence.tolist() == [7, 8, 9, 10, 11]
    assert frame_id.tolist() == [2**40 + i for i in range(5)]
    assert utc_ns.tolist() == [2**62 + 100 * i for i in range(5)]
    assert flags.tolist() == [Flag.GAP, *[Flag.INTERPOLATED] * 3, Flag.GAP]
    assert run.frames == []
