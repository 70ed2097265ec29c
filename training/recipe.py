"""A training recipe: what a run draws, learns and writes, as a YAML file that says it all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from calibration.degradations import DEGRADATIONS
from export.networks.damp import DampConfig
from export.networks.damp.config import SIZE_MULTIPLE
from runtime.errors import ConfigError

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Ablation = Literal["prompt", "spectral"]


_KINDS: dict[Any, str] = {int: "a whole number", int | float: "a number", str: "a word", list | tuple: "a list"}
_NETWORK: dict[str, Any] = {
    field.name: {int: int, float: int | float, str: str, tuple: list | tuple}[type(field.default)]
    for field in fields(DampConfig)
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Wavelengths(_Part):
    """Band centres from `first` to `last` nanometres, evenly spaced."""

    first: Positive
    last: Positive
    count: Count

    @model_validator(mode="after")
    def _rise(self) -> Wavelengths:
        if self.count > 1 and self.first >= self.last:
            raise ValueError(f"must rise, not from {self.first:g} to {self.last:g}")
        return self


class Data(_Part):
    """Which cubes, and what stands for 1.0 in them.

    Attributes:
        name: what the card calls the data.
        scale: number that stands for 1.0, or `max` for each scene's own largest value.
        scales: the same for scenes whose name begins with a key; the longest such key decides.
        stored_scale: scale that the checkpoint tells its users; None where the scenes' scales differ.
        wavelengths: band centres that the checkpoint tells its users; None for any.
        validation: scenes that are never trained on.
        gain: range of the log-uniform brightness of a patch.
    """

    name: str
    scale: Positive | Literal["max"]
    scales: dict[str, Positive | Literal["max"]] = Field(default_factory=dict)
    stored_scale: Positive | None
    wavelengths: Wavelengths | None = None
    validation: tuple[str, ...]
    gain: tuple[Positive, Positive] = (0.6, 2.5)

    @field_validator("gain")
    @classmethod
    def _range(cls, gain: tuple[float, float]) -> tuple[float, float]:
        if gain[0] > gain[1]:
            raise ValueError("must be the lower gain, then the higher one")
        return gain


class Patches(_Part):
    """Some of the steps: `count` patches of `size` lines and samples, drawn with weight `share`."""

    count: Count
    size: Count
    share: Share = 1.0

    @field_validator("size")
    @classmethod
    def _frames(cls, size: int) -> int:
        if size % SIZE_MULTIPLE:
            raise ValueError(f"must be a multiple of {SIZE_MULTIPLE}")
        return size


class Loss(_Part):
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


class Optimiser(_Part):
    """AdamW, linear warm-up, cosine."""

    steps: Count
    learning_rate: Positive
    last_learning_rate: Positive = 1e-6
    warmup: Count = 100
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_norm: Positive = 1.0
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999


class Recipe(_Part):
    """A run from its seed to its checkpoint.

    Attributes:
        name: of the checkpoint that it writes.
        seed: of every draw.
        start: checkpoint (a file or a packaged model) to grow from, see `training.growth`; None begins with
            `start_transparent`.
        ablate: `prompt` gives every gate the same prompt, `spectral` keeps the spatial branches alone.
        network: the configuration of a DAMP.
        data, tasks, patches, loss, optimiser: what is learned, and how.
        log_every, validate_every, save_every: steps; they change no number of the result.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    seed: Annotated[int, Field(ge=0)] = 1
    start: str | None = None
    ablate: Ablation | None = None
    network: dict[str, Any]
    data: Data
    tasks: dict[str, Positive]
    patches: Annotated[tuple[Patches, ...], Field(min_length=1)]
    loss: Loss = Loss()
    optimiser: Optimiser
    log_every: Count = 100
    validate_every: Count = 1000
    save_every: Count = 100

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

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(tasks) - set(DEGRADATIONS))
        if unknown or not tasks:
            raise ValueError(f"must be of {', '.join(DEGRADATIONS)}, not {', '.join(unknown) or 'empty'}")
        # Draws follow the order, which the digest does not see.
        return {name: tasks[name] for name in DEGRADATIONS if name in tasks}

    @model_validator(mode="after")
    def _builds(self) -> Recipe:
        bands = self.config.bands
        if self.data.wavelengths is not None and self.data.wavelengths.count != bands:
            raise ValueError(f"data.wavelengths.count is {self.data.wavelengths.count}, network.bands {bands}")
        return self

    @property
    def config(self) -> DampConfig:
        """The network's configuration."""
        try:
            return DampConfig.from_dict(self.network)
        except (TypeError, ValueError) as error:
            raise ValueError(f"network: {error}") from error

    def digest(self) -> str:
        """SHA-256 of everything that decides the result; a run goes on only with the digest it began with."""
        decides = self.model_dump(mode="json", exclude={"log_every", "validate_every", "save_every"})
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def about(self) -> str:
        """One line for the checkpoint."""
        return (
            f"recipe {self.name} ({self.digest()[:12]}), {self.optimiser.steps} steps, seed {self.seed}; "
            f"trained on {self.data.name}, data not included"
        )


def load_recipe(path: Path, **changes: Any) -> Recipe:
    """Read a recipe, with top-level keys replaced by `changes`.

    Raises:
        ConfigError: no file, no YAML, or a key that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path, remedy="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("is not YAML", file=path, remedy=str(error).splitlines()[0]) from error
    if not isinstance(content, dict):
        raise ConfigError("holds no mapping", file=path, remedy="see training/recipes/")
    try:
        return Recipe.model_validate({**content, **changes})
    except ValidationError as error:
        given = {**content, **changes}
        first, key = error.errors()[0], _key(error.errors()[0], given)
        # A value that may be one thing or another fails as each of them.
        said = dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in error.errors() if _key(e, given) == key)
        found = None if first["type"] == "missing" or isinstance(first["input"], Mapping) else first["input"]
        problem = ", or: ".join(said) if key else next(iter(said))
        raise ConfigError(
            problem, file=path, key=key, value=found if key else None, remedy="see training/recipes/"
        ) from error


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
