"""A mistake in deploy.yaml as one `ConfigError`: what is wrong, in which line, and what would be right."""

import difflib
import re
from collections.abc import Collection, Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from runtime.errors import ConfigError

from .sections import Config, TargetSection
from .yaml_lines import KeyPath, Located, dotted


def first_mistake(found: list[ErrorDetails], file: object, located: Located) -> ConfigError:
    """Of what pydantic found, the first from the top of the file: the one a person meets first when looking."""
    return _explained(min(found, key=lambda detail: located.line(_path(detail)) or 0), file, located)


def unknown_name(path: KeyPath, value: str, allowed: Collection[str], file: object, located: Located) -> ConfigError:
    """A name that is none of those `allowed`, at `path`."""
    return ConfigError(
        "is not a name known here",
        file=file,
        line=located.line(path),
        key=dotted(path),
        value=value,
        remedy=_choices(value, list(allowed)),
    )


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
