"""A Python function as a sink: what it is given, and what becomes of its exceptions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from runtime.errors import MachineError
from runtime.sinks.callback import Callback
from runtime.sinks.contract import Block, Sink, StreamFacts
from tests.contracts.sink import SinkContract, block_of


class TestCallback(SinkContract):
    @pytest.fixture
    def opened(self) -> Callable[[StreamFacts], Sink]:
        return lambda facts: Callback(lambda block: None)


def test_what_was_given_stays_true_when_the_arrays_are_used_again() -> None:
    kept: list[Block] = []
    sink = Callback(kept.append)
    block = block_of(7, 3)
    sink.write(block)
    for array in (block.values, block.sequence, block.frame_id, block.utc_ns, block.flags):
        array[:] = 0
    expected = block_of(7, 3)
    for name in ("values", "sequence", "frame_id", "utc_ns", "flags"):
        np.testing.assert_array_equal(getattr(kept[0], name), getattr(expected, name))
    assert (kept[0].frame, kept[0].experts, kept[0].latency_s) == (7, (0.75, 0.25), 0.125)
    assert kept[0].metrics["noise"] == 0.25


def test_nothing_in_it_can_be_written_to() -> None:
    kept: list[Block] = []
    Callback(kept.append).write(block_of(0, 1))
    with pytest.raises(ValueError, match="read-only"):
        kept[0].values[0, 0, 0] = 1
    with pytest.raises(TypeError):
        kept[0].metrics["noise"] = 1.0  # type: ignore[index]


def spoils(block: Block) -> None:
    raise KeyError("no\nsuch")


class Counter:
    def __call__(self, block: Block) -> None:
        raise ZeroDivisionError("of course")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (spoils, r"tests\.runtime\.test_sink_callback\.spoils raised KeyError: 'no\\nsuch'; mend"),
        (Counter(), r"tests\.runtime\.test_sink_callback\.Counter raised ZeroDivisionError: of course"),
    ],
)
def test_an_exception_names_the_function(function: Callable[[Block], None], said: str) -> None:
    with pytest.raises(MachineError, match=said) as caught:
        Callback(function).write(block_of(0, 1))
    assert isinstance(caught.value.__cause__, KeyError | ZeroDivisionError)
