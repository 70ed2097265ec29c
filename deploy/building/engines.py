"""Which engine a bundle is built for, and what it can compute."""

from runtime.engines import ENGINE_FILES, ENGINES, GPU_ENGINES, METRICS_ENGINES, PORTABLE
from runtime.errors import InputError


def check_engine(asked: str | None, own: str, precision: str) -> str:
    """The engine to build for: what was asked for, or the target's own.

    Raises:
        InputError: there is no such engine, or the target cannot run it. Only an engine that loads the graph itself can
            take the place of the target's own, one of the GPU's on a GPU and one of the CPU's on a CPU.
    """
    engine = own if asked is None else asked
    same_place = GPU_ENGINES if own in GPU_ENGINES else {*ENGINES, "auto"} - GPU_ENGINES
    others = sorted(same_place - {*ENGINE_FILES, own})
    if engine not in (own, *others):
        raise InputError(
            "the target does not run this engine" if engine in {*ENGINES, "auto"} else "unknown engine",
            key="--engine",
            value=engine,
            remedy=f"leave it out for {own}, or give one of {', '.join(others)}",
        )
    if precision == "bf16" and engine == PORTABLE:
        raise InputError(
            "ONNX Runtime does not compute in bfloat16 on a CPU",
            key="--engine",
            value=engine,
            remedy="use --engine openvino, or --precision fp32",
        )
    return engine


def check_metrics(asked: str, engine: str) -> None:
    """Refuse a graph of metrics where the engine computes none. Raises InputError."""
    if asked == "graph" and engine not in METRICS_ENGINES:
        raise InputError(
            "this engine does not compute metrics from a graph",
            key="--metrics",
            value=f"{asked}, with {engine}",
            remedy=f"use --metrics host, or --engine {' or '.join(METRICS_ENGINES)} where the target has it",
        )
