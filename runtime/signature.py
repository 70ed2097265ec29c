"""What a network takes and what it gives: two planes, prompts beside the one, side outputs beside the other.

Engines, bundles, the stream and the ground know a network by its signature alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from .errors import plain
from .metrics import METRIC_SETS

STRICT = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=1, le=1 << 20)]
NAME = r"^[a-z][a-z0-9_]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Shape = Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]


def _inside(path: str) -> str:
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or "\0" in path or any(p in ("", ".", "..") for p in parts):
        raise ValueError("must be a relative path inside the bundle")
    return path


InnerPath = Annotated[str, AfterValidator(_inside)]


@dataclass(frozen=True)
class Ports:
    """{name: shape} of what goes into a graph and of what comes out, in order; all of it float32."""

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Inputs and outputs."""
        return {**self.inputs, **self.outputs}


@checked(frozen=True, config=STRICT)
class Plane:
    """A picture that goes in or comes out: float32 [1, bands, lines, samples].

    Attributes:
        name: of the graph's tensor.
        kind: `cube` of spectra, `rgb` photograph, or `coded` by an aperture.
    """

    name: Name
    bands: Count
    lines: Count
    samples: Count
    kind: Literal["cube", "rgb", "coded"] = "cube"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the tensor."""
        return (1, self.bands, self.lines, self.samples)

    @property
    def size(self) -> tuple[int, int]:
        """Lines and samples."""
        return (self.lines, self.samples)


def plane_text(plane: Plane) -> str:
    """A plane for people."""
    return f"{plane.bands} bands x {plane.lines} lines x {plane.samples} samples"


@checked(frozen=True, config=STRICT)
class Prompt:
    """What a network takes beside the frame.

    Attributes:
        name, shape: of the graph's tensor.
        kind: `metrics` are computed from the frame, a `constant` is an array of the bundle, an `embedding` [1, E] is
            computed from the frame by a graph of the network's own.
        of: name of the metric set, path of the array inside the bundle, or name of the graph.
    """

    name: Name
    shape: Shape
    kind: Literal["metrics", "constant", "embedding"]
    of: Annotated[str, Field(max_length=300)]

    def __post_init__(self) -> None:
        if self.kind == "constant":
            _inside(self.of)
        elif self.kind == "embedding":
            if not re.fullmatch(NAME, self.of) or len(self.shape) != 2 or self.shape[0] != 1:
                raise ValueError("an embedding is [1, numbers] and of a graph's name")
        elif self.of not in METRIC_SETS or self.shape != (1, len(METRIC_SETS[self.of])):
            raise ValueError(f"metric set {plain(self.of)!r} does not have shape {self.shape}")


@checked(frozen=True, config=STRICT)
class Side:
    """What a network gives beside the restored frame: `routing` [layers, experts], zero where none was chosen."""

    name: Name
    shape: Shape
    kind: Literal["routing"] = "routing"

    def __post_init__(self) -> None:
        if len(self.shape) != 2:
            raise ValueError("routing has two axes, layers and experts")


@checked(frozen=True, config=STRICT)
class Signature:
    """A network at one frame size.

    Attributes:
        measured, restored: planes in and out; of one size unless tiling is `fixed`.
        prompts: what goes in beside the frame, at most one of metrics and one embedding.
        side: what comes out beside the restored frame, at most one routing.
        tiling: `free` where a frame may lie anywhere in a larger cube, `fixed` where it has one place, as with a mask
            that is part of the network.
        band_groups: a cube of more bands may be restored in groups of the network's.
        fills: what is known to be missing of a frame is made up (`runtime.filling`) before the network sees it, and
            restored with it; metrics are of the frame with zeros there.
    """

    measured: Plane
    restored: Plane
    prompts: tuple[Prompt, ...] = ()
    side: tuple[Side, ...] = ()
    tiling: Literal["free", "fixed"] = "free"
    band_groups: bool = True
    fills: bool = False

    def __post_init__(self) -> None:
        names = [*self.ports.inputs, *self.ports.outputs]
        count = 2 + len(self.prompts) + len(self.side)
        if len(set(names)) < count:
            raise ValueError(f"two tensors of one name among {', '.join(names)}")
        if len({prompt.of for prompt in self.constants}) < len(self.constants):
            raise ValueError("two constants of one file")
        if self.tiling == "free" and self.measured.size != self.restored.size:
            raise ValueError("frames that may lie anywhere come out as large as they went in")
        if self.band_groups and self.measured.bands != self.restored.bands:
            raise ValueError("groups of bands come out with as many bands as they went in")
        computed = [prompt.kind for prompt in self.prompts if prompt.kind != "constant"]
        if len(set(computed)) < len(computed) or len(self.side) > 1:
            raise ValueError("one set of metrics and one routing at most, and one embedding")
        if self.fills and not (self.alike and self.measured.kind == "cube" and self.tiling == "free"):
            raise ValueError("what is filled is a cube that comes out as it went in")

    @cached_property
    def ports(self) -> Ports:
        """Of the network's graph."""
        return Ports(
            {self.measured.name: self.measured.shape, **{p.name: p.shape for p in self.prompts}},
            {self.restored.name: self.restored.shape, **{s.name: s.shape for s in self.side}},
        )

    @property
    def metrics(self) -> Prompt | None:
        """The prompt that is computed from the frame."""
        return next((p for p in self.prompts if p.kind == "metrics"), None)

    @property
    def embedding(self) -> Prompt | None:
        """The prompt that a graph of the network's own computes from the frame."""
        return next((p for p in self.prompts if p.kind == "embedding"), None)

    @property
    def constants(self) -> tuple[Prompt, ...]:
        """Prompts that are arrays of the bundle."""
        return tuple(p for p in self.prompts if p.kind == "constant")

    @property
    def routing(self) -> Side | None:
        """The side output that tells which experts were chosen."""
        return next(iter(self.side), None)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of the metrics; none where the network takes none."""
        return () if self.metrics is None else METRIC_SETS[self.metrics.of]

    @property
    def metrics_ports(self) -> Ports:
        """Of the graph that computes a frame's metrics."""
        metrics = self.metrics
        assert metrics is not None, "there are metrics"
        return Ports({self.measured.name: self.measured.shape}, {metrics.name: metrics.shape})

    @property
    def embedding_ports(self) -> Ports:
        """Of the graph that computes a frame's embedding, a mean in which every pixel has its `share`."""
        embedding = self.embedding
        assert embedding is not None, "there is an embedding"
        given = {self.measured.name: self.measured.shape, "share": (1, 1, *self.measured.size)}
        return Ports(given, {embedding.name: embedding.shape})

    @property
    def is_area(self) -> bool:
        """A frame is one image of an area detector, which has an element for each of its lines and samples."""
        return self.tiling == "fixed" and (self.measured.kind, self.measured.bands) == ("coded", 1)

    @property
    def alike(self) -> bool:
        """A restored frame is what the measured one was, only better: values can be passed on, scaled back, kept."""
        return (self.measured.kind, self.measured.bands, self.measured.size) == (
            self.restored.kind, self.restored.bands, self.restored.size
        )  # fmt: skip
