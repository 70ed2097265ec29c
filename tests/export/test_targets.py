"""Targets are data: found by name, the user's own first, and precision changes only by an explicit word."""

from __future__ import annotations

import dataclasses

import pytest

from deploy.config import Config
from deploy.config.sections import TargetSection
from deploy.finalizing.targets import known_targets
from export.targets import BUILT_IN, Target, choose_precision, find_target, only_float32
from runtime.engines import ENGINES
from runtime.errors import ConfigError, InputError
from runtime.versions import satisfiable

BENCH = Target("bench", precisions=("fp32", "fp16"), default_precision="fp16", threads=4)


def test_built_in_targets_are_consistent() -> None:
    jetsons = {"jetson-orin-nano", "jetson-orin-nx", "jetson-orin", "jetson-thor"}
    assert {"cpu", "intel", "rtx-30", "rtx-40", "rtx-50", "a100", "h100", "h200"} | jetsons <= BUILT_IN.keys()
    for name, target in BUILT_IN.items():
        assert target.name == name and target.engine in {*ENGINES, "tensorrt", "tensorrt-rtx"}
        assert target.default_precision in target.precisions
        assert find_target(name) is target
        if target.engine.startswith("tensorrt"):
            assert target.sm and target.tensorrt and satisfiable(target.tensorrt)
            assert target.default_precision == "fp16" and target.made_there == (target.engine == "tensorrt")
    assert BUILT_IN["cpu"].default_precision == "fp32"
    cuda = BUILT_IN["cuda"]
    assert cuda.engine == "onnxruntime-cuda" and cuda.precisions == ("fp32", "fp16", "int8")
    assert cuda.default_precision == "fp16" and cuda.sm is None and not cuda.made_there


def test_own_targets_win_over_built_in_ones() -> None:
    mine = Target("cpu", threads=1)
    assert find_target("cpu", {"cpu": mine}) is mine
    assert find_target("bench", {**BUILT_IN, "bench": BENCH}) is BENCH


def test_a_built_in_target_keeps_what_the_configuration_does_not_set() -> None:
    config = Config.model_validate({"targets": {"jetson-orin": {"workspace_mib": 2048}, "bench": {"threads": 2}}})
    known = known_targets(config)
    assert known["jetson-orin"] == dataclasses.replace(BUILT_IN["jetson-orin"], workspace_mib=2048)
    assert known["bench"] == Target("bench", threads=2) and known["cpu"] is BUILT_IN["cpu"]


def test_the_default_precision_must_be_one_of_the_precisions_after_both_are_laid_together() -> None:
    config = Config.model_validate({"targets": {"jetson-orin": {"precisions": ["fp32"]}}})
    with pytest.raises(ConfigError, match=r"targets.jetson-orin.default_precision: .*'fp16'.*fp32"):
        known_targets(config)


def test_a_section_of_the_configuration_makes_a_target() -> None:
    section = TargetSection(precisions=("fp32", "fp16"), default_precision="fp16", threads=4)
    assert Target("bench", **section.model_dump()) == BENCH
    assert Target("bench", **TargetSection().model_dump()) == Target("bench")


@pytest.mark.parametrize(
    ("name", "hint"), [("cqu", "did you mean cpu"), ("benhc", "did you mean bench"), ("zzz", "known: ")]
)
def test_unknown_targets_name_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"target: unknown target \(found '{name}'\); .*{hint}") as caught:
        find_target(name, {**BUILT_IN, "bench": BENCH})
    assert "bench" in caught.value.remedy and "cpu" in caught.value.remedy


def test_the_default_is_the_targets_own_and_says_so() -> None:
    assert choose_precision(BUILT_IN["cpu"], None) == ("fp32", "the default of target cpu")
    assert choose_precision(BENCH, None) == ("fp16", "the default of target bench")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_asked_for_is_built(precision: str) -> None:
    assert choose_precision(BENCH, precision) == (precision, "asked for")


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp64", ""])
def test_what_a_target_cannot_run_is_refused_never_replaced(precision: str) -> None:
    with pytest.raises(InputError, match=r"precision: target bench does not run this precision.*it runs fp32, fp16"):
        choose_precision(BENCH, precision)


def test_auto_is_the_only_precision_or_left_to_what_is_measured() -> None:
    chosen, why = choose_precision(Target("one", precisions=("fp32",)), "auto")
    assert chosen == "fp32" and "only precision" in why
    assert choose_precision(BENCH, "auto") == ("auto", "the fastest that passes its gates")


def test_a_network_of_float32_alone_is_built_in_it_and_says_why() -> None:
    assert only_float32(BENCH, "fp32", "it is odd") == ("fp32", "asked for")
    for asked in (None, "auto"):
        assert only_float32(BENCH, asked, "it is odd") == ("fp32", "float32 only: it is odd")
    for asked in ("fp16", "int8", "bf16"):
        with pytest.raises(InputError, match="float32 only: it is odd"):
            only_float32(BENCH, asked, "it is odd")
    with pytest.raises(InputError, match="does not run this precision"):
        only_float32(Target("half", precisions=("fp16",)), None, "it is odd")
