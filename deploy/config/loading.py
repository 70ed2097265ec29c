"""deploy.yaml: read, checked, laid over defaults."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .mistakes import first_mistake, unknown_name
from .sections import EXTENT_TEXT, Config, Frame, SceneSize
from .yaml_lines import Located, read_yaml

__all__ = ["SIMULATED", "Config", "config_schema", "load_config", "with_overrides"]
SIMULATED = "simulated"
"""In place of a folder of cubes: scenes of the simulator."""


def load_config(path: str | Path, *, engines: Collection[str] = ()) -> Config:
    """Read a deploy.yaml.

    A relative `model.checkpoint`, `calibration.dir`, `output.dir` or `stream.folder` comes back absolute, seen from the
    file's folder; a bare checkpoint name that names no file there comes back as it is, for the packaged models.

    Args:
        path: the file.
        engines: names of the engines; when given, every `targets.*.engine` must be one of them.

    Raises:
        ConfigError: the file cannot be read or something in it is wrong; one line with the line of the key.
    """
    path = Path(path)
    located = read_yaml(path)
    config = _validated(located.data, path, located)
    for name, target in config.targets.items():
        if engines and target.engine not in engines:
            raise unknown_name(("targets", name, "engine"), target.engine, engines, path, located)
    return _anchored(config, Path(os.path.abspath(path)).parent)  # noqa: PTH100 - keeps symbolic links as written


def with_overrides(config: Config, flags: Mapping[str, object]) -> Config:
    """`flags` over what `config` sets over the built-in defaults; `config` stays as it is.

    Args:
        config: the file's configuration.
        flags: values by dotted key, for example `{"input.frame": "256x256"}`; None stands for a flag not given.

    Raises:
        ConfigError: a value is wrong or does not go with the others.
    """
    stated = config.model_dump(exclude_unset=True)
    asked = _nested({key: value for key, value in flags.items() if value is not None})
    return _validated(_laid_over(stated, asked), None, Located({}, {}))


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
                described["anyOf"] = [{"$ref": reference}, {"type": "string", "pattern": EXTENT_TEXT}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "deploy.yaml"}


def _anchored(config: Config, folder: Path) -> Config:
    checkpoint, out = config.model.checkpoint, config.output.dir
    if checkpoint is not None:
        there = _seen_from(folder, checkpoint)
        looks_like_path = any(mark in checkpoint for mark in "/\\~") or Path(checkpoint).suffix != ""
        # os.path answers False where Path.exists raises, for a name that the file system finds too long.
        if looks_like_path or os.path.exists(there):  # noqa: PTH110
            config = _having(config, "model", checkpoint=there)
    if out is not None and "dir" in config.output.model_fields_set:
        config = _having(config, "output", dir=_seen_from(folder, out))
    cubes = config.calibration.dir
    if cubes is not None and cubes != SIMULATED:
        config = _having(config, "calibration", dir=_seen_from(folder, cubes))
    stream = config.stream
    if stream.radiometry or stream.folder is not None:
        config = _having(config, "stream", folder=_seen_from(folder, stream.folder or "."))
    return config


def _having(config: Config, section: str, **values: str) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


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


def _validated(data: Mapping[str, object], file: object, located: Located) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    raise first_mistake(found, file, located)
