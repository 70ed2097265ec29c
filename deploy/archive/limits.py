"""What a process that opens strangers' files may take: memory up to a limit, and no network."""

import ctypes
import errno
import os
import platform
import resource
import threading
from contextlib import suppress
from pathlib import Path

_OURS = threading.local()
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2
"""PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER (linux/prctl.h, linux/seccomp.h)."""
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EACCES
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
"""BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, ... | BPF_JGE, BPF_RET | BPF_K (linux/filter.h)."""
_IO_URING = 425
_M_ARENA_MAX, _ARENAS, _ARENA_BYTES = -8, 2, 1 << 27
"""mallopt(3): regions of which each thread may have one; address space that one takes at most (malloc.h, arena.c)."""
_CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""Machine -> AUDIT_ARCH of its system calls (linux/audit.h), and number of `socket`."""


class _Step(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def close_network() -> bool:
    """Refuse this thread, and what it starts from now on, every new socket (seccomp(2)); what is open stays open.

    Returns:
        False where this system cannot; then nothing was done.
    """
    if getattr(_OURS, "closed", None) is None:
        _OURS.closed = _filtered()
    closed: bool = _OURS.closed
    return closed


def _filtered() -> bool:
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        return False
    architecture, socket = _CALLS[platform.machine()]
    deny = 7
    steps = [
        (_LOAD, 0, 0, 4),  # the architecture of the call
        (_EQUAL, 0, deny - 2, architecture),
        (_LOAD, 0, 0, 0),  # its number
        (_AT_LEAST, deny - 4, 0, 0x40000000),  # the second numbering of x86_64
        (_EQUAL, deny - 5, 0, socket),
        (_EQUAL, deny - 6, 0, _IO_URING),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]
    program = _Program(len(steps), (_Step * len(steps))(*(_Step(*step) for step in steps)))
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return False
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    if prctl(_NO_NEW_PRIVS, 1, None, 0, 0) != 0:
        return False
    done: int = prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)
    return done == 0


def bound_memory(more: int) -> None:
    """Let this process's address space grow by at most `more` bytes: what is beyond is a MemoryError here.

    What malloc sets aside for each thread, and does not use, comes on top.
    """
    with suppress(OSError, AttributeError):
        # More of these would eat up the limit, product after product.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        wanted = pages * os.sysconf("SC_PAGE_SIZE") + more + _ARENAS * _ARENA_BYTES
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *known]), hard))
