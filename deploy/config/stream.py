"""The section `stream` of deploy.yaml: what `deploy stream` does between the source and the sinks."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from .types import MAX_BANDS, Number, PathText, Section, Wavelengths, Whole

Figures = dict[str, Any]
"""Settings that the source or the radiometry checks itself, since it alone knows them."""


class StreamSection(Section):
    """How `deploy stream` runs; flags beat it."""

    bands: Annotated[tuple[Annotated[Whole, Field(ge=0, lt=MAX_BANDS)], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Places of the source's bands that are restored, from 0; null restores all, in groups.",
        examples=[[10, 17, 24]],
    )
    nearest_bands: Annotated[bool, Strict()] = Field(
        default=False,
        description="Restore the source's bands that lie nearest to the network's wavelengths.",
        examples=[True],
    )
    wavelengths: Wavelengths | None = Field(
        default=None,
        description="Centre of every band of the source in nanometres; beats what the source says.",
        examples=[[400.0, 410.0, 420.0]],
    )
    scale: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="Digital number that stands for 1.0; beats source and bundle.", examples=[4095]
    )
    prompt: Annotated[str, Strict(), Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="What the network is told, where the bundle holds several prompts.",
        examples=["derain"],
    )
    saturation: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="Digital number at which the detector is at its limit.", examples=[4095]
    )
    output: Literal["input", "float32"] = Field(
        default="input",
        description="Type of the restored lines: the input's type and scale, or float32 in the unit range, as what a "
        "network makes of another plane always is.",
        examples=["float32"],
    )
    rate: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="Lines per second of a file or the simulator; null for as fast as possible.",
        examples=[100],
    )  # fmt: skip
    idle_seconds: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="A growing file or watched folder has ended when nothing came for so long.",
        examples=[10],
    )  # fmt: skip
    policy: Literal["block", "drop-oldest"] | None = Field(
        default=None,
        description="Restoration that is behind: the source waits, or the oldest frame is dropped; null as it suits.",
        examples=["drop-oldest"],
    )
    line_buffers: Annotated[Whole, Field(ge=8, le=65536)] = Field(
        default=128, description="Lines that may wait to be recorded.", examples=[128]
    )
    frame_buffers: Annotated[Whole, Field(ge=1, le=64)] = Field(
        default=1, description="Frames that may wait to be restored.", examples=[1]
    )
    bridge: Annotated[Whole, Field(ge=0, le=256)] = Field(
        default=4, description="So many missing lines in a row are interpolated; more end a frame.", examples=[4]
    )
    drain_seconds: Annotated[Number, Field(ge=0, le=3600)] = Field(
        default=60, description="After --duration of a live source, what is on its way may take so long.", examples=[60]
    )
    selftest_seconds: Annotated[Number, Field(ge=0, le=86400)] = Field(
        default=60, description="Between two tests of the engine on its golden frames; 0 for none in flight.",
        examples=[60],
    )  # fmt: skip
    refresh_seconds: Annotated[Number, Field(ge=0, le=86400)] = Field(
        default=0, description="After so long the engine is opened anew, though no test has failed; 0 for never.",
        examples=[600],
    )  # fmt: skip
    segment_mib: Annotated[Whole, Field(ge=1, le=65536)] | None = Field(
        default=None, description="Size of a segment of a limited record; null for a sixteenth.", examples=[256]
    )
    camera: Figures = Field(
        default={}, description="Settings of a camera: geometry, pixel format, features.",
        examples=[{"pixel_format": "Mono12", "frame_rate": 330}],
    )  # fmt: skip
    simulator: Figures = Field(
        default={}, description="Settings of the simulator.", examples=[{"seed": 1, "samples": 256}]
    )
    radiometry: Figures = Field(
        default={},
        description="Dark, white, bad pixels and the rest, see docs/radiometry.md; paths from this file's folder.",
        examples=[{"output": "dn", "dark": 64}],
    )
    quicklook_nm: Annotated[
        tuple[Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)]], Field()
    ] = Field(
        default=(640.0, 550.0, 460.0), description="Wavelengths of the quicklook's colours in nm.",
        examples=[[640, 550, 460]],
    )  # fmt: skip
    spectra: Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], Field(max_length=8)] = Field(
        default=(), description="Samples whose spectra the web page shows; none for three across the line.",
        examples=[[100, 320]],
    )  # fmt: skip
    log_seconds: Annotated[Number, Field(gt=0, le=3600)] = Field(
        default=1.0, description="Seconds between lines of telemetry in the log.", examples=[1]
    )
    folder: PathText | None = Field(
        default=None,
        description="Folder that radiometry's paths are seen from; null for this file's.",
        examples=["cal"],
    )
