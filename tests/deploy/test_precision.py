"""Which precision is chosen: the fastest that passes, where a lower one is clearly faster; and why is said."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from calibration.agreement import Routing, Score, TaskCost
from calibration.figures import FIGURES, QUALITY, columns, figures
from deploy.building.candidates import Candidate, fastest
from deploy.building.precision import decide_by_speed, decide_unmeasured, require_passed
from deploy.checking.gates import judge
from deploy.config.sections import GatesSection
from runtime.errors import GateError
from runtime.precisions import PRECISIONS, VARIANTS, PrecisionName, computes_half


def candidate(precision: str, drop: float = 0.0, same: int = 100) -> Candidate:
    score = Score({"noise": TaskCost(drop, 0.0, drop), "blur": TaskCost(0.0, 0.0, 0.0)}, Routing(100, same))
    return Candidate(precision, score, judge(figures(score), GatesSection(), precision))


GOOD = (candidate("int8", 0.1), candidate("fp32"))


def test_int8_is_chosen_where_it_passes_and_is_faster() -> None:
    decision = decide_by_speed(GOOD, {("int8", "openvino"): 50.0, ("fp32", "openvino"): 100.0}, [])
    assert (decision.precision, decision.engine) == ("int8", "openvino")
    assert decision.why == "auto: int8 passes its gates and runs at 2.00 times the speed of fp32"
    assert decision.milliseconds == {"openvino": 50.0}


@pytest.mark.parametrize("milliseconds", [98.0, 100.0, 130.0])
def test_int8_that_is_not_clearly_faster_is_left(milliseconds: float) -> None:
    decision = decide_by_speed(GOOD, {("int8", "onnxruntime"): milliseconds, ("fp32", "onnxruntime"): 100.0}, [])
    assert decision.precision == "fp32" and "which is not faster: fp32 is kept" in decision.why


def test_each_precision_runs_in_its_fastest_engine() -> None:
    times = {("int8", "onnxruntime"): 90.0, ("int8", "openvino"): 60.0, ("fp32", "onnxruntime"): 80.0}
    decision = decide_by_speed(GOOD, {**times, ("fp32", "openvino"): 85.0}, [])
    assert (decision.precision, decision.engine) == ("int8", "openvino") and "1.33 times" in decision.why


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (candidate("int8", 0.5), "int8 fails psnr_drop_db 0.5 (at most 0.4)"),
        (candidate("int8", 0.35), "mean_psnr_drop_db 0.175 (at most 0.15)"),
        (candidate("int8", same=99), "routing_agreement 0.99 (at least 0.995)"),
    ],
)
def test_int8_that_fails_a_gate_is_left_however_fast(bad: Candidate, told: str) -> None:
    decision = decide_by_speed((bad, candidate("fp32")), {("int8", "a"): 1.0, ("fp32", "a"): 100.0}, [])
    assert decision.precision == "fp32" and told in decision.why
    with pytest.raises(GateError, match="int8 was asked for") as caught:
        require_passed((bad, candidate("fp32")), "int8")
    assert caught.value.result["candidates"]["int8"]["tasks"]["noise"]["psnr_drop_db"] == bad.score.worst_psnr_drop_db


def test_where_no_engine_runs_here_fp16_is_taken_and_int8_left_to_the_device() -> None:
    three = (*GOOD, candidate("fp16"))
    decision = decide_unmeasured(three, "tensorrt", [], made_there=True)
    assert (decision.precision, decision.engine, decision.rivals) == ("fp16", "tensorrt", ("int8",))
    assert "`deploy finalize` builds both" in decision.why
    ahead = decide_unmeasured(three, "tensorrt-rtx", [], made_there=False)
    assert ahead.rivals == () and "with --precision int8" in ahead.why
    without = decide_unmeasured((candidate("fp16", 0.2), candidate("fp32")), "tensorrt", ["no cubes"], made_there=True)
    assert without.precision == "fp32" and without.why.startswith("auto: no cubes; fp16 fails psnr_drop_db")


def test_what_the_target_does_not_run_is_never_chosen() -> None:
    times = {("int8", "a"): 90.0, ("fp32", "a"): 50.0}
    assert decide_by_speed(GOOD, times, [], ("bf16", "int8")).precision == "int8"
    three = (*GOOD, candidate("fp16"))
    assert decide_unmeasured(three, "a", [], made_there=True, allowed=("fp32",)).precision == "fp32"


def test_a_precision_is_judged_in_the_engine_that_would_run_it() -> None:
    times = {("int8", "a"): 3.0, ("int8", "b"): 2.0, ("fp32", "a"): 1.0, ("fp32", "b"): 4.0}
    assert fastest(times) == {"int8": "b", "fp32": "a"} and fastest({}) == {}


def test_where_nothing_passes_nothing_is_built() -> None:
    every = (candidate("fp32", 1.0), candidate("fp16", 1.0))
    for decide in (
        lambda: decide_by_speed(every, {("fp32", "a"): 1.0}, []),
        lambda: decide_unmeasured(every, "tensorrt", [], made_there=True),
    ):
        with pytest.raises(GateError, match="no precision of the target passes its gates"):
            decide()


def test_gates_can_be_set_and_switched_off() -> None:
    measured = {"psnr_drop_db": 0.3, "routing_agreement": 0.9}
    (drop, routing) = judge(measured, GatesSection(psnr_drop_db=0.2, routing_agreement=None), "int8")
    assert (drop.passed, drop.limit) == (False, 0.2) and (routing.passed, routing.limit) == (None, None)
    assert (drop.allowed, routing.allowed) == ("at most 0.2", "off")
    auto = {f.key: f.auto for f in FIGURES}["routing_agreement"]
    assert auto["fp16"] == 1.0 and auto["int8"] == 0.995


def test_every_figure_is_a_gate_of_the_configuration_with_limits_for_every_precision() -> None:
    assert list(GatesSection.model_fields) == [figure.key for figure in FIGURES]
    for figure in FIGURES:
        assert set(figure.auto) - {QUALITY} == set(PRECISIONS), figure.key
        with pytest.raises(ValidationError):
            GatesSection(**{figure.key: -0.1})
        assert {"at most": "Largest", "at least": "Smallest"}[figure.direction] in str(
            GatesSection.model_fields[figure.key].description
        )


def test_a_network_without_experts_has_no_figure_of_them() -> None:
    cost = TaskCost(0.1, 0.2, 0.3)
    without, close = Score({"a": cost}), Score({"a": cost}, Routing(close=3))
    assert figures(close) == {**figures(without), "routing_agreement": 1.0}
    assert [g.figure.key for g in judge(figures(without), GatesSection(), "fp32")] == list(figures(without))
    assert "same experts" in columns([without, close]) and "same experts" not in columns([without])
    assert "routing_agreement" not in Candidate("fp32", without, []).as_json()


def test_precisions_are_what_the_configuration_takes_the_most_exact_first() -> None:
    assert set(get_args(PrecisionName)) == set(PRECISIONS)
    assert VARIANTS == ("fp32", "fp16", "int8") and all(
        PRECISIONS[p.graph].graph == p.graph for p in PRECISIONS.values()
    )
    for key in ("own", "limit"):
        rising = [getattr(PRECISIONS[name], key) for name in VARIANTS]
        assert rising == sorted(rising)
    assert [computes_half(name, gpu) for name in VARIANTS for gpu in (False, True)] == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]
