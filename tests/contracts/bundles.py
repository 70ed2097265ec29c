"""Bundles whose restoration is known: gain * cube + offset, on frames of 8x16 with 3 bands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle_files import array_bytes, install_engine, verified_bundle, write_bundle
from runtime.engines import open_engine
from runtime.made import MADE, Choice, EngineFile
from runtime.manifest import MANIFEST, Manifest
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
            "schema_version": Manifest.version,
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
    """The bytes of a manifest or `made.json` as their documentation says, written without their code."""

    def canonical(values: dict[str, Any]) -> bytes:
        return (json.dumps(values, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()

    bare = {key: value for key, value in content.items() if key != "seal"}
    return canonical({**bare, "seal": hashlib.sha256(canonical(bare)).hexdigest()})


def reseal(bundle: Path, change: Callable[[dict[str, Any]], object], name: str = MANIFEST) -> None:
    """Alter the manifest, or `made.json`, as somebody would who knows how it is sealed."""
    content = json.loads((bundle / name).read_bytes())
    change(content)
    (bundle / name).write_bytes(sealed(content))


def rebind(bundle: Path) -> None:
    """Let `made.json` belong to the manifest that is there."""
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    reseal(bundle, lambda content: content.update(manifest_sha256=digest), MADE)


def for_a_board(folder: Path, builder: str = "tensorrt") -> Path:
    """`known_bundle` for a GPU of SM 8.7, its engine deferred."""
    bundle = known_bundle(folder)
    target = {"name": "jetson-orin", "engine": builder, "sm": "8.7", "threads": None}
    reseal(
        bundle, lambda content: content.update(target={**content["target"], **target}, deferred="built on the board")
    )
    return bundle


def give_engine(bundle: Path, data: bytes = b"an engine", name: str = "engine/1") -> Path:
    """Give such a bundle files that stand for its engine, named `name`."""
    contents = verified_bundle(bundle)
    manifest = contents.manifest
    files = {f"{name}.plan": data, f"{name}.layers.json": b"[]", f"{name}.log": b"built"}
    record = EngineFile(
        **dict(zip(("path", "layers", "log"), files, strict=True)),
        builder=manifest.target.engine,
        version="10.3.0",
        sm="8.7",
        graph_sha256=manifest.files[manifest.graphs["fp32"]].sha256,
        options={},
    )
    choice = Choice(precision="fp32", why="asked for", tolerance=manifest.golden.tolerance, engine=record)
    install_engine(bundle, contents, choice, {"golden_difference": 1e-6}, files)
    return bundle


def prove_more(bundle: Path, *offs: float) -> Path:
    """Give it a proof more for each number, whose golden output is off by that."""
    golden = np.load(bundle / "golden/restored.npy")
    others = []
    for place, off in enumerate(offs, 2):
        others.append({"restored": f"golden/{place}/restored.npy"})
        (bundle / others[-1]["restored"]).parent.mkdir()
        swap(bundle, others[-1]["restored"], array_bytes(golden + np.float32(off)))
    reseal(bundle, lambda content: content["golden"].update(others=others))
    return bundle


def prove_another(bundle: Path, seed: int) -> Path:
    """Give it a proof whose frame is another one, by `inputs` of that seed, and what the known graph makes of it."""
    given = inputs(SPEC, seed)
    with open_engine("onnxruntime", known_graph(SPEC), SPEC) as engine:
        arrays = {**given, **engine.infer(given)}
    other = {name: f"golden/2/{name}.npy" for name in arrays}
    (bundle / "golden/2").mkdir()
    for name, file in other.items():
        swap(bundle, file, array_bytes(arrays[name]))
    reseal(bundle, lambda content: content["golden"].update(others=[other]))
    return bundle


def swap(bundle: Path, name: str, data: bytes) -> None:
    """Replace a file and its entry in the manifest."""
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    reseal(bundle, lambda content: content["files"].update({name: entry}))
