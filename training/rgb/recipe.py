"""A recipe of a network for photographs: the same keys as DAMP's where they mean the same, and each network's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from calibration.degradations import DEGRADATIONS
from export.networks.dfpir import DfpirConfig
from export.networks.dfpir.prompts import SENTENCES
from export.networks.dpmambair import SIZE_MULTIPLE, DPMambaConfig
from training.recipe import Count, LessonRecipe, Part, Positive, ordered, read_yaml

Kind = Literal["dfpir", "dpmambair-extractor", "dpmambair"]
CONFIGS = {"dfpir": DfpirConfig, "dpmambair-extractor": DPMambaConfig, "dpmambair": DPMambaConfig}


class Photographs(Part):
    """Which photographs.

    Attributes:
        name: what the card calls them.
        held: so many, the last by name, are validated by and never trained on.
    """

    name: str
    held: Count = 6


class Patches(Part):
    """Of every step: `count` patches of `size` lines and samples."""

    count: Count
    size: Annotated[int, Field(ge=1, multiple_of=SIZE_MULTIPLE)]


class Prompts(Part):
    """What a DFPIR is told.

    Attributes:
        seed: of the codes, random numbers in place of CLIP's, which nobody here may fetch.
        tasks: {prompt: the task that it is for}; sentences are the reference's.
        mismatched: share of patches with the prompt of another task, whose degradation is to stay: without them a
            network learns to see what is to be done, and no prompt matters.
    """

    seed: Annotated[int, Field(ge=0)]
    tasks: dict[str, str]
    mismatched: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @field_validator("tasks")
    @classmethod
    def _said(cls, tasks: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(tasks) - set(SENTENCES))
        if unknown or len(tasks) < 2:
            raise ValueError(f"must be two or more of {', '.join(SENTENCES)}, not {', '.join(unknown) or 'fewer'}")
        # Draws follow the order, which the digest does not see.
        return {name: tasks[name] for name in SENTENCES if name in tasks}


class Reconstructor(Part):
    """What makes the degraded picture again of the clean one and the embedding; thrown away afterwards."""

    width: Count = 48
    blocks: Count = 8


class PhotographRecipe(LessonRecipe):
    """A run from its seed to its checkpoint.

    Attributes:
        architecture: what is trained; the extractor of a DPMambaIR comes before its network.
        network: the configuration, where it is not the default.
        tasks: {degradation: weight}.
        severity: {degradation: what it is called with, where that is not drawn}.
        prompts: of a DFPIR.
        reconstructor: of an extractor.
        extractor: of a DPMambaIR: a file, or the name of a run beside this one.
        modulated: a DPMambaIR sees its embedding; without, zeros, to tell what it is worth.
    """

    architecture: Kind
    network: dict[str, Any] = Field(default_factory=dict)
    data: Photographs
    tasks: Annotated[dict[str, Positive], AfterValidator(partial(ordered, known=DEGRADATIONS))]
    severity: dict[str, dict[str, float]] = Field(default_factory=dict)
    patches: Patches
    prompts: Prompts | None = None
    reconstructor: Reconstructor = Reconstructor()
    extractor: str | None = None
    modulated: bool = True

    @model_validator(mode="after")
    def _complete(self) -> PhotographRecipe:
        if self.config.bands != 3:
            raise ValueError(f"network.bands must be 3, not {self.config.bands}")
        if (self.prompts is None) == (self.architecture == "dfpir"):
            raise ValueError("prompts belong to a dfpir, and to nothing else")
        if self.prompts and set(self.prompts.tasks.values()) != set(self.tasks):
            raise ValueError("prompts.tasks must name every task, and no other")
        if (self.extractor is None) == (self.architecture == "dpmambair"):
            raise ValueError("extractor belongs to a dpmambair, and to nothing else")
        return self

    @property
    def config(self) -> Any:
        """The network's configuration."""
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in self.network.items()}
        try:
            return CONFIGS[self.architecture](**lists)
        except (TypeError, ValueError) as error:
            raise ValueError(f"network: {error}") from error

    def about(self, steps: int) -> str:
        """One line for the checkpoint after so many steps."""
        codes = "; codes of its prompts are random numbers, not CLIP's" if self.prompts else ""
        return f"{super().about(steps)}; trained on {self.data.name}, data not included{codes}"


def load_recipe(path: Path, **changes: Any) -> PhotographRecipe:
    """Read a recipe, with top-level keys replaced. Raises ConfigError for no file, no YAML, or a key that is wrong."""
    return read_yaml(path, PhotographRecipe, "training/recipes/", changes)
