"""Targets as data: what runs a bundle, in which precisions, and what builds its engine.

The figures are the makers' own: compute capabilities from NVIDIA's CUDA GPU list, memory from the modules' and cards'
data sheets (the smallest variant where there are several), TensorRT versions from the JetPack release notes.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import InputError

GPU = ("fp32", "fp16", "int8")
SHARED_MEMORY = frozenset({"8.7", "11.0", "12.1"})
"""Compute capabilities of GPUs that have no memory but the host's: Jetson Orin, Jetson Thor, GB10."""


@dataclass(frozen=True)
class Target:
    """A kind of computer.

    Attributes:
        name: what `--target` says.
        engine: the engine that runs there.
        precisions: those it can run.
        default_precision: used when none is asked for.
        threads: CPU threads of the engine, None for all.
        title: what it is, for people.
        sm: compute capability of its GPU, such as 8.7; None without a GPU.
        tensorrt: versions of TensorRT that may build and run the engine there, such as `>=10.3,<12`.
        workspace_mib: most scratch memory that the builder may give to one layer.
        made_there: the engine is built on the target itself: it is locked to that board's software.
        metrics: what computes the metrics of a frame: NumPy on the `host`, or a `graph` in the engine.
        experts: those of a mixture that run: all, weighted by their gates (`dense`), or those that a frame chooses,
            whose weights are `gathered`.
    """

    name: str
    engine: str = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32", "int8")
    default_precision: str = "fp32"
    threads: int | None = None
    title: str = ""
    sm: str | None = None
    tensorrt: str | None = None
    workspace_mib: int = 1024
    made_there: bool = False
    metrics: str = "host"
    experts: str = "dense"


def _gpu(name: str, title: str, sm: str, **others: Any) -> Target:
    defaults = {"engine": "tensorrt", "tensorrt": ">=10.3,<12", "workspace_mib": 4096, "made_there": True}
    common = {"precisions": GPU, "default_precision": "fp16", "title": title, "sm": sm}
    return Target(name, **{**common, **defaults, **others})


def _rtx(name: str, title: str, sm: str) -> Target:
    return _gpu(name, title, sm, engine="tensorrt-rtx", tensorrt=">=1.7,<2", made_there=False)


_ALL = (
    Target("cpu", title="any CPU, ONNX Runtime", experts="gathered"),
    Target("intel", "openvino", ("fp32", "bf16", "int8"), title="Intel and AMD CPUs, OpenVINO", experts="gathered"),
    Target("cuda", "onnxruntime-cuda", GPU, "fp16", title="NVIDIA GPUs without TensorRT, ONNX Runtime CUDA"),
    _gpu("jetson-orin-nano", "Jetson Orin Nano 4 or 8 GB", "8.7", workspace_mib=512),
    _gpu("jetson-orin-nx", "Jetson Orin NX 8 or 16 GB", "8.7", workspace_mib=1024),
    _gpu("jetson-orin", "Jetson AGX Orin 32 or 64 GB", "8.7"),
    _gpu("jetson-thor", "Jetson AGX Thor", "11.0", tensorrt=">=10.13.3,<12"),
    _rtx("rtx-30", "GeForce RTX 30 and RTX A-series (Ampere)", "8.6"),
    _rtx("rtx-40", "GeForce RTX 40 and RTX Ada", "8.9"),
    _rtx("rtx-50", "GeForce RTX 50 and RTX PRO Blackwell", "12.0"),
    _gpu("a100", "A100", "8.0"),
    _gpu("h100", "H100", "9.0"),
    _gpu("h200", "H200", "9.0"),
)
BUILT_IN: Mapping[str, Target] = {target.name: target for target in _ALL}


def find_target(name: str, known: Mapping[str, Target] = BUILT_IN) -> Target:
    """The target of that name. Raises InputError."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError("unknown target", key="target", value=name, remedy=f"{hint}known: {', '.join(sorted(known))}")
    return known[name]


def choose_precision(target: Target, asked: str | None) -> tuple[str, str]:
    """(precision, why) for what was asked: None is the target's own; `auto` stays where there is something to measure.

    Raises:
        InputError: the target cannot run it.
    """
    if asked is None:
        return target.default_precision, f"the default of target {target.name}"
    if asked == "auto":
        if len(target.precisions) > 1:
            return asked, "the fastest that passes its gates"
        return target.precisions[0], f"auto: the only precision of target {target.name}"
    if asked not in target.precisions:
        raise InputError(
            f"target {target.name} does not run this precision",
            key="precision",
            value=asked,
            remedy=f"it runs {', '.join(target.precisions)}",
        )
    return asked, "asked for"


def only_float32(target: Target, asked: str | None, reason: str) -> tuple[str, str]:
    """(precision, why) of a network that is built in float32 alone, for what was asked: see `choose_precision`.

    Raises:
        InputError: another precision was asked for by name, or the target does not run float32.
    """
    if asked not in (None, "auto", "fp32"):
        raise InputError(
            f"the network is built in float32 only: {reason}",
            key="precision",
            value=asked,
            remedy="leave --precision out, or say fp32",
        )
    precision, why = choose_precision(target, "fp32")
    return precision, why if asked == "fp32" else f"float32 only: {reason}"
