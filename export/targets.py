"""Targets as data: what runs a bundle, and in which precisions."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.errors import InputError


@dataclass(frozen=True)
class Target:
    """A kind of computer.

    Attributes:
        name: what `--target` says.
        engine: the engine that runs there.
        precisions: those it can run.
        default_precision: used when none is asked for.
        threads: CPU threads of the engine, None for all.
    """

    name: str
    engine: str = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32",)
    default_precision: str = "fp32"
    threads: int | None = None


BUILT_IN: Mapping[str, Target] = {"cpu": Target("cpu")}


def find_target(name: str, own: Mapping[str, Target]) -> Target:
    """The target of that name, the user's own first. Raises InputError."""
    known = {**BUILT_IN, **own}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError("unknown target", key="target", value=name, remedy=f"{hint}known: {', '.join(sorted(known))}")
    return known[name]


def choose_precision(target: Target, asked: str | None) -> tuple[str, str]:
    """(precision, why) for what was asked: None is the target's own, `auto` the best that the target runs.

    Raises:
        InputError: the target cannot run it.
    """
    if asked is None:
        return target.default_precision, f"the default of target {target.name}"
    if asked == "auto":
        if len(target.precisions) > 1:
            raise InputError(
                "cannot choose among several precisions yet",
                key="precision",
                value=asked,
                remedy=f"name one of {', '.join(target.precisions)}",
            )
        return target.precisions[0], f"auto: the only precision of target {target.name}"
    if asked not in target.precisions:
        raise InputError(
            f"target {target.name} does not run this precision",
            key="precision",
            value=asked,
            remedy=f"it runs {', '.join(target.precisions)}",
        )
    return asked, "asked for"
