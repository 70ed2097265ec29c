"""The process that builds one engine for `export.tensorrt.build`: a request on standard input, events on output.

A builder that runs out of memory or crashes takes only this process with it. Each line of standard output is one JSON
event: {"phase", "step", "steps"} while it builds, and last {"done": {...}} or {"error": "..."}. What the builder says
goes to standard error. Once the engine is done, what fails after it is only told there.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.durable import write_bytes
from runtime.engines.tensorrt_libraries import load_tensorrt
from runtime.errors import DeployError, MachineError

Say = Callable[[dict[str, Any]], None]
"""Tells the process that waits of one event."""
_PDEATHSIG = 1


def build(request: dict[str, Any], say: Say) -> None:
    """Build the engine that `request` (see `export.tensorrt.build.Request`) describes, write it and say its facts.

    Raises:
        MachineError: the builder is not installed, refuses the graph or fails.
    """
    trt = load_tensorrt(request["kind"])
    rtx = request["kind"] == "tensorrt-rtx"
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if rtx else "0"
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import CreateConfig, engine_bytes_from_network, network_from_onnx_bytes
    from polygraphy.exception import PolygraphyException

    options: dict[str, Any] = {
        "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: request["workspace_mib"] << 20},
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "progress_monitor": _monitor(trt, say),
    }
    began = time.monotonic()
    try:
        builder, network, parser = network_from_onnx_bytes(Path(request["graph"]).read_bytes(), strongly_typed=True)
        say({"phase": "parsed", "step": network.num_layers, "steps": network.num_layers})
        layers = _network_layers(network)
        if rtx:
            major, minor = map(int, request["sm"].split("."))
            create = CreateConfigRTX(compute_capabilities=[(major, minor)], **options)
        else:
            create = CreateConfig(**options)
        config = create(builder, network)
        # TF32 keeps 10 bits of a float32: a precision that nobody asked for.
        config.clear_flag(trt.BuilderFlag.TF32)
        if request["timing_cache"] and request["use_timings"]:
            load_timings(config, Path(request["timing_cache"]))
        engine = engine_bytes_from_network((builder, network, parser), config=config)
    except PolygraphyException as error:
        raise MachineError(
            "the builder refuses the graph", key=request["kind"], value=str(error).splitlines()[0], remedy="see its log"
        ) from error
    seconds = time.monotonic() - began
    data = bytes(engine)
    write_bytes(Path(request["engine"]), data)
    _write_layers(Path(request["layers"]), "network, before the builder fused it", layers)
    facts = {
        "version": str(trt.__version__),
        "seconds": round(seconds, 2),
        "layers": len(layers),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "bytes": len(data),
    }
    say({"done": facts})
    if request["timing_cache"]:
        save_timings(config, Path(request["timing_cache"]))


def inspect(request: dict[str, Any]) -> None:
    """List the layers of the finished engine in place of the network's, on the machine whose GPU it was built for."""
    with _optional("the engine cannot be inspected"):
        layers = _engine_layers(load_tensorrt(request["kind"]), Path(request["engine"]).read_bytes())
        if layers:
            _write_layers(Path(request["layers"]), "engine", layers)


def load_timings(config: Any, file: Path) -> None:
    """Let the builder know what it timed before; TensorRT itself sets aside what is damaged or of another GPU."""
    if file.is_file():
        with _optional(f"{file} is not used"):
            cache = config.create_timing_cache(file.read_bytes())
            if cache is not None:
                config.set_timing_cache(cache, ignore_mismatch=False)


def save_timings(config: Any, file: Path) -> None:
    """Keep what the builder timed."""
    with _optional(f"{file} is not kept"):
        cache = config.get_timing_cache()
        if cache is not None:
            write_bytes(file, bytes(cache.serialize()))


@contextmanager
def _optional(problem: str) -> Iterator[None]:
    """Whatever goes wrong inside costs no engine: it is a line of the log."""
    try:
        yield
    except Exception as error:
        print(f"[W] {problem}: {error}", file=sys.stderr)


def _write_layers(file: Path, source: str, layers: list[Any]) -> None:
    write_bytes(file, json.dumps({"source": source, "layers": layers}).encode())


def _monitor(trt: ModuleType, say: Say) -> Any:
    """A progress monitor of the builder that tells each phase's steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            say({"phase": phase_name, "step": step + 1, "steps": self.steps.get(phase_name, step + 1)})
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _network_layers(network: Any) -> list[dict[str, Any]]:
    rows = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        rows.append(
            {
                "name": layer.name,
                "type": str(layer.type).rsplit(".", 1)[-1],
                "outputs": [
                    {"name": t.name, "shape": list(t.shape), "type": str(t.dtype).rsplit(".", 1)[-1]} for t in outputs
                ],
            }
        )
    return rows


def _engine_layers(trt: ModuleType, data: bytes) -> list[Any] | None:
    """What the engine's inspector lists; None where the engine is of another GPU."""
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(data)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers: list[Any] = json.loads(text).get("Layers", [])
    return layers


def die_with_parent() -> None:
    """Let the kernel end this process when the one that waits is gone (Linux: prctl with PR_SET_PDEATHSIG).

    A builder that times kernels for minutes would else eat the board's memory until it has something to say.
    """
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve one request."""
    die_with_parent()
    # TensorRT's own loggers write to file descriptor 1, whatever Python's output is: events get one to themselves.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def say(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    request = json.loads(sys.stdin.read())
    try:
        build(request, say)
    except DeployError as error:
        say({"error": error.one_line()})
        sys.exit(1)
    # RTX finishes its engines on the GPU: there is nothing to list before.
    if request["kind"] == "tensorrt":
        inspect(request)
