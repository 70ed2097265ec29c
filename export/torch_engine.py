"""PyTorch behind the engine's contract: the reference every other engine is measured against, and compared with."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.devices import usable
from export.networks import Network
from runtime.arrays import Float32
from runtime.engines import Engine
from runtime.errors import InputError, MachineError

FORMS = ("reference", "deployment", "compiled", "graph")
AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision -> what products are cast to; float32 is exact, without TF32."""
WARM_UP = 3

Forward = Callable[..., "tuple[Tensor, ...]"]
Choices = Callable[[Float32], "tuple[NDArray[np.bool_], Float32]"]
"""Metrics [B, M] -> which experts are chosen, bool [B, layers, experts], and margins [B, layers]."""


class TorchEngine(Engine):
    """PyTorch on a CPU or a GPU; frames may be of any size that the network takes.

    Args:
        net: it stays where it is, a GPU gets a copy.
        lines, samples: of a frame.
        device: PyTorch's name of it, such as `cpu`, `cuda`, `cuda:1`. On a GPU TF32 is turned off for the process.
        form: `reference` is the network as it was trained and `deployment` its static form, as it is exported, both
            eager; `compiled` is the static form by `torch.compile`, `graph` the same in a CUDA graph.
        precision: one of AUTOCAST.

    Raises:
        InputError: no such form or precision.
        MachineError: no such device here, one without CUDA graphs, or `torch.compile` fails.
    """

    def __init__(
        self,
        net: Network,
        lines: int,
        samples: int,
        device: str = "cpu",
        form: str = "reference",
        precision: str = "fp32",
    ) -> None:
        super().__init__(net.signature(lines, samples))
        for key, value, known in (("form", form, FORMS), ("precision", precision, tuple(AUTOCAST))):
            if value not in known:
                raise InputError(
                    f"PyTorch runs no such {key}", key=key, value=value, remedy=f"one of {', '.join(known)}"
                )
        self._device, self._form, self._precision = usable(device), form, precision
        if form == "graph" and self._device.type != "cuda":
            raise MachineError(
                "only a GPU has CUDA graphs", key="form", value=f"graph on {device}", remedy="choose another form"
            )
        self._net = net
        module = net.module if form == "reference" else net.architecture.static(net.module)
        if self._device.type == "cuda":
            module = copy.deepcopy(module).to(self._device)
        self._run: Forward = module
        if form in ("compiled", "graph"):
            self._run = self._prepared(module)

    def on_device(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of inputs that lie on the device, both in the order of the signature's ports.

        The GPU may still be at work on them; what `compiled` and `graph` gave is written over by the next call.
        """
        # Without the cache of cast weights, which a CUDA graph must not hold.
        dtype = AUTOCAST[self._precision]
        cast = torch.autocast(self._device.type, dtype, enabled=dtype is not None, cache_enabled=False)
        with torch.inference_mode(), cast:
            made = self._run(*inputs)
            return made if isinstance(made, tuple) else (made,)

    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        shapes = self.signature.ports.outputs.values()
        try:
            made = self.on_device(*(torch.from_numpy(array).to(self._device) for array in inputs))
            # A network trained in batches has an axis more in what it gives beside the frame; a DAMP that routes
            # nothing still gives its empty routing.
            told = [t.float().cpu().numpy() for t in made if t.numel()]
            one = [a[0] if a.shape == (1, *shape) else a for a, shape in zip(told, shapes, strict=False)]
            return (*one, *told[len(one) :])
        except torch.OutOfMemoryError as error:
            raise MachineError(
                "PyTorch has no memory left on the GPU",
                key="device",
                value=str(self._device),
                remedy="close other programs that use it, or choose smaller frames",
            ) from error

    def infer_with_margins(self, feeds: Mapping[str, Float32]) -> tuple[dict[str, Float32], Float32]:
        """`infer`, and by how much each layer's last chosen expert was ahead of the next, float32 [layers], 0 to 1.

        1 where all experts run, so that nothing was to be chosen; empty without experts. The reference form alone can
        tell.
        """
        side, metrics = self.signature.routing, self.signature.metrics
        if self._net.architecture.routing is None or side is None:
            return self.infer(feeds), np.ones(side.shape[0] if side else 0, np.float32)
        assert metrics is not None, "experts are chosen by metrics"
        made, choices = self.infer_with_choices(feeds)
        return made, choices(feeds[metrics.name])[1][0]

    def infer_with_choices(self, feeds: Mapping[str, Float32]) -> tuple[dict[str, Float32], Choices]:
        """`infer`, and what a network with experts would choose for the same frame with other metrics.

        That is as right as what a router sees of the frame is the same whatever the layers before it chose.
        """
        routing = self._net.architecture.routing
        assert routing is not None, "the network has experts"
        with routing.routers(self._net.module) as routers:
            made = self.infer(feeds)
        k = routing.top_k(self._net.module)

        def choices(metrics: Float32) -> tuple[NDArray[np.bool_], Float32]:
            with torch.inference_mode():
                p = torch.stack([router(torch.from_numpy(metrics)) for router in routers], dim=1)
            ranked = p.sort(descending=True).values
            ahead = ranked[..., k - 1] - ranked[..., k] if k < p.shape[-1] else torch.ones(p.shape[:2])
            return (p >= ranked[..., k - 1 : k]).numpy(), ahead.numpy()

        return made, choices

    def gap(self, feeds: Mapping[str, Float32]) -> float | None:
        """How near the closest of the network's hard choices was to another one; None where it makes none."""
        measure = self._net.architecture.gap
        if measure is None:
            return None
        return measure(self._net.module, *(torch.from_numpy(feeds[name]) for name in self.signature.ports.inputs))

    def describe(self) -> dict[str, str]:
        place = f"CPU, {torch.get_num_threads()} threads"
        if self._device.type == "cuda":
            place = f"GPU {self._device.index or 0}, {torch.cuda.get_device_name(self._device)}"
        return {
            "engine": "pytorch",
            "version": torch.__version__,
            "device": place,
            "form": self._form,
            "computes in": "fp32" if self._precision == "fp32" else f"{self._precision} by autocast",
        }

    def _prepared(self, module: nn.Module) -> Forward:
        """What runs a frame. Compiling and capturing are done here, so that no frame has to wait for them."""
        given = [torch.zeros(shape, device=self._device) for shape in self.signature.ports.inputs.values()]
        try:
            if self._form == "graph":
                return self._captured(*given)
            self._run = _compiled(module)
            for _ in range(WARM_UP):
                self.on_device(*given)
        # What is raised where a compiler is missing, or fails, derives from it.
        except RuntimeError as error:
            raise MachineError(
                "PyTorch cannot make this form here",
                key="form",
                value=f"{self._form}: {str(error).strip()}".partition("\n")[0],
                remedy="choose another form; compiling needs a C++ compiler, on a GPU Triton",
            ) from error
        return self._run

    def _captured(self, *given: Tensor) -> Forward:
        """The network in a CUDA graph, which reads and writes the same memory every time."""
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.on_device(*given)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = self.on_device(*given)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            for held, new in zip(given, inputs, strict=True):
                held.copy_(new)
            graph.replay()
            return results

        return run


def _compiled(net: nn.Module) -> Forward:
    run: Any = torch.compile(net, mode="reduce-overhead", dynamic=False, fullgraph=True)

    def marked(*inputs: Tensor) -> tuple[Tensor, ...]:
        # The results of the frame before may be written over.
        torch.compiler.cudagraph_mark_step_begin()
        made: tuple[Tensor, ...] = run(*inputs)
        return made

    return marked
