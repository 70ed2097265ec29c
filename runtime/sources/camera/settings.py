"""What a configuration may say of a camera, and how the camera is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import ValidationError as _Invalid

from runtime.errors import InputError
from runtime.sources.camera.aravis import Camera
from runtime.sources.camera.aravis_library import AravisError
from runtime.sources.camera.geometry import Geometry
from runtime.sources.camera.pixel_formats import BY_NAME

LOOPBACK_PACKET = 9000
"""Bytes of a packet where no network lies between."""


class CameraSettings(Geometry):
    """What `camera` of a configuration may say, beside what is known as `Geometry`.

    Attributes:
        pixel_format: name in the PFNC; None leaves the camera's own.
        frame_rate: images per second. exposure_us: in microseconds. None leaves the camera's own.
        features: any others by their GenICam names; set in this order, before the others and again after them.
        packet_size: bytes of a GigE Vision packet; None lets Aravis find the largest that comes through.
        buffers: images that Aravis may fill ahead; None for half a second's worth, at least 64, at most 512 MiB.
        packet_resend: ask again for packets that were lost (GigE Vision).
        stall_seconds: without a line for so long, the camera is opened again; None waits for ever (external trigger).
        reopen_seconds: between tries to open it again.
    """

    pixel_format: StrictStr | None = None
    frame_rate: Annotated[float, Field(gt=0, le=1e6, strict=True)] | None = None
    exposure_us: Annotated[float, Field(gt=0, le=1e9, strict=True)] | None = None
    features: dict[StrictStr, StrictBool | StrictInt | StrictFloat | StrictStr] = Field(default_factory=dict)
    packet_size: Annotated[int, Field(ge=576, le=65500, strict=True)] | None = None
    buffers: Annotated[int, Field(ge=8, le=8192, strict=True)] | None = None
    packet_resend: StrictBool = True
    stall_seconds: Annotated[float, Field(gt=0, le=1e6, strict=True)] | None = 5.0
    reopen_seconds: Annotated[float, Field(gt=0, le=3600, strict=True)] = 1.0

    @classmethod
    def of(cls, camera: Mapping[str, Any]) -> CameraSettings:
        """The settings that a configuration gives.

        Raises:
            InputError: an unknown key or an unfit value.
        """
        try:
            settings = cls.model_validate(dict(camera))
        except _Invalid as error:
            first = error.errors(include_url=False)[0]
            unknown = first["type"] == "extra_forbidden"
            raise InputError(
                "there is no such key" if unknown else first["msg"].removeprefix("Value error, "),
                key=".".join(
                    ("camera", *(str(part) for part in first["loc"][: 2 if first["loc"][0] == "features" else 1]))
                ),
                value=None if unknown else first["input"],
                remedy="use " + ", ".join(cls.model_fields) if unknown else "",
            ) from error
        if settings.pixel_format is not None and settings.pixel_format not in BY_NAME:
            raise InputError(
                "not a pixel format that is read here",
                key="camera.pixel_format",
                value=settings.pixel_format,
                remedy="use " + ", ".join(BY_NAME),
            )
        settings.check()
        return settings


def configure(camera: Camera, settings: CameraSettings, name: str) -> None:
    """Stop a camera, open by `name`, and give it these settings.

    Raises:
        InputError: it refuses one, or makes something else of it.
        AravisError: it does not answer.
    """
    # A killed program may have left it running, and it takes no settings then.
    with suppress(AravisError):
        camera.stop()
    _set_features(camera, settings)
    if settings.pixel_format is not None:
        offered = "the camera offers " + ", ".join(camera.pixel_formats())
        with _setting("pixel_format", settings.pixel_format, offered):
            camera.set_pixel_format(settings.pixel_format)
    # The exposure before the rate that it limits.
    if settings.exposure_us is not None:
        with _setting("exposure_us", settings.exposure_us):
            camera.set_exposure_us(settings.exposure_us)
    if settings.frame_rate is not None:
        with _setting("frame_rate", settings.frame_rate):
            camera.set_frame_rate(settings.frame_rate)
        # With the rate, Aravis sets others: it switches triggers off.
        _set_features(camera, settings)
        with _setting("frame_rate", settings.frame_rate):
            _require_near("frame_rate", settings.frame_rate, camera.frame_rate())
    if settings.exposure_us is not None:
        with _setting("exposure_us", settings.exposure_us):
            _require_near("exposure_us", settings.exposure_us, camera.exposure_us())
    if camera.gige:
        if settings.packet_size is not None:
            with _setting("packet_size", settings.packet_size):
                camera.set_packet_size(settings.packet_size)
        elif camera.negotiate_packet_size() < LOOPBACK_PACKET and name.startswith("127."):
            # No network lies between, whatever the camera cannot negotiate.
            with suppress(AravisError):
                camera.set_packet_size(LOOPBACK_PACKET)


@contextmanager
def _setting(key: str, value: object, remedy: str = "") -> Iterator[None]:
    """What the camera refuses becomes an InputError; that it does not answer stays what it is."""
    try:
        yield
    except AravisError as error:
        if "timeout" in str(error):
            raise
        raise InputError(
            f"the camera refuses it: {error}", key=f"camera.{key}", value=value, remedy=remedy or "correct or drop it"
        ) from error


def _set_features(camera: Camera, settings: CameraSettings) -> None:
    for name, value in settings.features.items():
        with _setting(f"features.{name}", value):
            _set_feature(camera, name, value)


def _set_feature(camera: Camera, name: str, value: bool | int | float | str) -> None:
    try:
        camera.set(name, value)
    except AravisError:
        # A whole number may be meant for a feature of real numbers.
        if isinstance(value, bool) or not isinstance(value, int):
            raise
        try:
            camera.set(name, float(value))
        except AravisError:
            camera.set(name, value)
        return
    if isinstance(value, float):
        return
    kept: object = value
    # Some can only be written.
    with suppress(AravisError):
        kept = camera.get(name, value)
    if kept != value:
        raise InputError(f"the camera made {kept} of it", key=f"camera.features.{name}", value=value)


def _require_near(key: str, asked: float, got: float) -> None:
    if abs(got - asked) > 0.02 * asked:
        raise InputError(
            f"the camera made {got:g} of it", key=f"camera.{key}", value=asked, remedy="ask for what it can do"
        )
