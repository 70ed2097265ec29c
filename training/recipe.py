"""A training recipe: what a run draws, learns and writes, as a YAML file that says it all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from export.networks.damp import DampConfig
from export.networks.damp.config import SIZE_MULTIPLE
from runtime.errors import ConfigError
from training.degrading import DAMAGES

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Ablation = Literal["prompt", "spectral"]


_KINDS: dict[Any, str] = {int: "a whole number", int | float: "a number", str: "a word", list | tuple: "a list"}
_NETWORK: dict[str, Any] = {
    field.name: {int: int, float: int | float, str: str, tuple: list | tuple}[type(field.default)]
    for field in fields(DampConfig)
}


def ordered(tasks: dict[str, float], known: Iterable[str]) -> dict[str, float]:
    """Tasks in the order of those there are, which draws follow and the digest does not see. Raises ValueError."""
    unknown = sorted(set(tasks) - set(known))
    if unknown or not tasks:
        raise ValueError(f"must be of {', '.join(known)}, not {', '.join(unknown) or 'empty'}")
    return {name: tasks[name] for name in known if name in tasks}


class Part(BaseModel):
    """A part of a file that people write: no other keys than its own, nothing infinite."""

    model_config = {"frozen": True, "extra": "forbid", "allow_inf_nan": False}


class Wavelengths(Part):
    """Band centres from `first` to `last` nanometres, evenly spaced."""

    first: Positive
    last: Positive
    count: Count

    @model_validator(mode="after")
    def _rise(self) -> Wavelengths:
        if self.count > 1 and self.first >= self.last:
            raise ValueError(f"must rise, not from {self.first:g} to {self.last:g}")
        return self


class Photographs(Part):
    """RGB photographs lifted to the recipe's wavelengths (`training.photographs`), for a share of the patches.

    Attributes:
        share: of the patches.
        tint: deviation of the log of the smooth light that a patch is seen under, at its lowest order.
    """

    share: Share
    tint: Annotated[float, Field(ge=0, le=3)] = 0.5


class Cubes(Part):
    """Which cubes, and what stands for 1.0 in them.

    Attributes:
        name: what the card calls the data.
        scale: number that stands for 1.0, or `max` for each scene's own largest value.
        scales: the same for scenes whose name begins with a key; the longest such key decides.
        wavelengths: band centres of the cubes; None for any.
        validation: scenes that are never trained on.
    """

    name: str
    scale: Positive | Literal["max"]
    scales: dict[str, Positive | Literal["max"]] = Field(default_factory=dict)
    wavelengths: Wavelengths | None = None
    validation: tuple[str, ...]


class Data(Cubes):
    """Which cubes, and what is made of them.

    Attributes:
        stored_scale: scale that the checkpoint tells its users, as it does the wavelengths; None where the scenes'
            scales differ.
        gain: range of the log-uniform brightness of a patch.
        photographs: what is made of folders of photographs; None takes none.
    """

    stored_scale: Positive | None
    gain: tuple[Positive, Positive] = (0.6, 2.5)
    photographs: Photographs | None = None

    @field_validator("gain")
    @classmethod
    def _range(cls, gain: tuple[float, float]) -> tuple[float, float]:
        if gain[0] > gain[1]:
            raise ValueError("must be the lower gain, then the higher one")
        return gain


class Patches(Part):
    """Some of the steps: `count` patches of `size` lines and samples, drawn with weight `share`."""

    count: Count
    size: Annotated[int, Field(ge=1, multiple_of=SIZE_MULTIPLE)]
    share: Share = 1.0


class Loss(Part):
    """L1 of every patch, softened: floor * log(1 + L1 / floor), the floor falling over the run, slowly at first.

    A floor far above the errors is L1 itself, which mends noise and holes (L1 0.1) first and fastest; one below them
    counts a decibel alike in every task, without which blur (L1 0.01) is never attended to. Null is plain L1.
    """

    first_floor: Positive | None = None
    last_floor: Positive | None = None

    @model_validator(mode="after")
    def _both(self) -> Loss:
        if (self.first_floor is None) != (self.last_floor is None):
            raise ValueError("takes both floors or none")
        return self


class OnGpu(Part):
    """What a GPU does otherwise: it has room for more and larger patches at a step."""

    patches: Annotated[tuple[Patches, ...], Field(min_length=1)]
    learning_rate: Positive
    warmup: Count = 200


class Ease(Part):
    """A curriculum: damages begin weak. Strength is U(first, 1) at first and narrows to 1 over a share of the steps."""

    first: Share
    share: Share

    def strength(self, progress: float, rng: np.random.Generator) -> float:
        """Strength of a batch, `progress` 0 to 1 through the run."""
        return float(1 - (1 - self.first) * max(0.0, 1 - progress / self.share) * rng.random())


class Gates(Part):
    """How the gates are taught to follow the prompt.

    Attributes:
        noise: deviation of the noise on their logits, at first and at last; None is 1 / experts throughout.
        balance: weight of the loss that has all experts chosen alike (Fedus et al. 2022, their eq. 4, with the share of
            each expert over the last steps in place of a batch's: ours has few patches).
        blind: share of the patches whose gates see the prompt alone, not the features.
        alone: share of the patches whose shared expert is left out.
        guide: weight of the cross-entropy between the gates and the experts that `experts` names for a patch's task.
        experts: task -> its expert, from 0; a task that is not named may choose.
    """

    noise: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None
    balance: Annotated[float, Field(ge=0)] = 0
    blind: Annotated[float, Field(ge=0, le=1)] = 0
    alone: Annotated[float, Field(ge=0, lt=1)] = 0
    guide: Annotated[float, Field(ge=0)] = 0
    experts: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)


class Teacher(Part):
    """A finished network whose restorations are learned beside the truth (Hinton et al. 2015, of pixels here).

    Attributes:
        checkpoint: a file or a packaged model of the same bands and metrics, and filled as the recipe says.
        share: of the loss that is the distance from what it restores.
    """

    checkpoint: str
    share: Share


class Optimiser(Part):
    """AdamW, linear warm-up, cosine; `hold` is the share of the steps before the cosine begins to fall."""

    steps: Count
    learning_rate: Positive
    last_learning_rate: Positive = 1e-6
    warmup: Count = 100
    hold: Annotated[float, Field(ge=0, le=1)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_norm: Positive = 1.0
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999


class LessonRecipe(Part):
    """What every recipe of a lesson has, see `training.lessons`.

    Attributes:
        architecture: what is trained.
        name: of the checkpoint that it writes.
        seed: of every draw.
        log_every, validate_every: steps; save_seconds: at most between two saved states. They change no number.
    """

    architecture: str
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    seed: Annotated[int, Field(ge=0)] = 1
    optimiser: Optimiser
    log_every: Count = 100
    validate_every: Count = 1000
    save_seconds: Annotated[float, Field(ge=0)] = 60

    def digest(self) -> str:
        """SHA-256 of everything that decides the result; a run goes on only with the digest it began with."""
        # Without defaults: keys that come later change no digest of a recipe that does not have them.
        cadence = {"log_every", "validate_every", "save_seconds"}
        decides = self.model_dump(mode="json", exclude=cadence, exclude_defaults=True)
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def about(self, steps: int) -> str:
        """One line for the checkpoint after so many steps."""
        return f"recipe {self.name} ({self.digest()[:12]}), {steps} steps, seed {self.seed}"


class Recipe(Part):
    """A run from its seed to its checkpoint.

    Attributes:
        name: of the checkpoint that it writes.
        seed: of every draw.
        start: checkpoint (a file or a packaged model) to grow from, see `training.growth`; None begins with
            `start_transparent`.
        ablate: `prompt` gives every gate the same prompt, `spectral` keeps the spatial branches alone.
        network: the configuration of a DAMP.
        standardise: the network sees every metric less its mean over the training's patches, divided by its deviation;
            both are folded into the prompt's first layer where weights are written.
        fill: what is known to be missing is made up (`runtime.filling`) before the network sees it, here and in flight;
            its metrics are of the frame as it was.
        data, tasks, patches, ease, loss, gates, teacher, optimiser: what is learned, and how.
        on_gpu: what is otherwise on a GPU.
        log_every, validate_every: steps; save_seconds: at most between two saved states. They change no number.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    seed: Annotated[int, Field(ge=0)] = 1
    start: str | None = None
    ablate: Ablation | None = None
    standardise: bool = False
    fill: bool = False
    network: dict[str, Any]
    data: Data
    tasks: Annotated[dict[str, Positive], AfterValidator(partial(ordered, known=DAMAGES))]
    patches: Annotated[tuple[Patches, ...], Field(min_length=1)]
    ease: Ease | None = None
    loss: Loss = Loss()
    gates: Gates = Gates()
    teacher: Teacher | None = None
    optimiser: Optimiser
    on_gpu: OnGpu | None = None
    log_every: Count = 100
    validate_every: Count = 1000
    save_seconds: Annotated[float, Field(ge=0)] = 60
    _told: str | None = PrivateAttr(None)

    @field_validator("network")
    @classmethod
    def _typed(cls, network: dict[str, Any]) -> dict[str, Any]:
        for name, value in network.items():
            if name not in _NETWORK:
                raise ValueError(f"has no key {name}; its keys are {', '.join(_NETWORK)}")
            if not isinstance(value, _NETWORK[name]) or isinstance(value, bool):
                raise ValueError(f"{name} must be {_KINDS[_NETWORK[name]]}, not {value!r}")
            if isinstance(value, list | tuple) and any(type(part) is not int for part in value):
                raise ValueError(f"{name} must be whole numbers, not {value!r}")
        return network

    @model_validator(mode="after")
    def _builds(self) -> Recipe:
        bands = self.config.bands
        if self.data.wavelengths is not None and self.data.wavelengths.count != bands:
            raise ValueError(f"data.wavelengths.count is {self.data.wavelengths.count}, network.bands {bands}")
        for task, expert in self.gates.experts.items():
            if task not in DAMAGES:
                raise ValueError(f"gates.experts: must be of {', '.join(DAMAGES)}, not {task}")
            if expert >= self.config.experts:
                raise ValueError(f"gates.experts.{task} is {expert}, network.experts {self.config.experts}")
        if self.data.photographs is not None and self.data.wavelengths is None:
            raise ValueError("data.photographs needs data.wavelengths, to which they are lifted")
        return self

    @property
    def config(self) -> DampConfig:
        """The network's configuration."""
        try:
            return DampConfig.from_dict(self.network)
        except (TypeError, ValueError) as error:
            raise ValueError(f"network: {error}") from error

    @property
    def centres(self) -> tuple[float, ...]:
        """Band centres in nm; empty where the cubes may have any."""
        spacing = self.data.wavelengths
        return tuple(np.linspace(spacing.first, spacing.last, spacing.count).tolist()) if spacing else ()

    def digest(self) -> str:
        """SHA-256 of everything that decides the result; a run goes on only with the digest it began with."""
        if self._told is not None:
            return self._told
        decides = self.model_dump(mode="json", exclude={"log_every", "validate_every", "save_seconds"})
        # Keys that came later say nothing where they are as they were before: recipes keep their digests.
        for part, key, default in LATER:
            inner = decides[part] if part else decides
            if inner[key] == default:
                del inner[key]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def on_device(self, kind: str) -> Recipe:
        """The recipe as it is on a kind of device, `cpu` or `cuda`."""
        if kind != "cuda" or self.on_gpu is None:
            return self
        there = self.on_gpu
        optimiser = self.optimiser.model_copy(update={"learning_rate": there.learning_rate, "warmup": there.warmup})
        made = self.model_copy(update={"patches": there.patches, "optimiser": optimiser})
        made._told = self.digest()
        return made

    def about(self, steps: int) -> str:
        """One line for the checkpoint after so many steps."""
        return (
            f"recipe {self.name} ({self.digest()[:12]}), {steps} steps, seed {self.seed}; "
            f"trained on {self.data.name}, data not included"
        )


LATER = (
    ("", "standardise", False),
    ("", "fill", False),
    ("", "ease", None),
    ("", "gates", Gates().model_dump(mode="json")),
    ("", "teacher", None),
    ("", "on_gpu", None),
    ("data", "photographs", None),
    ("optimiser", "hold", 0.0),
)
"""(part, key, default) of what recipes of the first packaged models did not have."""
Model = TypeVar("Model", bound=Part)


def load_recipe(path: Path, **changes: Any) -> Recipe:
    """Read a recipe, with top-level keys replaced by `changes`.

    Raises:
        ConfigError: no file, no YAML, or a key that is wrong.
    """
    return read_yaml(path, Recipe, "training/recipes/", changes)


def architecture_of(path: Path) -> str | None:
    """The architecture that a recipe names, as DAMP's do not; whatever is wrong is said when it is loaded."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return str(content["architecture"]) if isinstance(content, dict) and "architecture" in content else None


def read_yaml(
    path: Path, model: type[Model], examples: str, changes: Mapping[str, Any] = MappingProxyType({})
) -> Model:
    """Read a file of a model, with top-level keys replaced; `examples` are right ones. Raises ConfigError."""
    remedy = f"see {examples}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path, remedy="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("is not YAML", file=path, remedy=str(error).splitlines()[0]) from error
    if not isinstance(content, dict):
        raise ConfigError("holds no mapping", file=path, remedy=remedy)
    given = {**content, **changes}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first, key = error.errors()[0], _key(error.errors()[0], given)
        # A value that may be one thing or another fails as each of them.
        said = dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in error.errors() if _key(e, given) == key)
        found = None if first["type"] == "missing" or isinstance(first["input"], Mapping) else first["input"]
        problem = ", or: ".join(said) if key else next(iter(said))
        raise ConfigError(problem, file=path, key=key, value=found if key else None, remedy=remedy) from error


def _key(error: Any, content: Any) -> str | None:
    """Where an error is in the file: its place without what Pydantic adds of its types; a missing key is named too."""
    parts: list[str] = []
    for part in error["loc"]:
        if not isinstance(content, Mapping | list | tuple):
            break
        parts.append(str(part))
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            break
    return ".".join(parts) or None
