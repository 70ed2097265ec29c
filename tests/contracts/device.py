"""A stand-in for a Jetson: TensorRT for RTX's real builder, and ONNX Runtime in place of the GPU that runs its engine.

`python -m tests.contracts.device finalize BUNDLE --json` answers as `deploy finalize` does on the device.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from deploy import console
from deploy.finalizing.engine import build_with_progress
from deploy.finalizing.finalize import Device, finalize
from export.tensorrt.build import EngineMade, Request, builder_version
from runtime.bundle_files import verified_bundle
from runtime.engines import Engine, EngineOptions, open_engine
from runtime.errors import DeployError
from runtime.made import MADE
from runtime.signature import Signature

SM = "8.9"
TARGET = "standin"
CONFIG = f"""\
targets:
  {TARGET}:
    engine: tensorrt-rtx
    precisions: [fp32, fp16, int8]
    default_precision: fp16
    sm: "{SM}"
    tensorrt: ">=1.7,<2"
    workspace_mib: 64
    made_there: true
"""
"""A target whose engine is built there, as a Jetson's is."""


def stand_in(folder: Path, *, spoilt: bool = False, sm: str | None = SM, version: str | None = None) -> Device:
    """The device for the bundle in `folder`; `spoilt` engines compute something else."""

    def open_graph(name: str, program: bytes, signature: Signature, options: EngineOptions) -> Engine:
        assert name == "tensorrt-rtx" and options.built is not None and options.built.sm == SM and len(program) > 1000
        bundle = verified_bundle(folder)
        graph = bundle.files[bundle.manifest.graphs[options.precision]]
        return open_engine("onnxruntime", other_graph(signature) if spoilt else graph, signature)

    def build(graph: bytes, request: Request, work: Path) -> EngineMade:
        return build_with_progress(graph, request, work)

    return Device(lambda request: version or builder_version(request), lambda: sm, build, open_graph)


def other_graph(signature: Signature) -> bytes:
    """A graph of the same signature that restores something else."""
    from tests.contracts.graphs import known_graph

    return known_graph(signature, gain=0.5)


def main() -> int:
    """What `DEVICE_FAULT` names goes wrong: `spoilt`, `tampered`, `unmade` or `link`."""
    folder, fault = Path(sys.argv[2]), os.environ.get("DEVICE_FAULT")
    console.speak_to(machines=True)
    try:
        device = stand_in(folder, spoilt=fault == "spoilt")
        done = finalize(folder, rebuild="--rebuild" in sys.argv, device=device)
    except DeployError as error:
        print(json.dumps({"error": error.as_json()}))
        return error.exit_code
    if fault == "tampered":
        from tests.contracts.bundles import rebind, reseal

        reseal(folder, lambda content: content.update(scale=1.0))
        rebind(folder)
    if fault == "unmade":
        (folder / MADE).unlink()
    if fault == "link":
        (folder / "stranger").symlink_to("/etc/passwd")
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
