"""Videos out, by PyAV: restored frames at the times of those they were made of, and the sound as it was."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.videos import CAREFUL, FULL, LIMITED, Video

Kind = Literal["mp4", "matroska"]
KINDS: dict[str, Kind] = {".mp4": "mp4", ".mkv": "matroska"}
ENCODERS = {
    "libx264": "H.264 (libx264, crf 12, yuv444p), nearly without loss",
    "ffv1": "FFV1 (RGB), without loss",
}
"""For people."""
TAGS = {1: 1, 4: 4, 5: 6, 7: 7, 9: 9}
"""Matrix by swscale -> by ITU-T H.273."""


def encoder_of(kind: Kind, like: Video) -> str:
    """What a video is written with: FFV1 in Matroska, but for pixels that are not square, which it cannot say."""
    return "ffv1" if kind == "matroska" and like.aspect == 1 else "libx264"


class VideoFile:
    """A video that is written.

    Args:
        file: a path, or something to write to, which need not be seekable.
        kind: of the file.
        like: the video that it is made of. first: its first frame, which says how it is to be turned.

    Attributes:
        notes: what of it is not kept, for people.

    Raises:
        CubeFileError: this kind of file does not hold its sound.
    """

    def __init__(self, file: Any, kind: Kind, like: Video, first: VideoFrame) -> None:
        # What was RGB becomes BT.709 where it stays RGB no longer.
        self._matrix = like.matrix(first) or 1
        self._container = av.open(file, "w", format=kind)
        self._container.metadata.update(like.container.metadata)
        rate = like.rate or Fraction(25)
        encoder = encoder_of(kind, like)
        self._exact = encoder == "ffv1"
        if self._exact:
            stream = self._container.add_stream("ffv1", rate, {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"})
        else:
            # With a short look ahead it holds few frames.
            stream = self._container.add_stream("libx264", rate, {"crf": "12", "rc-lookahead": "8"})
        stream.pix_fmt = "bgr0" if self._exact else "yuv444p"
        context, old = stream.codec_context, like.stream.codec_context
        context.width, context.height = like.samples, like.lines
        self._base = context.time_base = like.stream.time_base or 1 / rate
        context.sample_aspect_ratio = like.aspect
        context.color_range = FULL if self._exact else LIMITED
        context.colorspace = 0 if self._exact else TAGS[self._matrix]
        context.color_primaries, context.color_trc = old.color_primaries, old.color_trc
        stream.metadata.update(like.stream.metadata)
        self._stream = stream
        self.notes = self._turned(first)
        if first.interlaced_frame:
            self.notes += ("its interlacing: both fields of a frame are restored as one picture",)
        self._sounds: dict[int, Any] = {}
        for sound in like.sounds:
            try:
                kept = self._container.add_stream_from_template(sound)
            except (ValueError, av.FFmpegError) as error:
                self._container.close()
                raise CubeFileError(
                    f"files of this kind do not hold its sound, {sound.name}", key="--out", value=kind,
                    remedy="write an .mkv file",
                ) from error  # fmt: skip
            kept.metadata.update(sound.metadata)
            self._sounds[sound.index] = kept
        self._step = max(1, round(1 / (rate * self._base)))
        self._last: int | None = None

    def _turned(self, first: VideoFrame) -> tuple[str, ...]:
        matrix: Any = first.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return ()
        if not hasattr(self._stream, "set_display_matrix"):
            return (f"its rotation by {first.rotation} degrees, which a newer PyAV keeps",)
        self._stream.set_display_matrix(np.frombuffer(bytes(matrix), np.int32).tolist())
        return ()

    def frame(self, picture: NDArray[np.uint8], like: VideoFrame) -> None:
        """Add a frame, RGB uint8 [3, lines, samples], at the time of `like`. Raises OSError."""
        made = VideoFrame.from_ndarray(np.ascontiguousarray(np.moveaxis(picture, 0, 2)), format="rgb24")
        if self._exact:
            made = made.reformat(format="bgr0")
        else:
            made = made.reformat(
                format="yuv444p",
                src_color_range=FULL,
                dst_colorspace=self._matrix,
                dst_color_range=LIMITED,
                interpolation=CAREFUL,
            )
        if like.pts is None:
            self._last = 0 if self._last is None else self._last + self._step
        else:
            # Times that stand still would be refused.
            self._last = like.pts if self._last is None else max(like.pts, self._last + 1)
        made.pts, made.time_base, made.duration = self._last, self._base, like.duration or self._step
        self._container.mux(self._stream.encode(made))

    def sound(self, packet: Packet[Stream]) -> None:
        """Add a packet of the sound, as it is. Raises OSError."""
        packet.stream = self._sounds[packet.stream.index]
        self._container.mux(packet)

    def finish(self) -> None:
        """Write what is still on its way, and the end. Raises OSError."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Give the file back as it is."""
        self._container.close()
