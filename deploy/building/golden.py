"""The golden frame of a bundle: which it is, what it must become, how far it may be off elsewhere."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import combinations

import numpy as np

from calibration.agreement import CLOSE
from calibration.half_arithmetic import half_arithmetic
from export.networks import Network
from export.onnx import Agreement, Probe
from export.torch_engine import TorchEngine
from runtime.arrays import Float32
from runtime.bundle_files import array_bytes
from runtime.engines import Engine, EngineOptions, open_engine
from runtime.errors import GateError, MachineError
from runtime.parity import apart
from runtime.precisions import PRECISIONS, computes_half
from runtime.signature import Signature

from .. import console
from .graphs import Graphs, probe_truth
from .plan import Plan

GOLDEN_LEAST, TRUTH = 5e-3, "golden/truth.npy"
MOVES, FURTHEST, CLEAR = 8192, 3.0, 10 * CLOSE
"""Metrics that are tried, how far, and the margin from which on a choice is as good as any."""
RUNS, MOST = 16, 32
"""Times that a frame is run for them, and proofs that come of it, at most."""


def golden_probe(net: Network, plan: Plan, graphs: Graphs, probes: list[Probe], reference: TorchEngine) -> Probe:
    """The first probe on which int8, where the bundle has it, chooses the network's own experts.

    Raises:
        GateError: there is none, so that no engine of it could be proved.
    """
    routing = reference.signature.routing
    if "int8" not in graphs.variants or routing is None:
        return probes[0]
    data = graphs.variants["int8"].data
    program = half_arithmetic(data) if computes_half("int8", plan.half) else data
    with open_engine("onnxruntime", program, reference.signature, EngineOptions(plan.target.threads)) as engine:
        for probe in probes:
            one, other = (way.infer(probe)[routing.name] > 0 for way in (engine, reference))
            if np.array_equal(one, other):
                return probe
    raise GateError(
        "int8 chooses other experts than PyTorch on every probe",
        key="int8",
        remedy="nothing was written; build with --precision fp32 or fp16",
    )


def golden_tolerance(agreement: Agreement, precision: str) -> float:
    """How far a golden frame may be off elsewhere: other processors and engines round differently.

    In float32 a multiple of the export's limit; in a lower precision a multiple of what was measured here, since the
    limit there is far wider than what a sound engine does.
    """
    if agreement.parity == "quality":
        return agreement.limit
    slack = PRECISIONS[precision].golden_slack
    return slack * agreement.limit if precision == "fp32" else max(GOLDEN_LEAST, slack * agreement.difference)


def other_experts(
    net: Network,
    plan: Plan,
    graphs: Graphs,
    probe: Probe,
    probes: list[Probe],
    tolerances: Mapping[str, float],
    reference: TorchEngine,
) -> list[Probe]:
    """Frames with metrics, so that between them every expert works that any of many metrics call on any of the probes.

    A fault in an expert that no proof calls would fly unnoticed. Only metrics are taken whose choices no rounding turns
    over, and with which every graph of the bundle does what PyTorch does. All are judged by the routers alone, on what
    these see of a frame; the frame is run with those that promise most. The golden frame is tried first: others make
    the bundle larger by themselves.

    Returns:
        {tensor: array} of the metrics, the frame where it is not the golden one, and what the network gives, each with
        an expert that none before it has.
    """
    signature = reference.signature
    routing, metrics = signature.routing, signature.metrics
    found: list[Probe] = []
    if net.architecture.routing is None or routing is None or metrics is None:
        return found
    frame = signature.measured.name
    # A truth is of the golden frame alone.
    tried_on = (probe, *probes) if net.parity == "elements" else (probe,)
    frames = {one[frame].tobytes(): one[frame] for one in tried_on}
    tried = _moved(np.concatenate([one[metrics.name] for one in probes]))
    covered = reference.infer(probe)[routing.name] > 0
    with ExitStack() as stack:
        engines = {}
        for name, graph in graphs.variants.items():
            program = half_arithmetic(graph.data) if computes_half(name, plan.half) else graph.data
            options = EngineOptions(plan.target.threads)
            engines[name] = stack.enter_context(open_engine("onnxruntime", program, signature, options))
        for own in frames.values():
            if covered.all():
                break
            base = {**probe, frame: own}
            called, margins = reference.infer_with_choices(base)[1](tried)
            clear = np.where(margins >= CLOSE, margins.clip(max=CLEAR), 0).min(axis=1)
            for _ in range(min(RUNS, MOST - len(found))):
                promise = (called & ~covered).sum(axis=(1, 2)) * clear
                best = promise.argmax()
                if not promise[best]:
                    break
                # One of every set of experts: others fail as it does.
                clear[(called == called[best]).all(axis=(1, 2))] = 0
                feeds = {**base, metrics.name: tried[best : best + 1]}
                made, ahead = reference.infer_with_margins(feeds)
                chosen = made[routing.name] > 0
                sure = bool(chosen[~covered].any() and ahead.min() >= CLOSE)
                if sure and all(
                    _alike(engine, feeds, made, reference, tolerances[name], name) for name, engine in engines.items()
                ):
                    covered |= chosen
                    beside = {} if np.array_equal(own, probe[frame]) else {frame: own}
                    found.append({metrics.name: feeds[metrics.name], **beside, **made})
    return found


def _moved(own: Float32) -> Float32:
    """[MOVES, M], multiples of these [n, M], further and further away."""
    moves = np.random.default_rng(0).standard_normal((MOVES, own.shape[1]))
    far = np.linspace(0, FURTHEST, MOVES)[:, None]
    return (own[np.arange(MOVES) % len(own)] * np.exp(far * moves)).astype(np.float32)


def _alike(
    engine: Engine, feeds: Probe, expected: Probe, reference: TorchEngine, tolerance: float, precision: str
) -> bool:
    """With room: other processors round differently. Metrics far from any frame's may leave the range of FP16."""
    try:
        made = engine.infer(feeds)
    except MachineError:
        return False
    output, side = reference.signature.restored.name, reference.signature.side
    same = all(np.array_equal(made[one.name] > 0, expected[one.name] > 0) for one in side)
    return same and apart(made[output], expected[output], precision=precision) <= tolerance / 2


def golden_files(
    net: Network,
    plan: Plan,
    graphs: Graphs,
    probes: list[Probe],
    more: list[Probe],
    tolerances: Mapping[str, float],
) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """The golden frame, what it becomes with every prompt, and frames with metrics that choose other experts.

    Args:
        probes: of which one is the golden frame; `more` are tried for experts that are left.

    Returns:
        ({file in the bundle: content}, `Golden.others`).
    """
    reference = TorchEngine(net, plan.lines, plan.samples)
    probe = golden_probe(net, plan, graphs, probes, reference)
    signature = reference.signature
    places, made = golden_arrays(signature), reference.infer(probe)
    files = {places[name]: array_bytes(array) for name, array in {**probe, **made}.items()}
    truth = probe_truth(net, plan)
    if truth is not None:
        files[TRUTH] = array_bytes(truth)
    restored = {
        name: reference.infer({**probe, **condition.constants})[signature.restored.name]
        for name, condition in net.conditions.items()
    }
    for (one, mine), (two, other) in combinations(restored.items(), 2):
        distance = apart(mine, other, precision=plan.precision)
        if distance <= tolerances[plan.precision]:
            console.warn(
                f"{one} and {two} restore the golden frame alike ({distance:.1e}): its proof does not tell them apart"
            )
    files |= {golden_of(name, net, signature): array_bytes(made) for name, made in restored.items()}
    others = []
    found = other_experts(net, plan, graphs, probe, [*probes, *more], tolerances, reference)
    for number, arrays in enumerate(found, 2):
        others.append({name: f"golden/{number}/{name}.npy" for name in arrays})
        files |= {others[-1][name]: array_bytes(array) for name, array in arrays.items()}
    if signature.routing is not None:
        called = np.any([one[signature.routing.name] > 0 for one in (made, *found)], axis=0)
        beyond = "" if called.all() else "; a fault in another one would be found by no golden frame"
        console.say(f"golden     {1 + len(found)} frames, which call {called.sum()} of {called.size} experts{beyond}")
    return files, others


def golden_of(condition: str, net: Network, signature: Signature) -> str:
    """The file of what the golden frame becomes with a condition; of the first the bundle's own."""
    first, restored = next(iter(net.conditions)), signature.restored.name
    return golden_arrays(signature)[restored] if condition == first else f"golden/{condition}/{restored}.npy"


def prompt_paths(net: Network, signature: Signature) -> dict[str, dict[str, str]]:
    """{condition: {prompt: its file in the bundle}}; those of the first are the signature's own."""
    first = next(iter(net.conditions), None)
    return {
        name: {p.name: p.of if name == first else f"prompts/{name}/{p.name}.npy" for p in signature.constants}
        for name in net.conditions
    }


def prompts_digest(net: Network) -> str:
    """Short hash of the constant prompts."""
    digest = hashlib.sha256()
    for name, condition in ({"": net} | dict(net.conditions)).items():
        for prompt, array in condition.constants.items():
            digest.update(f"{name}/{prompt}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def prompt_files(net: Network, signature: Signature) -> dict[str, bytes]:
    """{file in the bundle: content} of the constant prompts of every condition."""
    return {
        file: array_bytes(net.conditions[name].constants[prompt])
        for name, paths in prompt_paths(net, signature).items()
        for prompt, file in paths.items()
    }


def golden_arrays(signature: Signature) -> dict[str, str]:
    """{tensor: its file in the bundle}; constants are the network's own, so that the proof is of what flies."""
    return {name: f"golden/{name}.npy" for name in signature.ports.shapes} | {p.name: p.of for p in signature.constants}


def instrument_paths(net: Network) -> dict[str, str]:
    """{name: file} of the instrument's arrays."""
    return {name: f"instrument/{name}.npy" for name in net.instrument}


def instrument_files(net: Network) -> dict[str, bytes]:
    """Them."""
    return {path: array_bytes(net.instrument[name]) for name, path in instrument_paths(net).items()}
