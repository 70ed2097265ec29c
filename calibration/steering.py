"""A graph that can be told which experts to choose, so that what follows an expert is seen though no frame chose it.

Of a network with experts the ranges of what comes behind a mixture depend on the expert that was chosen there, and few
frames do not choose them all. What a router chose is exchanged for another expert, at the same weight, in one layer;
what the layers before and behind it choose stays theirs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime.arrays import Float32

from .typed import rewritten

Order = NDArray[np.int64]
"""[experts]: whose weight each expert gets."""


def _port(layer: int) -> str:
    return f"steering/{layer}"


def steered(graph: bytes, routing: str, layers: int) -> bytes | None:
    """The graph with an input more for each layer of experts: an order of their weights.

    Args:
        graph: a float32 graph.
        routing: its output with the weights of all experts, [layers, experts].
        layers: of experts.

    Returns:
        None where the graph does not join the layers' weights [1, experts] as they are, so that it cannot be steered.
        What is turned is what the choice is made of: whatever a graph does with it follows.
    """
    model = onnx.load_model_from_string(graph)
    maker = next((n for n in model.graph.node if routing in n.output), None)
    if maker is None:
        return None
    weights = list(maker.input) if maker.op_type == "Concat" else [routing]
    scores = [_scores(model, name) for name in weights]
    shape = next(o.type.tensor_type.shape.dim for o in model.graph.output if o.name == routing)
    if len(shape) != 2 or len(set(scores)) != layers:
        return None
    experts = int(shape[-1].dim_value)
    nodes = []
    for node in model.graph.node:
        node.input[:] = [f"{name}/steered" if name in scores else name for name in node.input]
        nodes.append(node)
        for layer, name in enumerate(scores):
            if name in node.output:
                turned = [f"{name}/steered"]
                nodes.append(helper.make_node("Gather", [name, _port(layer)], turned, f"{name}/Gather", axis=1))
    ports = [helper.make_tensor_value_info(_port(i), TensorProto.INT64, [experts]) for i in range(layers)]
    model.graph.input.extend(ports)
    return rewritten(model, nodes, [])


def _scores(model: onnx.ModelProto, weights: str) -> str:
    """What the nearest TopK before the weights of a layer chooses from; the weights themselves where all run."""
    makers = {name: node for node in model.graph.node for name in node.output}
    level = [weights]
    while level:
        nodes = [makers[name] for name in level if name in makers]
        for node in nodes:
            if node.op_type == "TopK":
                return str(node.input[0])
        level = list(dict.fromkeys(name for node in nodes for name in node.input))
    return weights


def unsteered(shape: Sequence[int]) -> dict[str, Order]:
    """What the steered graph is fed with besides a frame so that every layer [layers, experts] keeps its choice."""
    layers, experts = shape
    return {_port(layer): np.arange(experts, dtype=np.int64) for layer in range(layers)}


def towards(weights: Float32, layer: int, expert: int) -> dict[str, Order]:
    """The same so that one layer takes `expert` instead of the weakest that the frame's `weights` say it chose."""
    feeds = unsteered(weights.shape)
    chosen = weights[layer]
    weakest = int(np.argmin(np.where(chosen > 0, chosen, np.inf)))
    order = feeds[_port(layer)]
    order[[expert, weakest]] = order[[weakest, expert]]
    return feeds


def detours(weights: Sequence[Float32], most: int) -> Iterator[tuple[int, dict[str, Order]]]:
    """For every expert that none of the frames chose, the frames that are to be steered towards it.

    Args:
        weights: of every frame, [layers, experts] each; zero where an expert was not chosen.
        most: frames for each expert: those whose choice in that layer was the least sure.

    Yields:
        the place of a frame, and what the steered graph is fed with besides it.
    """
    every = np.stack(weights)
    for layer, expert in np.argwhere(~(every > 0).any(axis=0)):
        chosen = np.where(every[:, layer] > 0, every[:, layer], np.inf).min(axis=-1)
        for place in np.argsort(chosen, kind="stable")[:most]:
            yield int(place), towards(every[place], int(layer), int(expert))
