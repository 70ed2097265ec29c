"""A trained network as an ONNX graph, and the proof that the graph computes what the network does."""

import ast
import copy
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxscript import optimizer
from torch import Tensor, nn

from export.networks import Network
from export.networks.nodes import Writer, write_operators
from export.torch_engine import TorchEngine
from runtime.arrays import Float32
from runtime.engines import EngineOptions, open_engine
from runtime.engines.onnx_guard import IR_VERSION, OPSETS
from runtime.errors import GateError, InputError
from runtime.parity import QUALITY_DB, Parity, apart, told
from runtime.precisions import PRECISIONS
from runtime.signature import Ports, Signature

Probe = Mapping[str, Float32]
"""What an engine is fed with: {tensor: array}."""
OPSET = OPSETS.stop - 1
LIMIT = PRECISIONS["fp32"].limit
ROUNDING_SLACK = 4.0
LOOSEST_LIMIT = 1e-3


@dataclass(frozen=True)
class Graph:
    """An exported graph: its bytes, and what it is made of."""

    data: bytes
    nodes: int
    opset: int


@dataclass(frozen=True)
class Agreement:
    """How a graph compares with its network on the probes.

    Attributes:
        difference: largest difference as a share of the output's range; in int8 root mean square of it; of quality
            alone the change of PSNR in dB.
        rms: root mean square of it, likewise.
        routing: largest difference of an expert's weight; 0 without experts.
        limit: what `difference` was held against.
        rounding: the network's own largest difference from float64, where it was needed to set the limit.
        choices: how many different sets of experts the probes made the network choose.
        probes: how many probes.
        parity: whether elements were held against each other, or quality alone.
    """

    difference: float
    rms: float
    routing: float
    limit: float
    rounding: float | None
    choices: int
    probes: int
    parity: Parity = "elements"


def check_size(net: Network, lines: int, samples: int) -> None:
    """Refuse a frame size that the network does not take. Raises InputError."""
    if min(lines, samples) > 0 and net.frame(lines, samples) == (lines, samples):
        return
    multiple, only = net.architecture.multiple, net.architecture.size(net.module)
    nearest = [max(multiple, round(n / multiple) * multiple) for n in (lines, samples)]
    raise InputError(
        "the network does not take frames of this size",
        key="size",
        value=f"{lines}x{samples}",
        remedy=f"its one frame is {only[0]}x{only[1]}" if only
        else f"lines and samples are multiples of {multiple}, for example {nearest[0]}x{nearest[1]}",
    )  # fmt: skip


def export_graph(net: Network, lines: int, samples: int, experts: str = "dense") -> Graph:
    """The static deployment form as ONNX, with the inputs and outputs of the network's signature.

    Args:
        net: a network from `export.networks.load_checkpoint`.
        lines, samples: the fixed size of a frame.
        experts: `dense`, all run and are weighted by their gates; `gathered`, the weights of the chosen ones are
            gathered and they alone run. The same for networks without experts.

    Raises:
        InputError: the network does not take frames of this size.
    """
    check_size(net, lines, samples)
    kind, ports = net.architecture, net.signature(lines, samples).ports
    form, names = (kind.gathered if experts == "gathered" else None) or kind.static, kind.module_name
    static = form(net.module)
    return as_graph(static, ports, "restoration", module_name=names, operators=kind.operators)


def export_extractor(net: Network, signature: Signature) -> Graph:
    """Frame -> embedding of the signature, its mean over the frame included, in float32 for every precision."""
    prompt, extractor = signature.embedding, net.architecture.extractor
    assert prompt is not None and extractor is not None, "it takes an embedding"
    return as_graph(extractor(net.module).eval(), signature.embedding_ports, prompt.of, root=prompt.of)


def as_graph(
    module: nn.Module,
    ports: Ports,
    name: str,
    root: str = "network",
    module_name: Callable[[str], str] = lambda scope: scope,
    opset: int = OPSET,
    operators: Mapping[str, Writer] = MappingProxyType({}),
) -> Graph:
    """A module as an ONNX graph.

    Args:
        module: takes and gives tensors of the ports, in their order.
        ports: names and shapes.
        name: of the graph.
        root: what nodes of the module itself are named by.
        module_name: name of one of its parts for the names of nodes.
        opset: of the graph.
        operators: {name: what writes its nodes} of the network's own.
    """
    example = tuple(torch.zeros(shape) for shape in ports.inputs.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            input_names=list(ports.inputs),
            output_names=list(ports.outputs),
            opset_version=opset,
            verbose=False,
            optimize=False,
        )
        if program is None:
            raise RuntimeError("the exporter gave no program")
        # Two thirds of what the exporter writes is arithmetic on constants, at which each rule would look in vain.
        optimizer.fold_constants(program.model, onnx_shape_inference=True)
        optimizer.remove_unused_nodes(program.model)
        optimizer.optimize_ir(program.model)
    model = program.model_proto
    write_operators(model, operators)
    _name_nodes(model, root, module_name)
    _strip(model, name)
    if model.ir_version > IR_VERSION:
        raise RuntimeError(f"the exporter wrote IR version {model.ir_version}, engines read {IR_VERSION}")
    data = model.SerializeToString(deterministic=True)
    written = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return Graph(data, count_nodes(data), written)


def count_nodes(data: bytes) -> int:
    """Nodes of an ONNX file, with those of subgraphs and of local functions at each call."""
    model = onnx.load_model_from_string(data)
    functions = {(f.domain, f.name): f for f in model.functions}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            inner = functions.get((node.domain, node.op_type))
            total += count(inner.node) if inner is not None else 1
            total += sum(
                count(g.node) for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else []))
            )
        return total

    return count(model.graph.node)


def _name_nodes(model: onnx.ModelProto, root: str, module_name: Callable[[str], str]) -> None:
    """Name every node by the network's module that it computes: `module/operator`, with a number where that repeats.

    The exporter notes the static form's parts at each node; what its optimiser put in belongs to the node before it, or
    to the module itself.
    """
    module, used = root, Counter[str]()
    for node in model.graph.node:
        noted = {p.key: p.value for p in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        if noted is not None:
            parts = [part for part in ast.literal_eval(noted)[:-1] if part]
            module = module_name(parts[-1]) if parts else root
        name = f"{module}/{node.op_type}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}.{used[name]}"


def _strip(model: onnx.ModelProto, name: str) -> None:
    """Leave out what the exporter notes for debugging: it names files of the machine that exported."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    graph = model.graph
    graph.name = name
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def diverse_probes(net: Network, candidates: Sequence[Probe], wanted: int = 3) -> list[Probe]:
    """Probes that make the network choose different experts, where its router can be moved at all.

    Args:
        net: the network.
        candidates: what it is fed with.
        wanted: how many probes at most.

    Returns:
        those with another set of chosen experts each, at least one; without experts, the first ones, and those of every
        condition. Where the frames' own metrics do not move the router, seeded multiples of them are tried.
    """
    routing, metrics = net.smallest.routing, net.smallest.metrics
    if routing is None or metrics is None:
        return list(candidates[: max(wanted, len(net.conditions))])
    rng = np.random.default_rng(0)
    corner = TorchEngine(net, *net.smallest.measured.size)
    measured, (lines, samples) = corner.signature.measured.name, corner.signature.measured.size
    seen: dict[bytes, Probe] = {}
    for attempt in range(6):
        for given in candidates:
            own = given[metrics.name]
            moved = own if attempt == 0 else (own * np.exp(2 * rng.standard_normal(own.shape))).astype(np.float32)
            candidate = {**given, metrics.name: moved}
            made = corner.infer({**candidate, measured: given[measured][:, :, :lines, :samples]})
            seen.setdefault((made[routing.name] > 0).tobytes(), candidate)
            if len(seen) == wanted:
                return list(seen.values())
    return list(seen.values())


def compare(
    net: Network,
    graph: Graph,
    probes: Sequence[Probe],
    size: tuple[int, int],
    progress: Callable[[int, int], None] | None = None,
    *,
    engine_name: str = "onnxruntime",
    precision: str = "fp32",
    truth: Float32 | None = None,
) -> Agreement:
    """Run graph (in the named engine) and network (PyTorch, float32) on the probes.

    The limit is that of the precision, 2e-4 of the output's range in float32. A network so ill-conditioned
    that PyTorch's own float32 is farther than a quarter of that from float64 is held to four times its own rounding
    instead, at most 1e-3; see `Agreement.limit`. Of a network whose parity is quality alone `truth` [1, bands, lines,
    samples] is what all probes are of, and the change of PSNR against it is held to `runtime.parity.QUALITY_DB`.

    Raises:
        GateError: they differ by more than the limit, or choose different experts.
    """
    signature = net.signature(*size)
    reference = TorchEngine(net, *size)
    largest, squares, routing_difference, choices = 0.0, [], 0.0, set()
    limit, rounding = PRECISIONS[precision].limit if truth is None else QUALITY_DB, None
    options = EngineOptions(precision=precision)
    name, side = signature.restored.name, signature.routing
    with open_engine(engine_name, graph.data, signature, options) as engine:
        for index, probe in enumerate(probes):
            expected, found = reference.infer(probe), engine.infer(probe)
            span = float(np.ptp(expected[name])) or 1.0
            difference = apart(found[name], expected[name], truth, precision)
            if truth is None and precision == "fp32" and difference > LIMIT:
                rounding = max(rounding or 0.0, _rounding(net, signature, probe, expected[name]) / span)
                limit = max(limit, min(LOOSEST_LIMIT, ROUNDING_SLACK * rounding))
            if side is not None:
                chosen, wanted = found[side.name], expected[side.name]
                if precision != "int8" and not np.array_equal(chosen > 0, wanted > 0):
                    raise GateError(
                        f"the exported graph chooses other experts in {engine_name} than in PyTorch",
                        key=f"probe {index}",
                        remedy="nothing was written; report this with the checkpoint",
                    )
                choices.add((wanted > 0).tobytes())
                routing_difference = max(routing_difference, float(np.abs(chosen - wanted).max()))
            largest = max(largest, difference)
            squares.append(float(np.mean(np.square(found[name] - expected[name], dtype=np.float64))) / span**2)
            if progress is not None:
                progress(index + 1, len(probes))
    if largest > limit:
        raise GateError(
            f"the exported graph does not compute in {engine_name} what PyTorch does",
            key="difference",
            value=largest,
            remedy=f"at most {told(limit, truth is not None, precision)}; nothing was written; another --engine may do",
        )
    return Agreement(
        largest, float(np.sqrt(np.mean(squares))), routing_difference, limit, rounding, len(choices), len(probes),
        "elements" if truth is None else "quality",
    )  # fmt: skip


def _rounding(net: Network, signature: Signature, probe: Probe, expected: Float32) -> float:
    exact = copy.deepcopy(net.module).double()
    inputs = [torch.from_numpy(np.ascontiguousarray(probe[name])) for name in signature.ports.inputs]

    def restored(module: nn.Module, *given: Tensor) -> NDArray[np.floating]:
        made = module(*given)
        return (made[0] if isinstance(made, tuple) else made).numpy()

    with torch.inference_mode():
        truth = restored(exact, *(tensor.double() for tensor in inputs))
        # One run underestimates: another number of threads sums in another order.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            alone = restored(net.module, *inputs)
        finally:
            torch.set_num_threads(threads)
    return float(max(np.abs(truth - expected).max(), np.abs(truth - alone).max()))
