"""A graph that can be told which experts to choose, so that what follows an expert is seen though no frame chose it.

Of a network with experts the ranges of what comes behind a mixture depend on the expert that was chosen there, and few
frames do not choose them all. In one layer two probabilities of the router are exchanged, so that it takes another
expert at the same weight; what the layers before and behind it choose stays theirs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime.arrays import Float32

from .typed import rewritten

Order = NDArray[np.int64]
"""[experts]: whose probability each expert gets."""


def _port(layer: int) -> str:
    return f"steering/{layer}"


def steered(graph: bytes, routing: str) -> bytes | None:
    """The graph with an input more for each layer of experts: an order of their probabilities.

    What takes a layer's probabilities, to choose by them or to weigh by them, takes them in that order.

    Args:
        graph: a float32 graph.
        routing: its output with the weights of all experts, [layers, experts].

    Returns:
        None where the graph does not choose by one TopK for each layer, so that it cannot be steered.
    """
    model = onnx.load_model_from_string(graph)
    output = next(o for o in model.graph.output if o.name == routing)
    layers, experts = (d.dim_value for d in output.type.tensor_type.shape.dim)
    # In the order of the graph, which is that of the layers: each has the ones before it behind it.
    probabilities = [n.input[0] for n in model.graph.node if n.op_type == "TopK"]
    if len(set(probabilities)) != layers:
        return None
    ports = {name: _port(layer) for layer, name in enumerate(probabilities)}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        node.input[:] = [f"{name}/steered" if name in ports else name for name in node.input]
        nodes.append(node)
        nodes += [
            helper.make_node("Gather", [name, ports[name]], [f"{name}/steered"], f"{name}/Gather", axis=-1)
            for name in node.output
            if name in ports
        ]
    inputs = [helper.make_tensor_value_info(port, TensorProto.INT64, [experts]) for port in ports.values()]
    model.graph.input.extend(inputs)
    return rewritten(model, nodes, [])


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
