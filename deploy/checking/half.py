"""Graphs rewritten in FP16."""

from collections.abc import Sequence

from calibration.rounding import with_corrected_biases
from calibration.typed import half_precision
from export.onnx import Probe

from .. import console


def in_half(data: bytes, name: str, probes: Sequence[Probe]) -> bytes:
    """A graph rewritten in FP16 with float32 islands, its biases corrected on these probes; says what was done."""
    with console.progress("rewriting the graph in FP16"):
        corrected = with_corrected_biases(data, probes)
        typed = half_precision(corrected)
    console.say(
        f"{name:<10} {typed.half} nodes in FP16, {typed.single} in float32 islands, {typed.casts} casts, "
        f"{typed.flushed} weights too small for full digits"
    )
    return typed.data
