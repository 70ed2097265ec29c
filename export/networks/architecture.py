"""What the toolkit asks of a kind of network, and of one that is loaded.

An architecture is a package beside this file with one `Architecture`, and its line in `ARCHITECTURES`.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.arrays import Float32
from runtime.errors import CheckpointError
from runtime.parity import Parity
from runtime.prompts import Condition, Extractor, Prompts, tasks_of
from runtime.signature import Signature

from .nodes import Writer
from .reading import CheckpointFacts

Option = str | int | float | bool
UNSAVED = CheckpointFacts(Path("unsaved"), "0" * 64)


@dataclass(frozen=True)
class Routing:
    """What is asked of a network that chooses experts.

    Attributes:
        top_k: experts that run for a frame.
        routers: a context whose list fills, while the network runs on one frame, with what each of its routers makes of
            that frame: metrics [B, M] -> probabilities [B, experts].
        balances: spatial share of every expert, float64 [layers, experts]; None where there is no such thing.
    """

    top_k: Callable[[Any], int]
    routers: Callable[[Any], AbstractContextManager[list[Callable[[Tensor], Tensor]]]]
    balances: Callable[[Any], NDArray[np.float64] | None] = lambda module: None


@dataclass(frozen=True)
class Architecture:
    """A kind of network.

    Attributes:
        id: its name in checkpoints and manifests.
        module: class of its networks: `module(frame, *prompts) -> restored`, or (restored, *side).
        multiple: lines and samples of a frame are multiples of it, unless the network has a `size`.
        recognises: whether these are the keys of its state dict, complete or not, from their first letter on: behind a
            prefix they are not, by which weights are found in files that hold more. No part is called as PyTorch's
            wrappers are (`places.WRAPPER`).
        load: (state, configuration that came with it, options, file) -> the network with these weights. Raises
            CheckpointError.
        signature: (network, lines, samples) -> what it takes and gives.
        static: the form that is deployed, in eval mode, with the inputs and outputs of the signature.
        gathered: the same with the weights of chosen experts gathered; None where there is nothing to choose.
        configuration: plain values that fix the network, for JSON.
        size: lines and samples of the one frame that a network takes, as with a mask inside; None where any multiple.
        about: the network in a few words, for people.
        tasks: what it is measured by, one at least; of `measure`, else of `calibration.degradations`.
        stored: tensors that a checkpoint keeps; the state dict.
        halved: (key, weight) -> whether it may be stored in 16 bits: choices between numbers may hang on matrices.
        module_name: the network's module that a part of the static form stands for.
        options: what may be said when it is loaded: {name: meaning}.
        doubts: (state, network) -> sentences on options that were taken in place of what the checkpoint has.
        chosen: options that a loaded network was given, or took from its checkpoint.
        kept: those, and keys of the configuration, whose outcome a bundle holds: to be compared with it, the network is
            loaded without them.
        constants: {prompt: array} of the network's constant prompts.
        conditions: {name: constant prompts} of a network that is told its purpose, in place of `constants`; Raises
            CheckpointError where nobody said one.
        measure: (`instrument`, task, clean cube [bands, lines, samples], random numbers) -> what is measured of it;
            None where damages of the cube itself are what it restores. The cube is as large as what is restored.
        instrument: {name: array} of the instrument that a network is for, such as its mask; a bundle keeps them.
        wavelengths: of the bands that it restores, in nm, where its checkpoint tells none; empty where nobody knows.
        float32_only: why a network is built in float32 alone; empty where lower precisions may be tried.
        parity: what of its graph is held against PyTorch: `elements`, or `quality` alone where rounding may move single
            elements by any amount.
        routing: None without experts.
        gap: (network, frame, *prompts) -> how near the closest of its hard choices between scores was to the other one,
            tensors with a first axis of one; None where it makes no such choices.
        exact: whether a node of this name computes in float32 in every precision, beyond what `calibration.typed` sees.
        memory: (network, lines, samples) -> bytes that its graph takes in ONNX Runtime; None where that is little.
        extractor: what makes the embedding of a frame, `frame -> embedding`, in eval mode; None without such a prompt.
        operators: {name: what writes its nodes} of operators of its own, see `nodes.own_operator`.
    """

    id: str
    module: type[nn.Module]
    multiple: int
    recognises: Callable[[Collection[str]], bool]
    load: Callable[[Mapping[str, Tensor], Mapping[str, Any], Mapping[str, Option], Path], nn.Module]
    signature: Callable[[Any, int, int], Signature]
    static: Callable[[Any], nn.Module]
    configuration: Callable[[Any], dict[str, Any]]
    about: Callable[[Any], str]
    tasks: tuple[str, ...]
    gathered: Callable[[Any], nn.Module] | None = None
    size: Callable[[Any], tuple[int, int] | None] = lambda module: None
    stored: Callable[[Any], Mapping[str, Tensor]] = lambda module: module.state_dict()
    halved: Callable[[str, Tensor], bool] = lambda key, weight: weight.dim() > 2
    module_name: Callable[[str], str] = lambda part: part
    options: Mapping[str, str] = field(default_factory=dict)
    doubts: Callable[[Mapping[str, Tensor], Any], tuple[str, ...]] = lambda state, module: ()
    chosen: Callable[[Any], dict[str, Option]] = lambda module: {}
    kept: Collection[str] = ()
    constants: Callable[[Any], Mapping[str, Float32]] = lambda module: {}
    conditions: Callable[[Any], Mapping[str, Condition]] = lambda module: {}
    measure: Callable[[Mapping[str, Float32], str, Float32, np.random.Generator], Float32] | None = None
    instrument: Callable[[Any], Mapping[str, Float32]] = lambda module: {}
    wavelengths: Callable[[Any], tuple[float, ...]] = lambda module: ()
    float32_only: Callable[[Any], str] = lambda module: ""
    parity: Callable[[Any], Parity] = lambda module: "elements"
    routing: Routing | None = None
    gap: Callable[..., float] | None = None
    exact: Callable[[str], bool] = lambda node: False
    memory: Callable[[Any, int, int], int] | None = None
    extractor: Callable[[Any], nn.Module] | None = None
    operators: Mapping[str, Writer] = field(default_factory=dict)

    def check_options(self, options: Mapping[str, Option], file: Path) -> None:
        """Refuse options that the architecture does not have. Raises CheckpointError."""
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise CheckpointError(
                    f"a {self.id} network has no such option",
                    file=file,
                    key=name,
                    value=value,
                    remedy=f"it has {known}",
                )


class _Extractor:
    """A network's extractor in PyTorch, see `runtime.prompts.Extractor`."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def compute(self, *inputs: Float32) -> tuple[Float32, ...]:
        with torch.inference_mode():
            return (self._module(*map(torch.from_numpy, inputs)).numpy(),)

    def close(self) -> None:
        """PyTorch holds nothing open."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network with its weights; called as its module is, `net(frame, metrics) -> (restored, gates)` for DAMP.

    Attributes:
        module: in eval mode.
        architecture: its kind.
        facts: where the weights came from.
    """

    module: nn.Module
    architecture: Architecture
    facts: CheckpointFacts = UNSAVED

    def __call__(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)

    def signature(self, lines: int, samples: int) -> Signature:
        """What it takes and gives at a frame size."""
        return replace(self.architecture.signature(self.module, lines, samples), fills=self.facts.fills)

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its weights by key, as its module gives them."""
        return self.module.state_dict()

    @property
    def smallest(self) -> Signature:
        """`signature` of the smallest frame, where the size does not matter."""
        return self.signature(*self.frame(1, 1))

    def frame(self, lines: int, samples: int) -> tuple[int, int]:
        """The least frame that so many lines and samples fill; its one frame where it takes no other."""
        multiple = self.architecture.multiple
        return self.architecture.size(self.module) or (
            -(-lines // multiple) * multiple, -(-samples // multiple) * multiple
        )  # fmt: skip

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values that fix it."""
        return self.architecture.configuration(self.module)

    @property
    def options(self) -> dict[str, Option]:
        """Options that it was loaded with."""
        chosen = self.architecture.chosen(self.module)
        return {**chosen, "weights": self.facts.weights} if self.facts.rivals else chosen

    @property
    def constants(self) -> Mapping[str, Float32]:
        """{prompt: array} of its constant prompts; those of its first condition."""
        first = next(iter(self.conditions.values()), None)
        return self.architecture.constants(self.module) if first is None else first.constants

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """{name: constant prompts} where it is told its purpose."""
        return self.architecture.conditions(self.module)

    def told(self, conditions: Mapping[str, Condition]) -> "Network":
        """The same, told these in place of its own."""
        made = replace(self)
        vars(made)["conditions"] = conditions
        return made

    @property
    def extractor(self) -> Extractor | None:
        """What makes the embedding of a frame, where it takes one."""
        made = self.architecture.extractor
        return None if made is None else _Extractor(made(self.module).eval())

    def prompts(self, signature: Signature) -> Prompts:
        """What makes its prompts; of several conditions the first is chosen until a task or a name says another."""
        first = next(iter(self.conditions), None)
        return Prompts(signature, self.constants, None, self.conditions, first, self.extractor)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it is measured by."""
        return tasks_of(self.conditions) or self.architecture.tasks

    @property
    def instrument(self) -> Mapping[str, Float32]:
        """{name: array} of the instrument that it is for."""
        return self.architecture.instrument(self.module)

    @property
    def parity(self) -> Parity:
        """What of its graph is held against PyTorch."""
        return self.architecture.parity(self.module)

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Of the bands that it restores, in nm; empty where nobody knows."""
        return self.facts.wavelengths or self.architecture.wavelengths(self.module)

    @property
    def parameters(self) -> int:
        """How many numbers were learned."""
        return sum(p.numel() for p in self.module.parameters())
