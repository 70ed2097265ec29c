"""What every sink must do; a sink's tests derive from `SinkContract` and give `opened`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from runtime.errors import DeployError
from runtime.lines import Flag, LineFormat
from runtime.sinks.contract import Block, Sink, StreamFacts

FACTS = StreamFacts(
    LineFormat(5, 12, np.dtype(np.uint16), scale=4095, wavelengths=(450.0, 500.0, 550.0, 600.0, 650.0)), "a test"
)
DAY_NS = 86_400_000_000_000


def block_of(first: int, lines: int, facts: StreamFacts = FACTS, flags: Flag = Flag.RESTORED) -> Block:
    """Lines that differ from each other in every value they can, numbered from `first` without gaps."""
    rng = np.random.default_rng(first)
    shape = (lines, *facts.format.shape)
    values = rng.integers(0, 4096, shape).astype(facts.format.dtype)
    sequence = np.arange(first, first + lines, dtype=np.uint64)
    return Block(
        values=values,
        sequence=sequence,
        frame_id=sequence + np.uint64(70_000),
        utc_ns=np.uint64(20_000 * DAY_NS + 123_456_789) + sequence * np.uint64(3_000_000),
        flags=np.full(lines, int(flags), np.uint32),
        frame=first,
        metrics={"noise": 0.25, "blur": float("nan")},
        experts=(0.75, 0.25),
        latency_s=0.125,
    )


class SinkContract:
    """Tests of one sink; `opened` opens a fresh one in the test's own folder.

    Attributes:
        facts: of a stream whose lines it takes.
    """

    facts = FACTS

    @pytest.fixture
    def opened(self) -> Callable[[StreamFacts], Sink]:
        raise NotImplementedError("give what opens the sink under test")

    def test_blocks_of_any_length_and_gaps_are_taken(self, opened: Callable[[StreamFacts], Sink]) -> None:
        with opened(self.facts) as sink:
            for first, lines in ((0, 3), (3, 1), (4, 40), (100, 2)):
                sink.write(block_of(first, lines, self.facts))

    def test_a_block_stays_as_it_is(self, opened: Callable[[StreamFacts], Sink]) -> None:
        block, same = block_of(0, 4, self.facts), block_of(0, 4, self.facts)
        with opened(self.facts) as sink:
            sink.write(block)
        for name in ("values", "sequence", "frame_id", "utc_ns", "flags"):
            np.testing.assert_array_equal(getattr(block, name), getattr(same, name))
            assert getattr(block, name).flags.writeable

    def test_no_array_of_a_block_is_kept(self, opened: Callable[[StreamFacts], Sink]) -> None:
        with opened(self.facts) as sink:
            block = block_of(0, 4, self.facts)
            arrays = (block.values, block.sequence, block.frame_id, block.utc_ns, block.flags)
            alive = [weakref.ref(array) for array in arrays]
            sink.write(block)
            del arrays, block
            gc.collect()
            assert [reference() is not None for reference in alive] == [False] * 5

    def test_views_of_larger_arrays_are_taken(self, opened: Callable[[StreamFacts], Sink]) -> None:
        whole = block_of(0, 8, self.facts)
        with opened(self.facts) as sink:
            parts = (whole.values[2:5], whole.sequence[2:5], whole.frame_id[2:5], whole.utc_ns[2:5], whole.flags[2:5])
            sink.write(Block(*parts))

    def test_it_can_be_told_the_counts_at_any_time(self, opened: Callable[[StreamFacts], Sink]) -> None:
        with opened(self.facts) as sink:
            assert all(isinstance(text, str) for text in (sink.address, sink.resumed))
            sink.tell({})
            sink.write(block_of(0, 2, self.facts))
            sink.tell({"lines": {"in": 2, "restored": 2, "pending": None}, "rates": {}, "state": "running"})
        # Between its end and the last word, another thread cannot know.
        with suppress(DeployError):
            sink.tell({})

    def test_it_closes_twice(self, opened: Callable[[StreamFacts], Sink]) -> None:
        sink = opened(self.facts)
        sink.write(block_of(0, 2, self.facts))
        sink.close()
        sink.close()

    def test_it_closes_without_a_line(self, opened: Callable[[StreamFacts], Sink]) -> None:
        opened(self.facts).close()

    def test_writing_after_the_end_is_refused(self, opened: Callable[[StreamFacts], Sink]) -> None:
        sink = opened(self.facts)
        sink.write(block_of(0, 2, self.facts))
        sink.close()
        with pytest.raises(DeployError, match="closed"):
            sink.write(block_of(2, 2, self.facts))
