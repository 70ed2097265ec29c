"""Numbers and units as the texts of products have them."""

import re
from math import isfinite

from runtime.products.contract import Quantity

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,4})?|[+-]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)


def number_of(text: str) -> float | None:
    """The number that a text is, NaN and infinities among them; None of one that is none."""
    text = text.strip()
    return float(text) if len(text) <= 64 and _NUMBER.fullmatch(text) else None


def finite(text: str | None) -> float | None:
    """The finite number that a text is, else None."""
    value = None if text is None else number_of(text)
    return value if value is not None and isfinite(value) else None


def quantity_of(unit: str | None) -> Quantity | None:
    """What a unit is of; None where it does not say: 1 and per cent may be anything."""
    text = (unit or "").casefold()
    if re.search(r"reflectan", text):
        return "reflectance"
    if re.search(r"radian(?:ce|z)", text) or (re.search(r"\bsr\b|steradian", text) and re.search(r"w\b|watt", text)):
        return "radiance"
    return "counts" if text in ("dn", "count", "counts", "adu", "digital number", "digital numbers") else None
