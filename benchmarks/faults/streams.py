"""Streams on a disk that takes no more, and among connections that a stranger holds."""

from __future__ import annotations

import json
import os
import pwd
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from runtime.record.index import RECORD, read_index, suffixed

from .report import Row, counted, spread, steps

RATE, HELD_RATE, SAMPLES = 330, 100, 64
"""Lines per second: a disk is to fill soon, a holder takes the processor too."""
SIZES = (1 << 20, (2 << 20) + 4096 * 5, (3 << 20) + 4096 * 3)
DESCRIPTORS, HELD_SECONDS = 256, 20
LIMIT = 120
ROOT = Path(__file__).parents[2]


def start(bundle: Path, *words: object, limits: dict[int, int] | None = None, **more: Any) -> subprocess.Popen[str]:
    """`deploy stream` of the simulator, under limits of its own."""

    def limited() -> None:
        for which, most in (limits or {}).items():
            resource.setrlimit(which, (most, most))

    command = [sys.executable, "-m", "deploy", "stream", bundle, "--threads", 1, "--json", *words]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=limited,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **more,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Exit code, and what it told."""
    try:
        said, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    lines = said.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}


def whole(record: Path, line_bytes: int) -> tuple[int, str]:
    """Lines of a record, and what is wrong with it."""
    stem = record / "lines"
    index = read_index(suffixed(stem, ".idx"))
    size = suffixed(stem, ".raw").stat().st_size
    if size != len(index) * line_bytes or suffixed(stem, ".idx").stat().st_size != len(index) * RECORD.itemsize:
        return len(index), f"{size} bytes for {len(index)} lines"
    return len(index), ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of so many bytes on a folder, where this process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def full_disks(bundle: Path, folder: Path, bands: int) -> list[Row]:
    """Records on file systems of a few MiB, and of files that may not grow beyond as many."""
    rows = []
    for way in ("file system", "file size limit"):
        found: Counter[str] = Counter()
        seconds, missed = [], []
        for number in steps(len(SIZES), f"full disk, {way}"):
            size, disk = SIZES[number], folder / f"{way}-{number}".replace(" ", "-")
            limits = {resource.RLIMIT_FSIZE: size} if way == "file size limit" else None
            with small_disk(disk, size) if limits is None else made(disk) as there:
                if not there:
                    break
                words = (
                    "--source",
                    f"sim:rate={RATE},samples={SAMPLES}",
                    "--record",
                    disk / "record",
                    "--duration",
                    60,
                )
                began = time.perf_counter()
                code, told = ended(start(bundle, *words, limits=limits))
                seconds.append(time.perf_counter() - began)
                lines, wrong = whole(disk / "record", 2 * bands * SAMPLES)
            counts = told.get("lines", {})
            wrong = wrong or ("" if code == 3 else f"exit code {code}")
            if counts.get("recorded") != lines or lines == 0:
                wrong = wrong or f"{lines} lines on disk, told {counts}"
            if wrong:
                missed.append(f"full disk ({way} {size}): {wrong}")
            else:
                found["exit code 3, whole lines, as counted"] += 1
        if not seconds:
            rows.append(Row(f"a full disk ({way})", 0, "left out: it takes root to mount one", "-", "-"))
            continue
        effect = "none on what is recorded"
        rows.append(Row(f"a full disk ({way})", len(seconds), counted(found), spread(seconds), effect, missed))
    return rows


@contextmanager
def made(folder: Path) -> Iterator[bool]:
    folder.mkdir()
    yield True


HOLD = """
import json, resource, selectors, socket, sys, time

# So many connections to ports of this machine, each opened anew when it ends, a byte on each every second.
count, seconds, ports = int(sys.argv[1]), float(sys.argv[2]), list(map(int, sys.argv[3:]))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
count = min(count, hard - 64) if hard != resource.RLIM_INFINITY else count
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, hard))
waiting, held, most, opened = selectors.DefaultSelector(), set(), 0, 0


def begin(number):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", ports[number % len(ports)]))
    waiting.register(one, selectors.EVENT_WRITE, number)


def again(one, number):
    waiting.unregister(one)
    held.discard(one)
    one.close()
    begin(number)


for number in range(count):
    begin(number)
end, next_byte = time.monotonic() + seconds, time.monotonic() + 1
while time.monotonic() < end:
    for key, events in waiting.select(0.1):
        one = key.fileobj
        try:
            if one in held:
                if not one.recv(4096):
                    raise OSError
            else:
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError
                one.send(b"GET ")
                held.add(one)
                opened += 1
                waiting.modify(one, selectors.EVENT_READ, key.data)
        except OSError:
            again(one, key.data)
    most = max(most, len(held))
    if time.monotonic() > next_byte:
        next_byte += 1
        for one in held:
            try:
                one.send(b"a", socket.MSG_DONTWAIT)
            except OSError:
                pass
print(json.dumps({"asked": count, "opened": opened, "most": most}))
"""


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def held_connections(bundle: Path, count: int, folder: Path, bands: int) -> list[Row]:
    """As many as are asked for, from another process, of another user where this one is root."""
    ports = [free_port() for _ in range(3)]
    record, duration = folder / "held", HELD_SECONDS + 5
    words = (
        "--source", f"sim:rate={HELD_RATE},samples={SAMPLES}", "--record", record, "--duration", duration,
        "--publish", ports[0], "--web", ports[1], "--prometheus", ports[2],
    )  # fmt: skip
    process = start(bundle, *words, limits={resource.RLIMIT_NOFILE: DESCRIPTORS})
    try:
        wait(lambda: all(map(answers, ports)) or process.poll() is not None)
        holder = subprocess.Popen(
            [sys.executable, "-I", "-c", HOLD, str(count), str(HELD_SECONDS), *map(str, ports)], **stranger(),
        )  # fmt: skip
        most = 0
        while holder.poll() is None:
            most = max(most, descriptors(process.pid))
            time.sleep(0.1)
        assert holder.stdout is not None
        with holder.stdout:
            held = json.loads(holder.stdout.read())
        code, told = ended(process)
    finally:
        process.kill()
    lines, wrong = whole(record, 2 * bands * SAMPLES)
    counts = told.get("lines", {})
    if code or wrong or counts.get("incomplete") or not lines == counts.get("recorded") == counts.get("in"):
        wrong = f"{held}: exit code {code}, {lines} lines on disk, told {counts} {wrong}"
    elif lines < 0.8 * HELD_RATE * duration:
        wrong = f"{lines} lines in {duration} s"
    found = f"bounds of each listener and descriptors held back: {most} of {DESCRIPTORS} in use at most, "
    found += f"{held['most']} connections at once, {held['opened']} in {HELD_SECONDS} s"
    effect = f"{counts.get('incomplete')} lines lost" if wrong else f"none: all {lines} lines recorded"
    missed = [f"held connections: {wrong}"] if wrong else []
    return [Row("connections held by a stranger", held["asked"], found, "-", effect, missed)]


def stranger() -> dict[str, Any]:
    """How a process of another user is started; of this one where it may not, or may not run this Python."""
    plain = {"stdout": subprocess.PIPE, "text": True}
    if os.geteuid():
        return plain
    nobody = pwd.getpwnam("nobody")
    other = {**plain, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    try:
        subprocess.run([sys.executable, "-I", "-c", ""], check=True, **{**other, "stdout": subprocess.DEVNULL})
    except (OSError, subprocess.CalledProcessError):
        return plain
    return other


def descriptors(process: int) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208
    except OSError:
        return 0


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not until():
        if time.monotonic() > end:
            raise SystemExit("the stream did not begin")
        time.sleep(0.1)
