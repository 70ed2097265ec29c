"""The FP16 graph: one type per tensor, what is delicate in float32, and the frames it restores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.degradations import DEGRADATIONS
from calibration.half_arithmetic import half_arithmetic
from calibration.typed import Typed, half_precision
from runtime.bundle_files import read_manifest
from runtime.engines import EngineOptions, open_engine
from runtime.errors import MachineError
from runtime.prompts import Prompts
from runtime.signature import Signature
from runtime.simulation.simulator import simulate_scene
from tests.contracts.graphs import SMALL, known_model

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
ONE = EngineOptions(threads=1)
NO_METRICS = np.zeros((1, 6), np.float32)


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> tuple[bytes, Signature]:
    manifest = read_manifest(tiny_bundle)
    return (tiny_bundle / manifest.graphs["fp32"]).read_bytes(), manifest.signature


@pytest.fixture(scope="module")
def typed(graph: tuple[bytes, Signature]) -> Typed:
    return half_precision(graph[0])


def types_by_node(data: bytes) -> list[tuple[str, list[int], list[int]]]:
    """(operator, float types of its inputs, of its outputs) of every node."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=True)
    g = model.graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*g.value_info, *g.input, *g.output)}
    known.update({i.name: i.data_type for i in g.initializer})

    def floats(names: list[str]) -> list[int]:
        return [known[name] for name in names if known.get(name) in (HALF, SINGLE)]

    return [(n.op_type, floats(list(n.input)), floats(list(n.output))) for n in g.node]


def test_what_costs_time_is_half_and_what_is_delicate_is_single(typed: Typed) -> None:
    rows = [row for row in types_by_node(typed.data) if row[0] != "Cast"]
    assert all(len({*ins, *outs}) <= 1 for _, ins, outs in rows), "a node mixes types"
    kinds = {op: {t for name, _, outs in rows if name == op for t in outs} for op, _, _ in rows}
    for delicate in ("ReduceL2", "ReduceMean", "Softmax", "Sub", "Sqrt", "Div", "TopK", "Sigmoid"):
        assert kinds[delicate] == {SINGLE}, delicate
    # The router and the matrices of a frame; and what the matrices do to every pixel.
    assert kinds["Gemm"] == {SINGLE, HALF}
    assert kinds["ConvTranspose"] == {HALF}
    convolutions = [outs for op, _, outs in rows if op == "Conv"]
    assert sum(outs == [HALF] for outs in convolutions) >= 0.8 * len(convolutions)
    assert typed.half > typed.single > 0 and typed.casts > 0


def test_inputs_and_outputs_stay_float32(typed: Typed) -> None:
    g = onnx.load_model_from_string(typed.data).graph
    assert {v.type.tensor_type.elem_type for v in (*g.input, *g.output)} == {SINGLE}
    assert all(not i.name.endswith("/half") or i.data_type == HALF for i in g.initializer)


def test_frames_come_out_as_from_the_float32_graph(graph: tuple[bytes, Signature], typed: Typed) -> None:
    data, signature = graph
    scene, prompts = simulate_scene(0, *signature.measured.shape[1:]).truth, Prompts(signature)
    with (
        open_engine("onnxruntime", data, signature, ONE) as single,
        open_engine("onnxruntime", half_arithmetic(typed.data), signature, ONE) as half,
    ):
        for index, degrade in enumerate(DEGRADATIONS.values()):
            frame = degrade(scene, np.random.default_rng(index))
            expected, found = (e.infer({"frame": frame[None], **prompts(frame)}) for e in (single, half))
            apart = np.abs(found["restored"] - expected["restored"])
            assert 0 < apart.max() < 5e-3 * np.ptp(expected["restored"])
            np.testing.assert_allclose(found["routing"], expected["routing"], atol=1e-4)
            np.testing.assert_array_equal(found["routing"] > 0, expected["routing"] > 0)


def normalising(kind: str, factor: float) -> onnx.ModelProto:
    """A graph whose frame passes a product and is then divided by its L2 norm, or by its RMS, over samples."""
    model = known_model(SMALL)
    g = model.graph
    constants = {"factor": np.full((16, 16), factor, np.float32), "last": np.array([-1]), "eps": np.float32(1e-5)}
    g.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    product = helper.make_node("MatMul", ["frame", "factor"], ["product"])
    if kind == "l2":
        norm = [helper.make_node("ReduceL2", ["product", "last"], ["norm"], keepdims=1)]
    else:
        norm = [
            helper.make_node("Mul", ["product", "product"], ["square"]),
            helper.make_node("ReduceMean", ["square", "last"], ["mean"], keepdims=1),
            helper.make_node("Add", ["mean", "eps"], ["guarded"]),
            helper.make_node("Sqrt", ["guarded"], ["norm"]),
        ]
    divide = helper.make_node("Div", ["product", "norm"], ["unit"])
    scale = helper.make_node("MatMul", ["unit", "identity"], ["restored"])
    g.initializer.append(numpy_helper.from_array(np.eye(16, dtype=np.float32), "identity"))
    others = [n for n in g.node if n.output[0] not in ("scaled", "restored")]
    del g.node[:]
    g.node.extend([product, *norm, divide, scale, *others])
    return model


@pytest.mark.parametrize("kind", ["l2", "rms"])
def test_squares_beyond_the_range_of_fp16_stay_finite(kind: str) -> None:
    data = normalising(kind, 250.0).SerializeToString()
    frame = np.random.default_rng(0).random(SMALL.measured.shape, np.float32) + 1
    assert (frame.sum(-1) * 250).max() > np.sqrt(65504)
    results = []
    for graph in (data, half_arithmetic(half_precision(data).data)):
        with open_engine("onnxruntime", graph, SMALL, ONE) as engine:
            results.append(engine.infer({"frame": frame, "metrics": NO_METRICS})["restored"])
    np.testing.assert_allclose(results[1], results[0], rtol=2e-3)
    kinds = {op: outs for op, _, outs in types_by_node(half_precision(data).data)}
    assert all(kinds[op] == [SINGLE] for op in kinds if op in ("ReduceL2", "Mul", "ReduceMean", "Sqrt", "Div"))


def test_without_the_islands_the_same_frame_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.typed.STATISTICS", frozenset())
    monkeypatch.setattr("calibration.typed.ELEMENTWISE", frozenset())
    data = half_arithmetic(half_precision(normalising("rms", 250.0).SerializeToString()).data)
    with (
        open_engine("onnxruntime", data, SMALL, ONE) as engine,
        pytest.raises(MachineError, match="not finite"),
    ):
        engine.infer({"frame": np.ones(SMALL.measured.shape, np.float32), "metrics": NO_METRICS})


def test_a_weight_that_fp16_cannot_hold_is_refused() -> None:
    with pytest.raises(MachineError, match=r"factor.*does not fit into FP16.*100000.*fp32"):
        half_precision(normalising("l2", 1e5).SerializeToString())


def test_weights_that_lose_digits_are_counted() -> None:
    assert half_precision(normalising("l2", 1e-6).SerializeToString()).flushed == 256
    assert half_precision(normalising("l2", 0.0).SerializeToString()).flushed == 0
