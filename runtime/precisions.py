"""The precisions that a network is computed in, and how far each may be off, as one table."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PrecisionName = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True)
class Arithmetic:
    """What one of them is computed from, and what its rounding does.

    Attributes:
        graph: variant of the graph that is computed; bfloat16 is an engine's own arithmetic on the float32 graph.
        bits: of a number.
        own: distance of two tensors, as a share of their size, that is its own rounding and no fault.
        limit: largest difference of a graph from the network, as a share of the output's range, before a build fails.
            An FP16 number has 11 digits, a bfloat16 number 8; what a network makes of that is its own (in FP16 our
            trained ones reach 1e-3, random weights 2e-2): gates judge what it costs.
        golden_slack: a golden frame may be off by this many times what a build allows or measures, since other
            processors and engines round differently; in int8 less, to tell a sound engine from another.
        by_rms: differences are root mean squares, not the largest: in int8 a single value may be far off (our trained
            ones reach 0.28 of the range, and 4e-3 rms), and nothing would be told by it.
    """

    graph: PrecisionName
    bits: int
    own: float
    limit: float
    golden_slack: float = 5.0
    by_rms: bool = False


PRECISIONS: Mapping[str, Arithmetic] = MappingProxyType(
    {
        "fp32": Arithmetic("fp32", 32, 1e-4, 2e-4),
        "fp16": Arithmetic("fp16", 16, 3e-3, 5e-2),
        "bf16": Arithmetic("fp32", 16, 2e-2, 0.1),
        "int8": Arithmetic("int8", 8, 3e-2, 5e-2, golden_slack=2.0, by_rms=True),
    }
)
VARIANTS = tuple(name for name, arithmetic in PRECISIONS.items() if arithmetic.graph == name)
"""Those that have a graph of their own, the most exact first."""
CLEARLY = 0.97
"""A lower precision must take at most this share of the time: for less nobody should pay with accuracy."""


def computes_half(precision: str, on_gpu: bool) -> bool:
    """Whether FP16 is the arithmetic of the graph, or on a GPU of what an int8 graph leaves in floating point."""
    return precision == "fp16" or (precision == "int8" and on_gpu)
