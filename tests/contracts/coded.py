"""A network that is not like DAMP, whose results are known: five bands of three coded ones.

It takes a constant beside the frame and has no metrics and no experts; its frames have one place only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle_files import array_bytes, read_manifest, write_bundle
from runtime.manifest import Manifest
from runtime.signature import Plane, Prompt, Signature
from tests.contracts.bundles import known_bundle
from tests.contracts.engine import inputs

Float32 = NDArray[np.float32]
BANDS, LINES, SAMPLES = (3, 5), 8, 16
CODE = np.array([[0.0, 0.125, 0.25, 0.375, 0.5]], np.float32)
CODE_FILE = "prompts/code.npy"
PICK = np.array([0, 1, 2, 0, 1])
CODED = Signature(
    Plane("shot", BANDS[0], LINES, SAMPLES, "coded"),
    Plane("restored", BANDS[1], LINES, SAMPLES),
    (Prompt("code", (1, BANDS[1]), "constant", CODE_FILE),),
    tiling="fixed",
    band_groups=False,
)


def decoded(shot: Float32, code: Float32 = CODE) -> Float32:
    """What it makes of a frame [3, lines, samples]."""
    return np.asarray(shot[PICK] + code[0][:, None, None], np.float32)


def decode(feeds: Mapping[str, Float32]) -> dict[str, Float32]:
    """The network, in NumPy."""
    assert {name: array.shape for name, array in feeds.items()} == CODED.ports.inputs
    return {"restored": decoded(feeds["shot"][0], feeds["code"])[None]}


def coded_graph() -> bytes:
    """The network, as a graph."""
    weights = np.zeros((BANDS[1], BANDS[0], 1, 1), np.float32)
    weights[np.arange(BANDS[1]), PICK] = 1
    constants = {"weights": weights, "shape": np.array([1, BANDS[1], 1, 1])}
    nodes = [
        helper.make_node("Conv", ["shot", "weights"], ["picked"]),
        helper.make_node("Reshape", ["code", "shape"], ["column"]),
        helper.make_node("Add", ["picked", "column"], ["restored"]),
    ]
    given, made = (
        [helper.make_tensor_value_info(port, TensorProto.FLOAT, shape) for port, shape in shapes.items()]
        for shapes in (CODED.ports.inputs, CODED.ports.outputs)
    )
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "coded", given, made, held)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def coded_bundle(folder: Path, scale: float | None = None) -> Path:
    """Write a bundle of it into `folder`, which is not there yet."""
    like = read_manifest(known_bundle(folder.with_name(f"{folder.name}.like"), scale=scale))
    frame = {**inputs(CODED, 0), "code": CODE}
    arrays = {**frame, **decode(frame)}
    golden = {name: f"golden/{name}.npy" for name in arrays} | {"code": CODE_FILE}
    told = {
        "signature": CODED,
        "wavelengths": None,
        "overlap": 0,
        "golden": {"arrays": golden, "tolerance": like.golden.tolerance},
    }
    files = {golden[name]: array_bytes(array) for name, array in arrays.items()}
    manifest = Manifest.model_validate({**dict(like), **told})
    write_bundle(folder, {manifest.graphs["fp32"]: coded_graph(), **files}, manifest)
    return folder
