"""Steps of `benchmarks.gpu` that run the project's commands: its tests, `deploy build`, `deploy bench`, a training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .run import ROOT, Found, Setting

CONTRACTS = (
    "tests/runtime/test_cuda.py",
    "tests/runtime/test_engine_bound.py",
    "tests/runtime/test_engine_tensorrt.py",
    "tests/export/test_torch_engine.py",
)
TARGETS = {"fp32": "cpu", "fp16": "cuda"}
"""Precision -> target that is built for; either bundle is then opened in the engine that is looked at."""
MEASURED_BY = {"fp32": "host", "fp16": "graph"}
"""Precision -> what computes the prompt metrics: the CPU, or the engine's device."""


def contracts(setting: Setting, found: Found) -> None:
    """The project's own tests of CUDA, of engines and of PyTorch's forms, those too that need a GPU."""
    # Plug-ins of an environment that is not the project's know nothing of its tests.
    own = {"LD_LIBRARY_PATH": library_path(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for file in CONTRACTS:
        with found.line(file, 0.8) as row:
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rsfE", "--tb=short", file]
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, text=True, check=False
            )
            print(done.stdout)
            row |= {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
            if done.returncode:
                failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.MULTILINE)
                raise RuntimeError(f"exit code {done.returncode}, failed: {', '.join(failed)}")


def library_path() -> str:
    """Where NVIDIA's wheels keep their libraries, before what the loader is told already."""
    spec = find_spec("nvidia")
    wheels = [
        str(lib) for place in (spec and spec.submodule_search_locations) or () for lib in Path(place).glob("*/lib")
    ]
    return os.pathsep.join([*wheels, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


def deploy(*arguments: object) -> dict[str, Any]:
    """What a subcommand says with `--json`. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "deploy", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    told: dict[str, Any] = json.loads((done.stdout.strip().splitlines() or ["{}"])[-1])
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {told.get('error', 'no word')}")
    return told


def bundles(setting: Setting, found: Found) -> None:
    """`deploy build` in both precisions, side by side: most of a build keeps one core busy."""

    def built(precision: str) -> dict[str, Any]:
        out, began = setting.bundle(precision), time.monotonic()
        if (out / "manifest.json").exists():
            return {"built": "before"}
        told = deploy(
            "build", "--target", TARGETS[precision], "--checkpoint", setting.model, "--precision", precision,
            "--size", f"{setting.size}x{setting.size}", "--metrics", MEASURED_BY[precision], "--out", out,
        )  # fmt: skip
        return {"build s": time.monotonic() - began, "target": told["target"], "agreement": told["agreement"]}

    setting.bundle("").parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as pool:
        futures = {precision: pool.submit(built, precision) for precision in TARGETS}
        for precision, future in futures.items():
            with found.line(setting.bundle(precision).name, 0.9) as row:
                row |= future.result()


def check(setting: Setting, found: Found) -> None:
    """`deploy check`: the engine as a user judges it, against PyTorch in float32 on the CPU."""
    config = setting.out / "check.yaml"
    # One frame of each degradation: cubes in tiles are another step's.
    config.write_text(f"check: {{cube: {setting.size}x{setting.size}}}\n", encoding="utf-8")
    for precision in TARGETS:
        with found.line(precision, 0.7) as row:
            told = deploy(
                "check", setting.bundle(precision), "--engine", setting.engine, "--checkpoint", setting.model,
                "--variants", precision, "--config", config,
            )  # fmt: skip
            row |= {name: gate["measured"] for name, gate in told["gates"].items()}


def bench(setting: Setting, found: Found) -> None:
    """`deploy bench`: a frame as `deploy run` restores it, in turn with PyTorch on the same device."""
    form = "deployment" if setting.cpu else "graph"
    for precision, cast in zip(TARGETS, ("fp32", setting.half), strict=True):
        with found.line(precision) as row:
            told = deploy(
                "bench", setting.bundle(precision), "--engine", setting.engine, "--checkpoint", setting.model,
                "--torch-device", setting.device, "--torch-form", form, "--torch-precision", cast,
                "--seconds", min(5.0, found.left / 8),
            )  # fmt: skip
            pytorch = told["pytorch"]
            row |= {"computes in": told["precision"], "fps": told["frames_per_second"], "ms": told["latency_ms"]}
            row |= {"split ms": told["split_ms"], "PyTorch": f"{form}, {cast}", "its ms": pytorch["latency_ms"]["p50"]}
            row |= {"times PyTorch": pytorch["ratio"], "times, network alone": pytorch["engine_ratio"]}
