"""What a configuration says of radiometry, and which of its keys make sense together."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import ConfigError

SECTION = "radiometry"
LARGEST_PANEL = 1.5
"""A panel reflects no more than that; 99 is a percentage."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


Output = Literal["dn", "radiance", "reflectance"]
PathText = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_printable)]
Number = Annotated[float, Field(ge=-1e12, le=1e12)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
# Lists come from YAML and JSON as lists; their numbers stay strict.
Numbers = Annotated[tuple[Number, ...], Field(strict=False, min_length=1)]
Positives = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Panel = Annotated[float, Field(gt=0, le=LARGEST_PANEL)]
Panels = Annotated[tuple[Panel, ...], Field(strict=False, min_length=1)]
Range = Annotated[tuple[Positive, Positive], Field(strict=False)]

_TIME = "a positive number of milliseconds, or a list with one per band"


def _key(description: str, default: Any = None) -> Any:
    return Field(default=default, description=description)


class RadiometrySettings(BaseModel):
    """The section `radiometry` of a configuration; paths are relative to its folder. Nothing given: DN over `scale`.

    Attributes:
        output: `dn`: (DN - dark) / flat * gain; `radiance`: that over the integration time;
            `reflectance`: (DN - dark) / (white - dark) * panel_reflectance.
        dark: a recording with the shutter closed, or a number of DN.
        second_dark: another at another integration time; the dark is then a line through both, at any time.
        dark_scales: `unknown` refuses a dark of another integration time, `bias` takes it as it is.
        white: a recording of the white panel.
        flat: relative response of the detector, 1 on average; what comes is divided by it.
        gain: what comes is multiplied by it; a file, a number, or a number per band.
        panel_reflectance: of the white panel, a share; a number, or one per band.
        integration_time_ms, dark_time_ms, second_dark_time_ms, white_time_ms: a number, or one per band. Dark and white
            were taken at the lines' time unless theirs is given.
        bad_pixels: a file, nonzero is bad.
        bad_pixel_method: `linear` between the nearest good bands, `samples` between the nearest good samples.
        response_range: a response outside these multiples of its median is no response but a bad pixel.
        saturation: digital number at which the detector is at its limit.
        smile: shift in bands, one per sample, or a file with those or with [bands, samples].
        keystone: shift in samples, one per band, or a file with those or with [bands, samples].
        scale: what stands for 1.0 afterwards, in the unit of `output`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    output: Output = _key("dn, radiance or reflectance", "dn")
    dark: PathText | Number | None = _key("a path or a number of DN")
    second_dark: PathText | None = _key("a path")
    dark_scales: Literal["unknown", "bias"] = _key("unknown or bias", "unknown")
    white: PathText | None = _key("a path")
    flat: PathText | None = _key("a path")
    gain: PathText | Positive | Positives | None = _key("a path, a positive number, or a list with one per band")
    panel_reflectance: Panel | Panels | None = _key(
        f"a share above 0 and up to {LARGEST_PANEL:g} (0.99, not 99), or a list with one per band"
    )
    integration_time_ms: Positive | Positives | None = _key(_TIME)
    dark_time_ms: Positive | Positives | None = _key(_TIME)
    second_dark_time_ms: Positive | Positives | None = _key(_TIME)
    white_time_ms: Positive | Positives | None = _key(_TIME)
    bad_pixels: PathText | None = _key("a path")
    bad_pixel_method: Literal["linear", "samples"] = _key("linear or samples", "linear")
    response_range: Range = _key("two positive numbers, the second above 1 and the first below", (0.2, 5.0))
    saturation: Number | None = _key("a number of DN")
    smile: PathText | Numbers | None = _key("a path, or a list with a shift in bands per sample")
    keystone: PathText | Numbers | None = _key("a path, or a list with a shift in samples per band")
    scale: Positive | None = _key("a positive number")


def checked_settings(settings: Mapping[str, Any] | RadiometrySettings) -> RadiometrySettings:
    """The settings, if they are known and agree with each other.

    Raises:
        ConfigError: a key is unknown, has no such value, has no effect, or asks for another one.
    """
    if not isinstance(settings, RadiometrySettings):
        try:
            settings = RadiometrySettings.model_validate(dict(settings))
        except ValidationError as error:
            raise _explained(error) from None
    _refuse_idle(settings)
    _refuse_incomplete(settings)
    low, high = settings.response_range
    if not low < 1 < high:
        raise _wrong("response_range", list(settings.response_range))
    return settings


def _refuse_idle(settings: RadiometrySettings) -> None:
    """What would be read and change nothing is a misunderstanding."""
    dark_is_a_file = isinstance(settings.dark, str)
    needs: tuple[tuple[str, bool, str], ...] = (
        ("white", settings.output == "reflectance", "output: reflectance"),
        ("panel_reflectance", settings.output == "reflectance", "output: reflectance"),
        ("white_time_ms", settings.white is not None, "a white"),
        ("flat", settings.output != "reflectance", "output: dn or radiance; in reflectance it cancels"),
        ("gain", settings.output != "reflectance", "output: dn or radiance; in reflectance it cancels"),
        ("dark_time_ms", dark_is_a_file, "a dark that is a file; a number holds at every time"),
        ("second_dark", dark_is_a_file, "a dark that is a file"),
        ("second_dark_time_ms", settings.second_dark is not None, "a second_dark"),
    )
    for key, used, need in needs:
        if getattr(settings, key) is not None and not used:
            raise ConfigError("has no effect here", key=f"{SECTION}.{key}", remedy=f"it needs {need}")


def _refuse_incomplete(settings: RadiometrySettings) -> None:
    wanted: list[tuple[str, str]] = []
    if settings.output == "reflectance":
        wanted += [(key, "output: reflectance") for key in ("dark", "white", "panel_reflectance")]
    if settings.output == "radiance":
        wanted += [(key, "output: radiance") for key in ("dark", "gain", "integration_time_ms", "scale")]
    if settings.second_dark is not None:
        wanted += [(key, "a second_dark") for key in ("dark_time_ms", "second_dark_time_ms", "integration_time_ms")]
    wanted += [
        ("integration_time_ms", key) for key in ("dark_time_ms", "white_time_ms") if getattr(settings, key) is not None
    ]
    remedies = {"dark": "give a file; `dark: 0` if the camera subtracts it itself"}
    for key, why in wanted:
        if getattr(settings, key) is None:
            remedy = remedies.get(key, f"give {RadiometrySettings.model_fields[key].description}")
            raise ConfigError(f"is missing, {why} needs it", key=f"{SECTION}.{key}", remedy=remedy)


def _explained(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if key not in RadiometrySettings.model_fields:
        known = ", ".join(RadiometrySettings.model_fields)
        return ConfigError("is not a key known here", key=f"{SECTION}.{key}", remedy=f"known are {known}")
    return _wrong(key, first["input"])


def _wrong(key: str, value: object) -> ConfigError:
    must = RadiometrySettings.model_fields[key].description
    return ConfigError("has no such value", key=f"{SECTION}.{key}", value=value, remedy=f"give {must}")
