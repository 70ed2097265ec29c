"""Bundles whose restoration is known: gain * cube + offset, on frames of 8x16 with 3 bands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.bundle import MANIFEST, array_bytes, write_bundle
from runtime.engines import open_engine
from runtime.manifest import SCHEMA_VERSION, Manifest
from runtime.signature import Signature
from tests.contracts.engine import inputs
from tests.contracts.graphs import SMALL, known_graph

SPEC: Signature = SMALL
METRICS_GRAPH = "graphs/metrics.onnx"
GOLDEN = ("frame", "metrics", "restored", "routing")
WAVELENGTHS = [500.0, 600.0, 700.0]


def known_bundle(
    folder: Path, gain: float = 1.0, offset: float = 0.0, scale: float | None = None, metrics_graph: bytes | None = None
) -> Path:
    """Write such a bundle into `folder`, which is not there yet; `metrics_graph` computes its metrics."""
    graph = known_graph(SPEC, gain, offset)
    given = inputs(SPEC, 0)
    with open_engine("onnxruntime", graph, SPEC) as engine:
        arrays = {**given, **engine.infer(given)}
    manifest = Manifest.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "created": "2026-01-01T00:00:00+00:00",
            "tools": {"damp-deploy": "0"},
            "network": {
                "architecture": "known",
                "configuration": {},
                "parameters": 2,
                "checkpoint": "known.safetensors",
                "checkpoint_sha256": "0" * 64,
            },
            "signature": SPEC,
            "wavelengths": WAVELENGTHS,
            "overlap": 4,
            "scale": scale,
            "scale_from": None if scale is None else "flag",
            "target": {"name": "cpu", "engine": "onnxruntime", "threads": 1},
            "precision": {"chosen": "fp32", "why": "asked for"},
            "graphs": {"fp32": "graphs/fp32.onnx"},
            "golden": {"arrays": {name: f"golden/{name}.npy" for name in GOLDEN}, "tolerance": 1e-4},
            "evidence": {"export": {"difference": 1e-7}},
            "files": {},
            "metrics_graph": None if metrics_graph is None else METRICS_GRAPH,
        }
    )
    golden = {f"golden/{name}.npy": array_bytes(array) for name, array in arrays.items()}
    of_metrics = {} if metrics_graph is None else {METRICS_GRAPH: metrics_graph}
    write_bundle(folder, {"graphs/fp32.onnx": graph, **of_metrics, **golden}, manifest)
    return folder


def sealed(content: dict[str, Any]) -> bytes:
    """The manifest's bytes as its documentation says, written without its code."""

    def canonical(values: dict[str, Any]) -> bytes:
        return (json.dumps(values, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()

    bare = {key: value for key, value in content.items() if key != "seal"}
    return canonical({**bare, "seal": hashlib.sha256(canonical(bare)).hexdigest()})


def reseal(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter the manifest as somebody would who knows how it is sealed."""
    content = json.loads((bundle / MANIFEST).read_bytes())
    change(content)
    (bundle / MANIFEST).write_bytes(sealed(content))


def swap(bundle: Path, name: str, data: bytes) -> None:
    """Replace a file and its entry in the manifest."""
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    reseal(bundle, lambda content: content["files"].update({name: entry}))
