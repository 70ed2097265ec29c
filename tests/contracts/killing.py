"""A process that is killed before any one thing that it does to the file system."""

import os
import signal
import sys
from collections.abc import Callable


def killed(kill_at: int, write: Callable[[], object]) -> int:
    """Write in another process, which is killed before it does one more thing to the file system; its exit code."""
    child = os.fork()
    if child == 0:
        left = kill_at

        def counted(event: str, _: object) -> None:
            nonlocal left
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(counted)
        write()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
