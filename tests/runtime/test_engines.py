"""Engines keep their contract and agree; graphs are looked at before any library opens them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.networks import load_checkpoint
from export.onnx import LIMIT
from export.torch_engine import TorchEngine
from runtime.arrays import Float32
from runtime.bundle_files import read_manifest
from runtime.engines import ENGINES, Engine, EngineOptions, available_engines, extra_of, open_engine
from runtime.engines.onnx_guard import check_onnx
from runtime.errors import BundleError, MachineError
from runtime.signature import Signature
from tests.contracts.coded import CODED, coded_graph, decode
from tests.contracts.engine import EngineContract, assert_equal, inputs
from tests.contracts.graphs import SMALL, damp_like, known_graph, known_model

ONE = EngineOptions(threads=1)


def tiny_graph(bundle: Path) -> tuple[bytes, Signature]:
    manifest = read_manifest(bundle)
    return (bundle / manifest.graphs[manifest.precision.chosen]).read_bytes(), manifest.signature


class TestOnnxRuntimeCpu(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tiny_bundle: Path) -> Iterator[Engine]:
        with open_engine("onnxruntime", *tiny_graph(tiny_bundle), ONE) as engine:
            yield engine


class TestOpenVinoCpu(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tiny_bundle: Path) -> Iterator[Engine]:
        pytest.importorskip("openvino")
        with open_engine("openvino", *tiny_graph(tiny_bundle), ONE) as engine:
            yield engine


class TestTorch(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tiny_checkpoint: Path) -> Iterator[Engine]:
        with TorchEngine(load_checkpoint(tiny_checkpoint), 64, 64) as engine:
            yield engine


class TestKnownGraph(EngineContract):
    """Frames that are neither square nor what any network takes."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        with open_engine("onnxruntime", known_graph(), SMALL, ONE) as engine:
            yield engine


class TestCodedGraph(EngineContract):
    """Other planes out than in, a constant, and nothing beside them."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        with open_engine("onnxruntime", coded_graph(), CODED, ONE) as engine:
            yield engine

    def test_it_gives_what_the_network_is_known_to_give(self, engine: Engine) -> None:
        for seed in range(3):
            given = inputs(CODED, seed)
            assert_equal(engine.infer(given), decode(given))


def test_onnxruntime_and_pytorch_agree(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    graph, signature = tiny_graph(tiny_bundle)
    with (
        open_engine("onnxruntime", graph, signature, ONE) as flying,
        TorchEngine(load_checkpoint(tiny_checkpoint), 64, 64) as t,
    ):
        assert flying.signature == t.signature == signature
        seen = set()
        for seed in range(6):
            given = inputs(signature, seed)
            found, expected = flying.infer(given), t.infer(given)
            assert np.abs(found["restored"] - expected["restored"]).max() < LIMIT * np.ptp(expected["restored"])
            assert np.abs(expected["restored"] - given["frame"]).max() > 0.01
            np.testing.assert_array_equal(found["routing"] > 0, expected["routing"] > 0)
            np.testing.assert_allclose(found["routing"], expected["routing"], atol=1e-5)
            seen.add((found["routing"] > 0).tobytes())
    assert len(seen) > 1, "the same experts throughout"


@pytest.mark.parametrize("threads", [1, 2, None])
def test_threads_are_those_asked_for(threads: int | None) -> None:
    with open_engine("onnxruntime", known_graph(), SMALL, EngineOptions(threads)) as engine:
        given = inputs(SMALL, 0)
        np.testing.assert_array_equal(engine.infer(given)["restored"], given["frame"])
        assert threads is None or f"{threads} threads" in engine.describe()["device"]
        assert re.fullmatch(r"all \d+ nodes in CPUExecutionProvider", engine.describe()["placement"])


@pytest.mark.parametrize(
    ("engine", "precision", "machine", "told"),
    [
        ("onnxruntime", "fp32", "x86_64", "fp32"),
        # What computes in bfloat16 is OpenVINO, on the same graph.
        ("onnxruntime", "bf16", "x86_64", "fp32"),
        ("onnxruntime", "fp16", "x86_64", "fp32, from an FP16 graph"),
        ("onnxruntime", "fp16", "aarch64", "fp32 and fp16, from an FP16 graph"),
        ("openvino", "fp32", "x86_64", "fp32"),
    ],
)
def test_an_engine_tells_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, engine: str, precision: str, machine: str, told: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setattr("platform.machine", lambda: machine)
    with open_engine(engine, known_graph(), SMALL, EngineOptions(1, precision)) as opened:
        assert opened.describe()["computes in"] == told
        assert opened.describe()["device"] == "CPU, 1 threads"


class Broken(Engine):
    """An engine that gives what it is told to give."""

    def __init__(self, *outputs: Any) -> None:
        super().__init__(SMALL)
        self.outputs = outputs

    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        return self.outputs

    def describe(self) -> dict[str, str]:
        return {"engine": "broken", "version": "0", "device": "none"}


def test_outputs_that_cannot_be_used_are_the_machines_fault() -> None:
    given = inputs(SMALL, 0)
    frame, gates = given["frame"], np.full(SMALL.ports.outputs["routing"], 0.25, np.float32)
    good = Broken(frame, gates).infer(given)
    assert list(good) == ["restored", "routing"] and good["restored"] is frame and good["routing"] is gates
    holed = frame.copy()
    holed[0, 1, 2, 3] = np.nan
    for wrong in (frame[:, 1:], frame.astype(np.float64), holed, frame[0], holed * np.float32(np.inf)):
        with pytest.raises(MachineError, match="restored: the engine gave an output") as caught:
            Broken(wrong, gates).infer(given)
        assert caught.value.exit_code == 3
    for wrong in (gates.T, gates.astype(np.float16), np.full_like(gates, np.inf), gates.ravel()):
        with pytest.raises(MachineError, match="routing: the engine gave an output"):
            Broken(frame, wrong).infer(given)


def test_inputs_come_in_the_order_of_the_signature() -> None:
    class Echo(Broken):
        def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
            seen.append(inputs)
            return self.outputs

    given, seen = inputs(SMALL, 0), []
    engine = Echo(given["frame"], np.ones(SMALL.ports.outputs["routing"], np.float32))
    for order in (given, dict(reversed(given.items()))):
        engine.infer(order)
    for frame, metrics in seen:
        np.testing.assert_array_equal(frame, given["frame"])
        np.testing.assert_array_equal(metrics, given["metrics"])


def test_an_engine_is_closed_at_the_end_of_its_block() -> None:
    class Closing(Broken):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    engine = Closing(None, None)
    with engine as entered:
        assert entered is engine and not engine.closed
    assert engine.closed == 1
    with pytest.raises(ZeroDivisionError), engine:
        raise ZeroDivisionError
    assert engine.closed == 2


def test_engines_are_known_by_name() -> None:
    assert set(available_engines()) == set(ENGINES)
    assert available_engines()["onnxruntime"]
    for name in ("tensorflow", "", "runtime.engines.onnxruntime_cpu", "os"):
        with pytest.raises(BundleError, match=r"engine: unknown engine.*onnxruntime"):
            open_engine(name, known_graph(), SMALL)


SIZES: dict[str, Any] = {"bands": 3, "lines": 8, "samples": 16, "metrics": "paper6", "layers": 2, "experts": 4}


def test_every_engine_says_which_extra_brings_it() -> None:
    declared = set(metadata("damp-deploy").get_all("Provides-Extra", []))
    for name in ENGINES:
        assert set(extra_of(name).split(",")) <= declared, name


@pytest.mark.parametrize("change", SIZES)
def test_a_graph_of_other_shapes_is_refused(change: str) -> None:
    assert damp_like(**SIZES) == SMALL
    other = damp_like(**{**SIZES, change: "reference15" if change == "metrics" else SIZES[change] + 1})
    with pytest.raises(BundleError, match="not the one that the manifest describes"):
        open_engine("onnxruntime", known_graph(), other, ONE)


def renamed(model: onnx.ModelProto) -> None:
    for value in (*model.graph.output, *model.graph.node):
        if isinstance(value, onnx.NodeProto):
            value.output[:] = ["rectified" if name == "restored" else name for name in value.output]
        elif value.name == "restored":
            value.name = "rectified"


def with_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("scaled", TensorProto.FLOAT, SMALL.measured.shape))


def with_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def without_routing(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def with_free_size(model: onnx.ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_param = "lines"


def of_doubles(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["routing"], ["wide"], to=TensorProto.DOUBLE))
    model.graph.output[1].CopyFrom(
        helper.make_tensor_value_info("wide", TensorProto.DOUBLE, SMALL.ports.outputs["routing"])
    )


def with_unknown_node(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "LaunchMissiles"


def with_unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


SIGNATURES = (renamed, with_output, with_input, without_routing, with_free_size, of_doubles)


@pytest.mark.parametrize("change", [*SIGNATURES, with_unknown_node, with_unknown_domain])
def test_a_graph_with_another_signature_or_unknown_nodes_is_refused(change: Callable[[onnx.ModelProto], None]) -> None:
    model = known_model()
    change(model)
    with pytest.raises(BundleError) as caught:
        open_engine("onnxruntime", model.SerializeToString(), SMALL, ONE)
    assert "\n" not in str(caught.value)


# The guard: external data, versions, damage


def test_the_guard_lets_good_graphs_pass(tiny_bundle: Path) -> None:
    check_onnx(known_graph())
    check_onnx(tiny_graph(tiny_bundle)[0])


def refused_before_opening(model: onnx.ModelProto, match: str) -> None:
    data = model.SerializeToString()
    with pytest.raises(BundleError, match=match):
        check_onnx(data, file="graph.onnx")
    with pytest.raises(BundleError, match=match):
        open_engine("onnxruntime", data, SMALL, ONE)


def test_external_data_as_onnx_writes_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = damp_like(3, 8, 16, layers=20, experts=40)
    onnx.save(
        known_model(signature),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=1024,
    )
    assert (tmp_path / "weights.bin").stat().st_size > 1024
    # Where the weights would be found, if anybody looked.
    monkeypatch.chdir(tmp_path)
    data = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(BundleError, match=r"graph\.onnx: the graph refers to data outside itself"):
        check_onnx(data, file="graph.onnx")
    with pytest.raises(BundleError, match="data outside itself"):
        open_engine("onnxruntime", data, signature, ONE)


def outside(name: str = "t", *, told: bool = True, listed: bool = True) -> TensorProto:
    """A tensor whose data lies in another file; `told` by its location, `listed` by the entry that names the file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    if told:
        tensor.data_location = TensorProto.EXTERNAL
    if listed:
        tensor.external_data.add(key="location", value="../../etc/hostname")
    return tensor


def branch(*tensors: TensorProto) -> onnx.GraphProto:
    graph = onnx.GraphProto(name="branch")
    graph.initializer.extend(tensors)
    return graph


def in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def in_first_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.insert(0, tensor)


def in_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_attribute_list(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)


def in_branch(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch(), else_branch=branch(tensor)))


def in_branch_of_branch(model: onnx.ModelProto, tensor: TensorProto) -> None:
    inner = branch()
    inner.node.append(helper.make_node("Loop", ["x"], ["y"], body=branch(tensor)))
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=branch()))


def in_graph_list(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.GRAPHS).graphs.append(branch(tensor))


def in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_function_default(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.functions.add(name="f", domain="d").attribute_proto.add(name="a", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
        tensor
    )


def in_training(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


def in_sparse_values(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def in_sparse_indices(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add().indices.CopyFrom(tensor)


def in_sparse_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(tensor)


PLACES = (
    in_initializer,
    in_first_initializer,
    in_attribute,
    in_attribute_list,
    in_branch,
    in_branch_of_branch,
    in_graph_list,
    in_function,
    in_function_default,
    in_training,
    in_sparse_values,
    in_sparse_indices,
    in_sparse_attribute,
)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_can_be(
    place: Callable[[onnx.ModelProto, TensorProto], None], told: bool
) -> None:
    inside = known_model()
    place(inside, numpy_helper.from_array(np.zeros(4, np.float32), "t"))
    if place in (in_branch, in_branch_of_branch):
        refused_before_opening(inside, "an operator that no export of ours writes")
    else:
        check_onnx(inside.SerializeToString())
    model = known_model()
    place(model, outside(told=told, listed=not told))
    refused_before_opening(model, "data outside itself")


@pytest.mark.parametrize(("ir", "opset"), [(10, 18), (10, 19), (10, 20), (8, 18), (9, 20)])
def test_versions_that_every_engine_reads_pass(ir: int, opset: int) -> None:
    model = known_model()
    model.ir_version = ir
    model.opset_import[0].version = opset
    check_onnx(model.SerializeToString())


@pytest.mark.parametrize(("ir", "opset"), [(11, 20), (13, 20), (10, 21), (10, 25), (10, 17), (10, 1), (0, 20), (10, 0)])
def test_other_versions_are_refused_by_name(ir: int, opset: int) -> None:
    model = known_model()
    model.ir_version = ir
    model.opset_import[0].version = opset
    refused_before_opening(model, f"IR {ir}, opset {opset}.*IR up to 10 and opset 18 to 20")


def test_the_version_cannot_hide_behind_another_domain() -> None:
    model = known_model()
    model.opset_import.insert(0, helper.make_opsetid("ai.onnx.ml", 3))
    check_onnx(model.SerializeToString())
    model.opset_import[1].version = 23
    refused_before_opening(model, "opset 23")
    del model.opset_import[1]
    refused_before_opening(model, "opset 0")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


@pytest.mark.parametrize(("depth", "refused"), [(1, False), (8, False), (30, True), (3000, True)])
def test_graphs_may_be_nested_but_not_without_end(depth: int, refused: bool) -> None:
    graph = b""
    for _ in range(depth):
        # graph.node.attribute.g
        graph = field(1, field(5, field(6, graph)))
    data = known_graph() + field(7, graph)
    # A nest that is not too deep is walked to its end, where a node without an operator is found.
    with pytest.raises(BundleError, match="the graph is damaged" if refused else "no export of ours writes"):
        check_onnx(data)


@pytest.mark.parametrize("length", range(2, 10))
def test_a_field_by_a_longer_number_is_refused(length: int) -> None:
    # Other parsers keep 32 bits of a tag, and would read another field than the guard.
    tag = bytes([0x3A | 0x80, *[0x80] * (length - 2), 0x00])
    with pytest.raises(BundleError, match="the graph is damaged"):
        check_onnx(known_graph() + tag + b"\x00")
    with pytest.raises(BundleError, match="the graph is damaged"):
        check_onnx(known_graph() + bytes([0xF0, 0x80, 0x80, 0x80, 0x10]) + b"\x01")


@pytest.mark.parametrize("operator", ["Loop", "If", "ConstantOfShape", "RandomNormal", "Expand"])
def test_operators_that_no_export_writes_are_refused(operator: str) -> None:
    model = known_model()
    model.graph.node.append(helper.make_node(operator, ["x"], ["strange"]))
    refused_before_opening(model, operator)


@pytest.mark.parametrize(
    "data", [b"", b"\x08", b"\xff" * 40, b"not a graph", bytes(100), b"\x3a\xff\xff\xff\xff\x7f", b"\x0b\x0c"]
)
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        check_onnx(data)
    with pytest.raises(BundleError):
        open_engine("onnxruntime", data, SMALL, ONE)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_random_bytes_raise_bundle_errors_only(data: bytes) -> None:
    with pytest.raises(BundleError):
        check_onnx(data)


def test_every_truncation_is_refused() -> None:
    whole = known_graph()
    for length in range(len(whole)):
        with pytest.raises(BundleError):
            open_engine("onnxruntime", whole[:length], SMALL, ONE)


def test_flipped_bits_raise_bundle_errors_only() -> None:
    whole, chance = known_graph(), random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            open_engine("onnxruntime", bytes(data), SMALL, ONE).close()
        except BundleError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).isprintable()
    assert refused > 50
