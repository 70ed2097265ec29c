"""Builds an engine from a typed graph in a child process: memory looked at first, progress, log, nothing done twice."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from runtime.durable import write_bytes
from runtime.engines.tensorrt_libraries import REMEDIES, tensorrt_version
from runtime.errors import MachineError
from runtime.files.disk import available_memory
from runtime.versions import within

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all)."""
LIBRARIES_MIB = 512
"""What builder and libraries take before they see a graph (TensorRT for RTX 1.7: 329 MiB with a graph of 1 MB)."""
WEIGHT_COPIES = 6
TENSOR_COPIES = 8


@dataclass(frozen=True)
class Request:
    """What fixes an engine.

    Attributes:
        kind: `tensorrt` or `tensorrt-rtx`.
        sm: compute capability of the GPU, such as 8.7.
        workspace_mib: most scratch memory that the builder may give to one layer.
        bounds: versions of the builder that may be used, such as `>=10.3,<12`.
    """

    kind: str
    sm: str
    workspace_mib: int
    bounds: str | None = None

    def options(self) -> dict[str, Any]:
        """What the manifest says that the builder was told."""
        return {"strongly_typed": True, "tf32": False, "workspace_mib": self.workspace_mib}


@dataclass(frozen=True)
class EngineMade:
    """A built engine.

    Attributes:
        data: the engine file.
        layers: its layers, as JSON.
        log: what the builder said.
        version: of the builder.
        seconds: the build took.
        peak_mib: most memory that the builder's process held.
        again: taken from an unfinished build of the same engine.
    """

    data: bytes
    layers: bytes
    log: bytes
    version: str
    seconds: float
    peak_mib: int
    again: bool = False


def builder_version(request: Request) -> str:
    """Version of the builder on this machine. Raises MachineError where there is none, or not one that may be used."""
    version = tensorrt_version(request.kind)
    if version is None:
        raise MachineError(
            f"the builder of {request.kind} engines is not installed here", key="engine", remedy=REMEDIES[request.kind]
        )
    if request.bounds is not None and not within(version, request.bounds):
        raise MachineError(
            "this version of the builder is not the target's",
            key=request.kind,
            value=version,
            remedy=f"install a version {request.bounds}, or change the target's `tensorrt`",
        )
    return version


def needed_mib(graph: bytes, workspace_mib: int) -> int:
    """Memory in MiB that a build of this graph asks for: libraries, copies of weights and activations, workspace."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    largest = 0
    for value in model.graph.value_info:
        size = 4
        for dim in value.type.tensor_type.shape.dim:
            size *= max(1, dim.dim_value)
        largest = max(largest, size)
    return LIBRARIES_MIB + workspace_mib + ((WEIGHT_COPIES * len(graph) + TENSOR_COPIES * largest) >> 20)


def check_memory(graph: bytes, workspace_mib: int, available: int | None = None) -> None:
    """Raise MachineError where the memory that is free now (bytes) would not do."""
    free, needed = available_memory() if available is None else available, needed_mib(graph, workspace_mib)
    if free >> 20 < needed:
        raise MachineError(
            "there is not enough free memory for the builder",
            key="memory",
            value=f"{free >> 20} MiB free, {needed} MiB needed",
            remedy="close other programs, add swap, or lower the target's workspace_mib",
        )


def build_engine(graph: bytes, request: Request, work: Path, progress: Progress | None = None) -> EngineMade:
    """Build an engine, or take it from `work` where an unfinished build of the same graph, options and version left it.

    Args:
        graph: a strongly typed ONNX file.
        request: what to build.
        work: a folder of the caller's; keeps the engine and the builder's log.
        progress: told how far the builder is.

    Raises:
        MachineError: no builder, too little memory, or the builder failed; the message names its log.
    """
    version = builder_version(request)
    work.mkdir(parents=True, exist_ok=True)
    facts = {"graph": hashlib.sha256(graph).hexdigest(), "version": version, **asdict(request)}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    found = _found(work, key)
    if found is not None:
        return found
    check_memory(graph, request.workspace_mib)
    graph_file, log = work / "graph-for-engine.onnx", work / "builder.log"
    write_bytes(graph_file, graph)
    told = {
        **asdict(request),
        "graph": str(graph_file),
        "engine": str(work / "engine.plan"),
        "layers": str(work / "layers.json"),
        "timing_cache": str(timing_cache(version, request.sm, key, work)),
    }
    done = _run(told, log, progress)
    graph_file.unlink(missing_ok=True)
    made = EngineMade(
        (work / "engine.plan").read_bytes(),
        (work / "layers.json").read_bytes(),
        log.read_bytes(),
        done["version"],
        done["seconds"],
        done["peak_mib"],
    )
    record = {**done, "key": key, "sha256": hashlib.sha256(made.data).hexdigest()}
    write_bytes(work / "engine.json", json.dumps(record).encode())
    return made


def timing_cache(version: str, sm: str, key: str, work: Path) -> Path:
    """Where the builder keeps what it timed for this version, GPU, graph and options; the next build takes it up.

    In the user's cache folder (XDG base directory specification), so that it outlives a bundle; in `work` where that
    cannot be written.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "damp-deploy" / "timing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = work
    return folder / f"tensorrt-{version}-sm{sm}-{key}.cache"


def _found(work: Path, key: str) -> EngineMade | None:
    try:
        record = json.loads((work / "engine.json").read_bytes())
        data = (work / "engine.plan").read_bytes()
        if record["key"] != key or hashlib.sha256(data).hexdigest() != record["sha256"]:
            return None
        layers, log = (work / "layers.json").read_bytes(), (work / "builder.log").read_bytes()
        return EngineMade(data, layers, log, record["version"], record["seconds"], record["peak_mib"], again=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(request: dict[str, Any], log: Path, progress: Progress | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "export.tensorrt.child"]
    with log.open("wb") as said:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        assert child.stdin is not None and child.stdout is not None
        last: dict[str, Any] = {}
        try:
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
            for line in child.stdout:
                last = json.loads(line)
                if progress is not None and "phase" in last:
                    progress(last["phase"], last["step"], last["steps"])
            code = child.wait()
        except BaseException:
            # Ctrl-C, or whatever ends us, must not leave a builder behind that eats the board's memory.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    if "done" in last and code == 0:
        done: dict[str, Any] = last["done"]
        return done
    if code < 0:
        killed = "it was killed, most likely for memory" if -code == signal.SIGKILL else f"signal {-code}"
        raise MachineError(
            f"the builder ended without an engine: {killed}",
            file=log,
            remedy="close other programs, lower the target's workspace_mib, then run the same command again",
        )
    raise MachineError(
        last.get("error", "the builder ended without an engine"), file=log, value=_last_error(log), remedy="see its log"
    )


def _last_error(log: Path) -> str | None:
    """The last line in which the builder complained."""
    lines = log.read_text("utf-8", "replace").splitlines()
    errors = [line for line in lines if "[E]" in line or "[ERROR]" in line or line.startswith("[!]")]
    return (errors or lines or [""])[-1].strip()[:400] or None
