"""The log: every line is JSON, nothing in it stops the stream, and its size is bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.lines import Flag
from runtime.stream.event_log import WAITING_LINES, EventLog

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text.isascii() and (not text or text.endswith(b"\n"))
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def wait_for_lines(path: Path, count: int) -> None:
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= count)


def returns(action: Callable[[], object]) -> bool:
    """Whether it comes back, in a thread of its own."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(PATIENCE_S / 6)
    return not thread.is_alive()


class Stalled:
    """The open log behind a pipe that is full: a write to it waits until somebody reads."""

    def __init__(self, path: Path) -> None:
        self._reader, writer = os.pipe()
        (log,) = (int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.resolve() == path.resolve())
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"\n" * 4096)
        except BlockingIOError:
            os.set_blocking(writer, True)
        os.dup2(writer, log, inheritable=False)
        os.close(writer)
        self.text = b""
        self._thread = threading.Thread(target=self._read, daemon=True)

    def answer(self) -> None:
        """Take what is written from now on, until the log is closed; may be called twice."""
        if self._thread.ident is None:
            self._thread.start()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)

    def _read(self) -> None:
        while part := os.read(self._reader, 1 << 20):
            self.text += part
        os.close(self._reader)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.split(b"\n") if line]


@contextmanager
def stalled(path: Path) -> Iterator[tuple[EventLog, Stalled]]:
    """A log on a disk that does not answer, until the end."""
    log = EventLog(path)
    disk = Stalled(path)
    try:
        yield log, disk
    finally:
        disk.answer()
        log.close()
        disk.join()


def test_a_disk_that_does_not_answer_stalls_nobody_and_loses_nothing(tmp_path: Path) -> None:
    with stalled(tmp_path / "stream.log") as (log, disk):

        def writes() -> None:
            for number in range(50):
                log.write("gap", number=number)

        assert returns(writes)
        assert returns(writes)
        assert log.lost == 0
    assert [line["number"] for line in disk.lines()] == [*range(50), *range(50)]


def test_what_waits_is_bounded_and_the_rest_is_counted(tmp_path: Path) -> None:
    with stalled(tmp_path / "stream.log") as (log, disk):

        def writes() -> None:
            for number in range(WAITING_LINES + 7):
                log.write("gap", number=number)

        assert returns(writes)
        assert log.lost == 7
        disk.answer()
        wait_for(lambda: disk.text.count(b"{") == WAITING_LINES)
        log.write("stop")
    assert log.lost == 7
    *gaps, stop = disk.lines()
    assert [gap["number"] for gap in gaps] == list(range(WAITING_LINES)) and not any("lost" in gap for gap in gaps)
    assert (stop["kind"], stop["lost"]) == ("stop", 7)


def test_the_end_does_not_wait_for_a_disk_that_does_not_answer(tmp_path: Path) -> None:
    with stalled(tmp_path / "stream.log") as (log, disk):

        def ends() -> None:
            for number in range(3):
                log.write("gap", number=number)
            log.close()

        assert returns(ends)
        assert log.lost == 3
    assert log.lost == 3
    assert len(disk.lines()) <= 1


def test_the_end_waits_for_a_disk_that_answers(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    with EventLog(path) as log:
        for number in range(1000):
            log.write("gap", number=number)
    assert [line["number"] for line in lines_of(path)] == list(range(1000))
    assert log.lost == 0


def test_each_event_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    before = datetime.now(timezone.utc)
    with EventLog(path) as log:
        log.write("start", network="damp-small", precision="int8")
        log.write("gap", first=7, count=3, why="packets\nlost µ")
        wait_for_lines(path, 2)
        assert [line["kind"] for line in lines_of(path)] == ["start", "gap"]
    start, gap = lines_of(path)
    assert list(start) == ["utc", "kind", "network", "precision"]
    assert (gap["first"], gap["count"], gap["why"]) == (7, 3, "packets\nlost µ")
    stamp = datetime.fromisoformat(gap["utc"].replace("Z", "+00:00"))
    assert before <= stamp <= datetime.now(timezone.utc) and gap["utc"].endswith("Z")


def test_values_become_what_json_can_say(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    with EventLog(path) as log:
        log.write(
            "telemetry",
            nan=float("nan"),
            metrics={"noise": np.float32(0.5), "blur": np.float64("inf"), 3: -np.inf},
            counts=np.array([[1, 2]], np.uint64),
            nans=np.array([np.nan, 1]),
            flags=Flag.GAP | Flag.RESTORED,
            path=Path("a/b"),
            pair=(1, None, True),
            text="\ud800",
        )
    (line,) = lines_of(path)
    del line["utc"]
    assert line == {
        "kind": "telemetry",
        "nan": None,
        "metrics": {"noise": 0.5, "blur": None, "3": None},
        "counts": [[1, 2]],
        "nans": [None, 1],
        "flags": 258,
        "path": "a/b",
        "pair": [1, None, True],
        "text": "\ud800",
    }


def test_its_own_keys_cannot_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    with EventLog(path) as log:
        log.write("gap", utc="never", kind="stop", lost=5)
    (line,) = lines_of(path)
    assert line["kind"] == "gap" and line["utc"] != "never" and "lost" not in line


class Spiteful:
    def __str__(self) -> str:
        raise ZeroDivisionError


def test_a_value_that_cannot_be_said_is_a_lost_line_and_told_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with EventLog(path) as log:
        log.write("failed", what=Spiteful())
        log.write("failed", what=endless)
        assert log.lost == 2
        log.write("telemetry")
        log.write("stop")
        assert log.lost == 2
    first, second = lines_of(path)
    assert first["lost"] == 2 and "lost" not in second


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    with EventLog(path, limit_bytes=20_000, keep=100) as log:

        def writes(who: int) -> None:
            for number in range(100):
                log.write("drop", who=who, number=number, fill="x" * number)

        threads = [threading.Thread(target=writes, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert log.lost == 0
    files = sorted(tmp_path.iterdir(), key=lambda file: -int(file.suffix[1:] if file.suffix != ".log" else 0))
    seen = [(line["who"], line["number"]) for file in files for line in lines_of(file)]
    assert sorted(seen) == [(who, number) for who in range(8) for number in range(100)]
    for who in range(8):
        assert [number for one, number in seen if one == who] == list(range(100))


def test_its_size_is_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    with EventLog(path, limit_bytes=1000, keep=3) as log:
        for number in range(100):
            log.write("gap", number=number)
        log.write("telemetry", fill="x" * 5000)
        log.write("stop", number=100)
    names = ["stream.log", "stream.log.1", "stream.log.2", "stream.log.3"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert [(tmp_path / name).stat().st_size <= 1000 for name in names] == [True, False, True, True]
    numbers = [line["number"] for name in reversed(names) for line in lines_of(tmp_path / name) if "number" in line]
    assert numbers == list(range(numbers[0], 101)) and numbers[0] > 50


@pytest.mark.parametrize("torn", [b'{"utc":"2026', b"\0" * 3000, b""])
def test_it_goes_on_behind_what_is_whole(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "stream.log"
    with EventLog(path) as log:
        log.write("start")
    with path.open("ab") as file:
        file.write(torn)
    with EventLog(path) as log:
        log.write("stop")
    assert [line["kind"] for line in lines_of(path)] == ["start", "stop"]


def test_a_torn_first_line_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    path.write_bytes(b'{"utc":"20')
    with EventLog(path) as log:
        log.write("start")
    assert len(lines_of(path)) == 1


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cube.raw"
    path.write_bytes(b"\x01\x02\x03")
    with pytest.raises(InputError, match=r"cube\.raw: this is no log of a stream; name another file"):
        EventLog(path)
    assert path.read_bytes() == b"\x01\x02\x03"
    with pytest.raises(InputError, match="the log cannot be opened: No such file or directory"):
        EventLog(tmp_path / "absent" / "stream.log")
    with pytest.raises(InputError, match="the log cannot be opened: Is a directory"):
        EventLog(tmp_path)


def test_lines_after_the_end_are_counted(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "stream.log")
    log.close()
    log.close()
    log.write("stop")
    assert log.lost == 1


def test_a_full_disk_is_counted_and_told_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "stream.log"
    code = f"""
import resource, signal, time
from pathlib import Path
from runtime.stream.event_log import EventLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = EventLog(Path({str(path)!r}))
log.write("start")
while not Path({str(path)!r}).stat().st_size:
    time.sleep(0.005)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for number in range(5):
    log.write("gap", number=number)
while log.lost < 5:
    time.sleep(0.005)
print(log.lost)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write("gap", number=5)
log.write("stop")
log.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=2 * PATIENCE_S
    )
    assert done.stdout == "5\n", done.stderr
    lines = lines_of(path)
    assert [line["kind"] for line in lines] == ["start", "gap", "stop"]
    assert (lines[1]["number"], lines[1]["lost"]) == (5, 5) and "lost" not in lines[2]


def test_a_folder_that_vanishes_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with EventLog(folder / "stream.log", limit_bytes=200) as log:
        log.write("start")
        wait_for_lines(folder / "stream.log", 1)
        (folder / "stream.log").unlink()
        folder.rmdir()
        for number in range(10):
            log.write("gap", number=number, fill="x" * 200)
        wait_for(lambda: log.lost == 10)
        folder.mkdir()
        log.write("stop")
        wait_for_lines(folder / "stream.log", 1)
        assert lines_of(folder / "stream.log")[-1]["lost"] == 10
