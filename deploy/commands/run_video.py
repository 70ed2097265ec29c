"""`deploy run` on a video: every frame restored, its time and the sound kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import Bundle
from runtime.durable import replacing
from runtime.errors import CubeError, CubeFileError, InputError, MachineError
from runtime.files import CubeFile
from runtime.files.disk import opened as opened_file
from runtime.files.disk import reason, refuse_inputs
from runtime.restore import check_fits
from runtime.stated import Stated

from .. import console
from ..folders import refuse_existing
from .run_cube import How, opened, proved, refuse_large

MOST_HELD = 64 << 20
"""Bytes of sound that wait for the first frame."""

if TYPE_CHECKING:
    from runtime.files.videos import Video
    from runtime.files.videos_out import Kind

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv",
            ".ogv", ".y4m", ".mxf", ".nut", ".ivf", ".h264", ".hevc")  # fmt: skip
PIPE = Path("-")
STATED = Stated(scale=255.0, axes=True, photograph=True)
"""Of a frame's numbers."""


def is_video(path: Path) -> bool:
    """Whether this input is taken for a video: by its suffix, or since it comes through a pipe."""
    return path == PIPE or path.suffix.lower() in SUFFIXES


@dataclass
class _Told:
    """What is gathered over all frames."""

    frames: int = 0
    saturated: int = 0
    doubts: dict[str, None] = field(default_factory=dict)


def run_video(bundle: Path, path: Path, out: Path, how: How) -> dict[str, Any]:
    """Restore a video; returns what `--json` prints.

    Raises:
        InputError: it cannot be used; or at the end: it is damaged or was cut short, and a whole shorter one is kept.
        KeyboardInterrupt: the same; but what was at `out` before is replaced by a whole one alone.
    """
    from runtime.files.videos import Video
    from runtime.files.videos_out import ENCODERS, encoder_of

    how.refuse_for("a video")
    kind = _kind(path, out, how)
    told, began, ended = _Told(), time.monotonic(), None
    where = "standard output" if out == PIPE else str(out)
    with _read(path) as (file, name), Video(file, name) as video, opened(bundle, how) as loaded:
        _refuse_unfit(loaded, video)
        proved(loaded, how)
        for what in video.left:
            console.warn(f"not kept of {name}: {what}")
        rate = "" if video.rate is None else f", {float(video.rate):.5g} per second"
        console.say(f"video       {video.lines} lines x {video.samples} samples{rate}")
        encoder = ENCODERS[encoder_of(kind, video)]
        console.say(f"written as  {encoder}")
        known = {"prompt": loaded.prompts.chosen, "precision": loaded.engine.describe()["computes in"]}
        with _written(out) as target, console.progress("restoring") as moved:
            ended = _restore(video, target, kind, _restorer(loaded, name, how, told), told, moved)
            if ended is not None and (not told.frames or (out != PIPE and out.exists())):
                raise ended
    seconds = round(time.monotonic() - began, 3)
    console.say(f"restored    {told.frames} frames in {seconds:.2f} s")
    for doubt in told.doubts:
        console.warn(doubt)
    report = {
        "out": str(out), "frames": told.frames, "seconds": seconds, "encoder": encoder,
        "saturated": told.saturated, "doubts": list(told.doubts), "complete": ended is None, **known,
    }  # fmt: skip
    if ended is not None:
        kept = f"the {told.frames} frames before are kept in {where}, a whole shorter video"
        if isinstance(ended, CubeFileError):
            ended.remedy, ended.report = f"{kept}; {ended.remedy}", report
        else:
            console.complain(f"deploy: {kept}")
        raise ended
    console.say(f"wrote       {where}", "bold green")
    return report


def _kind(path: Path, out: Path, how: How) -> Kind:
    """What is written; refuses before any work what cannot be. Raises InputError."""
    from runtime.files.videos_out import KINDS

    if out == PIPE:
        if console.for_machines:
            raise InputError("standard output is the video's", key="--json", remedy="leave it out, or give a file")
        if sys.stdout.isatty():
            raise InputError("a terminal shows no video", key="--out", value="-", remedy="lead it into a pipe or file")
        console.speak_to(machines=True)
        return "matroska"
    if out.suffix.lower() not in KINDS:
        raise CubeFileError(
            "is no kind of video that is written", file=out, value=out.suffix or None,
            remedy=f"use {' or '.join(KINDS)}, or - for Matroska to standard output",
        )  # fmt: skip
    refuse_inputs(out, [path])
    refuse_existing(out, how.replace)
    if not out.absolute().parent.is_dir():
        raise InputError("no such folder", file=out, key="--out", remedy="make the folder first")
    return KINDS[out.suffix.lower()]


@contextmanager
def _read(path: Path) -> Iterator[tuple[Any, Path]]:
    """What a video is read from, and its name for people. Raises CubeFileError."""
    if path == PIPE:
        yield sys.stdin.buffer, Path("standard input")
        return
    with opened_file(path) as (file, _):
        yield file, path


@contextmanager
def _written(out: Path) -> Iterator[Any]:
    """Where a video goes to: standard output, or a name that becomes `out` at the end. Raises InputError."""
    target: AbstractContextManager[Any] = nullcontext(sys.stdout.buffer) if out == PIPE else replacing(out)
    try:
        with target as place:
            yield place if out == PIPE else str(place)
    except OSError as error:
        console.discard(sys.stdout)
        raise MachineError(f"standard output cannot be written: {reason(error)}", key="--out") from error


def _refuse_unfit(loaded: Bundle, video: Video) -> None:
    """Raises CubeError where the network cannot take the frames, or gives something else; MachineError."""
    shape, signature = (3, video.lines, video.samples), loaded.manifest.signature
    refuse_large(CubeFile(np.broadcast_to(np.uint8(0), shape), video.path, "video"))
    try:
        check_fits(shape, signature)
        if not signature.alike:
            raise CubeError("what the network gives is no picture", key="bundle", remedy="give a cube, not a video")
    except CubeError as error:
        error.file = str(video.path)
        raise


Restore = Callable[[NDArray[np.uint8]], NDArray[Any]]


def _restorer(loaded: Bundle, path: Path, how: How, told: _Told) -> Restore:
    def restore(picture: NDArray[np.uint8]) -> NDArray[Any]:
        try:
            meaning = loaded.meaning(picture, STATED, how.asked)
            restored = loaded.restore(picture, meaning=meaning, clip=how.clip)
        except CubeError as error:
            error.file, error.line = str(path), None
            error.problem = f"frame {told.frames + 1}: {error.problem}"
            raise
        told.doubts.update(dict.fromkeys(meaning.doubts))
        told.saturated += restored.saturated
        return restored.cube

    return restore


def _restore(
    video: Video, target: Any, kind: Kind, restore: Restore, told: _Told, moved: Callable[[int, int | None], None]
) -> CubeFileError | KeyboardInterrupt | None:
    """Restore frame after frame into a whole file; what ended it early, if anything."""
    from av.video.frame import VideoFrame

    from runtime.files.videos_out import VideoFile

    held: list[Any] = []
    written: VideoFile | None = None
    ended: CubeFileError | KeyboardInterrupt | None = None
    try:
        for item in video:
            if not isinstance(item, VideoFrame):
                held.append(item)
                if written is None and sum(packet.size for packet in held) > MOST_HELD:
                    raise CubeFileError(
                        "has too much sound before its first frame", file=video.path, value=f"{MOST_HELD >> 20} MiB",
                        remedy="leave the sound out: ffmpeg -i IN -an -c copy OUT",
                    )  # fmt: skip
            elif written is None:
                written = VideoFile(target, kind, video, item)
                for what in written.notes:
                    console.warn(f"not kept of {video.path}: {what}")
            if written is None:
                continue
            while held:
                written.sound(held.pop(0))
            if isinstance(item, VideoFrame):
                written.frame(restore(video.picture(item)), item)
                told.frames += 1
                moved(told.frames, video.frames)
    except (CubeFileError, KeyboardInterrupt) as error:
        ended = error
    except BaseException:
        if written is not None:
            with suppress(Exception):
                written.abandon()
        raise
    if written is not None:
        written.finish()
    elif ended is None:
        ended = CubeFileError("holds no frame", file=video.path, remedy="give a video")
    return ended
