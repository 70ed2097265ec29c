"""Every name of TensorRT's API that our code uses exists in every version we support.

A listing is what one version's Python module has, taken from its bindings: {"version", "enums": {name: {member:
value}}, "functions": {name: [signature]}, "classes": {name: {"methods": {name: [signature]}, "properties", "attrs",
"bases"}}}. The full ones are too large to keep here: DAMP_TENSORRT_API names their folder. `tensorrt_api.json` has of
each what the code uses, written by `python -m tests.contracts.tensorrt_api`.

Code is read, not run. The module is called `trt`; what its calls give is followed through assignments and through
signatures, and where that ends (arguments, attributes of self) the names in OBJECTS tell the class.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
API = Path(os.environ.get("DAMP_TENSORRT_API") or ROOT.parent / "shared" / "tensorrt-api").resolve()
CUT = Path(__file__).with_suffix(".json")
LEFT_OUT = "set DAMP_TENSORRT_API to the folder of TensorRT's API listings"
VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106", "rtx-1.7.1.116")
MODULE = "trt"
MODULE_ATTRIBUTES = {"__version__"}
OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "logger": "ILogger",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "runtime_cache": "IRuntimeCache",
}
"""Name of a variable, argument or attribute (without its underscore) -> the class that it holds."""

Listing = dict[str, Any]
Used = tuple[str, str]
"""(section, name) such as ("functions", "volume"), or (class or enum, member)."""


def sources(version: str) -> list[Path]:
    """The files that talk to this version of TensorRT; what is RTX's alone has a file of its own."""
    common = [ROOT / "runtime/engines/tensorrt.py", ROOT / "export/tensorrt/child.py"]
    return [*common, ROOT / "runtime/engines/kernel_cache.py"] if version.startswith("rtx-") else common


def full_listings() -> dict[str, Listing]:
    """{version: listing} of the folder, empty where there is none."""
    if not API.is_dir():
        return {}
    return {version: json.loads((API / f"{version}.json").read_bytes()) for version in VERSIONS}


def cut_listings() -> dict[str, Listing]:
    """{version: listing} of what the code uses, as kept beside this file."""
    kept: dict[str, Listing] = json.loads(CUT.read_bytes())
    return kept


def problems(files: Iterable[Path], listing: Listing) -> list[str]:
    """What these files use that this version does not have, one line each."""
    return [problem for file in files for problem in read(file.read_text("utf-8"), file.name, listing).problems]


def read(source: str, name: str, listing: Listing) -> Reader:
    """Follow TensorRT's objects through a file."""
    reader = Reader(name, listing)
    reader.visit(ast.parse(source))
    return reader


def cut(files: Iterable[Path], listing: Listing) -> Listing:
    """The part of a listing that these files use."""
    used = {use for file in files for use in read(file.read_text("utf-8"), file.name, listing).used}
    kept: Listing = {"version": listing["version"], "classes": {}, "enums": {}, "functions": {}}
    for owner, member in sorted(used):
        if owner == "functions":
            kept["functions"][member] = listing["functions"][member]
        elif owner in listing["enums"]:
            kept["enums"].setdefault(owner, {})
            if member:
                kept["enums"][owner][member] = listing["enums"][owner][member]
        else:
            entry = kept["classes"].setdefault(owner, {"bases": listing["classes"][owner].get("bases", [])})
            for part in ("methods", "properties", "attrs"):
                entry.setdefault(part, {})
                if member in listing["classes"][owner].get(part, {}):
                    entry[part][member] = listing["classes"][owner][part][member]
    return kept


class Reader(ast.NodeVisitor):
    """Types of expressions: `module`, `class X`, `enum X`, `X` for an object, `X.f` for a method, None for all else."""

    def __init__(self, name: str, listing: Listing) -> None:
        self.name, self.listing = name, listing
        self.problems: list[str] = []
        self.used: set[Used] = set()
        self._known: dict[str, str | None] = {}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._known = self._known, dict(self._known)
        for argument in (*node.args.args, *node.args.kwonlyargs):
            self._known.pop(argument.arg, None)
        self.generic_visit(node)
        self._known = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            of = self.type_of(base)
            if of is not None and of.startswith("class "):
                self._overrides(node, of.removeprefix("class "))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        of = self.type_of(node.value)
        for target in node.targets:
            if isinstance(target, (ast.Name, ast.Attribute)):
                self._known[ast.unparse(target)] = of

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.type_of(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._check_call(node)
        self.generic_visit(node)

    def type_of(self, node: ast.AST) -> str | None:
        """The type of an expression; an attribute that its owner does not have is a problem."""
        if isinstance(node, (ast.Name, ast.Attribute)) and self._known.get(text := ast.unparse(node)) is not None:
            return self._known[text]
        if isinstance(node, ast.Name):
            return "module" if node.id == MODULE else self._by_name(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            return self._by_name(node.attr) if owner is None else self._member(owner, node.attr, node)
        if isinstance(node, ast.Call):
            called = self.type_of(node.func)
            if called is None:
                return None
            if called.startswith("class "):
                return called.removeprefix("class ")
            return next(map(self._returned, self._signatures(called)), None)
        return None

    def _by_name(self, name: str) -> str | None:
        bare = name.lstrip("_")
        return "module" if name != bare and bare == MODULE else OBJECTS.get(bare)

    def _member(self, owner: str, member: str, node: ast.AST) -> str | None:
        classes, enums = self.listing["classes"], self.listing["enums"]
        if owner == "module":
            if member in classes or member in enums:
                self.used.add((member, ""))
                return f"{'class' if member in classes else 'enum'} {member}"
            if member in self.listing["functions"]:
                self.used.add(("functions", member))
                return f"functions.{member}"
            if member not in MODULE_ATTRIBUTES:
                self._miss(node, f"{MODULE}.{member}")
            return None
        if "." in owner:
            return None
        name = owner.removeprefix("class ").removeprefix("enum ")
        if owner.startswith("enum "):
            if member not in enums[name]:
                self._miss(node, f"{MODULE}.{name}.{member}")
            else:
                self.used.add((name, member))
            return None
        for holder in self._line(name):
            entry = classes[holder]
            if any(member in entry.get(part, {}) for part in ("methods", "properties", "attrs")):
                self.used |= {(name, ""), (holder, member)}
                if member in entry.get("methods", {}):
                    return f"{holder}.{member}"
                getters = entry.get("properties", {}).get(member, {}).get("fget", [])
                return next(map(self._returned, getters), None)
        self._miss(node, f"{name}.{member}")
        return None

    def _line(self, name: str) -> Iterator[str]:
        """A class and its bases, as far as they are listed."""
        if name in self.listing["classes"]:
            yield name
            for base in self.listing["classes"][name].get("bases", []):
                yield from self._line(base.rpartition(".")[2])

    def _signatures(self, called: str) -> list[str]:
        owner, _, name = called.partition(".")
        if called.startswith("class "):
            found = self.listing["classes"][called.removeprefix("class ")].get("methods", {}).get("__init__", [])
        elif owner == "functions":
            found = self.listing["functions"][name]
        else:
            found = self.listing["classes"].get(owner, {}).get("methods", {}).get(name, [])
        return [signature for signature in found if "(" in signature]

    def _returned(self, signature: str) -> str | None:
        name = re.split("[.:]", signature.rpartition("-> ")[2])[-1] if "-> " in signature else ""
        return name if name in self.listing["classes"] else None

    def _check_call(self, node: ast.Call) -> None:
        called = self.type_of(node.func)
        if called is None or (" " not in called and "." not in called):
            return
        if called.startswith("class "):
            self.used.add((called.removeprefix("class "), "__init__"))
        signatures = self._signatures(called)
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            return
        given = [keyword.arg for keyword in node.keywords if keyword.arg]
        if signatures and not any(accepts(signature, len(node.args), given) for signature in signatures):
            self._miss(node, f"{called.removeprefix('class ')} with {len(node.args)} arguments and {given}")

    def _overrides(self, node: ast.ClassDef, base: str) -> None:
        """Public methods of a subclass are called by TensorRT: they must be there, with as many arguments."""
        self.used |= {(base, ""), (base, "__init__")}
        for method in node.body:
            if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
                continue
            if (of := self._member(base, method.name, method)) is not None:
                arguments = len(method.args.args) - 1
                if not any(accepts(signature, arguments, []) for signature in self._signatures(of)):
                    self._miss(method, f"{of} with {arguments} arguments")

    def _miss(self, node: ast.AST, what: str) -> None:
        line = f"{self.name}:{getattr(node, 'lineno', 0)}: {self.listing['version']} has no {what}"
        if line not in self.problems:
            self.problems.append(line)


def accepts(signature: str, positional: int, keywords: Iterable[str]) -> bool:
    """Whether a pybind11 signature takes so many arguments, and these by name."""
    parameters = _parameters(signature)
    rest = parameters[positional:]
    names = {name for name, _ in rest}
    missing = {name for name, optional in rest if not optional} - set(keywords)
    return positional <= len(parameters) and names.issuperset(keywords) and not missing


def _parameters(signature: str) -> list[tuple[str, bool]]:
    """(name, optional) of each parameter but self."""
    inner, depth, parts = signature[signature.index("(") + 1 :], 0, [""]
    for character in inner:
        if character in ")]>" and depth == 0:
            break
        depth += (character in "([<") - (character in ")]>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    found = [(re.split("[:=]", part.strip())[0].strip(), "=" in part) for part in parts if part.strip()]
    return [(name, optional) for name, optional in found if name != "self"]


def main() -> None:
    """Write `tensorrt_api.json` anew from the full listings."""
    listings = full_listings()
    if not listings:
        sys.exit(LEFT_OUT)
    wrong = [problem for version, listing in listings.items() for problem in problems(sources(version), listing)]
    if wrong:
        sys.exit("\n".join(wrong))
    content: Mapping[str, Listing] = {version: cut(sources(version), listing) for version, listing in listings.items()}
    CUT.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
