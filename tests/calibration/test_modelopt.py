"""Ranges by NVIDIA's Model Optimizer, where it is installed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.modelopt import WAYS, available, modelopt_ranges

pytestmark = pytest.mark.skipif(not available(), reason="nvidia-modelopt is not installed: extra `modelopt`")


@pytest.mark.parametrize("way", WAYS)
def test_ranges_are_of_the_size_of_the_values(way: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 4, 3, 3)).astype(np.float32)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("frame", [1, 4, 16, 16]), ("metrics", [1, 6]), ("restored", [1, 8, 16, 16]))
    ]
    nodes = [
        helper.make_node("Conv", ["frame", "w"], ["restored"], name="a/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Identity", ["metrics"], ["routing"], name="b/Identity"),
    ]
    routing = helper.make_tensor_value_info("routing", TensorProto.FLOAT, [1, 6])
    graph = helper.make_graph(nodes, "g", values[:2], [values[2], routing], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    feeds = [
        {"frame": rng.random((1, 4, 16, 16), np.float32), "metrics": np.zeros((1, 6), np.float32)} for _ in range(4)
    ]
    found = modelopt_ranges(model.SerializeToString(), {"a/Conv": "frame"}, feeds, way)
    assert 0.5 < found["a/Conv"] < 1.1
