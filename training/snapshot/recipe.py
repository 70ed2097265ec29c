"""A recipe of a network for snapshots: the same keys as others where they mean the same, and the mask and the prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, model_validator

from export.networks.mst import MstConfig
from export.networks.mst.config import SIZE_MULTIPLE
from export.networks.sdp import SdpConfig
from runtime.simulation.cassi import BANDS
from training.recipe import Count, Cubes, LessonRecipe, Part, Positive, Share, read_yaml

Kind = Literal["mst", "sdp"]
KINDS = get_args(Kind)
REGIONS = 2
"""Lines and samples of regions whose mean spectra are the `pooled` target."""
Config = TypeVar("Config")


class Patches(Part):
    """Of every step: `count` patches of `size` lines and samples, which are the mask's."""

    count: Count
    size: Annotated[int, Field(ge=SIZE_MULTIPLE, multiple_of=SIZE_MULTIPLE)]


class Mask(Part):
    """The aperture that everything is measured through: `runtime.simulation.cassi.random_mask` of a seed."""

    seed: Annotated[int, Field(ge=0)]


class Prior(Part):
    """A spectral diffusion prior, and how it is learned.

    Attributes:
        network: its configuration (`SdpConfig`), where it is not the default.
        target: what is estimated. `learned`: what an encoder makes of the truth; stage 1 trains it with the backbone,
            stage 2 freezes it. `pooled`: standardised mean spectra of 2x2 regions of the truth; stage 1 trains the
            estimate alone.
        first_stage: share of the steps.
        weight: of the L1 of an estimated prior beside the loss of the cube.
    """

    network: dict[str, Any] = Field(default_factory=dict)
    target: Literal["learned", "pooled"] = "learned"
    first_stage: Share = 0.5
    weight: Positive = 1.0

    @property
    def config(self) -> SdpConfig:
        """The prior's configuration."""
        return _config(SdpConfig, self.network, "prior.network")


class SnapshotRecipe(LessonRecipe):
    """A run from its seed to its checkpoint.

    Attributes:
        architecture: what is trained.
        network: the configuration of the MST, where it is not the default.
        mask, data, patches, prior: what is measured of what, and how the prior of an `sdp` is learned.
    """

    architecture: Kind
    network: dict[str, Any] = Field(default_factory=dict)
    mask: Mask
    data: Cubes
    patches: Patches
    prior: Prior | None = None

    @model_validator(mode="after")
    def _complete(self) -> SnapshotRecipe:
        multiple = max(2**self.config.levels, SIZE_MULTIPLE)
        if self.patches.size % multiple:
            raise ValueError(f"patches.size must be a multiple of {multiple}, not {self.patches.size}")
        if (self.prior is None) == (self.architecture == "sdp"):
            raise ValueError("prior belongs to an sdp, and to nothing else")
        if self.prior is not None:
            dims, pooled = self.prior.config.latent_dims, REGIONS**2 * BANDS
            if self.prior.target == "pooled" and dims != pooled:
                raise ValueError(f"prior.network.latent_dims must be {pooled} for a pooled target, not {dims}")
        if self.data.wavelengths is None:
            raise ValueError("data.wavelengths must say the bands of the cubes")
        if not self.data.validation:
            raise ValueError("data.validation must name a scene")
        return self

    @property
    def config(self) -> MstConfig:
        """The backbone's configuration."""
        return _config(MstConfig, self.network, "network")

    @property
    def first_stage(self) -> int:
        """Steps of stage 1; none without a prior."""
        return 0 if self.prior is None else round(self.prior.first_stage * self.optimiser.steps)

    def about(self, steps: int) -> str:
        """One line for the checkpoint after so many steps."""
        return (
            f"{super().about(steps)}; trained on {self.data.name} through the random mask of seed {self.mask.seed}, "
            "data not included"
        )


def _config(kind: type[Config], given: dict[str, Any], key: str) -> Config:
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


def load_recipe(path: Path, **changes: Any) -> SnapshotRecipe:
    """Read a recipe, with top-level keys replaced. Raises ConfigError for no file, no YAML, or a key that is wrong."""
    return read_yaml(path, SnapshotRecipe, "training/recipes/", changes)
