"""`deploy run` on videos: what goes in, what comes out, by PyAV, and what is left of damaged and interrupted ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from runtime.files.videos import CAREFUL, Video
from runtime.files.videos_out import VideoFile
from tests.contracts.bundles import reseal
from tests.contracts.command import assert_failed, assert_json_error, command_line, invoke

Capsys = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
FRAMES, LINES, SAMPLES = 12, 48, 66


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def pictures() -> list[NDArray[np.uint8]]:
    """Smooth and dark, [lines, samples, 3]; the last is black."""
    line, sample = np.mgrid[:LINES, :SAMPLES]
    made = [np.stack([40 + sample + n, 30 + line, 90 - sample + n], -1).astype(np.uint8) for n in range(FRAMES - 1)]
    return [*made, np.zeros_like(made[0])]


def planes(picture: NDArray[np.uint8], matrix: int, full: bool) -> NDArray[np.uint8]:
    """Brightness and colours [3, lines, samples] by the formulas of ITU-T H.273."""
    of_red, of_blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    red, green, blue = np.moveaxis(picture.astype(float), 2, 0)
    bright = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    colours = np.stack([(blue - bright) / (1 - of_blue), (red - bright) / (1 - of_red)]) / 2
    if not full:
        bright, colours = 16 + bright * 219 / 255, colours * 224 / 255
    return np.rint([bright, *(128 + colours)]).astype(np.uint8)


def video(
    name: str,
    *,
    encoder: str = "libx264",
    form: str = "yuv444p",
    matrix: tuple[int, int] = (1, 1),
    full: bool = False,
    time: Callable[[int], int] = lambda n: 40 * n,
    sound: str = "",
    turned: int | None = None,
    aspect: int = 1,
    fields: str = "",
) -> None:
    """Write one of 25 frames per second; `matrix` by swscale and by H.273."""
    with av.open(name, "w") as out:
        options = {"crf": "0", "x264-params": fields} if encoder == "libx264" else {}
        stream = out.add_stream(encoder, 25, options)
        stream.width, stream.height, stream.pix_fmt = SAMPLES, LINES, form
        context = stream.codec_context
        context.time_base, context.sample_aspect_ratio = Fraction(1, 1000), Fraction(aspect)
        context.color_range, context.colorspace = 1 + full, matrix[1]
        context.color_primaries, context.color_trc = 5, 6
        if turned is not None:
            stream.set_display_rotation(turned)
        heard = out.add_stream(sound, 48000, layout="mono") if sound else None
        out.metadata["title"] = "a film"
        for number, picture in enumerate(pictures()):
            if form == "yuv444p":
                frame = VideoFrame.from_ndarray(planes(picture, matrix[0], full), format=form)
            else:
                frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form, interpolation=CAREFUL)
            frame.pts, frame.time_base = time(number), Fraction(1, 1000)
            out.mux(stream.encode(frame))
            if heard is not None:
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = 48000, 1920 * number, Fraction(1, 48000)
                out.mux(heard.encode(tone))
        out.mux(stream.encode(None))
        if heard is not None:
            out.mux(heard.encode(None))


def seen(name: str) -> tuple[list[VideoFrame], list[float], list[bytes], Any]:
    """Frames, their times, packets of the sound, and the stream."""
    with av.open(name) as file:
        stream = file.streams.video[0]
        frames, sounds = [], []
        for packet in file.demux():
            if packet.stream is stream:
                frames += packet.decode()
            elif packet.size:
                sounds.append(bytes(packet))
        return frames, [frame.time for frame in frames], sounds, stream


def restored(capsys: Capsys, *arguments: object) -> dict[str, Any]:
    done = invoke(capsys, "run", *arguments, "--json")
    assert done.code == 0, done.err
    return done.json


def uneven(number: int) -> int:
    return 40 * number + 7 * (number % 3)


@pytest.mark.parametrize(("out", "within"), [("out.mkv", 1.0), ("out.mp4", 1.6)])
@pytest.mark.parametrize(
    ("form", "matrix", "full"),
    [("yuv444p", (1, 1), False), ("yuv444p", (5, 6), True), ("yuv444p", (9, 9), False), ("yuv444p", (5, 2), False)],
)
def test_every_frame_is_restored_in_its_own_colours(
    capsys: Capsys, doubling: Path, out: str, within: float, form: str, matrix: tuple[int, int], full: bool
) -> None:
    video("in.mkv", form=form, matrix=matrix, full=full, time=uneven)
    told = restored(capsys, doubling, "in.mkv", "--out", out)
    assert told["frames"] == FRAMES and told["complete"] and not told["warnings"]
    frames, times, _, stream = seen(out)
    assert times == [pytest.approx(uneven(n) / 1000, abs=1e-4) for n in range(FRAMES)]
    with Path(out).open("rb") as file, Video(file, Path(out)) as again:
        for frame, picture in zip(frames, pictures(), strict=True):
            off = np.abs(again.picture(frame) - 2.0 * np.moveaxis(picture, 2, 0))
            # What the input's 8 bits of brightness and colour round away is doubled.
            assert off.mean() < within
    assert (stream.color_primaries, stream.color_trc) == (5, 6)
    if out == "out.mp4":
        assert (stream.color_range, stream.colorspace) == (1, {2: 6}.get(matrix[1], matrix[1]))


def test_sound_turning_title_and_shape_of_pixels_are_kept(capsys: Capsys, doubling: Path) -> None:
    video("in.mp4", sound="aac", turned=90, aspect=2, form="yuv420p")
    _, times, sounds, _ = seen("in.mp4")
    for out in ("out.mkv", "out.mp4"):
        told = restored(capsys, doubling, "in.mp4", "--out", out)
        assert told["encoder"].startswith("H.264")
        frames, after, copied, made = seen(out)
        assert copied == sounds and made.average_rate == 25
        context = made.codec_context
        assert (context.width, context.height, context.sample_aspect_ratio) == (SAMPLES, LINES, 2)
        assert {frame.rotation for frame in frames} == {90} and made.container.metadata["title"] == "a film"
        # Matroska has no times before 0, at which this sound begins: all of it moves.
        np.testing.assert_allclose(np.diff(after), np.diff(times), atol=1.1e-3)


def test_what_cannot_be_kept_is_told(capsys: Capsys, doubling: Path) -> None:
    video("in.mkv", form="yuv420p10le", sound="pcm_s16le")
    told = restored(capsys, doubling, "in.mkv", "--out", "out.mkv")
    assert told["warnings"] == ["not kept of in.mkv: 10 bits of its colours: they become 8"]
    assert told["encoder"].startswith("FFV1")
    video("in.mkv", sound="pcm_s16le")
    done = invoke(capsys, "run", doubling, "in.mkv", "--out", "out.mp4")
    # FFmpeg has learned to put it there.
    if done.code:
        assert_failed(done, 2, "do not hold its sound", "write an .mkv file")


def test_interlaced_ones_are_told(capsys: Capsys, doubling: Path) -> None:
    video("in.mkv", form="yuv420p", fields="tff=1")
    assert (
        "both fields of a frame are restored as one picture"
        in f"{restored(capsys, doubling, 'in.mkv', '--out', 'o.mkv')}"
    )


def test_a_frame_that_its_decoder_calls_corrupt_is_no_good_one(capsys: Capsys, doubling: Path) -> None:
    rng = np.random.default_rng(0)
    with av.open("in.mkv", "w") as out:
        stream = out.add_stream("mpeg2video", 25, {"g": "15", "b": "400000"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        base = np.kron(rng.integers(0, 120, (15, 20, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        for number in range(30):
            out.mux(stream.encode(VideoFrame.from_ndarray(np.roll(base, 3 * number, 1), format="rgb24")))
        out.mux(stream.encode(None))
    data = bytearray(Path("in.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(value ^ 0xA5 for value in data[middle : middle + 40])
    Path("in.mkv").write_bytes(data)
    done = invoke(capsys, "run", doubling, "in.mkv", "--out", "out.mkv")
    assert_failed(done, 2, "damaged or cut short behind frame")


def test_sound_without_an_end_before_the_first_frame_is_refused(
    capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video("in.mkv", sound="pcm_s16le", time=lambda n: 2000 + 40 * n)
    monkeypatch.setattr("deploy.commands.run_video.MOST_HELD", 100)
    assert_failed(invoke(capsys, "run", doubling, "in.mkv", "--out", "out.mkv"), 2, "too much sound")


def cut(name: str, share: float) -> None:
    data = Path(name).read_bytes()
    Path(name).write_bytes(data[: int(share * len(data))])


# The last frames of H.264 come when the file has ended: its decoder puts them in order.
@pytest.mark.parametrize(("encoder", "form"), [("ffv1", "bgr0"), ("libx264", "yuv444p")])
def test_of_one_that_is_cut_short_what_came_before_is_kept(
    capsys: Capsys, doubling: Path, encoder: str, form: str
) -> None:
    video("in.mkv", encoder=encoder, form=form, time=lambda n: 400 * n)
    cut("in.mkv", 0.5)
    done = invoke(capsys, "run", doubling, "in.mkv", "--out", "out.mkv", "--json")
    error, count = assert_json_error(done, 2), done.json["frames"]
    assert "is damaged or cut short behind frame" in error["message"] and not done.json["complete"]
    assert f"the {count} frames before are kept in out.mkv, a whole shorter video" in error["remedy"]
    assert 0 < count < FRAMES and len(seen("out.mkv")[0]) == count
    # A whole one that is there already is worth more.
    before = Path("out.mkv").read_bytes()
    assert_failed(invoke(capsys, "run", doubling, "in.mkv", "--out", "out.mkv", "--replace"), 2, "cut short")
    assert Path("out.mkv").read_bytes() == before and sorted(p.name for p in Path().iterdir()) == ["in.mkv", "out.mkv"]


def test_one_that_begins_late_is_whole(capsys: Capsys, doubling: Path) -> None:
    for name in ("in.mkv", "in.mp4"):
        video(name, time=lambda n: 3000 + 40 * n, sound="aac")
        assert restored(capsys, doubling, name, "--out", f"out-{name}")["complete"]
        assert len(seen(f"out-{name}")[0]) == FRAMES


def test_ctrl_c_leaves_a_whole_shorter_one(capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video("in.mp4", sound="aac")
    frame = VideoFile.frame
    count = 0

    def interrupted(self: VideoFile, *arguments: Any) -> None:
        nonlocal count
        if count == 5:
            raise KeyboardInterrupt
        count += 1
        frame(self, *arguments)

    monkeypatch.setattr(VideoFile, "frame", interrupted)
    done = invoke(capsys, "run", doubling, "in.mp4", "--out", "out.mp4")
    assert done.code == 130 and "the 5 frames before are kept in out.mp4, a whole shorter video" in done.err
    assert len(seen("out.mp4")[0]) == 5
    done = invoke(capsys, "run", doubling, "in.mp4", "--out", "none.mp4")
    assert done.code == 130 and sorted(p.name for p in Path().iterdir()) == ["in.mp4", "out.mp4"]


def test_through_pipes(doubling: Path, tmp_path: Path) -> None:
    video("in.mkv", sound="aac")
    with Path("in.mkv").open("rb") as file:
        done = subprocess.run(
            command_line("run", doubling, "-", "--out", "-"),
            stdin=file, capture_output=True, check=False, env={"PYTHONPATH": str(ROOT)}, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0 and b"wrote       standard output" in done.stderr
    Path("out.mkv").write_bytes(done.stdout)
    frames, _, sounds, stream = seen("out.mkv")
    assert len(frames) == FRAMES and sounds == seen("in.mkv")[2] and stream.codec_context.name == "ffv1"


def not_a_video(name: str) -> None:
    Path(name).write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")


def without_an_end(name: str) -> None:
    video(name)
    cut(name, 0.5)


def sound_alone(name: str) -> None:
    with av.open(name, "w") as out:
        stream = out.add_stream("aac", 48000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        tone.sample_rate = 48000
        out.mux([*stream.encode(tone), *stream.encode(None)])


@pytest.mark.parametrize(
    ("make", "arguments", "parts"),
    [
        (not_a_video, ["in.mp4", "--out", "out.mkv"], ("is no video that can be read",)),
        (without_an_end, ["in.mp4", "--out", "out.mkv"], ("is no video that can be read, or is damaged",)),
        (sound_alone, ["in.mp4", "--out", "out.mkv"], ("holds no video",)),
        (lambda name: None, ["in.mp4", "--out", "out.mkv"], ("no such file",)),
        (video, ["in.mp4", "--out", "out.avi"], ("is no kind of video that is written", ".mp4 or .mkv")),
        (video, ["in.mp4", "--out", "in.mp4", "--replace"], ("would overwrite the input",)),
        (video, ["in.mp4", "--out", "in.mp4"], ("would overwrite the input",)),
        (video, ["in.mp4", "--out", "none/out.mp4"], ("no such folder",)),
        (video, ["in.mp4", "--out", "out.mkv", "--bands", "0"], ("--bands: is of one cube or photograph",)),
    ],
)
def test_refused(capsys: Capsys, doubling: Path, make: Any, arguments: list[str], parts: tuple[str, ...]) -> None:
    make("in.mp4")
    before = sorted(Path().iterdir())
    assert_failed(invoke(capsys, "run", doubling, *arguments), 2, *parts)
    assert sorted(Path().iterdir()) == before


def test_networks_of_one_size_and_output_for_machines(capsys: Capsys, doubling: Path) -> None:
    video("in.mp4")
    error = assert_json_error(invoke(capsys, "run", doubling, "in.mp4", "--out", "-", "--json"), 2)
    assert error["key"] == "--json"
    fixed = Path("fixed")
    shutil.copytree(doubling, fixed)
    reseal(fixed, lambda content: (content["signature"].update(tiling="fixed"), content.update(overlap=0)))
    done = invoke(capsys, "run", fixed, "in.mp4", "--out", "out.mkv")
    assert_failed(done, 2, "in.mp4, cube: the network takes frames of one size", "'48x66'")


def test_without_the_extra(capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("runtime.files.videos", "runtime.files.videos_out"):
        monkeypatch.delitem(sys.modules, name)
    Path("in.mp4").write_bytes(b"none")
    done = invoke(capsys, "run", doubling, "in.mp4", "--out", "out.mp4")
    assert_failed(done, 3, "av is not installed", 'pip install "damp-deploy[video]"')
