"""`deploy stream` as its user runs it: files, the simulator, signals, kills, limits."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.archive import pack
from runtime.files import read_cube, write_cube
from runtime.files.envi import read_envi
from runtime.lines import Flag
from runtime.record.index import read_index, verify
from tests.contracts.bundles import reseal
from tests.contracts.command import Done, assert_failed, assert_json_error, command_line, invoke
from tests.contracts.line_files import assert_others_read
from tests.contracts.signed import write_keys

ROOT = Path(__file__).parents[2]
SIM = "sim:samples=64,lines=128,rate=400"


def balanced(lines: dict[str, int]) -> None:
    assert lines["in"] == lines["restored"] + lines["dropped"] + lines["incomplete"]
    assert lines["passed"] <= lines["restored"]


def started(
    *arguments: object, folder: Path, limit_bytes: int | None = None, descriptors: int | None = None
) -> subprocess.Popen[str]:
    """A stream in a process of its own, whose files cannot grow beyond `limit_bytes`."""

    def limited() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    return subprocess.Popen(
        command_line("stream", *arguments), cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=limited,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], seconds: float = 60) -> Done:
    out, err = process.communicate(timeout=seconds)
    return Done(process.returncode, out, err)


def wait_for_lines(index: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not index.exists() or index.stat().st_size < 32 * count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no lines came"
        time.sleep(0.02)


def scene(folder: Path, lines: int = 64, samples: int = 64, bands: int = 31) -> Path:
    rng = np.random.default_rng(0)
    cube = rng.integers(100, 9000, (bands, lines, samples)).astype(np.int16)
    write_cube(folder / "scene.hdr", cube, fields={"reflectance scale factor": "10000"})
    return folder / "scene.hdr"


def test_a_file_is_restored_as_deploy_run_restores_it(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = scene(tmp_path)
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", f"envi:{cube}", "--record", tmp_path / "raw",
        "--restored", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = done.json
    assert result["lines"] == {"in": 64, "recorded": 64, "restored": 64, "passed": 0, "dropped": 0, "incomplete": 0}
    assert result["frames"] == 1
    assert result["seconds"] > 0
    invoke(capsys, "run", tiny_bundle, cube, "--out", tmp_path / "run.hdr")
    streamed, run = read_cube(tmp_path / "out/restored.hdr"), read_cube(tmp_path / "run.hdr")
    assert streamed.scale == 10000
    assert streamed.cube.dtype == np.int16
    assert np.abs(streamed.cube.astype(int) - run.cube).max() <= 1, "rounded the other way at most"
    np.testing.assert_array_equal(read_envi(tmp_path / "raw/lines.hdr"), read_envi(cube))
    assert (read_index(tmp_path / "out/restored.idx")["flags"] & Flag.RESTORED).all()


def test_a_rerun_appends_and_other_readers_open_the_files(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = scene(tmp_path, lines=80)
    for _ in range(2):
        done = invoke(
            capsys, "stream", tiny_bundle, "--source", f"envi:{cube}", "--record", tmp_path / "out",
            "--restored", tmp_path / "out", "--json",
        )  # fmt: skip
        assert done.json["lines"]["in"] == 80, "counts are those of this process"
    index = read_index(tmp_path / "out/lines.idx")
    assert index["sequence"].tolist() == list(range(160))
    assert index["frame_id"].tolist() == [*range(80), *range(80)]
    assert np.flatnonzero(index["flags"] & Flag.BREAK).tolist() == [0, 80]
    raw = read_envi(tmp_path / "out/lines.hdr")
    np.testing.assert_array_equal(raw, np.concatenate([read_envi(cube)] * 2, axis=1))
    assert [assert_others_read(tmp_path / "out", name) for name in ("lines", "restored")] == [160, 160]


def test_the_simulator_streams_and_everything_is_told(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", SIM, "--record", tmp_path / "out", "--restored", tmp_path / "out",
        "--quicklook", tmp_path / "now.png", "--packets", tmp_path / "out.ccsds", "--duration", 2, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = done.json["lines"]
    balanced(lines)
    assert lines["in"] > 400
    assert lines["recorded"] == lines["in"] - lines["incomplete"]
    assert lines["restored"] > 0
    report = verify(tmp_path / "out", "lines")
    assert (report.lines, report.bad) == (lines["recorded"], 0)
    assert (tmp_path / "now.png").read_bytes().startswith(b"\x89PNG")
    assert last_housekeeping(tmp_path / "out.ccsds") == lines, "its last word is not the final count"
    told = [json.loads(row) for row in (tmp_path / "out/stream.jsonl").read_text().splitlines()]
    assert {"start", "telemetry", "stop"} <= {row["kind"] for row in told}
    for row in told:
        if row["kind"] == "telemetry":
            now = row["lines"]
            assert now["in"] == now["restored"] + now["dropped"] + now["incomplete"] + now["pending"]
    assert [row["lines"] for row in told if row["kind"] == "stop"] == [lines]
    assert told[-1]["kind"] == "telemetry"
    assert told[-1]["state"] == "stopped"
    assert told[-1]["lines"] == {**lines, "pending": 0}


def last_housekeeping(path: Path) -> dict[str, int]:
    """Counts in the last packet of APID 101, as docs/stream-messages.md says; nothing may be pending."""
    data, place, found = path.read_bytes(), 0, b""
    while place < len(data):
        apid, length = struct.unpack_from(">H2xH", data, place)
        end = place + 6 + length + 1
        found = data[place:end] if apid & 0x7FF == 101 else found
        place = end
    assert place == len(data)
    *counts, pending = struct.unpack_from(">7Q", found, 18)
    assert pending == 0
    return dict(zip(("in", "recorded", "restored", "passed", "dropped", "incomplete"), counts, strict=True))


@pytest.mark.parametrize("gone", [("stdout",), ("stdout", "stderr")], ids="+".join)
def test_who_reads_its_words_does_not_matter_to_the_lines(
    tiny_bundle: Path, tmp_path: Path, gone: tuple[str, ...]
) -> None:
    read, write = os.pipe()
    os.close(read)
    pipes = {name: write if name in gone else subprocess.PIPE for name in ("stdout", "stderr")}
    command = command_line("stream", tiny_bundle, "--source", SIM + ",count=100", "--record", "out", "--json")
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, check=False, timeout=60, **pipes
    )
    assert done.returncode == 0
    assert verify(tmp_path / "out", "lines").lines == 100
    if "stdout" not in gone:
        assert json.loads(done.stdout.splitlines()[-1])["lines"]["recorded"] == 100
    wrong = command_line("stream", tiny_bundle, "--source", "envi:nothing.hdr", "--record", "no", "--json")
    done = subprocess.run(
        wrong, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, check=False, timeout=60, **pipes
    )
    assert done.returncode == 2
    os.close(write)


def test_a_result_that_does_not_fit_is_no_success(tiny_bundle: Path, tmp_path: Path) -> None:
    command = command_line("stream", tiny_bundle, "--source", SIM + ",count=20", "--record", "out", "--json")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, check=False, timeout=60,
            stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.returncode == 3
    assert "deploy: error: the result cannot be written: No space left on device" in done.stderr
    assert verify(tmp_path / "out", "lines").lines == 20


@pytest.mark.parametrize(
    ("dtype", "top", "words"),
    [
        (np.float32, 5.0, "values reach 5 where 1.0 is expected: if another number stands for it, say --scale"),
        (np.uint16, 90.0, "% of the bundle's scale 65535; if this sensor has another scale, say it: --scale"),
        (np.float32, 0.9, None),
        (np.uint16, 60000.0, None),
    ],
)
def test_numbers_that_do_not_look_like_their_scale_are_told(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: type, top: float, words: str | None
) -> None:
    cube = (np.random.default_rng(0).random((31, 40, 48)) * top).astype(dtype)
    write_cube(tmp_path / "scene.hdr", cube)
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", f"envi:{tmp_path / 'scene.hdr'}", "--restored", tmp_path, "--json"
    )
    assert done.code == 0
    told = [warning for warning in done.json["warnings"] if "--scale" in warning and "nobody said" not in warning]
    assert told == done.json["doubts"]
    assert len(told) == (words is not None)
    assert words is None or words in told[0]


def test_lost_lines_are_counted_and_no_number_is_given_twice(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", SIM + ",lost=50,count=600", "--record", tmp_path, "--restored",
        tmp_path, "--json",
    )  # fmt: skip
    lines = done.json["lines"]
    balanced(lines)
    assert lines["in"] == 600
    assert lines["incomplete"] > 5
    assert lines["recorded"] == 600 - lines["incomplete"]
    index = read_index(tmp_path / "lines.idx")
    assert len(index) == lines["recorded"]
    gaps = np.flatnonzero(np.diff(index["sequence"].astype(np.int64)) > 1) + 1
    assert (index["flags"][gaps] & Flag.GAP).all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(tiny_bundle: Path, tmp_path: Path, number: int) -> None:
    process = started(tiny_bundle, "--source", SIM, "--record", "out", "--restored", "out", "--json", folder=tmp_path)
    wait_for_lines(tmp_path / "out/lines.idx", 200, process)
    process.send_signal(number)
    done = ended(process, 20)
    assert done.code == 0, done.err
    assert done.json["ended_by"] == "signal"
    balanced(done.json["lines"])
    assert verify(tmp_path / "out", "lines").lines == done.json["lines"]["recorded"]
    assert len(read_envi(tmp_path / "out/lines.hdr")) == 31


@pytest.mark.parametrize("times", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_9_leaves_no_wrong_line_and_the_next_run_goes_on(tiny_bundle: Path, tmp_path: Path, times: int) -> None:
    rng = np.random.default_rng(times)
    before = 0
    for _ in range(times):
        process = started(
            tiny_bundle, "--source", SIM, "--record", "out", "--restored", "out", "--no-self-test", folder=tmp_path
        )
        index = tmp_path / "out/lines.idx"
        wait_for_lines(index, before + 1 + int(rng.integers(300)), process)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.kill()
        process.wait()
        process.communicate()
        before = index.stat().st_size // 32
    process = started(
        tiny_bundle, "--source", SIM + ",count=100", "--record", "out", "--restored", "out", "--json", folder=tmp_path
    )
    done = ended(process)
    assert done.code == 0, done.err
    assert done.json["lines"]["in"] == 100
    for name in ("lines", "restored"):
        report = verify(tmp_path / "out", name)
        assert report.bad == 0
        assert report.lines > 0
        sequence = read_index(tmp_path / f"out/{name}.idx")["sequence"].astype(np.int64)
        assert (np.diff(sequence) > 0).all()
    # What the simulator sends follows from its seed: every recorded line is the one it sent under that frame id.
    index, raw = read_index(tmp_path / "out/lines.idx"), read_envi(tmp_path / "out/lines.hdr")
    runs = np.split(np.arange(len(index)), np.flatnonzero(index["flags"] & Flag.BREAK)[1:])
    assert len(runs) == times + 1
    first = {int(index["frame_id"][place]): raw[:, place] for place in runs[-1]}
    for run in runs[:-1]:
        for place in run:
            frame_id = int(index["frame_id"][place])
            if frame_id in first:
                np.testing.assert_array_equal(raw[:, place], first[frame_id])


def test_a_disk_that_takes_no_more_ends_it_with_books_that_balance(tiny_bundle: Path, tmp_path: Path) -> None:
    limit = 31 * 64 * 2 * 150 + 100
    process = started(
        tiny_bundle, "--source", SIM, "--record", "out", "--restored", "out", "--json", "--log", "log.jsonl",
        folder=tmp_path, limit_bytes=limit,
    )  # fmt: skip
    done = ended(process)
    assert_failed(done, 3, "lines.raw", "large")
    content = json.loads(done.out)
    balanced(content["lines"])
    assert content["lines"]["recorded"] == 150 == content["lines"]["in"] - content["lines"]["incomplete"]
    assert content["error"]["code"] == 3
    assert verify(tmp_path / "out", "lines").lines == 150
    assert assert_others_read(tmp_path / "out") == 150
    given_out = (tmp_path / "out/restored.hdr").exists()
    assert content["lines"]["restored"] == (assert_others_read(tmp_path / "out", "restored") if given_out else 0)


def test_a_full_disk_ends_it_with_books_that_balance(tiny_bundle: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size="$1" tmpfs "$0" || exit 99; shift; "$@"', str(disk)]
    tried = subprocess.run([*mounted, "1m", "true"], capture_output=True, text=True, check=False, timeout=60)
    if tried.returncode:
        pytest.skip(f"needs a tmpfs in a mount namespace: {tried.stderr.strip()}")
    # The tmpfs goes with its last process: what lies in it is copied out before.
    mounted[4] += f'; code=$?; cp -r "$0/out" "{tmp_path}/out"; exit $code'
    command = command_line(
        "stream", tiny_bundle, "--source", SIM, "--record", disk / "out", "--restored", disk / "out", "--json"
    )
    process = subprocess.run(
        [*mounted, "2m", *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False, timeout=90,
    )  # fmt: skip
    done = Done(process.returncode, process.stdout, process.stderr)
    assert_failed(done, 3, "No space left on device", "free space")
    lines = json.loads(done.out)["lines"]
    balanced(lines)
    assert lines["recorded"] == lines["in"] - lines["incomplete"] > 100
    assert verify(tmp_path / "out", "lines").bad == 0
    assert assert_others_read(tmp_path / "out") == lines["recorded"]


def test_recorded_lines_that_were_never_restored_are_told(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = scene(tmp_path)
    first = invoke(
        capsys, "stream", tiny_bundle, "--source", f"envi:{cube}", "--record", tmp_path / "out", "--no-self-test"
    )
    assert first.code == 0, first.err
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", f"envi:{cube}", "--record", tmp_path / "out", "--restored",
        tmp_path / "out", "--no-self-test", "--json",
    )  # fmt: skip
    assert any("lines 0 to 63 of the record were not restored" in warning for warning in done.json["warnings"])
    assert read_index(tmp_path / "out/restored.idx")["sequence"].tolist() == list(range(64, 128))


def test_an_unrestored_line_is_flagged(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    cube = rng.random((31, 64, 64), np.float32)
    cube[3, 10, 5] = np.nan
    cube[:, 20] = 0
    cube[:, 31] = cube[:, 30]
    write_cube(tmp_path / "scene.hdr", cube)
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", f"envi:{tmp_path / 'scene.hdr'}", "--restored", tmp_path / "out",
        "--json",
    )  # fmt: skip
    assert done.json["lines"]["passed"] == 3
    assert done.json["flags"] == {"not_finite": 1, "empty": 1, "repeated": 1}
    flags = read_index(tmp_path / "out/restored.idx")["flags"]
    assert np.flatnonzero(flags & Flag.PASSED).tolist() == [10, 20, 31]
    out = read_envi(tmp_path / "out/restored.hdr")
    for place in (10, 20, 31):
        np.testing.assert_array_equal(out[:, place], cube[:, place])
    assert np.isfinite(np.delete(out, 10, axis=1)).all()


ERRORS: list[tuple[list[str], int, tuple[str, ...]]] = [
    (["--source", "usb:0"], 2, ("--source", "not a source", "usb:0", "envi-live, watch, watch-photos, genicam")),
    (["--source", "envi:nowhere.hdr"], 2, ("nowhere.hdr", "no such file")),
    (["--source", "sim:bands=30"], 2, ("fewer bands", "31")),
    (["--source", SIM, "--spool-limit", "20GiB"], 2, ("no record to limit", "--record")),
    (["--source", SIM, "--record", "out", "--spool-limit", "much"], 2, ("not a size", "20GiB")),
    (["--source", SIM, "--record", "out", "--spool-limit", "1KiB"], 2, ("limit",)),
    (["--source", SIM, "--duration", "0"], 2, ("--duration",)),
    (["--source", SIM, "--publish", "abc"], 2, ("--publish", "neither a port")),
    (["--source", SIM, "--publish", "99999"], 2, ("zeromq", "no such port", "127.0.0.1:99999")),
    (["--source", SIM, "--packets", "5005"], 2, ("--packets", "neither a file nor HOST:PORT", "127.0.0.1:5005")),
    (["--source", SIM, "--web", "18080", "--prometheus", "18080"], 2, ("--web", "the port of --prometheus too")),
    (["--source", SIM, "--quicklook", "now.txt"], 2, ("--quicklook", ".png")),
    (["--source", SIM, "--restored", "out", "--scale", "nan"], 2, ("--scale", "not a positive number")),
    (["--source", SIM, "--record", "out", "--log", "out/lines.raw"], 2, ("--log", "would be written into the lines")),
    (["--source", SIM, "--record", "out", "--packets", "out/lines.idx"], 2, ("--packets", "into the lines")),
    (["--source", "envi:out/lines.hdr", "--record", "out"], 2, ("would read what it writes",)),
    (["--source", "watch:out", "--restored", "out"], 2, ("would read what it writes",)),
]


@pytest.mark.parametrize(("arguments", "code", "parts"), ERRORS, ids=range(len(ERRORS)))
def test_what_is_wrong_is_said_in_one_line(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, parts: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = invoke(capsys, "stream", tiny_bundle, "--no-self-test", "--json", *arguments)
    assert_json_error(done, code)
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize("wrong", [("--source", "usb:0"), ("--source", SIM, "--sink", "tape:0")])
def test_what_is_no_source_or_sink_is_said_before_the_bundle_is_read(
    wrong: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_failed(invoke(capsys, "stream", tmp_path / "none", *wrong), 2, *wrong[-2:])


def test_lines_that_were_not_restored_are_told_with_the_reason(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "sim:samples=64,rate=20000,count=6000"
    done = invoke(capsys, "stream", tiny_bundle, "--source", source, "--restored", tmp_path, "--no-self-test", "--json")
    dropped = done.json["lines"]["dropped"]
    assert done.code == 0 and dropped > 0
    told = next(line for line in done.json["warnings"] if "not restored" in line)
    assert f"{dropped} lines were not restored: {done.json['frames_by_fate']['dropped']} frames" in told
    assert "restoration was behind" in told


def test_another_layout_is_not_appended(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stream(source: str) -> Done:
        return invoke(capsys, "stream", tiny_bundle, "--source", source, "--record", tmp_path, "--no-self-test")

    assert stream(SIM + ",count=10").code == 0
    done = stream("sim:samples=80,rate=400,count=10")
    assert_failed(done, 2, "64 samples", "80 samples")


def test_bands_are_chosen_and_radiometry_is_applied(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = scene(tmp_path, bands=62)
    config = tmp_path / "deploy.yaml"
    config.write_text(
        "stream:\n  bands: [" + ", ".join(map(str, range(0, 62, 2))) + "]\n  output: float32\n"
        "  radiometry: {output: dn, dark: 100}\n"
    )
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", f"envi:{cube}", "--restored", tmp_path / "out", "--config", config,
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    out = read_cube(tmp_path / "out/restored.hdr")
    assert out.cube.shape == (31, 64, 64)
    assert out.cube.dtype == np.float32
    mean = (read_envi(cube)[::2].astype(float) - 100).mean() / 10000
    assert abs(float(out.cube.mean()) - mean) < 0.05


def test_a_white_that_was_exposed_too_long_is_a_warning_with_the_count_or_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = scene(tmp_path)
    rng = np.random.default_rng(2)
    white = np.rint(np.linspace(4000, 9000, 31)[:, None, None] + rng.normal(0, 5, (31, 20, 64))).astype(np.uint16)
    write_cube(tmp_path / "dark.bil", np.rint(rng.normal(50, 2, (31, 20, 64))).astype(np.uint16))
    config = tmp_path / "deploy.yaml"
    config.write_text(
        "stream:\n  radiometry: {output: reflectance, dark: dark.bil, white: white.bil, panel_reflectance: 1, "
        "saturation: 9500}\n"
    )

    def stream(saturated: int) -> Done:
        white[:, :, :saturated] = 9500
        write_cube(tmp_path / "white.bil", white)
        words = ("--restored", tmp_path / f"out{saturated}", "--config", config, "--no-self-test", "--json")
        return invoke(capsys, "stream", tiny_bundle, "--source", f"envi:{cube}", *words)

    assert not stream(0).json["warnings"]
    done = stream(3)
    assert done.code == 0 and "replaced: 93 of 1984 (93 by white: 93 saturated)" in done.err
    (warning,) = done.json["warnings"]
    assert "93 of 1984 elements are replaced" in warning and "the white has 93 saturated" in warning
    assert_failed(
        stream(20), 2, "white less dark is unusable in 620 of 1984", "record it again below the detector's limit"
    )


SECTIONS = [
    ("bands: [" + ", ".join(["3"] * 31) + "]", ("a band is chosen twice", "stream.bands")),
    ("nearest_bands: true\n  wavelengths: [" + ", ".join(str(900 + 10 * i) for i in range(31)) + "]", ("only 1 of",)),
    ("segment_mib: 4", ("only a record with a limit", "--spool-limit")),
    ("radiometry: {drak: 100}", ("drak",)),
    ("camera: {pixel_format: Mono12}\n  simulator: {colour: red}", ("colour",)),
]


@pytest.mark.parametrize(("section", "parts"), SECTIONS, ids=range(len(SECTIONS)))
def test_a_section_that_makes_no_sense_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "deploy.yaml").write_text(f"stream:\n  {section}\n")
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", SIM, "--record", tmp_path / "out", "--no-self-test", "--config",
        tmp_path / "deploy.yaml",
    )  # fmt: skip
    assert_failed(done, 2, *parts)


def test_lines_that_float32_does_not_hold_are_not_restored_to_their_own_type(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cube = np.random.default_rng(0).integers(0, 2**30, (31, 64, 64)).astype(np.int32)
    write_cube(tmp_path / "scene.hdr", cube, fields={"reflectance scale factor": str(2**30)})
    source = f"envi:{tmp_path / 'scene.hdr'}"
    done = invoke(capsys, "stream", tiny_bundle, "--source", source, "--restored", tmp_path / "out", "--no-self-test")
    assert_failed(done, 2, "stream.output", "float32")


HANGING = """
import sys, threading
from runtime.engines.contract import Engine
Engine.infer = lambda self, feeds: threading.Event().wait()
from deploy.cli import main
main()
"""


@pytest.mark.parametrize(("more", "code"), [(["--duration", "1"], 3), ([], 0)], ids=["duration", "signal"])
def test_an_engine_that_hangs_ends_with_the_right_code(
    tiny_bundle: Path, tmp_path: Path, more: list[str], code: int
) -> None:
    (tmp_path / "deploy.yaml").write_text("stream:\n  drain_seconds: 0.5\n")
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, "stream", str(tiny_bundle), "--source", SIM, "--record", "out", "--restored",
         "out", "--no-self-test", "--json", "--config", "deploy.yaml", *more],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    wait_for_lines(tmp_path / "out/lines.idx", 200, process)
    if not more:
        process.send_signal(signal.SIGTERM)
    done = ended(process)
    assert done.code == code, done.err
    lines = json.loads(done.out)["lines"]
    balanced(lines)
    assert lines["recorded"] == verify(tmp_path / "out", "lines").lines > 0
    assert lines["restored"] == 0


def test_what_fails_after_the_start_ends_with_3(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    process = started(
        tiny_bundle, "--source", SIM, "--record", "out", "--quicklook", "gone/now.png", "--duration", 3, "--json",
        "--no-self-test", folder=tmp_path,
    )  # fmt: skip
    wait_for_lines(tmp_path / "out/lines.idx", 10, process)
    shutil.rmtree(tmp_path / "gone")
    done = ended(process)
    assert_failed(done, 3, "now.png")
    lines = json.loads(done.out)["lines"]
    balanced(lines)
    assert lines["recorded"] == lines["in"] - lines["incomplete"] > 800


def test_a_ring_keeps_within_its_limit(tiny_bundle: Path, tmp_path: Path) -> None:
    config = tmp_path / "deploy.yaml"
    config.write_text("stream:\n  segment_mib: 1\n")
    done = ended(
        started(
            tiny_bundle, "--source", "sim:samples=256,lines=128,rate=1000", "--record", "out", "--spool-limit", "4MiB",
            "--duration", 3, "--config", config, "--json", folder=tmp_path,
        )
    )  # fmt: skip
    assert done.code == 0, done.err
    result: dict[str, Any] = done.json
    assert result["spool"]["deleted_segments"] > 0
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("lines-*")) <= 4 << 20
    assert result["spool"]["lines"] + result["spool"]["deleted_lines"] == result["lines"]["recorded"]
    assert verify(tmp_path / "out", "lines").bad == 0


def damaged(bundle: Path, folder: Path) -> Path:
    """A copy whose graph has another bit."""
    copy = shutil.copytree(bundle, folder / "damaged")
    graph = copy / "graphs/fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 16
    graph.write_bytes(data)
    return copy


def test_a_bundle_that_cannot_be_trusted_is_no_reason_not_to_record(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--source",
        "sim:samples=64,count=80",
        "--record",
        tmp_path / "raw",
        "--restored",
        tmp_path / "out",
        "--json",
    )
    bad = damaged(tiny_bundle, tmp_path)
    packets = ("--packets", tmp_path / "out.ccsds", "--web", 0)
    write_keys(tmp_path, "other")
    headless = shutil.copytree(bad, tmp_path / "headless")
    (headless / "manifest.json").unlink()
    for bundle, more, why in (
        (bad, (), "fp32.onnx"), (headless, (), "has no manifest.json"),
        (tiny_bundle, ("--trust", tmp_path / "other.pub"), "is not signed"),
    ):  # fmt: skip
        done = invoke(capsys, "stream", bundle, *words, *packets, *more)
        assert done.code == 3
        assert "restoration is off, lines are recorded only" in done.err
        assert why in done.err
        assert done.json["lines"] == {
            "in": 80, "recorded": 80, "restored": 0, "passed": 0, "dropped": 80, "incomplete": 0,
        }  # fmt: skip
        assert done.json["restoration"]["state"] == "off" and done.json["ended_by"] == "source"
        assert str(bundle) in done.json["error"]["file"]
        later = f"`deploy stream {bundle} --source file:RECORD/lines.hdr --restored OTHER`"
        assert later in done.json["error"]["remedy"]
        assert "80 lines were not restored: restoration was off" in done.json["warnings"]
        assert done.json["doubts"] == []
        assert not (tmp_path / "out/restored.raw").exists()
    # What comes with a bundle that is whole goes on behind them.
    assert invoke(capsys, "stream", tiny_bundle, *words).code == 0
    assert verify(tmp_path / "raw", "lines").last == 319
    assert read_index(tmp_path / "out/restored.idx")["sequence"].tolist() == list(range(240, 320))
    # And the other way round.
    assert invoke(capsys, "stream", bad, *words).code == 3
    assert verify(tmp_path / "raw", "lines").last == 399


def test_what_was_typed_wrong_ends_at_once_though_there_is_a_record(
    doubling: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/old.txt").write_text("no key")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/one.png").write_bytes(b"")
    pack(doubling, tmp_path / "bundle.damp")
    record = ("--source", "sim:bands=3,samples=16,count=20", "--record", "raw", "--json")
    for words, *parts in (
        (("nowhere",), "no such bundle"),
        (("pictures",), "is not a bundle"),
        (("bundle.damp",), "this is a file", "deploy unpack"),
        ((doubling, "--engine", "nonsense"), "unknown engine"),
        ((doubling, "--prompt", "derain"), "derain"),
        ((doubling, "--trust", "keys"), "old.txt", "is no public key"),
        (("--store", "nowhere"), "no such store"),
    ):
        done = invoke(capsys, "stream", *words, *record)
        assert_json_error(done, 2)
        assert all(part in done.err for part in parts), done.err
    assert not (tmp_path / "raw").exists()


def test_a_bad_bundle_is_refused_where_that_is_asked_for_or_nothing_is_recorded(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, sim = damaged(tiny_bundle, tmp_path), ("--source", "sim:samples=64,count=80")
    record = ("--record", tmp_path / "raw")
    for words in ((*record, "--on-bad-bundle", "refuse"), ("--restored", tmp_path / "out")):
        done = invoke(capsys, "stream", bad, *sim, *words)
        assert_failed(done, 2, "fp32.onnx", "SHA-256")
    assert_failed(invoke(capsys, "stream", bad, *sim, "--on-bad-bundle", "record"), 2, "--on-bad-bundle", "--record")
    assert not (tmp_path / "raw").exists()


def test_lines_of_another_network_in_the_way_end_no_record(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sim = ("--source", "sim:samples=64,count=80,bands=31", "--record", tmp_path / "raw", "--restored", tmp_path / "out")
    assert invoke(capsys, "stream", tiny_bundle, *sim).code == 0
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    reseal(other, lambda content: content["network"].update(checkpoint_sha256="1" * 64))
    done = invoke(capsys, "stream", other, *sim)
    assert_failed(done, 3, "restoration is off", "network")
    assert verify(tmp_path / "raw", "lines").last == 159
    assert len(read_index(tmp_path / "out/restored.idx")) == 80


def test_held_connections_and_no_descriptors_end_no_record(tiny_bundle: Path, tmp_path: Path) -> None:
    """More connections than the process may have files, on every listener, from another process."""
    process = started(
        tiny_bundle, "--source", "sim:samples=64,rate=200", "--record", tmp_path / "raw", "--restored",
        tmp_path / "out", "--publish", "0", "--prometheus", 0, "--web", 0, "--duration", 12, "--json", folder=tmp_path,
        descriptors=160,
    )  # fmt: skip
    wait_for_lines(tmp_path / "raw/lines.idx", 10, process)
    table = [row.split() for row in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {str(one.readlink()) for one in Path(f"/proc/{process.pid}/fd").iterdir()}
    ports = [int(row[1].split(":")[1], 16) for row in table if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
    assert len(ports) == 3
    held = []
    for _ in range(300):
        for port in ports:
            one = socket.socket()
            one.settimeout(0.2)
            with suppress(OSError):
                one.connect(("127.0.0.1", port))
                one.send(b"GET ")
                held.append(one)
    done = ended(process)
    for one in held:
        one.close()
    assert done.code == 0, done.err
    lines = done.json["lines"]
    assert lines["recorded"] == lines["in"] > 1000 and lines["incomplete"] == 0
    assert verify(tmp_path / "raw", "lines").last == lines["in"] - 1


def test_a_log_that_cannot_be_written_is_told(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "log"
    full.symlink_to("/dev/full")
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", "sim:samples=64,count=80", "--record", tmp_path / "raw",
        "--log", full, "--json",
    )  # fmt: skip
    assert done.code == 0 and done.json["lines"]["recorded"] == 80
    assert done.json["log"]["lost"] > 0 and "of the log could not be written" in done.err


def test_a_stream_flies_from_slots_and_an_update_that_fails_gives_way(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    words = ("--store", store, "--source", "sim:samples=64,count=80", "--record", tmp_path / "raw", "--restored",
             tmp_path / "out", "--json")  # fmt: skip
    done = invoke(capsys, "slots", "install", tiny_bundle, "--store", store, "--json")
    assert done.code == 0 and done.json["slots"]["b"]["state"] == "new"
    monkeypatch.setattr("deploy.streaming.slot.TESTS", 0)
    monkeypatch.setattr("deploy.streaming.slot.SECONDS", 0.0)
    assert invoke(capsys, "stream", *words).code == 0
    state = invoke(capsys, "slots", "list", "--store", store, "--json").json
    assert state["slots"]["b"]["state"] == "good", "it proved itself"
    serial = state["slots"]["b"]["serial"]
    assert len(read_index(tmp_path / f"out/{serial}/restored.idx")) == 80
    # An update whose graph restores otherwise than its golden frame says.
    newer = shutil.copytree(tiny_bundle, tmp_path / "newer")
    reseal(newer, lambda content: (content.update(serial=serial + 1), content["golden"].update(tolerance=1e-12)))
    assert invoke(capsys, "slots", "install", newer, "--store", store).code == 0
    done = invoke(capsys, "stream", *words)
    assert done.code == 0 and done.json["lines"]["restored"] == 80
    assert (done.json["slot"], done.json["serial"]) == ("b", serial)
    assert any("slot a does not fly: " in one and "golden" in one for one in done.json["warnings"])
    events = [json.loads(row) for row in (tmp_path / "raw/stream.jsonl").read_text().splitlines()]
    told = [(one["slot"], one["ok"]) for one in events if one["kind"] == "slot"]
    assert told[-3:] == [("a", False), ("b", True), ("b", True)], "tried, flies, is good"
    state = invoke(capsys, "slots", "list", "--store", store, "--json").json
    assert (state["active"], state["slots"]["a"]["state"]) == ("b", "bad") and "golden" in state["slots"]["a"]["why"]
    assert len(read_index(tmp_path / f"out/{serial}/restored.idx")) == 160
    # Nothing left that works: lines are recorded.
    graph = store / "b/graphs/fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    later = f"`deploy stream --store {store} --source file:RECORD/lines.hdr --restored OTHER`"
    assert_failed(invoke(capsys, "stream", *words[:-1]), 3, "restoration is off", later)
    assert verify(tmp_path / "raw", "lines").last == 239
    assert_failed(invoke(capsys, "stream", tiny_bundle, *words), 2, "one bundle flies")
    assert_failed(invoke(capsys, "stream", *words[2:]), 2, "one bundle flies")
