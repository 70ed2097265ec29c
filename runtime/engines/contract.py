"""What every engine promises: one frame in, one restored frame and its gates out, the same for every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import final

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BundleError, CubeError, MachineError

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Ports:
    """{name: shape} of what goes into a graph and of what comes out, in order; all of it float32."""

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Inputs and outputs."""
        return {**self.inputs, **self.outputs}


@dataclass(frozen=True)
class EngineSpec:
    """Shapes an engine was built for: frame [1, bands, lines, samples], metrics [1, M], gates [layers, experts]."""

    bands: int
    lines: int
    samples: int
    metrics: int
    layers: int
    experts: int

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        return (1, self.bands, self.lines, self.samples)

    @property
    def metrics_shape(self) -> tuple[int, int]:
        return (1, self.metrics)

    @property
    def gates_shape(self) -> tuple[int, int]:
        return (self.layers, self.experts)

    @property
    def ports(self) -> Ports:
        """Of the network's graph."""
        given = {"frame": self.frame_shape, "metrics": self.metrics_shape}
        return Ports(given, {"restored": self.frame_shape, "gates": self.gates_shape})

    @property
    def metrics_ports(self) -> Ports:
        """Of the graph that computes a frame's metrics."""
        return Ports({"frame": self.frame_shape}, {"metrics": self.metrics_shape})


def check_signature(found: Mapping[str, tuple[int, ...] | None], ports: Ports) -> None:
    """Refuse a loaded graph whose inputs and outputs are others than these.

    Args:
        found: {name: shape} of its inputs and outputs; None for one that is not float32.
        ports: what they have to be.

    Raises:
        BundleError: a name, a shape or a type differs.
    """
    for name, shape in ports.shapes.items():
        if found.get(name) != shape:
            raise BundleError(
                "the graph is not the one that the manifest describes",
                key=name,
                value=found.get(name),
                remedy=f"float32 {shape} expected; build the bundle again",
            )
    if set(found) != set(ports.shapes):
        raise BundleError(
            f"the graph has other inputs or outputs than {', '.join(ports.shapes)}",
            value=sorted(found),
            remedy="build the bundle again",
        )


@dataclass(frozen=True)
class Built:
    """What built an engine file, and for what: checked before the file is opened.

    Attributes:
        builder: `tensorrt` or `tensorrt-rtx`.
        version: of the builder, such as 10.3.0.
        sm: compute capability of the GPU that it was built for, such as 8.7.
        gpu: model of the GPU that it was built on; None where it was built ahead of time for every GPU of that `sm`.
    """

    builder: str
    version: str
    sm: str
    gpu: str | None = None


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs.

    Attributes:
        threads: CPU threads; None for all cores this process may use.
        precision: what the manifest says; an engine that computes a graph in other types than the graph's own does so
            only where this names them (`bf16`).
        built: of an engine file; None where the engine loads the graph itself.
    """

    threads: int | None = None
    precision: str = "fp32"
    built: Built | None = None


class Engine(ABC):
    """A loaded network. A context manager; not for use from two threads at once."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    @final
    def infer(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32]:
        """Restore one frame.

        Args:
            frame: float32 [1, bands, lines, samples], finite.
            metrics: float32 [1, metrics], finite.

        Returns:
            (restored float32 [1, bands, lines, samples], gates float32 [layers, experts]), both finite.

        Raises:
            CubeError: an input has the wrong type or shape, or is not finite.
            MachineError: the engine failed, or gave an output of another shape or one that is not finite.
        """
        _check("frame", frame, self.spec.frame_shape)
        _check("metrics", metrics, self.spec.metrics_shape)
        restored, gates = self.infer_impl(np.ascontiguousarray(frame), np.ascontiguousarray(metrics))
        for name, value, shape in (
            ("restored", restored, self.spec.frame_shape),
            ("gates", gates, self.spec.gates_shape),
        ):
            if value.dtype != np.float32 or value.shape != shape or not np.isfinite(value).all():
                raise MachineError(
                    "the engine gave an output that cannot be used",
                    key=name,
                    value=f"{value.dtype} {value.shape}" if value.shape != shape else "values that are not finite",
                    remedy="run `deploy check` on this machine before you trust the bundle here",
                )
        return restored, gates

    @abstractmethod
    def infer_impl(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32]:
        """`infer` on inputs that are as promised."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Name, version and device, for people and manifests."""

    def close(self) -> None:  # noqa: B027
        """Give back what the engine holds; most backends leave it to Python."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(name: str, value: Float32, shape: tuple[int, ...]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise CubeError("wrong input for the engine", key=name, value=found, remedy=f"pass float32 {shape}")
    if not np.isfinite(value).all():
        raise CubeError("the input is not finite", key=name, remedy="replace NaN and infinite values")
