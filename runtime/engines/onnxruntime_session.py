"""Sessions of ONNX Runtime on memory that is taken once: one class for the CPU and for GPUs, and what it is asked."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import numpy as np

from runtime.arrays import Float32
from runtime.closing import Closing
from runtime.errors import MachineError
from runtime.signature import Signature

from .buffers import HostMemory
from .contract import Engine, check_signature

REINSTALL_GPU = 'pip install "damp-deploy[gpu]" in an environment without the package onnxruntime'
TELL_PLACES = {"session.record_ep_graph_assignment_info": "1"}
"""Session setting: without it ONNX Runtime does not remember which provider runs a node."""


class BoundSession(Closing):
    """A session whose inputs and outputs are bound to addresses that stay; a frame allocates only what it hands out.

    Attributes:
        ports: names and shapes of inputs and outputs.
    """

    def __init__(
        self, session: Any, provider: str, memory: HostMemory, told: Mapping[str, str], undo: ExitStack
    ) -> None:
        """Bind the session.

        Args:
            session: it is this object's from now on.
            provider: that runs all of it.
            memory: of inputs and outputs; its ports are what the session's have to be.
            told: for `describe`; where nodes run is added.
            undo: gives back the memory when this is closed, after the session.

        Raises:
            BundleError: the graph has other inputs and outputs.
            MachineError: a node runs elsewhere than in `provider`.
        """
        self._told = {**told, "placement": check_placement(session, provider)}
        self.ports = memory.ports
        check_signature(session_shapes(session), self.ports)
        self._memory, self._undo, self._broken = memory, undo, False
        self._session: Any = session
        self._binding: Any = session.io_binding()
        undo.callback(self._forget)
        for bind, shapes in (
            (self._binding.bind_input, self.ports.inputs),
            (self._binding.bind_output, self.ports.outputs),
        ):
            for name, shape in shapes.items():
                bind(name, memory.device_type, 0, np.float32, shape, memory.addresses[name])

    def compute(self, *inputs: Float32) -> tuple[Float32, ...]:
        """The outputs of these inputs, in the order of the ports. Raises MachineError."""
        if self._session is None:
            raise MachineError("the engine is closed", key="engine", value=self._told["engine"], remedy="open it again")
        self._memory.put(*inputs)
        self.run()
        return self._memory.outputs()

    def run(self) -> None:
        """Compute from what lies in the inputs. Raises MachineError."""
        try:
            self._memory.send()
            self._session.run_with_iobinding(self._binding)
            self._memory.fetch()
            self._memory.wait()
        except MachineError:
            self._broken = True
            raise
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            self._broken = True
            raise MachineError(
                "ONNX Runtime failed on a frame",
                key=self._told["engine"],
                value=cause(error),
                remedy="free memory, or check the bundle here",
            ) from without_frames(error)

    def describe(self) -> dict[str, str]:
        """Name, version and device, for people."""
        return dict(self._told)

    def close(self) -> None:
        """Give back session and memory."""
        # After a failed frame CUDA refuses to free as well: the frame's own error is the one to tell.
        with suppress(MachineError) if self._broken else nullcontext():
            self._undo.close()

    def _forget(self) -> None:
        self._binding = self._session = None


class SessionEngine(Engine):
    """A network in a session."""

    def __init__(self, session: BoundSession, signature: Signature) -> None:
        super().__init__(signature)
        self.session = session

    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        return self.session.compute(*inputs)

    def describe(self) -> dict[str, str]:
        return self.session.describe()

    def close(self) -> None:
        self.session.close()


def cause(error: BaseException) -> str:
    """The end of ONNX Runtime's message, without its code and the path of its library: there it says why."""
    return str(error).rsplit(" : ", 1)[-1].rsplit(" with error: ", 1)[-1]


def without_frames(error: Exception) -> Exception:
    """The error alone: its traceback holds the session, which must go when the engine is closed."""
    return error.with_traceback(None)


def session_shapes(session: Any) -> dict[str, tuple[int, ...] | None]:
    """{name: shape} of a session's inputs and outputs, None for one that is not float32; see `check_signature`."""
    ends = (*session.get_inputs(), *session.get_outputs())
    return {end.name: tuple(end.shape) if end.type == "tensor(float)" else None for end in ends}


def check_placement(session: Any, provider: str) -> str:
    """Refuse a session that has a node anywhere but in `provider`; returns what was found, for people.

    ONNX Runtime before 1.24 does not tell where nodes run: there its own refusal of the CPU must do.
    """
    providers = session.get_providers()
    if not providers or providers[0] != provider:
        raise MachineError(
            "ONNX Runtime chose another provider than asked for", key="provider", value=providers, remedy=REINSTALL_GPU
        )
    tell: Callable[[], Any] | None = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return f"{provider} alone is allowed; this version does not tell where nodes run"
    places: dict[str, int] = {}
    for part in tell():
        places[part.ep_name] = places.get(part.ep_name, 0) + len(part.get_nodes())
    if set(places) != {provider}:
        raise MachineError(
            f"ONNX Runtime does not run the whole graph in {provider}",
            key="provider",
            value=", ".join(f"{count} nodes in {name}" for name, count in sorted(places.items())) or "no nodes",
            remedy="use another engine, such as tensorrt",
        )
    return f"all {places[provider]} nodes in {provider}"
