"""Where two variants of a graph part: the first block, and in it the first node, whose values differ by too much.

As Polygraphy's `debug` does it, but named by the network's own modules: nodes carry their module's name, and the
tensors of a rewritten graph keep theirs. Blocks are looked at first, then the nodes of the first block that is off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from .products import block_of
from .ranges import Feeds, parts_of, session_of
from .typed import constants_of, inferred, pictures

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Step:
    """A place in the graph, and the distance of the two there: RMS of the difference over RMS of the values."""

    name: str
    distance: float


@dataclass(frozen=True)
class Parting:
    """How two variants drift apart on one frame.

    Attributes:
        blocks: the distance behind every block, in order.
        first: the first node whose output is farther than the tolerance, named `module/operator`; None if there is
            none.
        tolerance: that was held.
    """

    blocks: tuple[Step, ...]
    first: Step | None
    tolerance: float


def parting(one: bytes, other: bytes, feeds: Feeds, tolerance: float) -> Parting | None:
    """Compare two graphs of the same network on one frame.

    Args:
        one: the float32 graph.
        other: a variant of it, whose floats may be FP16 and whose products may be int8.
        feeds: what both are fed with, {input: array}.
        tolerance: a distance that is still the same.

    Returns:
        None for graphs of an older build, whose nodes do not tell their modules.
    """
    models = [inferred(graph) for graph in (one, other)]
    if not all("/" in node.name for node in models[0].graph.node):
        return None
    shared = _floats(models[0]) & _floats(models[1]) & pictures(models[0].graph, constants_of(models[0].graph))
    makers = [(node.name, name) for node in models[0].graph.node for name in node.output if name in shared]
    last: dict[str, str] = {}
    for node, tensor in makers:
        last[block_of(node)] = tensor
    blocks = _distances(models, list(last.items()), feeds)
    # NaN is farther than any tolerance.
    off = next((step.name for step in blocks if not step.distance <= tolerance), None)
    if off is None:
        return Parting(tuple(blocks), None, tolerance)
    inside = [(node, tensor) for node, tensor in makers if block_of(node) == off]
    nodes = _distances(models, inside, feeds)
    first = next((step for step in nodes if not step.distance <= tolerance), nodes[-1])
    return Parting(tuple(blocks), first, tolerance)


def _floats(model: onnx.ModelProto) -> set[str]:
    values = (*model.graph.value_info, *model.graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type in FLOATS}


def _distances(models: Sequence[onnx.ModelProto], places: Sequence[tuple[str, str]], feeds: Feeds) -> list[Step]:
    steps = []
    for part in parts_of(models[0], [tensor for _, tensor in places]):
        expected, found = (session_of(model, part).run(part, dict(feeds)) for model in models)
        distances = {}
        for tensor, a, b in zip(part, expected, found, strict=True):
            size = float(np.linalg.norm(a.ravel())) or 1.0
            distances[tensor] = float(np.linalg.norm(np.subtract(a, b, dtype=np.float32).ravel())) / size
        steps += [Step(name, distances[tensor]) for name, tensor in places if tensor in distances]
    order = {name: place for place, (name, _) in enumerate(places)}
    return sorted(steps, key=lambda step: order[step.name])
