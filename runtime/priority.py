"""Who goes first where there are too few cores: lines, then what makes room for them, restoration behind it.

Linux gives every thread a niceness of its own, and a new thread that of the one that made it (sched(7)).
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

NICENESS, ROOM, URGENCY = 10, 5, -10
"""Beside what the process was started with."""
NAME_CHARACTERS = 15
"""The kernel keeps so much of a thread's name (proc(5), /proc/pid/comm)."""


def yield_to_others(thread: int | None = None, by: int = NICENESS) -> None:
    """Let a thread of this process, by default the caller, and those that it makes later, wait for all others.

    Less (ROOM) is for what lines wait for in the end.

    Does nothing where the system has no such thing.
    """
    with suppress(OSError, AttributeError):
        _put(threading.get_native_id() if thread is None else thread, by)


def _put(thread: int, beside: int) -> None:
    # The main thread's, which never changes its own.
    usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
    os.setpriority(os.PRIO_PROCESS, thread, usual + beside)


def let_workers_yield() -> int:
    """Every thread that there is, but for the caller, yields: the engine's workers, once it is loaded.

    Returns:
        how many they are.
    """
    try:
        threads = [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
    except OSError:
        return 0
    others = [thread for thread in threads if thread != threading.get_native_id()]
    for thread in others:
        yield_to_others(thread)
    return len(others)


def go_first() -> None:
    """Let the calling thread go before all others, where this process may do that (root, or RLIMIT_NICE)."""
    with suppress(OSError, AttributeError):
        _put(threading.get_native_id(), URGENCY)


def let_go_first(name: str) -> int:
    """Threads of this name go before all others, where this process may do that (root, or RLIMIT_NICE).

    Returns:
        how many do now.
    """
    changed = 0
    with suppress(OSError):
        for entry in Path("/proc/self/task").iterdir():
            with suppress(OSError, AttributeError):
                if (entry / "comm").read_text().strip() == name[:NAME_CHARACTERS]:
                    _put(int(entry.name), URGENCY)
                    changed += 1
    return changed
