"""Restoration yields to the lines, and nobody else does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.priority import NICENESS, ROOM, yield_to_others

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads have a niceness on Linux only")

PROGRAM = """
import os, threading
from runtime.priority import let_workers_yield
gate = threading.Event()
worker = threading.Thread(target=gate.wait)
worker.start()
before = os.getpriority(os.PRIO_PROCESS, 0)
assert let_workers_yield() >= 1
now = [os.getpriority(os.PRIO_PROCESS, t) for t in (worker.native_id, threading.get_native_id())]
print(*(n - before for n in now))
gate.set()
"""


@linux
def test_workers_yield_and_the_caller_does_not() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    worker, caller = map(int, done.stdout.split())
    assert worker > 0 == caller


@linux
def test_a_thread_and_those_that_it_makes_yield() -> None:
    found: list[int] = []

    def look() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def work() -> None:
        yield_to_others()
        look()
        child = threading.Thread(target=look)
        child.start()
        child.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [NICENESS, NICENESS]
    look()
    assert found[2] < NICENESS


URGENT = """
import ctypes, os, threading
from runtime.priority import URGENCY, let_go_first
gate, named = threading.Event(), threading.Event()
def work():
    ctypes.CDLL(None).prctl(15, b"a_thread_of_ours", 0, 0, 0)
    named.set()
    gate.wait()
worker = threading.Thread(target=work)
worker.start()
named.wait()
found = let_go_first("a_thread_of_ours")
now = os.getpriority(os.PRIO_PROCESS, worker.native_id)
gate.set()
may = os.geteuid() == 0 or found
assert not may or (found, now) == (1, URGENCY), (found, now)
assert let_go_first("nobody is called so") == 0
"""


READING_BACK = """
import os, threading, time
from runtime.priority import ROOM
from runtime.record.ring import Ring
os.nice(3)
ring = Ring(1 << 30)
(thread,) = [t for t in threading.enumerate() if t.name == "ring-verify"]
until = time.monotonic() + 20
while (found := os.getpriority(os.PRIO_PROCESS, thread.native_id)) != 3 + ROOM and time.monotonic() < until:
    time.sleep(0.01)
ring.close()
assert found == 3 + ROOM, found
"""


@linux
def test_what_makes_room_for_lines_goes_before_restoration() -> None:
    assert 0 < ROOM < NICENESS
    subprocess.run([sys.executable, "-c", READING_BACK], cwd=ROOT, check=True, timeout=60)


@linux
def test_a_thread_goes_first_where_that_is_allowed() -> None:
    subprocess.run([sys.executable, "-c", URGENT], cwd=ROOT, check=True, timeout=30)
