"""XML of strangers as a tree: no entities, no other files, bounded in bytes, depth and count."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from runtime.errors import CubeFileError
from runtime.files.disk import opened
from runtime.products.texts import finite

MOST_BYTES = 32 << 20
"""Of a text, unpacked: real ones reach 5 MB."""
MOST_ELEMENTS = 1_000_000
MOST_DEPTH = 64


@dataclass(slots=True)
class Element:
    """An element: its name, attributes, the pieces of text before and between its children, and these."""

    name: str
    attributes: dict[str, str]
    pieces: list[str] = field(default_factory=list)
    children: "list[Element]" = field(default_factory=list)

    def all(self, path: str) -> "Iterator[Element]":
        """Every element at a path of names, `a/b`, below this one."""
        name, _, rest = path.partition("/")
        for child in self.children:
            if child.name == name:
                yield from child.all(rest) if rest else (child,)

    def first(self, path: str) -> "Element | None":
        return next(self.all(path), None)

    def said(self, path: str) -> str | None:
        """The text at a path without blanks around it; None where there is no such element, or nothing in it."""
        found = self.first(path)
        return ("".join(found.pieces).strip() or None) if found is not None else None

    def number(self, path: str, file: Path) -> float:
        """The finite number at a path. Raises CubeFileError where there is none."""
        text = self.said(path)
        if (value := finite(text)) is None:
            key = path.rpartition("/")[2]
            raise CubeFileError("must be a finite number", file=file, key=key, value=text, remedy="copy it again")
        return value


def read_xml(path: Path) -> Element:
    """The root of an XML file, plain or gzipped.

    Raises:
        CubeFileError: it is missing, no XML, larger or deeper than real ones are, or has a DOCTYPE, which may expand
            without end and name other files.
    """
    data = _unpacked(path)
    top = Element("", {})
    stack, count = [top], 0

    def refuse(problem: str, value: object = None) -> CubeFileError:
        line = parser.CurrentLineNumber
        return CubeFileError(problem, file=path, line=line, key="XML", value=value, remedy="take the product's own XML")

    def doctype(name: str, *_: object) -> None:
        raise refuse("has a DOCTYPE, which is never read", name)

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(stack) > MOST_DEPTH or count > MOST_ELEMENTS:
            raise refuse(f"more than {MOST_DEPTH} elements in each other, or {MOST_ELEMENTS} in all")
        element = Element(name, attributes)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_: str) -> None:
        stack.pop()

    def text(more: str) -> None:
        stack[-1].pieces.append(more)

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    try:
        parser.Parse(data, True)
    # An encoding that it names is looked up among Python's.
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise refuse(f"is no whole XML: {error}") from error
    return top.children[0]


def _unpacked(path: Path) -> bytes:
    with opened(path) as (file, size):
        if size > MOST_BYTES:
            raise _too_large(path, size)
        data = file.read(MOST_BYTES + 1)
    if data[:2] != b"\x1f\x8b":
        return data
    packed = zlib.decompressobj(wbits=31)
    try:
        data = packed.decompress(data, MOST_BYTES + 1)
    except zlib.error as error:
        raise CubeFileError(f"cannot be unpacked: {error}", file=path, remedy="copy it again") from error
    if len(data) > MOST_BYTES:
        raise _too_large(path, len(data))
    if not packed.eof:
        raise CubeFileError("is cut short", file=path, remedy="copy it again")
    return data


def _too_large(path: Path, size: int) -> CubeFileError:
    problem = f"is larger than {MOST_BYTES >> 20} MiB"
    return CubeFileError(problem, file=path, value=f"{size} bytes", remedy="take the product's own XML")
