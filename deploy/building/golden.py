"""The golden frame of a bundle: which it is, what it must become, how far it may be off elsewhere."""

import hashlib
from itertools import combinations

import numpy as np

from calibration.half_arithmetic import half_arithmetic
from export.networks import Network
from export.onnx import Agreement, Probe
from export.torch_engine import TorchEngine
from runtime.bundle_files import array_bytes
from runtime.engines import EngineOptions, open_engine
from runtime.errors import GateError
from runtime.parity import apart
from runtime.precisions import PRECISIONS, computes_half
from runtime.signature import Signature

from .. import console
from .graphs import Graphs, probe_truth
from .plan import Plan

GOLDEN_LEAST, TRUTH = 5e-3, "golden/truth.npy"


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


def golden_files(net: Network, plan: Plan, graphs: Graphs, probes: list[Probe], tolerance: float) -> dict[str, bytes]:
    """{file in the bundle: content} of the golden frame, and of what it becomes with every prompt."""
    reference = TorchEngine(net, plan.lines, plan.samples)
    probe = golden_probe(net, plan, graphs, probes, reference)
    signature = reference.signature
    places = golden_arrays(signature)
    files = {places[name]: array_bytes(array) for name, array in {**probe, **reference.infer(probe)}.items()}
    truth = probe_truth(net, plan)
    if truth is not None:
        files[TRUTH] = array_bytes(truth)
    restored = {
        name: reference.infer({**probe, **condition.constants})[signature.restored.name]
        for name, condition in net.conditions.items()
    }
    for (one, made), (two, other) in combinations(restored.items(), 2):
        distance = apart(made, other)
        if distance <= tolerance:
            console.warn(
                f"{one} and {two} restore the golden frame alike ({distance:.1e}): its proof does not tell them apart"
            )
    return files | {golden_of(name, net, signature): array_bytes(made) for name, made in restored.items()}


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
