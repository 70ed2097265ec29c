"""The process that builds one engine: `python -m export.tensorrt.child`, a request on standard input, events on output.

A builder that runs out of memory or crashes takes only this process with it. Each line of standard output is one JSON
event: {"phase", "step", "steps"} while it builds, and last {"done": {...}} or {"error": "..."}. What the builder says
goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.durable import write_bytes
from runtime.engines.tensorrt_libraries import load_tensorrt
from runtime.errors import DeployError, MachineError


def say(event: dict[str, Any]) -> None:
    """One event for the process that waits."""
    sys.__stdout__.write(json.dumps(event) + "\n")
    sys.__stdout__.flush()


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build the engine that `request` (see `export.tensorrt.build.Request`) describes; returns its facts.

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
        "progress_monitor": _monitor(trt),
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
            cache = request["timing_cache"]
            create = CreateConfig(load_timing_cache=cache if cache and Path(cache).exists() else None, **options)
        config = create(builder, network)
        # TF32 keeps 10 bits of a float32: a precision that nobody asked for.
        config.clear_flag(trt.BuilderFlag.TF32)
        engine = engine_bytes_from_network(
            (builder, network, parser), config=config, save_timing_cache=None if rtx else request["timing_cache"]
        )
    except PolygraphyException as error:
        raise MachineError(
            "the builder refuses the graph", key=request["kind"], value=str(error).splitlines()[0], remedy="see its log"
        ) from error
    seconds = time.monotonic() - began
    data = bytes(engine)
    inspected = None if rtx else _engine_layers(trt, data)
    listed = {
        "source": "engine" if inspected else "network, before the builder fused it",
        "layers": inspected or layers,
    }
    write_bytes(Path(request["engine"]), data)
    write_bytes(Path(request["layers"]), json.dumps(listed).encode())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "version": str(trt.__version__),
        "seconds": round(seconds, 2),
        "layers": len(layers),
        "peak_mib": peak >> 10,
        "bytes": len(data),
    }


def _monitor(trt: ModuleType) -> Any:
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
    """What the engine's inspector lists, on the machine whose GPU it was built for."""
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(data)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers: list[Any] = json.loads(text).get("Layers", [])
    return layers


def main() -> None:
    request = json.loads(sys.stdin.read())
    # Polygraphy and the builder print where they like; events need the output to themselves.
    sys.stdout = sys.stderr
    try:
        say({"done": build(request)})
    except DeployError as error:
        say({"error": error.one_line()})
        sys.exit(1)


if __name__ == "__main__":
    main()
