"""The engine of a bundle: built ahead of time, or deferred to the target, which may be this very machine."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.targets import Target
from export.tensorrt import build as builder
from export.tensorrt import lint as linter
from export.tensorrt.build import EngineMade, Request
from runtime.durable import write_bytes
from runtime.engines import ENGINE_FILES
from runtime.engines.cuda import compute_capability
from runtime.engines.tensorrt_libraries import tensorrt_version
from runtime.errors import InputError
from runtime.made import EngineFile

from .. import console


@dataclass(frozen=True)
class EngineStep:
    """What became of the engine.

    Attributes:
        record: what `made.json` says of it; None where none was built.
        files: inner path -> content.
        deferred: why none was built, where the target needs one.
        facts: for its proof: seconds, memory, size.
    """

    record: EngineFile | None
    files: dict[str, bytes]
    deferred: str | None
    facts: dict[str, Any]


OLDEST = {"tensorrt": "10.3", "tensorrt-rtx": "1.7"}
"""Oldest versions that are supported at all."""
DISTRUSTED = "time-anew"
"""A file in a workplace: what the builder timed led to an engine that failed its proof, or is to be replaced."""
BUILT_NEXT = "built next, on this machine"
"""Why a bundle is deferred whose target is this machine: it is finalised before it is put in its place."""


def request_of(target: Target) -> Request:
    """What a builder is asked for. Raises InputError where the target does not say which GPU it has."""
    if target.sm is None:
        raise InputError(
            f"target {target.name} does not say which GPU it has",
            key=f"targets.{target.name}.sm",
            remedy='give its compute capability, for example sm: "8.7"',
        )
    return Request(target.engine, target.sm, target.workspace_mib, target.tensorrt)


def engine_step(target: Target, engine: str, precision: str, graph: bytes, work: Path) -> EngineStep:
    """Build the engine, or say why it is deferred; a target whose engine loads the graph itself needs neither.

    Raises:
        DeployError: the target is wrong, or a builder that is here and fits failed.
    """
    if engine not in ENGINE_FILES:
        return EngineStep(None, {}, None, {})
    request = request_of(target)
    lint_graph(graph, request, precision)
    if target.made_there:
        # Where this machine is the target, `deploy finalize` follows: it builds, proves and refuses.
        return EngineStep(None, {}, why_not_here(request) or BUILT_NEXT, {})
    return engine_of(build_with_progress(graph, request, work), request, graph)


def lint_graph(graph: bytes, request: Request, precision: str) -> None:
    """Hold the graph against the oldest TensorRT that the target takes; warnings are told. Raises InputError."""
    findings = linter.lint(
        graph, tensorrt=oldest(request.bounds or OLDEST[request.kind]), kind=request.kind, sm=request.sm
    )
    linter.raise_for(findings, f"graphs/{precision}.onnx")
    for finding in findings:
        console.warn(f"{finding.node}: {finding.problem}; {finding.remedy}")


def oldest(bounds: str) -> str:
    """The lowest version that `bounds` name, such as 10.3 of `>=10.3,<12`; the first one where none is a lowest."""
    parts = [part.strip() for part in bounds.split(",")]
    lower = next((part for part in parts if part.startswith((">", "=="))), parts[0])
    return lower.lstrip("<>=! ")


def engine_of(made: EngineMade, request: Request, graph: bytes, gpu: str | None = None) -> EngineStep:
    """A built engine; its files are named by content, so that those of a new one replace none."""
    name = f"engine/{hashlib.sha256(made.data + made.layers + made.log).hexdigest()[:12]}"
    files = {f"{name}.plan": made.data, f"{name}.layers.json": made.layers, f"{name}.log": made.log}
    path, layers, log = files
    source = hashlib.sha256(graph).hexdigest()
    record = EngineFile(
        path=path, builder=request.kind, version=made.version, sm=request.sm, gpu=gpu, graph_sha256=source,
        options=request.options(), layers=layers, log=log,
    )  # fmt: skip
    facts = {"seconds": made.seconds, "peak_mib": made.peak_mib, "bytes": len(made.data)}
    return EngineStep(record, files, None, facts)


def build_with_progress(graph: bytes, request: Request, work: Path) -> EngineMade:
    """`export.tensorrt.build.build_engine` with a bar for people."""
    with console.progress("building the engine") as moved:

        def told(phase: str, step: int, steps: int) -> None:
            moved(step, steps)

        trusted = not (work / DISTRUSTED).exists()
        made: EngineMade = builder.build_engine(graph, request, work, told, use_timings=trusted)
    if made.again:
        console.say("going on with an unfinished build: its engine is used again")
    return made


def distrust_timings(work: Path) -> None:
    """Let the next build in `work` time everything anew: from the same timings the builder would choose the same."""
    write_bytes(work / DISTRUSTED, b"")


def why_not_here(request: Request) -> str | None:
    """Why this machine does not build a target's own engine, or None where it can."""
    if tensorrt_version(request.kind) is None:
        name = "TensorRT" if request.kind == "tensorrt" else "TensorRT for RTX"
        return f"{name} is not installed on this machine; the engine is built on the target"
    present = compute_capability()
    if present != request.sm:
        here = f"a GPU of SM {present}" if present else "no GPU"
        return f"this machine has {here}, the target one of SM {request.sm}; the engine is built on the target"
    return None
