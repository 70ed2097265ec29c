"""The window in which a graph lost most is found, and is a case like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from calibration.agreement import score
from calibration.cubes import Wanted
from calibration.dataset import SIMULATED, Asked, calibration_set
from calibration.sensitivity import MaxDrop
from calibration.typed import rewritten
from deploy.building.calibration_frames import cases
from deploy.building.int8_spots import Spot, keep, kept, scored, spot_case
from deploy.checking.probes import measuring
from export.networks import Network, network_of
from export.networks.damp import Damp, DampConfig
from export.onnx import export_graph
from runtime.engines import open_engine

MARGIN = MaxDrop(0.1, 0.3, 0.5, 0.995)


@pytest.fixture(scope="module")
def net() -> Network:
    config = DampConfig(
        dim=8, heads=(2, 2, 2, 2), encoder_blocks=(0, 0, 0, 0), decoder_blocks=(1, 0, 0), refinement_blocks=0,
        expansion=1, embedding=16, gate="concat", metric_set="paper6",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network_of(Damp(config).eval())


def bumped(graph: bytes, line: int, sample: int) -> bytes:
    """The graph, off by 5 in 8x8 pixels of what it restores."""
    model = onnx.load_model_from_string(graph)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    bump = np.zeros(shape, np.float32)
    bump[..., line : line + 8, sample : sample + 8] = 5.0
    nodes = list(model.graph.node)
    for node in nodes:
        node.output[:] = ["before" if name == "restored" else name for name in node.output]
    nodes.append(helper.make_node("Add", ["before", "bump"], ["restored"], "bump/Add"))
    return rewritten(model, nodes, [numpy_helper.from_array(bump, "bump")])


def test_the_window_in_which_it_lost_most_is_a_case_of_its_own(net: Network, tmp_path: Path) -> None:
    graphs = {side: export_graph(net, side, side).data for side in (64, 128)}
    frames = calibration_set(Asked(SIMULATED, judged=1), Wanted(31), measuring(net, 64, 64), scene_size=(128, 128))
    whole = frames.made_by(measuring(net, 128, 128))
    judged = list(cases(net, whole, whole.judge[:3], tmp_path))
    for line, sample in ((4, 100), (90, 70)):
        found, spot = scored(
            bumped(graphs[128], line, sample), net.signature(128, 128), judged, "onnxruntime", "fp32", (64, 64), MARGIN
        )
        assert found.worst_psnr_drop_db > 0.3 and set(found.tasks) == {case.sample.origin.task for case in judged}
        assert spot.line <= line and line + 8 <= spot.line + 64
        assert spot.sample <= sample and sample + 8 <= spot.sample + 64
        keep(tmp_path / "spots" / "one.json", spot)
        assert kept(tmp_path / "spots" / "one.json") == spot

        case = spot_case(net, graphs[64], frames, whole, spot, tmp_path)
        of = judged[spot.frame].sample
        lines, samples = slice(spot.line, spot.line + 64), slice(spot.sample, spot.sample + 64)
        np.testing.assert_array_equal(case.sample.feeds["frame"], of.feeds["frame"][..., lines, samples])
        np.testing.assert_array_equal(case.sample.feeds["metrics"], of.feeds["metrics"])
        assert case.sample.truth is not None and of.truth is not None
        np.testing.assert_array_equal(case.sample.truth, of.truth[:, lines, samples])
        assert case.sample.origin.task.startswith(of.origin.task) and case.sample.origin.task != of.origin.task
        with open_engine("onnxruntime", graphs[64], net.signature(64, 64)) as engine:
            own = score(engine.infer, net.signature(64, 64), [case])
        assert own.max_difference < 1e-6 and own.mean_distortion_db < 1e-6


def test_without_any_loss_the_first_frame_is_the_spot(net: Network, tmp_path: Path) -> None:
    frames = calibration_set(Asked(SIMULATED, judged=1), Wanted(31), measuring(net, 64, 64))
    judged = list(cases(net, frames, frames.judge[:1], tmp_path))
    found, spot = scored(
        export_graph(net, 64, 64).data, net.signature(64, 64), judged, "onnxruntime", "fp32", (64, 64), MARGIN
    )
    assert spot == Spot(0, 0, 0) and abs(found.worst_psnr_drop_db) < 1e-3
