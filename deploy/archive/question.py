"""Whether an archive is asked what it was asked before: then inputs are added to it; else it is left alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.products.stac import is_stac

from .order import FOLDER, ORDER, Order, kept, question_of
from .plan import Found

MOST_FILES = 10_000
"""That are looked at for a STAC file."""


def found_for(order: Order, out: Path, search: Callable[[Order, Path], Found]) -> tuple[Order, Found, str]:
    """The order with all inputs that the archive has, what they hold, and for what else it is begun anew, if it is.

    Nothing is written. The inputs of before come first: the name of an output is decided by the first that holds it.

    Raises:
        InputError: the archive was asked something else and `order.replace` is not set, or an input that it has not
            yet is not there or holds no product.
    """
    before = _before(order, out)
    differing = "" if before is None else _differing(before, order)
    if differing and not order.replace:
        raise InputError(
            f"is an archive of another question: {differing}", file=out, key="--out",
            remedy="give another --out, or --replace, which begins this one anew",
        )  # fmt: skip
    had = () if before is None or differing else before.inputs
    added = [given for given in dict.fromkeys(order.inputs) if given not in had]
    for given in added:
        if not os.path.lexists(given):
            raise InputError("no such file or folder", file=given, key="INPUT", remedy="check the path")
    if before is not None and had:
        order = order.model_copy(update={"inputs": (*had, *added), "outside": order.outside or before.outside})
    found = search(order, out)
    for given in added:
        if Path(given).is_dir() and not _any_below(given, found):
            # Its products may have been found by way of another input.
            alone = search(order.model_copy(update={"inputs": (given,)}), out)
            if not alone.products and not alone.refused:
                raise _empty(Path(given))
    return order, found, differing


def _before(order: Order, out: Path) -> Order | None:
    if not (out / FOLDER / ORDER).is_file():
        return None
    try:
        return kept(out)
    except InputError:
        if order.replace:
            return None
        raise


def _differing(before: Order, now: Order) -> str:
    """What differs, in words; nothing where the question is the same."""
    was, is_ = (json.loads(question_of(one)) for one in (before, now))
    named = {"kind": "--format", "marks": "--ignore-value"}
    told = [
        f"{named.get(name, '--' + name.replace('_', '-'))} {_said(is_[name])}, where it was {_said(was[name])}"
        for name in was
        if name != "seal" and was[name] != is_[name]
    ]
    if was["seal"] != is_["seal"]:
        told.insert(0, f"BUNDLE of the seal {is_['seal'][:16]}, not {was['seal'][:16]} as {before.bundle} had")
    return "; ".join(told)


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "given" if value else "not given"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _any_below(given: str, found: Found) -> bool:
    paths = (*found.products, *(at for at, _ in found.refused))
    return any(path.is_relative_to(given) for path in paths)


def _empty(folder: Path) -> InputError:
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in sorted(names))
    for file in islice(files, MOST_FILES):
        with suppress(OSError):
            if is_stac(file):
                return InputError(
                    "holds STAC files and no product", file=folder, key="INPUT",
                    remedy=f"give the item or catalogue itself, such as {file}",
                )  # fmt: skip
    return InputError(
        "holds no product", file=folder, key="INPUT", remedy="check the path; docs/products.md lists what is read"
    )
