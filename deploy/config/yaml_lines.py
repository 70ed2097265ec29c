"""YAML read as plain data with the line of every key, and nothing that could run code or exhaust memory.

Scalars follow YAML 1.2's core schema, not 1.1: `1e-3` is a number, `yes`, `on` and `12:30` are text.
Anchors, aliases, tags, duplicate keys and further documents are refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from runtime.errors import ConfigError
from runtime.untrusted import IrregularError, TooLargeError, read_untrusted

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_NODES = 20_000
MAX_KEY_CHARACTERS = 128
# More digits than this are kept as text: no value here needs them, and int() of thousands of digits is slow or refused.
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,15}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,9})?", re.ASCII)
_MAX_FLOAT_CHARACTERS = 64
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Located:
    """A parsed file.

    Args:
        data: the top-level mapping, empty for an empty file.
        lines: 1-based line of every key and list entry, by its path from the top.
    """

    data: dict[str, object]
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int | None:
        """The line of `path`, or of its nearest ancestor that is in the file."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)


def dotted(path: KeyPath) -> str:
    """`path` as a person writes it: `input.wavelengths[3]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(path: Path) -> Located:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file cannot be read, is too large, is not UTF-8, or is not the YAML accepted here.
    """
    return parse_yaml(_read_text(path), path)


def parse_yaml(text: str, file: object) -> Located:
    """Parse the text of a YAML file; `file` is named in errors."""
    lines: dict[KeyPath, int] = {}
    try:
        data = _document(yaml.parse(text, Loader=yaml.SafeLoader), file, lines)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            "a character that text must not hold", file=file, line=line, remedy="save the file as plain UTF-8 text"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file) from error
    # PyYAML turns escapes such as "\UFFFFFFFF" and long directive versions into numbers without a check of its own.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError("is not valid YAML", file=file, remedy="check escapes and directives") from error
    return Located(data, lines)


def _read_text(path: Path) -> str:
    remedy, permissions = "give the path of a deploy.yaml", "check the path and its permissions"
    try:
        raw = read_untrusted(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise ConfigError("does not exist", file=path, remedy=remedy) from error
    except IrregularError as error:
        raise ConfigError(str(error.strerror), file=path, remedy=remedy) from error
    except TooLargeError as error:
        remedy = "a deploy.yaml is a page of text"
        raise ConfigError(f"is larger than {MAX_BYTES} bytes", file=path, remedy=remedy) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", file=path, remedy=permissions) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", file=path, line=line, remedy="save the file as UTF-8") from error


def _syntax_error(error: yaml.MarkedYAMLError, file: object) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    problem = " ".join(part for part in (error.context, error.problem) if part)
    tab = "'\\t'" in problem
    return ConfigError(
        "a tab where YAML wants spaces" if tab else f"is not valid YAML: {problem}",
        file=file,
        line=None if mark is None else mark.line + 1,
        remedy="indent with spaces" if tab else "check indentation, colons, quotes and brackets at this line",
    )


def _document(events: Iterator[yaml.Event], file: object, lines: dict[KeyPath, int]) -> dict[str, object]:
    data: object = None
    documents = 0
    reader = _Reader(events, file, lines)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError(
                    "a second document begins here", file=file, line=_line(event), remedy="keep one document, no `---`"
                )
            first = next(events)
            data = reader.value(first, ())
            if data is not None and not isinstance(data, dict):
                raise ConfigError(
                    "must be a mapping of sections",
                    file=file,
                    line=_line(first),
                    value=data,
                    remedy="begin with a section, for example `target: cpu`",
                )
    return data if isinstance(data, dict) else {}


def _line(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else event.start_mark.line + 1


class _Reader:
    """Turns parser events into plain data; the recursion is as deep as the data, at most MAX_DEPTH."""

    def __init__(self, events: Iterator[yaml.Event], file: object, lines: dict[KeyPath, int]) -> None:
        self.events = events
        self.file = file
        self.lines = lines
        self.nodes = 0

    def value(self, event: yaml.Event, path: KeyPath) -> object:
        self.admit(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path)
        return self.mapping(path)

    def admit(self, event: yaml.Event, path: KeyPath) -> None:
        """Refuse what a configuration never needs and an attacker would use."""
        self.nodes += 1
        if isinstance(event, yaml.AliasEvent):
            raise self.refuse("aliases are not accepted", event, path, "write the value out", f"*{event.anchor}")
        if getattr(event, "anchor", None) is not None:
            anchor = getattr(event, "anchor", "")
            raise self.refuse("anchors are not accepted", event, path, "remove the anchor", f"&{anchor}")
        if getattr(event, "tag", None) is not None:
            raise self.refuse("tags are not accepted", event, path, "remove the tag", getattr(event, "tag", ""))
        if len(path) > MAX_DEPTH:
            raise self.refuse(f"is nested more than {MAX_DEPTH} deep", event, path[:1], "sections here are 3 deep")
        if self.nodes > MAX_NODES:
            raise self.refuse(f"holds more than {MAX_NODES} values", event, path[:1], "a deploy.yaml is a page of text")

    def sequence(self, path: KeyPath) -> list[object]:
        values: list[object] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            place = (*path, len(values))
            self.lines[place] = _line(event)
            values.append(self.value(event, place))
        return values

    def mapping(self, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            self.admit(event, path)
            if not isinstance(event, yaml.ScalarEvent):
                raise self.refuse("a list or mapping stands where a key should", event, path, "write `key: value`")
            # A key is its text, whatever YAML would make of it: `1`, `on` and `null` are names like any other.
            key = event.value
            if len(key) > MAX_KEY_CHARACTERS:
                raise self.refuse(f"a key of more than {MAX_KEY_CHARACTERS} characters", event, path, "shorten it", key)
            place = (*path, key)
            if key in values:
                both = f"{self.lines[place]} and {_line(event)}"
                raise self.refuse(f"is written twice, at lines {both}", event, place, "keep one of them")
            self.lines[place] = _line(event)
            values[key] = self.value(next(self.events), place)
        return values

    def refuse(
        self, problem: str, event: yaml.Event, path: KeyPath, remedy: str, value: str | None = None
    ) -> ConfigError:
        key = dotted(path) or None
        return ConfigError(problem, file=self.file, line=_line(event), key=key, value=value, remedy=remedy)


def _scalar(event: yaml.ScalarEvent) -> object:
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    if len(text) <= _MAX_FLOAT_CHARACTERS and _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        return float(text)
    return text
