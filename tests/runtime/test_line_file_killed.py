"""Line files of a process that is killed, and on disks that are really full."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import MachineError
from runtime.files.envi import read_envi
from runtime.lines import LineFormat
from runtime.record.index import verify
from runtime.record.writer import LineWriter, open_line_writer
from tests.contracts.line_files import SMALL, check_folder, known, served

WIDE = LineFormat(bands=224, samples=640, dtype=np.dtype("u2"))
ROOT = Path(__file__).parents[2]

RING: dict[str, Any] = {"limit": 400_000, "segment_bytes": 50_000}


def append(writer: LineWriter, line: Any, count: int) -> None:
    number = writer.next_sequence
    columns = np.array([(n, *known(n)) for n in range(number, number + count)], np.uint64).T
    writer.append_block(np.stack([line(n) for n in range(number, number + count)]), *columns)


def forked(work: Callable[[], object]) -> int:
    """A child that does `work`; its exit code is 0 where that returns."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def write_for_ever(folder: Path, format: LineFormat, options: dict[str, Any], seed: int, told: int) -> None:
    """Append as fast as it goes, checkpoint now and then, and tell how many lines are in, and how many are safe."""
    random = np.random.default_rng(seed)
    writer = open_line_writer(folder, "lines", format, **options)
    line = served(format)
    safe = writer.next_sequence
    for _ in range(1_000_000):
        append(writer, line, int(random.integers(1, 4)))
        if random.random() < 0.1:
            writer.checkpoint()
            safe = writer.next_sequence
        os.write(told, np.array([writer.next_sequence, safe], "<u8").tobytes())


def kill_and_resume(folder: Path, format: LineFormat, options: dict[str, Any], seed: int) -> None:
    random = np.random.default_rng(seed)
    reader, told = os.pipe()
    child = forked(lambda: write_for_ever(folder, format, options, seed, told))
    os.close(told)
    news = [os.read(reader, 16)]

    def listen() -> None:
        while piece := os.read(reader, 1 << 16):
            news.append(piece)

    listener = threading.Thread(target=listen)
    listener.start()
    time.sleep(random.uniform(0.01, 0.25))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    listener.join()
    os.close(reader)
    appended, safe = np.frombuffer(b"".join(news), "<u8")[-2:].tolist()
    line = served(format)

    found = check_folder(folder, line=line, format=format, closed=False)
    assert (found.sequence[-1] + 1 if found.sequence else 0) >= safe
    with open_line_writer(folder, "lines", format, **options) as writer:
        # Without a power cut nothing is lost that was appended.
        assert writer.next_sequence >= appended
        assert check_folder(folder, line=line, format=format, closed=False).promised == writer.lines
        append(writer, line, 3)
    found = check_folder(folder, line=line, format=format)
    assert found.sequence == list(range(writer.next_sequence - writer.lines, writer.next_sequence))
    assert len(found.sequence) == writer.lines
    if options:
        assert found.bytes <= options["limit"]
    else:
        assert found.sequence[0] == 0
    assert verify(folder, "lines").problems == ()


@pytest.mark.parametrize("seed", range(6))
def test_killed_while_writing(tmp_path: Path, seed: int) -> None:
    for turn in range(2):
        kill_and_resume(tmp_path, SMALL, {}, 100 * turn + seed)


@pytest.mark.parametrize("seed", range(2))
def test_killed_while_writing_wide_lines(tmp_path: Path, seed: int) -> None:
    kill_and_resume(tmp_path, WIDE, {}, seed)


@pytest.mark.parametrize("seed", range(2))
def test_killed_while_writing_a_ring(tmp_path: Path, seed: int) -> None:
    for turn in range(3):
        kill_and_resume(tmp_path, SMALL, RING, 100 * turn + seed)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "options", "kills"), [(SMALL, {}, 100), (SMALL, RING, 100), (WIDE, {}, 20)])
def test_killed_very_often(tmp_path: Path, format: LineFormat, options: dict[str, Any], kills: int) -> None:
    for turn in range(kills):
        kill_and_resume(tmp_path / str(turn // 4), format, options, turn)


def test_a_file_size_limit(tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        writer = open_line_writer(tmp_path, "lines", SMALL)
        with pytest.raises(MachineError, match=r"lines\.raw: cannot be written: File too large; raise the limit"):
            append(writer, served(), 100)
            for _ in range(1000):
                append(writer, served(), 3)
        writer.close()
        assert writer.lines == 331

    assert os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]) == 0
    assert check_folder(tmp_path, line=served()).sequence == list(range(331))


FULL_DISK = """
import errno, shutil, sys
from pathlib import Path
import numpy as np
from runtime.errors import DeployError, MachineError
from runtime.lines import LineFormat
from runtime.record.writer import open_line_writer
from tests.contracts.line_files import known, served
disk, out, bands, samples, how = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5]), sys.argv[5]
format = LineFormat(bands, samples, np.dtype("u2"), wavelengths=tuple(range(400, 400 + bands)))
line = served(format)
writer = open_line_writer(disk / "record", "lines", format)
writer.append(line(0), 0, *known(0))
writer.checkpoint()
saved, failed = 1, None
try:
    for number in range(1, 100000):
        writer.append(line(number), number, *known(number))
        if number == 3 and how == "elsewhere":
            # Somebody else fills the disk.
            with (disk / "other").open("wb", buffering=0) as other:
                try:
                    while other.write(bytes(4096)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
except MachineError as error:
    failed = error
assert failed is not None and "No space left on device; free space" in str(failed), failed
try:
    writer.append(line(0), 10**6, 0, 0, 0)
    raise AssertionError
except MachineError as again:
    assert str(again) == str(failed)
writer.close()
shutil.copytree(disk / "record", out)
if how == "elsewhere":
    (disk / "other").unlink()
    with open_line_writer(disk / "record", "lines", format) as writer:
        assert writer.resumed is None
        number = writer.next_sequence
        writer.append(line(number), number, *known(number))
    shutil.copytree(disk / "record", out / "again")
print(writer.lines)
"""


@pytest.mark.parametrize("how", ["alone", "elsewhere"])
@pytest.mark.parametrize(("bands", "samples"), [(3, 16), (224, 320)])
def test_a_full_disk(tmp_path: Path, bands: int, samples: int, how: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs -o size=$0 tmpfs "$1"; shift; exec "$@"', "1m", str(disk)]
    tried = subprocess.run([*mount, "true"], capture_output=True, check=False, timeout=60)
    if tried.returncode:
        pytest.skip(f"needs a tmpfs in a mount namespace: {tried.stderr.decode(errors='replace').strip()}")
    arguments = [sys.executable, "-c", FULL_DISK, disk, tmp_path / "out", bands, samples, how]
    done = subprocess.run(
        [*mount, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    format = LineFormat(bands, samples, np.dtype("u2"))
    found = check_folder(tmp_path / "out", line=served(format), format=format)
    assert len(found.sequence) > 1 and found.sequence == list(range(len(found.sequence)))
    assert read_envi(tmp_path / "out" / "lines.hdr").shape == (bands, len(found.sequence), samples)
    if how == "elsewhere":
        assert len(check_folder(tmp_path / "out/again", line=served(format), format=format).sequence) == int(
            done.stdout
        )
        assert int(done.stdout) == len(found.sequence) + 1
