"""What keys of deploy.yaml can hold: the types that its sections share."""

import math
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from runtime.files.layout import LAYOUTS
from runtime.manifest import BOARD_NAME, VERSION
from runtime.precisions import PrecisionName
from runtime.stated import increasing
from runtime.versions import satisfiable

MAX_SIDE = 16384
MAX_BANDS = 4096
AskedPrecision = Literal[PrecisionName, "auto"]


def printable_text(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("control_characters", "must be printable text")
    return text


def versions_text(text: str) -> str:
    if not satisfiable(text):
        raise PydanticCustomError("versions", "must be bounds such as >=10.3,<12")
    return text


def layout_text(text: str) -> str:
    order = ",".join(axis.strip().lower() for axis in text.split(","))
    if order not in LAYOUTS:
        raise PydanticCustomError(
            "layout", "must be the axes in their order, such as bands,lines,samples, or lines,samples of one band"
        )
    return order


def scalar(value: object) -> object:
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise PydanticCustomError("scalar", "must be a text, a finite number, true or false")
    return printable_text(value) if isinstance(value, str) else value


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise PydanticCustomError("repeated", "must not name {entry} twice", {"entry": repeated})
    return values


Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Side = Annotated[Whole, Field(ge=1, le=MAX_SIDE)]
Name = Annotated[str, Strict(), StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
BoardName = Annotated[str, Strict(), StringConstraints(pattern=BOARD_NAME)]
ProgramVersion = Annotated[str, Strict(), StringConstraints(pattern=VERSION)]
Scalar = Annotated[str | int | float | bool, BeforeValidator(scalar)]
PathText = Annotated[str, Strict(), StringConstraints(min_length=1, max_length=4096), AfterValidator(printable_text)]
Wavelength = Annotated[Number, Field(gt=0)]
Wavelengths = Annotated[tuple[Wavelength, ...], Field(min_length=1, max_length=MAX_BANDS), AfterValidator(increasing)]


class Section(BaseModel):
    """A mapping of known keys; a section whose keys are all commented out (null) is all defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        return {} if value is None else value
