"""Videos in, by PyAV: frames as RGB pictures, one after the other, and the packets of the sound between them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.errors import CubeFileError, MachineError
from runtime.files.disk import available_memory, reason

FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,yuv4mpegpipe,mxf,nut,ivf,h264,hevc"
"""Of FFmpeg's demuxers. None of them follows what a file names: others open what stands in a playlist."""
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
"""Matrix by ITU-T H.273 -> by swscale, which has none of constant luminance (10)."""
FULL, LIMITED = 2, 1
CAREFUL = 4 | 0x40000 | 0x2000 | 0x4000
"""swscale: bicubic colour, rounded accurately, as fine as the brightness."""
HELD_FRAMES = 24
"""That decoder and encoder hold at most, about."""
SLACK = 0.5
"""Seconds that the last frame may come before the end that the file states."""
_HD = 720
_UNTOLD = (2, 3)
_AGAIN = "copy it again, or save it anew in a program that plays it"


class Video(Closing):
    """An open video; iterate once over its frames and, between them, packets of its sound.

    Args:
        file: what it is read from, which need not be seekable.
        path: its name, for people.

    Attributes:
        lines, samples: of the frames as they are stored.
        rate: frames per second, where it tells; frames: how many, about, where it tells.
        aspect: width of a pixel over its height.
        sounds: streams of sound. left: what else it holds, and what is lost when it is restored, for people.

    Raises:
        CubeFileError: it is no video that is read, or damaged. MachineError: its frames do not fit into memory.
    """

    def __init__(self, file: Any, path: Path) -> None:
        self.path = path
        whitelists = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        try:
            self.container = av.open(file, "r", container_options=whitelists, metadata_errors="replace")
        except av.FFmpegError as error:
            raise CubeFileError(
                f"is no video that can be read, or is damaged or cut short: {_said(error)}", file=path, remedy=_AGAIN
            ) from error
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        streams = self.container.streams
        pictures = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
        if not pictures or not pictures[0].codec_context or not pictures[0].width:
            raise CubeFileError("holds no video that can be decoded", file=self.path, remedy=_AGAIN)
        self.stream = pictures[0]
        self.sounds: tuple[AudioStream, ...] = streams.audio
        self.lines, self.samples = self.stream.height, self.stream.width
        needed, there = HELD_FRAMES * 3 * self.lines * self.samples, available_memory()
        if needed > there:
            raise MachineError(
                f"{HELD_FRAMES} frames of it take {needed >> 20} MiB of memory, {there >> 20} MiB are available",
                file=self.path,
                value=f"{self.samples} x {self.lines}",
                remedy="make its frames smaller",
            )
        self.rate: Fraction | None = self.stream.average_rate or self.stream.guessed_rate
        self.frames = self.stream.frames or self._counted()
        self.aspect = self.stream.sample_aspect_ratio or Fraction(1)
        others: dict[str, int] = {}
        for other in streams:
            if other is not self.stream and other.type != "audio":
                others[other.type] = others.get(other.type, 0) + 1
        form = self.stream.format
        deep = max((c.bits for c in form.components), default=8) if form else 8
        told = {
            f"{deep} bits of its colours: they become 8": deep > 8,
            "its transparency": bool(form) and any(c.is_alpha for c in form.components),
            ", ".join(f"{count} of {kind}" for kind, count in others.items()): bool(others),
        }
        self.left = tuple(what for what, lost in told.items() if lost)

    @property
    def stated(self) -> tuple[float, float] | None:
        """When the pictures begin and end, in seconds, as the file states; None where it does not."""
        base, begins = self.stream.time_base, self.stream.start_time or 0
        if base is not None and self.stream.duration is not None:
            return float(begins * base), float((begins + self.stream.duration) * base)
        parts = self.stream.metadata.get("DURATION", "").split(":")
        try:
            # Matroska's, which is no length: it counts from 0, whenever the pictures begin.
            hours, minutes, seconds = map(float, parts)
        except ValueError:
            whole, first = self.container.duration, self.container.start_time or 0
            return (first / 1e6, (first + whole) / 1e6) if whole and len(self.container.streams) == 1 else None
        return float(begins * base) if base else 0.0, 3600 * hours + 60 * minutes + seconds

    def _counted(self) -> int | None:
        return round((self.stated[1] - self.stated[0]) * self.rate) if self.stated and self.rate else None

    def __iter__(self) -> Iterator[VideoFrame | Packet[Stream]]:
        """Raises CubeFileError where it is damaged or cut short; what came before is good."""
        number, ended = 0, Fraction(0)
        try:
            for packet in self.container.demux(self.stream, *self.sounds):
                if packet.stream is not self.stream:
                    if packet.dts is not None:
                        yield packet
                    continue
                if packet.is_corrupt:
                    raise self._damaged(number, "a packet is not whole")
                for frame in self.stream.decode(packet if packet.size else None):
                    if frame.is_corrupt:
                        raise self._damaged(number, "the next frame is not whole")
                    if (frame.height, frame.width) != (self.lines, self.samples):
                        raise self._damaged(number, f"the next frame has {frame.width} x {frame.height} pixels")
                    # The last frames that a decoder gives have no time base of their own.
                    if frame.pts is not None and self.stream.time_base is not None:
                        ended = max(ended, (frame.pts + (frame.duration or 0)) * self.stream.time_base)
                    number += 1
                    yield frame
        except av.FFmpegError as error:
            raise self._damaged(number, _said(error)) from error
        if self.stated is not None and float(ended) + SLACK + (1 / self.rate if self.rate else 0) < self.stated[1]:
            raise self._damaged(number, f"it ends at {float(ended):.2f} s of {self.stated[1]:.2f} s")

    def _damaged(self, number: int, why: str) -> CubeFileError:
        return CubeFileError(f"is damaged or cut short behind frame {number}: {why}", file=self.path, remedy=_AGAIN)

    def matrix(self, frame: VideoFrame) -> int | None:
        """Matrix of a frame's colours by swscale, None of RGB. Raises CubeFileError: it is none that is read.

        A frame that does not say has that of HD from 720 lines or 1280 samples on, as players take it.
        """
        if frame.format.is_rgb:
            return None
        told = frame.colorspace
        if told in _UNTOLD:
            return 1 if self.lines >= _HD or self.samples >= 1280 else 5
        if told not in MATRICES:
            raise CubeFileError(
                "its colours are of a kind that is not read", file=self.path, key="matrix", value=told,
                remedy="convert it to BT.709 before",
            )  # fmt: skip
        return MATRICES[told]

    def picture(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """A frame as RGB, uint8 [3, lines, samples], by its own matrix and range."""
        matrix = self.matrix(frame)
        full = matrix is None or frame.color_range == FULL or frame.format.name.startswith("yuvj")
        rgb = frame.reformat(
            format="rgb24",
            src_colorspace=matrix,
            src_color_range=FULL if full else LIMITED,
            dst_color_range=FULL,
            interpolation=CAREFUL,
        )
        return np.ascontiguousarray(np.moveaxis(np.asarray(rgb.to_ndarray(), np.uint8), 2, 0))

    def close(self) -> None:
        self.container.close()


def _said(error: av.FFmpegError) -> str:
    return error.strerror or reason(error)
