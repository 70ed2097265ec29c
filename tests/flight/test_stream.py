"""`deploy stream` as a process: books that balance, and a record that outlives a kill."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np

from runtime.files.envi import read_envi
from runtime.lines import Flag
from runtime.record.index import read_index, verify
from tests.contracts.command import PATIENCE, ROOT, Done, command_line, start
from tests.contracts.line_files import header_numbers
from tests.flight.test_run import LINES, write_by_hand

COUNT = 500
SIM = f"sim:samples=64,lines=128,rate=250,count={COUNT}"


def balanced(lines: dict[str, int]) -> None:
    """Every line that came in is one of three things."""
    assert lines["in"] == lines["restored"] + lines["dropped"] + lines["incomplete"]
    assert lines["recorded"] == lines["in"] - lines["incomplete"]


def test_the_simulator_is_recorded_and_restored(tiny_bundle: Path, tmp_path: Path) -> None:
    done = start("stream", tiny_bundle, "--source", SIM, "--record", "out", "--restored", "out", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.json["lines"]
    balanced(lines)
    assert lines["in"] == COUNT and lines["restored"] > lines["passed"]
    record, restored = verify(tmp_path / "out", "lines"), verify(tmp_path / "out", "restored")
    assert (record.lines, record.problems) == (lines["recorded"], ())
    assert (restored.lines, restored.problems) == (lines["restored"], ())
    assert read_envi(tmp_path / "out/lines.hdr").shape == (31, lines["recorded"], 64)
    assert (read_index(tmp_path / "out/restored.idx")["flags"] & Flag.RESTORED).any()


def test_no_line_of_a_file_is_dropped(tiny_bundle: Path, tmp_path: Path) -> None:
    header = write_by_hand(tmp_path, "bil")
    words = ("--record", "raw", "--restored", "out", "--threads", 1, "--json")
    done = start("stream", tiny_bundle, "--source", f"envi:{header}", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    whole = {"in": LINES, "recorded": LINES, "restored": LINES, "passed": 0, "dropped": 0, "incomplete": 0}
    assert done.json["lines"] == whole
    cube = read_envi(header)
    np.testing.assert_array_equal(read_envi(tmp_path / "raw/lines.hdr"), cube)
    restored = read_envi(tmp_path / "out/restored.hdr")
    assert restored.shape == cube.shape and not np.array_equal(restored, cube)


def promised(header: Path, least: int, process: subprocess.Popen[str]) -> int:
    """Lines that the header of a growing record says are safe, once there are so many."""
    deadline = time.monotonic() + PATIENCE
    while not header.exists() or (lines := header_numbers(header)["lines"]) < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no lines came"
        time.sleep(0.05)
    return lines


def test_kill_9_loses_nothing_that_was_safe_and_the_next_run_appends(tiny_bundle: Path, tmp_path: Path) -> None:
    command = command_line(
        "stream", tiny_bundle, "--source", SIM.replace(f"count={COUNT}", "count=100000"), "--record", "out",
        "--restored", "out", "--no-self-test",
    )  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    ) as process:  # fmt: skip
        safe = promised(tmp_path / "out/lines.hdr", 150, process)
        process.kill()
        process.communicate()
    before = np.fromfile(tmp_path / "out/lines.raw", "<u2", safe * 31 * 64).reshape(safe, 31, 64)

    words = ("--record", "out", "--restored", "out", "--json")
    done: Done = start("stream", tiny_bundle, "--source", SIM, *words, cwd=tmp_path)
    assert done.code == 0, done.err
    balanced(done.json["lines"])
    assert done.json["lines"]["in"] == COUNT

    record, restored = verify(tmp_path / "out", "lines"), verify(tmp_path / "out", "restored")
    assert (record.problems, restored.problems) == ((), ())
    index, raw = read_index(tmp_path / "out/lines.idx"), read_envi(tmp_path / "out/lines.hdr")
    sequence = index["sequence"].astype(np.int64)
    assert record.lines == len(index) == raw.shape[1] and (np.diff(sequence) > 0).all()
    resumed = len(index) - done.json["lines"]["recorded"]
    assert resumed >= safe
    assert np.flatnonzero(index["flags"] & Flag.BREAK).tolist() == [0, resumed]
    np.testing.assert_array_equal(raw[:, :safe], before.swapaxes(0, 1))
    # The simulator sends the same line under the same frame id in both runs.
    frame_id = index["frame_id"]
    same, first, second = np.intersect1d(frame_id[:resumed], frame_id[resumed:], return_indices=True)
    assert len(same) > 0
    np.testing.assert_array_equal(raw[:, first], raw[:, resumed + second])
