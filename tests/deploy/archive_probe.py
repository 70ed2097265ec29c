"""What a process that opens strangers' files is tried with."""

import errno
import os
import socket
import time


def tried(what: str) -> str:
    """What became of taking the network, or 1 GiB of memory; `die` ends the process."""
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "network":
        try:
            socket.socket()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "open"
    try:
        bytearray(1 << 30)
    except MemoryError:
        return "MemoryError"
    return "there"


def dying(number: int) -> int:
    """The number; the process that gets 6 ends after a while."""
    if number == 6:
        time.sleep(0.3)
        os._exit(1)
    return number
