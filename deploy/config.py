"""The schema of deploy.yaml: what to build, for which target, and how good it must be.

`load_config` reads a file, `Config()` is every default, `with_overrides` lays flags over a file over a target's
defaults, `config_schema` describes it all as JSON Schema. A mistake is one `ConfigError` with file, line, key, value
and remedy.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from deploy.config_types import (
    MAX_BANDS,
    MAX_SIDE,
    AskedPrecision,
    Degradation,
    Name,
    Number,
    PathText,
    Precision,
    Section,
    Side,
    Wavelengths,
    Whole,
    distinct,
    printable_text,
    versions_text,
)
from deploy.stream_config import StreamSection
from deploy.yaml_lines import KeyPath, Located, dotted, read_yaml
from runtime.errors import ConfigError

SIMULATED = "simulated"
"""In place of a folder of cubes: scenes of the simulator."""
_EXTENT_TEXT = r"^\s*([0-9]{1,9})\s*[xX×]\s*([0-9]{1,9})\s*$"


class Extent(Section):
    """Lines by samples, written `{lines: 256, samples: 256}` or `256x256`."""

    @model_validator(mode="before")
    @classmethod
    def _lines_x_samples(cls, value: object) -> object:
        if value is None or isinstance(value, Mapping | Extent):
            return value
        if not isinstance(value, str):
            raise PydanticCustomError("extent", "must be lines and samples")
        match = re.fullmatch(_EXTENT_TEXT, value)
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
    frame: Frame = Field(
        default=Frame(),
        description="Frame that the engine takes: lines by samples, or text such as 256x256.",
        examples=["256x256"],
    )
    overlap: Annotated[Whole, Field(ge=0, lt=MAX_SIDE)] = Field(
        default=32,
        description="Lines and samples shared by neighbouring tiles, at most half of the frame's shorter side.",
        examples=[32],
    )

    @model_validator(mode="after")
    def _agree(self) -> InputSection:
        shorter = min(self.frame.lines, self.frame.samples)
        if self.overlap > shorter // 2:
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
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=("fp32", "int8"),
        description="Precisions that this target can run.",
        examples=[["fp32", "fp16"]],
    )
    default_precision: Precision = Field(
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
    memory_gib: Annotated[Number, Field(gt=0, le=65536)] | None = Field(
        default=None, description="Memory that the GPU can use, in GiB.", examples=[8]
    )
    workspace_mib: Annotated[Whole, Field(ge=1, le=1048576)] = Field(
        default=1024, description="Most scratch memory that the builder may give to one layer, in MiB.", examples=[1024]
    )
    made_there: Annotated[bool, Strict()] = Field(
        default=False, description="The engine is built on the target itself, by `deploy finalize`.", examples=[True]
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

    `auto` is what a sound engine keeps in the bundle's precision (`deploy.check.AUTO`); null switches a gate off.
    """

    max_difference: Annotated[Number, Field(ge=0)] | Literal["auto"] | None = Field(
        default="auto",
        description="Largest difference between engine and PyTorch, as a share of the range.",
        examples=[1.0e-3],
    )
    psnr_drop_db: Annotated[Number, Field(ge=0)] | Literal["auto"] | None = Field(
        default="auto", description="Largest loss of PSNR against PyTorch in any task, in dB.", examples=[0.01]
    )
    mean_psnr_drop_db: Annotated[Number, Field(ge=0)] | Literal["auto"] | None = Field(
        default="auto", description="Largest loss of PSNR against PyTorch, mean over tasks, in dB.", examples=[0.01]
    )
    sam_rise_deg: Annotated[Number, Field(ge=0)] | Literal["auto"] | None = Field(
        default="auto",
        description="Largest rise of the spectral angle against PyTorch in any task, in degrees.",
        examples=[0.005],
    )
    mean_sam_rise_deg: Annotated[Number, Field(ge=0)] | Literal["auto"] | None = Field(
        default="auto",
        description="Largest rise of the spectral angle against PyTorch, mean over tasks, in degrees.",
        examples=[0.005],
    )
    routing_agreement: Annotated[Number, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="Smallest share of tiles and layers, 0 to 1, that choose the same experts as PyTorch.",
        examples=[1.0],
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
        default=0.5, description="Rise of the spectral angle, mean over tasks, in degrees.", examples=[0.5]
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

    degradations: Annotated[tuple[Degradation, ...], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=get_args(Degradation),
        description="Degradations of the scene to restore: five of the training and two unseen ones.",
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
    """Where the bundle goes."""

    dir: PathText | None = Field(
        default="build/bundle",
        description="Folder of the bundle when --out is not given, relative to this file's folder.",
        examples=["build/bundle"],
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


def load_config(path: str | Path, *, targets: Collection[str] = (), engines: Collection[str] = ()) -> Config:
    """Read a deploy.yaml.

    A relative `model.checkpoint`, `calibration.dir`, `output.dir` or `stream.folder` comes back absolute, seen from the
    file's folder; a bare checkpoint name that names no file there comes back as it is, for the packaged models.

    Args:
        path: the file.
        targets: names of the built-in targets; when given, `target` must be one of them or one of the file's own.
        engines: names of the engines; when given, every `targets.*.engine` must be one of them.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong; one line with the line of the key.
    """
    path = Path(path)
    located = read_yaml(path)
    config = _validated(located.data, path, located)
    check_names(config, targets=targets, engines=engines, file=path, located=located)
    return _anchored(config, Path(os.path.abspath(path)).parent)  # noqa: PTH100 - keeps symbolic links as written


def with_overrides(
    config: Config, flags: Mapping[str, object], *, target_defaults: Mapping[str, object] | None = None
) -> Config:
    """`flags` over what `config` sets over `target_defaults` over the built-in defaults; `config` stays as it is.

    Args:
        config: the file's configuration; only keys that the file sets beat the target's defaults.
        flags: values by dotted key, for example `{"input.frame": "256x256"}`; None stands for a flag not given.
        target_defaults: values by dotted key, for example `{"precision": "fp16"}`.

    Raises:
        ConfigError: a value is wrong or does not go with the others.
    """
    stated = config.model_dump(exclude_unset=True)
    if stated.get("precision", "") is None:
        del stated["precision"]  # null asks for the target's own, so it must not hide it
    asked = _nested({key: value for key, value in flags.items() if value is not None})
    return _validated(_laid_over(_laid_over(_nested(target_defaults or {}), stated), asked), None, Located({}, {}))


def check_names(
    config: Config,
    *,
    targets: Collection[str] = (),
    engines: Collection[str] = (),
    file: object = None,
    located: Located | None = None,
) -> None:
    """Raise ConfigError when `target` or an engine is none of the names given; an empty collection checks nothing."""
    located = located or Located({}, {})
    names = [*dict.fromkeys((*targets, *config.targets))]
    if targets and config.target not in names:
        raise _unknown_name(("target",), config.target, names, file, located)
    for name, target in config.targets.items():
        if engines and target.engine not in engines:
            raise _unknown_name(("targets", name, "engine"), target.engine, engines, file, located)


def config_schema() -> dict[str, Any]:
    """JSON Schema of deploy.yaml, with a description on every key."""
    schema = Config.model_json_schema()
    sections = schema["$defs"]
    for section in (schema, *sections.values()):
        for described in section["properties"].values():
            # Versions of pydantic differ in how they point to a section and in whether they repeat its description.
            reference = described.get("$ref") or next((entry["$ref"] for entry in described.get("allOf", ())), None)
            if reference is None:
                continue
            name = reference.rsplit("/", 1)[-1]
            described.setdefault("description", sections[name]["description"])
            if name in (Frame.__name__, SceneSize.__name__):
                described.pop("$ref", None)
                described.pop("allOf", None)
                described["anyOf"] = [{"$ref": reference}, {"type": "string", "pattern": _EXTENT_TEXT}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "deploy.yaml"}


def _cross(key: str, value: object, problem: str, remedy: str) -> PydanticCustomError:
    """An error of two keys that disagree, told at `key`."""
    return PydanticCustomError("cross", "{problem}", {"problem": problem, "key": key, "found": value, "remedy": remedy})


def _unknown_name(path: KeyPath, value: str, allowed: Collection[str], file: object, located: Located) -> ConfigError:
    return ConfigError(
        "is not a name known here",
        file=file,
        line=located.line(path),
        key=dotted(path),
        value=value,
        remedy=_choices(value, list(allowed)),
    )


def _anchored(config: Config, folder: Path) -> Config:
    checkpoint, out = config.model.checkpoint, config.output.dir
    if checkpoint is not None:
        there = _seen_from(folder, checkpoint)
        looks_like_path = any(mark in checkpoint for mark in "/\\~") or Path(checkpoint).suffix != ""
        # os.path answers False where Path.exists raises, for a name that the file system finds too long.
        if looks_like_path or os.path.exists(there):  # noqa: PTH110
            config = config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": there})})
    if out is not None and "dir" in config.output.model_fields_set:
        there = _seen_from(folder, out)
        config = config.model_copy(update={"output": config.output.model_copy(update={"dir": there})})
    cubes = config.calibration.dir
    if cubes is not None and cubes != SIMULATED:
        calibration = config.calibration.model_copy(update={"dir": _seen_from(folder, cubes)})
        config = config.model_copy(update={"calibration": calibration})
    stream = config.stream
    if stream.radiometry or stream.folder is not None:
        stream = stream.model_copy(update={"folder": _seen_from(folder, stream.folder or ".")})
        config = config.model_copy(update={"stream": stream})
    return config


def _seen_from(folder: Path, text: str) -> str:
    # Path.expanduser raises where a home is unknown; here such a text is a name like any other.
    return str(folder / os.path.expanduser(text))  # noqa: PTH111


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    """`{"input.frame": x}` as `{"input": {"frame": x}}`."""
    nested: dict[str, object] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        assert isinstance(value, dict)
        nested = _laid_over(nested, value)
    return nested


def _laid_over(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _laid_over(below, value) if both else value  # type: ignore[arg-type]
    return merged


_Model = TypeVar("_Model", bound=BaseModel)


def _validated(data: Mapping[str, object], file: object, located: Located) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # The first mistake from the top of the file: the one a person meets first when looking.
    first = min(found, key=lambda detail: located.line(_path(detail)) or 0)
    raise _explained(first, file, located)


def _path(detail: ErrorDetails) -> KeyPath:
    path: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
    context = detail.get("ctx", {})
    if detail["type"] == "cross":
        return (*path, str(context["key"]))
    if detail["type"] == "not_increasing":
        return (*path, int(context["entry"]))
    return path


def _explained(detail: ErrorDetails, file: object, located: Located) -> ConfigError:
    """The pydantic error as ours."""
    path, kind, context = _path(detail), detail["type"], detail.get("ctx", {})
    value: object = context.get("found", detail["input"])
    example = _example(path)
    if kind == "extra_forbidden":
        problem, remedy = "is not a key known here", _right_key(path)
    elif kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        problem, remedy = "is not one of the values known here", _choices(value, allowed)
    elif kind == "cross":
        problem, remedy = str(context["problem"]), str(context["remedy"])
    elif detail["loc"] and detail["loc"][-1] == "[key]":
        problem, remedy = "is not a name", "names hold letters, digits, `_`, `.` and `-`, at most 64"
    elif kind == "not_increasing":
        problem, remedy, value = detail["msg"], "sort the wavelengths and the bands with them", context["right"]
    else:
        problem = _PROBLEMS.get(kind, detail["msg"]).format(**context)
        remedy = f"for example `{example}`" if example else "see `deploy schema`"
        if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+.0-9eE]{1,20}", value):
            remedy = f"write it without quotes, {remedy}"
    return ConfigError(
        problem,
        file=file,
        line=located.line(path),
        key=dotted(path) or None,
        value="null" if value is None else str(value).lower() if isinstance(value, bool) else value,
        remedy=remedy,
    )


_PROBLEMS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must be a name of letters, digits, `_`, `.` and `-`, at most 64",
    "model_type": "must be a section of keys",
    "dict_type": "must be a section of keys",
    "tuple_type": "must be a list",
    "too_short": "must have {min_length} entry or more",
    "too_long": "must have {max_length} entries or fewer",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}


def _choices(value: object, allowed: Collection[str]) -> str:
    """The nearest of `allowed`, then all of them."""
    near = _nearest(value, allowed)
    return (f"did you mean {near}? " if near else "") + "allowed: " + ", ".join(sorted(allowed))


def _nearest(value: object, allowed: Collection[str]) -> str | None:
    if not isinstance(value, str):
        return None
    folded = {name.lower(): name for name in allowed}
    wanted = value.strip()[:64].lower().replace("-", "_")
    for spelling in (wanted, wanted.replace("_", "")):
        for close in difflib.get_close_matches(spelling, folded, n=1):
            return folded[close]
    return None


def _right_key(path: KeyPath) -> str:
    """What an unknown key may have meant: a key beside it, else a key of that name elsewhere."""
    _, section = _at(path[:-1])
    allowed = [] if section is None else list(section.model_fields)
    wanted = str(path[-1])
    if _nearest(wanted, allowed) is None:
        elsewhere = [key for key in _leaves(Config) if key.rsplit(".", 1)[-1] == wanted.lower()]
        if elsewhere:
            return f"did you mean {elsewhere[0]}? allowed here: {', '.join(allowed)}"
    return _choices(wanted, allowed)


def _at(path: KeyPath) -> tuple[FieldInfo | None, type[BaseModel] | None]:
    """The field at `path`, for a list entry the list's, and the section it opens."""
    field: FieldInfo | None = None
    section: type[BaseModel] | None = Config
    for place, part in enumerate(path):
        if isinstance(part, int):
            return field, None
        if place == 1 and path[0] == "targets":
            field, section = None, TargetSection
        elif section is None or part not in section.model_fields:
            return None, None
        else:
            field = section.model_fields[part]
            section = _section_of(field)
    return field, section


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _example(path: KeyPath) -> str | None:
    """A line a person could write for the key at `path`."""
    field, section = _at(path)
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if field is not None and field.examples:
        return f"{key}: {_as_yaml(field.examples[0])}"
    if section is None:
        return None
    inner, described = next(iter(section.model_fields.items()))
    return f"{key}: {_as_yaml({inner: (described.examples or ['...'])[0]})}"


def _as_yaml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_as_yaml(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(entry)}" for key, entry in value.items()) + "}"
    return str(value)


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        section = _section_of(field)
        if section is None:
            yield prefix + key
        else:
            yield from _leaves(section, f"{prefix}{key}.")
