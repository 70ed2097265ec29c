"""What deploy.yaml may say: its sections and keys, their types, defaults and descriptions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from runtime.precisions import PrecisionName

from .stream import StreamSection
from .types import (
    MAX_BANDS,
    MAX_SIDE,
    AskedPrecision,
    BoardName,
    Name,
    Number,
    PathText,
    ProgramVersion,
    Scalar,
    Section,
    Side,
    Wavelengths,
    Whole,
    distinct,
    layout_text,
    printable_text,
    versions_text,
)

Limit = Annotated[Number, Field(ge=0)] | Literal["auto"] | None
EXTENT_TEXT = r"^\s*([0-9]{1,9})\s*[xX×]\s*([0-9]{1,9})\s*$"


class Extent(Section):
    """Lines by samples, written `{lines: 256, samples: 256}` or `256x256`."""

    @model_validator(mode="before")
    @classmethod
    def _lines_x_samples(cls, value: object) -> object:
        if value is None or isinstance(value, Mapping | Extent):
            return value
        if not isinstance(value, str):
            raise PydanticCustomError("extent", "must be lines and samples")
        match = re.fullmatch(EXTENT_TEXT, value)
        if match is None:
            raise PydanticCustomError("extent", "must be lines and samples")
        return {"lines": int(match[1]), "samples": int(match[2])}


class Frame(Extent):
    """Size of the frame that the engine takes."""

    lines: Side = Field(
        default=256, description="Lines of a frame; the network asks for a multiple of 64.", examples=[256]
    )
    samples: Side = Field(
        default=256, description="Samples of a line; the network asks for a multiple of 64.", examples=[256]
    )


class SceneSize(Extent):
    """Size of the simulated scene of `deploy check`."""

    lines: Side = Field(default=320, description="Lines of the simulated scene.", examples=[320])
    samples: Side = Field(default=320, description="Samples of the simulated scene.", examples=[320])


class ModelSection(Section):
    """Which trained network to put on the target."""

    checkpoint: PathText | None = Field(
        default=None,
        description="Checkpoint file, relative to this file's folder, or the name of a packaged model.",
        examples=["runs/damp/model.pth"],
    )
    top_k: Annotated[Whole, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="Experts per image. Not in the weights: asked for when no config.json lies beside the checkpoint.",
        examples=[1],
    )
    options: dict[Name, Scalar] = Field(
        default_factory=dict,
        description="Options of the network's architecture, as --option KEY=VALUE gives them.",
        examples=[{"top_k": 1}],
    )

    @model_validator(mode="after")
    def _agrees(self) -> ModelSection:
        told = self.options.get("top_k", self.top_k)
        if self.top_k is not None and told != self.top_k:
            raise _cross(
                "options", f"top_k: {told}", f"disagrees with model.top_k, {self.top_k}", "say it in one place only"
            )
        return self

    @property
    def said(self) -> dict[str, Any]:
        """All options, `top_k` among them where it is known."""
        return self.options if self.top_k is None else {**self.options, "top_k": self.top_k}


class InputSection(Section):
    """What the sensor delivers."""

    bands: Annotated[Whole, Field(ge=1, le=MAX_BANDS)] | None = Field(
        default=None, description="Number of bands, checked against the checkpoint, which knows it.", examples=[31]
    )
    wavelengths: Wavelengths | None = Field(
        default=None,
        description="Centre of every band in nanometres, strictly increasing.",
        examples=[[400.0, 410.0, 420.0]],
    )
    scale: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="Digital number that stands for 1.0 in cubes of integers.", examples=[4095]
    )
    layout: Annotated[str, Strict(), AfterValidator(layout_text)] | None = Field(
        default=None,
        description="Axes of .npy, .npz and .mat files that are read, two of files of one band; null takes "
        "lines,samples,bands and says so.",
        examples=["bands,lines,samples"],
    )
    key: Annotated[str, Strict(), StringConstraints(min_length=1, max_length=1000)] | None = Field(
        default=None, description="Name of the array in .npz and .mat files that are read.", examples=["cube"]
    )
    ignore_value: tuple[Annotated[float, Strict()], ...] | None = Field(
        default=None,
        description="Numbers that mark missing pixels in cubes that are read, .nan among them; [] where nothing is.",
        examples=[[-9999.0]],
    )
    frame: Frame = Field(
        default=Frame(),
        description="Frame that the engine takes: lines by samples, or text such as 256x256.",
        examples=["256x256"],
    )
    overlap: Annotated[Whole, Field(ge=0, lt=MAX_SIDE)] = Field(
        default=32,
        description="Lines and samples shared by neighbouring tiles, at most half of the frame's shorter side: "
        "that half where it is less than 32 and nothing is said.",
        examples=[32],
    )

    @model_validator(mode="after")
    def _agree(self) -> InputSection:
        shorter = min(self.frame.lines, self.frame.samples)
        if "overlap" in self.model_fields_set and self.overlap > shorter // 2:
            raise _cross(
                "overlap",
                self.overlap,
                f"must be at most half of the frame's shorter side, {shorter}",
                f"set input.overlap to at most {shorter // 2}, or a larger input.frame",
            )
        if self.bands is not None and self.wavelengths is not None and len(self.wavelengths) != self.bands:
            raise _cross(
                "bands",
                self.bands,
                f"disagrees with {len(self.wavelengths)} input.wavelengths",
                "give one wavelength per band, or leave one of the two keys out",
            )
        return self


class TargetSection(Section):
    """A target of the user's own, or other settings of a built-in one: of that, what is not set here stays."""

    engine: Name = Field(default="onnxruntime", description="Engine that runs the graph.", examples=["onnxruntime"])
    title: Annotated[str, Strict(), StringConstraints(max_length=200), AfterValidator(printable_text)] = Field(
        default="", description="What it is, for people.", examples=["the payload computer"]
    )
    precisions: Annotated[tuple[PrecisionName, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=("fp32", "int8"),
        description="Precisions that this target can run.",
        examples=[["fp32", "fp16"]],
    )
    default_precision: PrecisionName = Field(
        default="fp32", description="Precision used when none is asked for; one of `precisions`.", examples=["fp32"]
    )
    threads: Annotated[Whole, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads of the engine; null leaves the choice to it.", examples=[4]
    )
    sm: Annotated[str, Strict(), StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = Field(
        default=None, description='Compute capability of the GPU, in quotes: "8.7" is Orin.', examples=["8.7"]
    )
    tensorrt: Annotated[str, Strict(), StringConstraints(max_length=100), AfterValidator(versions_text)] | None = Field(
        default=None, description="Versions of TensorRT that may build and run there.", examples=[">=10.3,<12"]
    )
    workspace_mib: Annotated[Whole, Field(ge=1, le=1048576)] = Field(
        default=1024, description="Most scratch memory that the builder may give to one layer, in MiB.", examples=[1024]
    )
    made_there: Annotated[bool, Strict()] = Field(
        default=False, description="The engine is built on the target itself, by `deploy finalize`.", examples=[True]
    )
    metrics: Literal["host", "graph"] = Field(
        default="host",
        description="What computes the metrics of a frame: NumPy on the host, or a graph in ONNX Runtime.",
        examples=["graph"],
    )
    experts: Literal["dense", "gathered"] = Field(
        default="dense",
        description="Experts that run: all, weighted by their gates, or the chosen ones, whose weights are gathered.",
        examples=["gathered"],
    )

    @model_validator(mode="after")
    def _agree(self) -> TargetSection:
        # Where only one of the two is set, the other may be a built-in target's.
        both = {"default_precision", "precisions"} <= self.model_fields_set
        if both and self.default_precision not in self.precisions:
            raise _cross(
                "default_precision",
                self.default_precision,
                "is not among the target's precisions",
                f"choose one of: {', '.join(self.precisions)}",
            )
        return self


class GatesSection(Section):
    """How far the engine may be from PyTorch before `deploy check` fails.

    `auto` is what a sound engine keeps in the bundle's precision (`calibration.figures`); null switches a gate off.
    """

    max_difference: Limit = Field(
        default="auto", description="Largest difference of engine and PyTorch, a share of the range.", examples=[1.0e-3]
    )
    psnr_drop_db: Limit = Field(
        default="auto", description="Largest loss of PSNR against PyTorch in any task, in dB.", examples=[0.01]
    )
    mean_psnr_drop_db: Limit = Field(
        default="auto", description="Largest loss of PSNR against PyTorch, mean over tasks, in dB.", examples=[0.01]
    )
    sam_rise_deg: Limit = Field(
        default="auto", description="Largest rise of the spectral angle in any task, in degrees.", examples=[0.005]
    )
    mean_sam_rise_deg: Limit = Field(
        default="auto", description="Largest rise of the spectral angle, mean over tasks, in degrees.", examples=[0.005]
    )
    routing_agreement: Annotated[Number, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        default="auto", description="Smallest share of tiles and layers with PyTorch's experts, 0 to 1.", examples=[1.0]
    )


class MaxDropSection(Section):
    """What int8 may cost on the judged calibration frames: tighter than the gates, since other scenes differ."""

    psnr_db: Annotated[Number, Field(ge=0)] = Field(
        default=0.1, description="Loss of PSNR, mean over tasks, in dB.", examples=[0.1]
    )
    worst_psnr_db: Annotated[Number, Field(ge=0)] = Field(
        default=0.3, description="Loss of PSNR in the task that loses most, in dB.", examples=[0.3]
    )
    sam_deg: Annotated[Number, Field(ge=0)] = Field(
        default=0.67, description="Rise of the spectral angle, mean over tasks, in degrees.", examples=[0.5]
    )
    routing_percent: Annotated[Number, Field(ge=0, le=100)] = Field(
        default=99.5, description="Tiles and layers that choose the same experts, in percent.", examples=[99.5]
    )


class CalibrationSection(Section):
    """Cubes that int8 ranges are chosen from and judged by."""

    dir: PathText | None = Field(
        default=None,
        description="Folder of cubes, relative to this file's folder, or `simulated` for simulated scenes.",
        examples=["cubes"],
    )
    cubes: Literal["clean", "as_flown"] = Field(
        default="clean",
        description="Clean cubes are degraded; cubes as_flown are taken as they are, and simulated scenes judge.",
        examples=["clean"],
    )
    samples: Annotated[Whole, Field(ge=1, le=4096)] = Field(
        default=24, description="Frames that ranges are chosen from.", examples=[24]
    )
    judged: Annotated[Whole, Field(ge=1, le=256)] = Field(
        default=2, description="Cubes, of those that no range is chosen from, to judge by.", examples=[2]
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of cubes, places and degradations.", examples=[0]
    )
    on_bad: Literal["refuse", "skip"] = Field(
        default="refuse", description="What to do about a cube that cannot be used.", examples=["skip"]
    )
    band_groups: Annotated[bool, Strict()] = Field(
        default=False, description="Cubes may have more bands than the network.", examples=[True]
    )
    max_drop: MaxDropSection = Field(
        default=MaxDropSection(), description="What int8 may cost before products go back to a higher precision."
    )


class CheckSection(Section):
    """What `deploy check` runs."""

    degradations: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(distinct)] | None = Field(
        default=None,
        description="Tasks of the network to check; null for all, with DAMP five of the training and two unseen ones.",
        examples=[["noise", "blur"]],
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of the scene and of its degradations.", examples=[0]
    )
    cube: SceneSize = Field(
        default=SceneSize(),
        description="Simulated scene: lines by samples, or text such as 320x320.",
        examples=["320x320"],
    )


class OutputSection(Section):
    """Where the bundle goes, and what it says of itself to who installs it."""

    dir: PathText | None = Field(
        default="build/bundle",
        description="Folder of the bundle when --out is not given, relative to this file's folder.",
        examples=["build/bundle"],
    )
    serial: Annotated[Whole, Field(ge=0, lt=1 << 63)] | None = Field(
        default=None,
        description="Number of the bundle, which only grows; null takes the seconds of the clock (UTC) at its build.",
        examples=[12],
    )
    compatible: Annotated[tuple[BoardName, ...], Field(max_length=64), AfterValidator(distinct)] = Field(
        default=(), description="Boards or targets that the bundle is for; none for all.", examples=[["jetson-orin"]]
    )
    minimum_runtime: ProgramVersion | None = Field(
        default=None, description="Oldest version of damp-deploy that may open the bundle.", examples=["0.1.0"]
    )


def _no_targets(value: object) -> object:
    return {} if value is None else value


class Config(Section):
    """Everything `deploy build`, `deploy check` and `deploy stream` need to know."""

    model: ModelSection = Field(default=ModelSection(), description="Which trained network to put on the target.")
    input: InputSection = Field(default=InputSection(), description="What the sensor delivers.")
    target: Name = Field(
        default="cpu", description="Name of a built-in target or of one under `targets`.", examples=["cpu"]
    )
    precision: AskedPrecision | None = Field(
        default=None,
        description="Precision to build; null is the target's own, auto the fastest that passes its gates.",
        examples=["fp32"],
    )
    targets: Annotated[dict[Name, TargetSection], Field(max_length=64), BeforeValidator(_no_targets)] = Field(
        default={}, description="Targets of your own, by name.", examples=[{"bench": {"engine": "onnxruntime"}}]
    )
    gates: GatesSection = Field(
        default=GatesSection(),
        description="How far the engine may be from PyTorch: a limit, auto for the precision's own, or null for none.",
    )
    calibration: CalibrationSection = Field(
        default=CalibrationSection(), description="Cubes that int8 ranges are chosen from and judged by."
    )
    check: CheckSection = Field(default=CheckSection(), description="What `deploy check` runs.")
    output: OutputSection = Field(default=OutputSection(), description="Where the bundle goes.")
    stream: StreamSection = Field(default=StreamSection(), description="How `deploy stream` runs.")


def _cross(key: str, value: object, problem: str, remedy: str) -> PydanticCustomError:
    """An error of two keys that disagree, told at `key`."""
    return PydanticCustomError("cross", "{problem}", {"problem": problem, "key": key, "found": value, "remedy": remedy})
