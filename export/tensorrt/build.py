"""Builds an engine from a typed graph in a child process: memory looked at first, progress, log, nothing done twice."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from export.targets import SHARED_MEMORY
from runtime.durable import write_bytes
from runtime.engines.onnx_guard import check_graph
from runtime.engines.tensorrt_libraries import REMEDIES, load_tensorrt, tensorrt_version
from runtime.errors import InputError, MachineError
from runtime.files.disk import available_memory
from runtime.machine import cache_folder
from runtime.versions import within

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all)."""
LIBRARIES_MIB = 512
"""What builder and libraries take before they see a graph (TensorRT for RTX 1.7: 329 MiB with a graph of 1 MB)."""
WEIGHT_COPIES = 6
TENSOR_COPIES = 8
ENGINE, RECORD, LAYERS, LOG = "engine.plan", "engine.json", "layers.json", "builder.log"
ROOT = Path(__file__).absolute().parents[2]
START = (
    "import sys; sys.path = [place for place in sys.path if place]; "
    "sys.argv[1] in sys.path or sys.path.insert(0, sys.argv[1]); "
    "from export.tensorrt.child import main; main()"
)
"""Starts the child from the folder that holds our packages. `-m` would look for all modules in the user's folder first,
and `-P`, which forbids that, is not in Python 3.10."""


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

    def host_workspace_mib(self) -> int:
        """Scratch memory that the build takes from the host's own: RTX builds ahead of time, without any."""
        return self.workspace_mib if self.kind == "tensorrt" and self.sm in SHARED_MEMORY else 0


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
    """Version of the builder on this machine.

    Raises:
        MachineError: there is none, or not one that may be used, or it does not know the GPU.
    """
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
    if request.kind == "tensorrt-rtx":
        _check_known(request.sm, version)
    return version


def _check_known(sm: str, version: str) -> None:
    """Refuse a GPU that TensorRT for RTX has no name for; TensorRT itself builds for whichever GPU is there."""
    names = load_tensorrt("tensorrt-rtx").ComputeCapability.__members__
    known = [f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM")]
    if sm not in known:
        raise MachineError(
            f"TensorRT for RTX {version} builds for no GPU of this compute capability",
            key="sm",
            value=sm,
            remedy=f"it knows {', '.join(known)}; `--target cuda` runs the graph itself, in ONNX Runtime",
        )


def needed_mib(graph: bytes, workspace_mib: int) -> int:
    """Memory in MiB that a build of this graph asks for: libraries, copies of weights and activations, workspace.

    `workspace_mib` is what comes out of the host's memory: 0 where the GPU has its own.
    """
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
            remedy="close other programs" + (", or lower the target's workspace_mib" if workspace_mib else ""),
        )


def build_engine(
    graph: bytes, request: Request, work: Path, progress: Progress | None = None, *, use_timings: bool = True
) -> EngineMade:
    """Build an engine, or take it from `work` where an unfinished build of the same graph, options and version left it.

    Args:
        graph: a strongly typed ONNX file.
        request: what to build.
        work: a folder of the caller's; keeps the engine and the builder's log.
        progress: told how far the builder is.
        use_timings: let the builder choose by what it timed in an earlier build; else it times anew.

    Raises:
        BundleError: the graph refers to other files, or is none that an export of ours writes, or asks for too much.
        MachineError: no builder, too little memory, or the builder failed; the message names its log.
    """
    check_graph(graph)
    version = builder_version(request)
    work.mkdir(parents=True, exist_ok=True)
    facts = {"graph": hashlib.sha256(graph).hexdigest(), "version": version, **asdict(request)}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    found = _found(work, key)
    if found is not None:
        return found
    check_memory(graph, request.host_workspace_mib())
    graph_file, log = work / "graph-for-engine.onnx", work / LOG
    write_bytes(graph_file, graph)
    told = {
        **asdict(request),
        "graph": str(graph_file),
        "engine": str(work / ENGINE),
        "layers": str(work / LAYERS),
        "timing_cache": str(timing_cache(version, request.sm, key, work)) if request.kind == "tensorrt" else None,
        "use_timings": use_timings,
    }
    done = _run(told, log, progress)
    graph_file.unlink(missing_ok=True)
    made = _made(work, done)
    record = {**done, "key": key, "sha256": hashlib.sha256(made.data).hexdigest()}
    write_bytes(work / RECORD, json.dumps(record).encode())
    return made


def forget_engine(work: Path) -> None:
    """Remove the engine that a build left in `work`, so that the next one starts over; the builder's log stays."""
    for name in (RECORD, ENGINE):
        (work / name).unlink(missing_ok=True)


def timing_cache(version: str, sm: str, key: str, work: Path) -> Path:
    """Where the builder keeps what it timed for this version, GPU, graph and options; the next build takes it up.

    In the user's cache folder (XDG base directory specification), so that it outlives a bundle; in `work` where there
    is none, or none that can be written.
    """
    try:
        folder = cache_folder("timing")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, InputError):
        folder = work
    folder = folder if os.access(folder, os.W_OK | os.X_OK) else work
    return folder / f"tensorrt-{version}-sm{sm}-{key}.cache"


def _found(work: Path, key: str) -> EngineMade | None:
    try:
        record = json.loads((work / RECORD).read_bytes())
        found = _made(work, record, again=True)
        same = record["key"] == key and hashlib.sha256(found.data).hexdigest() == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if same else None


def _made(work: Path, facts: dict[str, Any], again: bool = False) -> EngineMade:
    data, layers, log = ((work / name).read_bytes() for name in (ENGINE, LAYERS, LOG))
    return EngineMade(data, layers, log, facts["version"], facts["seconds"], facts["peak_mib"], again)


def _run(request: dict[str, Any], log: Path, progress: Progress | None) -> dict[str, Any]:
    command = [sys.executable, "-c", START, str(ROOT)]
    pipe = subprocess.PIPE
    with log.open("wb") as said:
        child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=said, start_new_session=True, env=_environment()
        )
        assert child.stdin is not None and child.stdout is not None
        events: dict[str, Any] = {}
        try:
            # A child that cannot even start says why in the log.
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(request).encode())
            for line in child.stdout:
                event = _event(line)
                events.update(event)
                if progress is not None and "phase" in event:
                    progress(event["phase"], event["step"], event["steps"])
            code = child.wait()
        except BaseException:
            # Ctrl-C, or whatever ends us, must not leave a builder behind that eats the board's memory.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    # Said when the engine is written: what ends the child after that is no reason to build again.
    if "done" in events:
        done: dict[str, Any] = events["done"]
        return done
    if code < 0:
        killed = "it was killed, most likely for memory" if -code == signal.SIGKILL else f"signal {-code}"
        raise MachineError(
            f"the builder ended without an engine: {killed}",
            file=log,
            remedy="close other programs, lower the target's workspace_mib, then run the same command again",
        )
    raise MachineError(
        events.get("error", "the builder ended without an engine"),
        file=log,
        value=_last_error(log),
        remedy="see its log",
    )


def _environment() -> dict[str, str]:
    """Ours, but for the entries of PYTHONPATH that mean the folder the user is in: an empty one does."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(place for place in places if os.path.normpath(place) != os.curdir)
    return {**os.environ, "PYTHONPATH": kept}


def _event(line: bytes) -> dict[str, Any]:
    """What a line of the child says; empty where something else wrote it."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _last_error(log: Path) -> str | None:
    """The last line in which the builder complained."""
    lines = log.read_text("utf-8", "replace").splitlines()
    errors = [line for line in lines if "[E]" in line or "[ERROR]" in line or line.startswith("[!]")]
    return (errors or lines or [""])[-1].strip()[:400] or None
