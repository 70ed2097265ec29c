"""What a graph asks of the engine that runs it, told before a library sees it.

Memory is that of tensors: ONNX Runtime 1.31 took two to four times as much. A manifest states the same figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from runtime.errors import BundleError
from runtime.signature import STRICT

from .onnx_graph import Graph, Node, Tensor, read_graph
from .onnx_shapes import RULES, effort_of

LARGEST = 1 << 62
Amount = Annotated[int, Field(ge=0, le=LARGEST)]
SLACK = 4
"""How many times what its manifest says a graph may ask for."""
LEAST = (256 << 20, 1 << 28)
"""Bytes and multiply-adds that every graph may ask for."""
MOST = (8 << 30, 1 << 42)
"""Bytes and multiply-adds that no graph may ask for, whatever a manifest says.

The largest network here, a DAMP of 36.9 M parameters, asks for 0.5 GiB and 1.6e11 at 256x256, so for 5.4 GiB and 2.6e12
at 1024x1024; larger cubes are tiled."""


@checked(frozen=True, config=STRICT)
class Cost:
    """What the most demanding graph of a bundle asks for.

    Attributes:
        peak_bytes: of tensors that are held at the same time, weights included.
        multiply_adds: of one frame; what multiplies nothing counts one per element.
    """

    peak_bytes: Amount
    multiply_adds: Amount


@dataclass(frozen=True)
class Followed:
    """A graph with what is known of it.

    Attributes:
        graph: of the file.
        tensors: every tensor by name.
        work: multiply-adds of all nodes.
        own: bytes that an engine takes for itself in each node.
    """

    graph: Graph
    tensors: Mapping[str, Tensor]
    work: int
    own: Sequence[int]


def cost_of(data: bytes, *, file: object = None) -> Cost:
    """What a graph asks for; nothing is computed. Raises BundleError as `followed`."""
    found = followed(data, file=file)
    peak = max(_peak(found, order) for order in (range(len(found.graph.nodes)), _depth_first(found.graph.nodes)))
    return Cost(min(peak, LARGEST), min(found.work, LARGEST))


def check_cost(data: bytes, stated: Cost | None, *, file: object = None) -> None:
    """Refuse a graph that asks for far more than its manifest says, or for more than any graph of ours.

    Raises:
        BundleError: naming memory or work, what was found and the limit; or as `cost_of`.
    """
    found, told = cost_of(data, file=file), stated or Cost(*MOST)
    memory, work = (
        min(most, max(least, SLACK * said))
        for most, least, said in zip(MOST, LEAST, (told.peak_bytes, told.multiply_adds), strict=True)
    )
    for what, asked, limit, unit, name in (
        ("memory", found.peak_bytes, memory, 1 << 30, "GiB"),
        ("work", found.multiply_adds, work, 10**9, "billion multiply-adds"),
    ):
        if asked > limit:
            raise BundleError(
                f"the graph asks for too much {what}",
                file=file,
                key=what,
                value=f"{asked / unit:.2f} {name}",
                remedy=f"at most {limit / unit:.2f}; copy the bundle again, or build it with a smaller --size",
            )


def followed(data: bytes, *, file: object = None) -> Followed:
    """Shape and type of every tensor of a graph.

    Raises:
        BundleError: it is damaged, or a shape cannot be followed.
    """

    def damaged(why: object) -> BundleError:
        return BundleError("the graph is damaged", file=file, value=why, remedy="build the bundle again")

    try:
        graph = read_graph(data)
    except (ValueError, IndexError) as error:
        raise damaged(error) from error
    tensors, work, own = {**graph.held, **graph.inputs}, 0, []
    for node in graph.nodes:
        if not all(name in tensors for name in node.inputs if name):
            raise damaged("a node takes what is not made before it")
        given = [tensors[name] if name else None for name in node.inputs]
        try:
            made = RULES[node.operator](node, given)
            counted, taken = effort_of(node, given, made)
            named = {n: t for n, t in zip(node.outputs, made[: len(node.outputs)], strict=True) if n}
            if not named:
                raise ValueError("it makes nothing")
        except (ValueError, IndexError, KeyError) as error:
            raise BundleError(
                "a shape of the graph cannot be followed",
                file=file,
                key=", ".join(node.outputs),
                value=f"{node.operator}: {error}",
                remedy="build the bundle again with this version",
            ) from error
        if named.keys() & tensors.keys() or len(named) < sum(map(bool, node.outputs)):
            raise damaged("two tensors have one name")
        constant = all(tensor is None or tensor.constant for tensor in given)
        tensors |= {name: replace(tensor, constant=constant) for name, tensor in named.items()}
        work += counted
        own.append(taken)
    if not all(name in tensors for name in graph.outputs):
        raise damaged("an output is never made")
    return Followed(graph, tensors, work, own)


def _peak(found: Followed, order: Sequence[int]) -> int:
    """Bytes at most where nodes run in that order and each tensor is given back after its last use.

    What follows from the file alone is never given back: engines compute it once, and keep it.
    """
    graph, size = found.graph, {name: tensor.bytes for name, tensor in found.tensors.items()}
    last = {name: place for place, index in enumerate(order) for name in graph.nodes[index].inputs}
    constants = (name for name, tensor in found.tensors.items() if tensor.constant)
    kept = {"", *graph.inputs, *graph.outputs, *constants}
    live = peak = sum(size[name] for name in (*graph.held, *graph.inputs))
    for place, index in enumerate(order):
        node = graph.nodes[index]
        live += sum(size[name] for name in node.outputs if name)
        peak = max(peak, live + found.own[index])
        done = {name for name in (*node.inputs, *node.outputs) if last.get(name, place) == place}
        live -= sum(size[name] for name in done - kept)
    return peak


def _depth_first(nodes: Sequence[Node]) -> list[int]:
    """The order in which ONNX Runtime runs nodes, whatever theirs: from the last leaf down, later nodes first."""
    maker = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    needs = [sorted({maker[name] for name in node.inputs if name in maker}) for node in nodes]
    used = {index for need in needs for index in need}
    stack, seen, order = [(index, False) for index in range(len(nodes)) if index not in used], set(), []
    while stack:
        index, left = stack.pop()
        if left:
            order.append(index)
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack += [(need, False) for need in needs[index] if need not in seen]
    return order
