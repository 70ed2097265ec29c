"""What every source of lines must do. A test class for a source inherits `SourceContract` and gives its fixtures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import DeployError
from runtime.lines import Broken, Ended, Event, Flag, Missing, Quiet, Taken
from runtime.sources import SOURCES, Source

Cube = NDArray[np.generic]
PATIENCE = 20.0
"""Seconds after which a test gives up: a hang, not a slow machine."""


def buffer(source: Source) -> Cube:
    """For one line."""
    return np.zeros(source.format.shape, source.format.dtype)


def following(source: Source, line: Cube, timeout: float = 0.5) -> Event:
    """What comes next but `Quiet`."""
    deadline = time.monotonic() + PATIENCE
    while isinstance(event := source.read(line, timeout), Quiet):
        assert time.monotonic() < deadline, "nothing came"
    return event


def drained(source: Source, most: int = 1 << 30) -> tuple[list[Event], list[Cube]]:
    """All events but `Quiet` until the source ended or `most` lines were taken, and the lines."""
    line, events, lines = buffer(source), [], []
    while len(lines) < most:
        events.append(following(source, line))
        if isinstance(events[-1], Taken):
            lines.append(line.copy())
        if isinstance(events[-1], Ended):
            break
    return events, lines


class SourceContract:
    """Tests of one source, opened anew for each.

    Attributes:
        ends: whether it ends by itself after some lines.
    """

    ends = True

    @pytest.fixture
    def source(self) -> Iterator[Source]:
        """An open source that has at least eight lines to give, all different."""
        raise NotImplementedError("give the source under test")

    @pytest.fixture
    def quiet(self) -> Iterator[Source]:
        """An open source that will have nothing to say for the next seconds."""
        raise NotImplementedError("give the source when nothing comes")

    @pytest.fixture
    def expected(self) -> Cube | None:
        """Its lines from frame id 0 on, [lines, bands, samples], where they are known."""
        return None

    def test_the_format_is_whole_and_stays(self, source: Source) -> None:
        form = source.format
        assert form.bands >= 1 and form.samples >= 1 and form.shape == (form.bands, form.samples)
        assert form.dtype.kind in "iuf" and form.dtype.isnative
        assert form.scale is None or form.scale > 0
        assert form.saturation is None or form.saturation > 0
        assert form.wavelengths is None or len(form.wavelengths) == form.bands
        drained(source, 3)
        assert source.format == form

    def test_lines_come_in_order_and_are_what_they_should_be(self, source: Source, expected: Cube | None) -> None:
        before = time.time_ns()
        events, lines = drained(source, 8)
        taken = [event for event in events if isinstance(event, Taken)]
        assert len(taken) == 8
        frame = taken[0].frame_id
        for event in events:
            if isinstance(event, (Taken, Missing)):
                assert event.frame_id == frame
                frame += event.count if isinstance(event, Missing) else 1
        times = [event.utc_ns for event in taken]
        assert times == sorted(times) and before <= times[0] and times[-1] <= time.time_ns()
        assert all(isinstance(event.flags, Flag) for event in taken)
        for event, line in zip(taken, lines, strict=True):
            if expected is not None:
                np.testing.assert_array_equal(line, expected[event.frame_id])
        assert not any(np.array_equal(one, other) for one, other in pairwise(lines))

    def test_a_buffer_is_the_callers_once_it_is_filled(self, source: Source) -> None:
        first, second = buffer(source), buffer(source)
        while not isinstance(following(source, first), Taken):
            pass
        kept = first.copy()
        while not isinstance(following(source, second), Taken):
            pass
        np.testing.assert_array_equal(first, kept)
        assert not np.array_equal(first, second)

    def test_buffers_that_do_not_fit_are_refused_and_nothing_is_lost(self, source: Source) -> None:
        bands, samples = source.format.shape
        dtype = source.format.dtype
        other = np.dtype(np.float32 if dtype != np.float32 else np.uint16)
        readonly = np.zeros((bands, samples), dtype)
        readonly.flags.writeable = False
        wrong: list[Any] = [
            np.zeros((bands + 1, samples), dtype),
            np.zeros((bands, samples + 1), dtype),
            np.zeros((1, bands, samples), dtype),
            np.zeros(bands * samples, dtype),
            np.zeros((bands, samples), other),
            np.zeros((bands, samples), dtype.newbyteorder("S")) if dtype.itemsize > 1 else None,
            np.zeros((bands, 2 * samples), dtype)[:, ::2],
            readonly,
            None,
        ]
        for line in wrong:
            with pytest.raises((DeployError, ValueError, TypeError)):
                source.read(line, 0.1)
        event = following(source, buffer(source))
        assert isinstance(event, Taken)
        assert not event.flags & Flag.GAP

    def test_no_line_in_time_is_quiet(self, quiet: Source) -> None:
        line = buffer(quiet)
        for timeout in (0.0, 0.05, 0.0, 0.1):
            assert quiet.read(line, timeout) == Quiet()

    def test_says_what_it_is(self, source: Source) -> None:
        said = source.describe()
        assert said["kind"] in SOURCES
        assert all(isinstance(key, str) and isinstance(value, str) and value for key, value in said.items())
        assert len(said) > 1

    def test_telemetry_is_asked_for_from_another_thread(self, source: Source) -> None:
        figures: list[dict[str, float]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                figures.append(dict(source.telemetry()))
                stop.wait(0.001)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            drained(source, 6)
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert not thread.is_alive()
        assert figures
        for figure in figures:
            assert all(isinstance(key, str) and float(value) == value for key, value in figure.items())

    def test_may_be_closed_twice_and_before_anything_was_read(self, source: Source) -> None:
        source.close()
        source.close()

    def test_may_be_closed_twice_after_some_lines(self, source: Source) -> None:
        with source as entered:
            assert entered is source
            drained(source, 2)
            source.close()

    def test_ends_once_and_for_all(self, source: Source) -> None:
        if not self.ends:
            assert not any(isinstance(event, Ended) for event in drained(source, 8)[0])
            return
        events, lines = drained(source)
        assert len(lines) >= 8
        assert [type(event) for event in events].count(Ended) == 1
        line = buffer(source)
        assert [source.read(line, 0.05) for _ in range(3)] == [Ended()] * 3

    def test_what_is_first_is_marked(self, source: Source) -> None:
        taken = [event for event in drained(source, 3)[0] if isinstance(event, (Taken, Broken))]
        marks = [isinstance(event, Broken) or bool(event.flags & Flag.BREAK) for event in taken]
        assert marks[0] and not any(marks[1:3])
