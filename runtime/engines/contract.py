"""What every engine promises: the tensors of a signature in, those of a signature out, the same for every backend."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from runtime.arrays import Float32
from runtime.closing import Closing
from runtime.errors import BundleError, CubeError, MachineError
from runtime.signature import Ports, Signature

from .onnx_cost import Cost


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
        cost: what the manifest says of its graphs, by which one is judged that an engine loads.
    """

    threads: int | None = None
    precision: str = "fp32"
    built: Built | None = None
    cost: Cost | None = None


class Engine(Closing):
    """A loaded network. A context manager; not for use from two threads at once.

    Attributes:
        signature: what it takes and gives.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    @final
    def infer(self, feeds: Mapping[str, Float32]) -> dict[str, Float32]:
        """Restore one frame.

        Args:
            feeds: {name: float32 array} of what the signature takes, finite.

        Returns:
            {name: float32 array} of what the signature gives, finite.

        Raises:
            CubeError: an input is missing, unknown, of another type or shape, or not finite.
            MachineError: the engine failed, or gave an output of another shape or one that is not finite.
        """
        ports = self.signature.ports
        if feeds.keys() != ports.inputs.keys():
            given, wanted = ", ".join(feeds) or "nothing", ", ".join(ports.inputs)
            raise CubeError("wrong inputs for the engine", key="inputs", value=given, remedy=f"give {wanted}")
        for name, shape in ports.inputs.items():
            _check(name, feeds[name], shape)
        outputs = self.infer_impl(*(np.ascontiguousarray(feeds[name]) for name in ports.inputs))
        if len(outputs) != len(ports.outputs):
            raise MachineError(
                "the network gave more or fewer outputs than its signature has",
                key="outputs",
                value=len(outputs),
                remedy=f"it is to give {', '.join(ports.outputs)}",
            )
        for (name, shape), value in zip(ports.outputs.items(), outputs, strict=True):
            if value.dtype != np.float32 or value.shape != shape or not np.isfinite(value).all():
                raise MachineError(
                    "the engine gave an output that cannot be used",
                    key=name,
                    value=f"{value.dtype} {value.shape}" if value.shape != shape else "values that are not finite",
                    remedy="run `deploy check` on this machine before you trust the bundle here",
                )
        return dict(zip(ports.outputs, outputs, strict=True))

    @abstractmethod
    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        """The outputs of inputs that are as promised, both in the order of the signature's ports."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Name, version and device, for people and manifests."""

    def close(self) -> None:
        """Give back what the engine holds; most backends leave it to Python."""


def _check(name: str, value: Float32, shape: tuple[int, ...]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise CubeError("wrong input for the engine", key=name, value=found, remedy=f"pass float32 {shape}")
    if not np.isfinite(value).all():
        raise CubeError("the input is not finite", key=name, remedy="replace NaN and infinite values")
